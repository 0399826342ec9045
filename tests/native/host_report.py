"""What the emulator is asked for and what it saw: plugin/host/host_report.h in Python."""

from __future__ import annotations

import ctypes
from ctypes import c_char, c_char_p, c_int32, c_uint64
from dataclasses import dataclass
from typing import Any


class HostOptions(ctypes.Structure):
    _fields_ = tuple((name, c_int32) for name in ("count", "check", "drop_barrier"))


class HostReport(ctypes.Structure):
    _fields_ = (
        *((f"global_{way}_{what}", c_uint64) for way in ("load", "store") for what in ("requests", "sectors")),
        *(
            (f"shared_{way}_{what}", c_uint64)
            for way in ("load", "store")
            for what in ("requests", "wavefronts", "minimum")
        ),
        *((name, c_uint64) for name in ("launches", "blocks", "barrier_sites", "findings")),
        ("messages", c_char * 4096),
        ("sites", c_char * 8192),
    )


@dataclass(frozen=True)
class Report:
    """What the emulator saw. Sectors, requests and wavefronts are 0 unless it counted; findings need `check`."""

    global_load_requests: int
    global_load_sectors: int
    global_store_requests: int
    global_store_sectors: int
    shared_load_requests: int
    shared_load_wavefronts: int
    shared_load_minimum: int
    shared_store_requests: int
    shared_store_wavefronts: int
    shared_store_minimum: int
    launches: int
    blocks: int
    barrier_sites: int
    findings: int
    messages: tuple[str, ...]
    sites: dict[str, tuple[int, int, int]]
    """Line, direction and bytes of an access to shared memory: requests, wavefronts, wavefronts without conflicts."""

    @property
    def global_bytes(self) -> int:
        """Requested by loads and stores: whole sectors of 32 bytes."""
        return 32 * (self.global_load_sectors + self.global_store_sectors)

    @property
    def conflict_share(self) -> float:
        """Share of the wavefronts of shared memory that are there for bank conflicts alone."""
        wavefronts = self.shared_load_wavefronts + self.shared_store_wavefronts
        return 1 - (self.shared_load_minimum + self.shared_store_minimum) / max(wavefronts, 1)


def report_of(seen: HostReport) -> Report:
    names = (field[0] for field in HostReport._fields_)
    numbers = {name: getattr(seen, name) for name in names if name not in ("messages", "sites")}
    sites = {}
    for line in seen.sites.decode().splitlines():
        place, requests, wavefronts, minimum = line.split("\t")
        sites[place] = int(requests), int(wavefronts), int(minimum)
    return Report(**numbers, messages=tuple(seen.messages.decode().splitlines()), sites=sites)


def error_name(library: Any, error: int) -> str:
    """The name of a cudaError_t, by a library that has host_report.cpp."""
    library.mdconv_host_error_name.restype = c_char_p
    return str(library.mdconv_host_error_name(error).decode())
