"""Modelled latency of a network on Jetson modules: a floor, and the range in which to expect it. Nothing is measured.

    python -m build_engine.modelled_latency BUNDLE|MODEL.onnx [--module "Orin Nano 8 GB"] [--precision int8]
                                            [--lowering plugin] [--batch 1] [--json]

**Floor**: a kernel (`build_engine.graph_cost`) takes at least as long as its bytes take at the module's memory
bandwidth, and as its operations take at the peak rate of the cores that do them (`build_engine.jetsons`). A tensor that
is still in a cache can be faster than the first. **Expected**: the floor by the share of the peak that kernels reach,
and a number of GPU clocks a kernel for its start and its end (`FASTEST`, `SLOWEST`). Copies between CPU and GPU, and
the CPU's part, are not in it: compare with the GPU time of a report.

With one module and one variant left, the kernels are listed one by one.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from build_engine.graph_cost import KernelCost
from build_engine.jetsons import JETSONS, Jetson, jetson
from build_engine.lowering import KINDS
from build_engine.modelled_variants import Variant, chosen, variants
from edge.bundle import PRECISIONS
from edge.errors import EdgeError, UsageError

MODELLED = "Modelled, not measured: none of this ran on a Jetson. The range is fitted to Orins; for Thor it is a guess."


class Band(NamedTuple):
    """One end of what to expect."""

    share: float
    """Of the peak that a kernel reaches."""
    clocks: float
    """Of the GPU, for a kernel's start and end."""


FASTEST = Band(0.84, 7600)
SLOWEST = Band(0.49, 9700)
"""0.84 is the share of an Orin Nano's memory bandwidth that a decoder reaches which streams its weights (onnxsim,
scripts/nvidia/README.md, measured there). The other three are fitted to 14 latencies that others published, all of
which lie within; `python -m benchmarks.modelled_against_published` fits them again and names what was held out."""


class KernelTime(NamedTuple):
    """Modelled times of one kernel, in microseconds."""

    memory: float
    operations: float
    low: float
    high: float

    @property
    def floor(self) -> float:
        return max(self.memory, self.operations)

    @property
    def bound(self) -> str:
        return "memory" if self.memory >= self.operations else "operations"


def kernel_time(cost: KernelCost, module: Jetson, tf32: bool = False) -> KernelTime:
    """Modelled time of one kernel on `module`; `tf32` lets float32 convolutions run on the tensor cores.

    Engines of `edge.engine_from_onnx` are built without TF32; TensorRT's own default is with it.
    """
    memory = cost.bytes / module.gigabytes * 1e-3
    dtype = "tf32" if tf32 and cost.dtype == "float32" else cost.dtype
    operations = cost.operations / module.peak(cost.unit, dtype) * 1e6
    floor = max(memory, operations)
    low, high = (floor / band.share + band.clocks / module.megahertz for band in (FASTEST, SLOWEST))
    return KernelTime(memory, operations, low, high)


class Modelled(NamedTuple):
    """Modelled latency of a whole network, in milliseconds."""

    floor: float
    low: float
    high: float


def modelled(times: Sequence[KernelTime]) -> Modelled:
    """The sums of `times`, one kernel after the other."""
    sums = (sum(time.floor for time in times), sum(time.low for time in times), sum(time.high for time in times))
    return Modelled(*(total * 1e-3 for total in sums))


def as_json(name: str, found: Sequence[Variant], modules: Sequence[Jetson], batch: int) -> dict[str, Any]:
    """Everything: of each variant the kernels' costs, and on each module the modelled times of all and of each."""
    return {
        "note": MODELLED,
        "modelled": True,
        "name": name,
        "batch": batch,
        "expected": {"fastest": FASTEST._asdict(), "slowest": SLOWEST._asdict()},
        "variants": [
            {
                "precision": each.precision,
                "lowering": each.lowering,
                "left_out": each.left_out,
                "kernels": [kernel._asdict() for kernel in each.kernels],
                "modelled_ms": {module.name: _module_json(each, module) for module in modules if each.kernels},
            }
            for each in found
        ],
    }


