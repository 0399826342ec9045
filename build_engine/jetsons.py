"""Peak figures of Jetson modules, as NVIDIA publishes them: what `build_engine.modelled_latency` divides by.

Nothing here was measured. Sources, each with its number:

- Orin Nano: data sheet DS-11105-001 v1.5, chapter 1 (``MAXN_SUPER`` is the Super mode of JetPack 6.2 and later);
- Orin NX: data sheet DS-10712-001 v1.5, chapter 1, and 102.4 GB/s for the 102 GB/s there, as the product page has it;
- AGX Orin: data sheet DS-10662-001 v1.6, tables 1-1 and 1-2; 256 bit LPDDR5 at 3200 MHz is 204.8 GB/s;
- Thor T5000 and T4000: data sheet DS-11945-001 (versions 1.2 to 1.5), read in others' transcriptions, not itself.

Rates follow from cores and clock. A test holds them against the operations a second that the sheets print.
"""

from __future__ import annotations

from typing import NamedTuple

from edge.errors import UsageError

CORES_PER_MULTIPROCESSOR = 128


class Family(NamedTuple):
    """What the modules of one GPU architecture share."""

    tensor_int8: int
    """Dense int8 operations (two a multiply-accumulate) that a multiprocessor's tensor cores finish in a clock."""

    def tensor(self, dtype: str) -> float:
        """As `tensor_int8`, of "int8", "float16" or "tf32": each twice as wide and half as fast as the one before."""
        return self.tensor_int8 / {"int8": 1, "float16": 2, "tf32": 4}[dtype]


ORIN = Family(4096)  # 85 dense int8 TOPS of AGX Orin 64 GB (half of 170 sparse) from 16 multiprocessors at 1.3 GHz
THOR = Family(16384)  # 517 dense FP8 TFLOPS of the T5000 (a quarter of 2070 sparse FP4); int8 is taken to be as fast

_CUDA_CORE = {"int8": 8, "float16": 4, "float32": 2}
"""Operations of a CUDA core in a clock: four int8 products by one IDP.4A, two packed float16 or one float32,
each with its addition. IDP.4A runs at half that rate on some Ampere chips; the higher one keeps a floor a floor."""


class Jetson(NamedTuple):
    """A module in one power mode."""

    name: str
    family: Family
    gigabytes: float
    """A second, between GPU and memory."""
    cores: int
    megahertz: float
    """The GPU's highest clock in that mode."""

    def peak(self, unit: str, dtype: str) -> float:
        """Operations a second of the "tensor" or "cuda" cores in "int8", "float16", "float32" or "tf32".

        Tensor cores have no float32: that runs on the CUDA cores.
        """
        if unit == "tensor" and dtype != "float32":
            return self.cores / CORES_PER_MULTIPROCESSOR * self.megahertz * 1e6 * self.family.tensor(dtype)
        return self.cores * self.megahertz * 1e6 * _CUDA_CORE["float32" if dtype == "tf32" else dtype]


JETSONS = (
    Jetson("Orin Nano 4 GB", ORIN, 34, 512, 625),
    Jetson("Orin Nano 4 GB Super", ORIN, 51, 512, 1020),
    Jetson("Orin Nano 8 GB", ORIN, 68, 1024, 625),
    Jetson("Orin Nano 8 GB Super", ORIN, 102, 1024, 1020),
    Jetson("Orin NX 8 GB", ORIN, 102.4, 1024, 765),
    Jetson("Orin NX 8 GB Super", ORIN, 102.4, 1024, 1173),
    Jetson("Orin NX 16 GB", ORIN, 102.4, 1024, 918),
    Jetson("Orin NX 16 GB Super", ORIN, 102.4, 1024, 1173),
    Jetson("AGX Orin 32 GB", ORIN, 204.8, 1792, 939),
    Jetson("AGX Orin 64 GB", ORIN, 204.8, 2048, 1300),
    Jetson("Thor T4000", THOR, 273, 1536, 1530),
    Jetson("Thor T5000", THOR, 273, 2560, 1575),
)


def jetson(name: str) -> Jetson:
    """The module of that name, spaces and case aside. Raises `UsageError` for any other."""
    wanted = _plain(name)
    for module in JETSONS:
        if _plain(module.name) == wanted:
            return module
    raise UsageError(f"module {name!r} is none of {', '.join(module.name for module in JETSONS)}")


def _plain(name: str) -> str:
    return "".join(name.casefold().split()).removeprefix("jetson")