def _module_json(variant: Variant, module: Jetson) -> dict[str, Any]:
    times = [kernel_time(kernel, module) for kernel in variant.kernels]
    rows = [{"floor_us": time.floor, **{f"{k}_us": v for k, v in time._asdict().items()}} for time in times]
    return {**modelled(times)._asdict(), "kernels": rows}


def as_text(name: str, found: Sequence[Variant], modules: Sequence[Jetson], batch: int) -> str:
    """A table for each precision, in which a row is a module; with one module and one variant also its kernels."""
    lines = [MODELLED, f"{name}, batch {batch}; milliseconds: floor, and between which two to expect it"]
    for precision in dict.fromkeys(each.precision for each in found):
        columns = [each for each in found if each.precision == precision]
        lines += ["", f"{precision}, modelled", f"{'':22}" + "".join(f"{each.lowering:>24}" for each in columns)]
        for module in modules:
            lines.append(f"{module.name:22}" + "".join(f"{_cell(each, module):>24}" for each in columns))
        lines += [_amounts(each) for each in columns]
    if len(modules) == len(found) == 1 and found[0].kernels:
        lines += ["", *_kernel_lines(found[0], modules[0])]
    return "\n".join(lines)


def _cell(variant: Variant, module: Jetson) -> str:
    if variant.left_out:
        return "left out"
    floor, low, high = modelled([kernel_time(kernel, module) for kernel in variant.kernels])
    return f"{floor:.3f}  {low:.2f} to {high:.2f}"


def _amounts(variant: Variant) -> str:
    if variant.left_out:
        return f"{variant.lowering}: {variant.left_out}"
    moved = sum(kernel.bytes for kernel in variant.kernels) / 1e6
    operations = sum(kernel.operations for kernel in variant.kernels) / 1e9
    return f"{variant.lowering}: {len(variant.kernels)} kernels, {moved:.1f} MB, {operations:.3f} billion operations"


def _kernel_lines(variant: Variant, module: Jetson) -> list[str]:
    lines = [
        f"kernels on {module.name}, modelled, microseconds",
        f"{'kernel':36}{'kind':18}{'type':9}{'KB':>9}{'Mop':>9}{'floor':>9}{'low':>8}{'high':>8}  bound",
    ]
    for kernel in variant.kernels:
        time = kernel_time(kernel, module)
        lines.append(
            f"{kernel.name[-35:]:36}{kernel.kind:18}{kernel.dtype:9}{kernel.bytes / 1e3:9.1f}"
            f"{kernel.operations / 1e6:9.1f}{time.floor:9.2f}{time.low:8.1f}{time.high:8.1f}  {time.bound}"
        )
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m build_engine.modelled_latency", description=f"Modelled latency on Jetson modules. {MODELLED}"
    )
    parser.add_argument("model", type=Path, help="a bundle's directory, or an ONNX file")
    parser.add_argument("--module", help=f"one of {', '.join(module.name for module in JETSONS)} (default: all)")
    parser.add_argument("--precision", choices=PRECISIONS, help="default: all that the network has")
    parser.add_argument("--lowering", choices=KINDS, help="of MD-Conv (default: all)")
    parser.add_argument("--batch", type=int, default=1, help="images an inference, where the model leaves it open")
    parser.add_argument("--json", action="store_true", help="all figures, kernel by kernel, as JSON")
    options = parser.parse_args(arguments)
    try:
        if options.batch < 1:
            raise UsageError(f"--batch {options.batch}: expected 1 or more")
        modules = [jetson(options.module)] if options.module else JETSONS
        name, found = variants(options.model, options.batch)
        found = chosen(found, options.precision, options.lowering)
    except EdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    if options.json:
        print(json.dumps(as_json(name, found, modules, options.batch), indent=1))
    else:
        print(as_text(name, found, modules, options.batch))
    return 0


if __name__ == "__main__":
    sys.exit(main())
