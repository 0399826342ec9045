"""Finds the MD-Conv plugin: the library that the user names, the bundle's own, or the installed one."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import NamedTuple

from edge.bundle import PLUGIN_LIBRARY, Bundle, sha256_of
from edge.errors import MachineError, describe_os_error

PLUGIN_VARIABLE = "MDCONV_PLUGIN"
"""Environment variable that names a library to take before all others."""

INSTALLED_PLUGIN = Path(__file__).resolve().parent / "lib" / PLUGIN_LIBRARY
"""Where `make plugin` and an installation put the library."""

NOT_BUILT = INSTALLED_PLUGIN.with_name("not_built.txt")
"""Why the installation built none, in one line; absent where it built one, or never tried."""

PLUGIN_SAYS = "MDConv: "
"""What each message of the plugin begins with."""

_ELF_MACHINES = {62: "x86_64", 183: "aarch64"}  # e_machine, elf.h


class PluginLibrary(NamedTuple):
    """A library that fits this machine's processor."""

    path: Path
    sha256: str
    origin: str
    """"MDCONV_PLUGIN", "bundle" or "installed"."""


def find_plugin(bundle: Bundle | None = None) -> PluginLibrary:
    """The plugin library to load: that of ``MDCONV_PLUGIN``, else the bundle's own, else the installed one.

    A bundle's own is passed over where it was built for another processor. Raises `MachineError`, which says what was
    wrong with each and how to get one; whatever ``MDCONV_PLUGIN`` names is taken or refused, never passed over.
    """
    chosen = os.environ.get(PLUGIN_VARIABLE)
    if chosen:
        path = Path(chosen).absolute()
        unfit = why_unfit(path)
        if unfit:
            raise MachineError(
                f"{PLUGIN_VARIABLE} names {path}, which {unfit}: name another library, or unset the variable"
            )
        return PluginLibrary(path, sha256_of(path), PLUGIN_VARIABLE)
    candidates = {"installed": INSTALLED_PLUGIN}
    own = bundle.path(PLUGIN_LIBRARY) if bundle is not None else None
    if own is not None:
        candidates = {"bundle": own, **candidates}
    reasons = []
    for origin, path in candidates.items():
        unfit = why_unfit(path)
        if not unfit:
            return PluginLibrary(path, sha256_of(path), origin)
        reasons.append(f"{path} {unfit}")
    raise MachineError(
        f"no MD-Conv plugin for this machine ({'; '.join(reasons)}): run `make plugin` in a checkout, or set "
        f"{PLUGIN_VARIABLE} to a library"
    )


def why_unfit(path: Path) -> str:
    """Why `path` is no shared library for this machine's processor, to be read after its name; empty if it is one."""
    try:
        with path.open("rb") as file:
            head = file.read(20)
    except FileNotFoundError:
        return f"is missing{_why_not_built() if path == INSTALLED_PLUGIN else ''}"
    except OSError as error:
        return f"cannot be read ({describe_os_error(error)})"
    # e_ident: the magic number, 2 for 64 bits, 1 for little-endian. e_machine lies behind it and the type.
    if len(head) < 20 or head[:6] != b"\x7fELF\x02\x01":
        return "is no 64-bit shared library"
    number = int.from_bytes(head[18:20], "little")
    machine = _ELF_MACHINES.get(number, f"ELF machine {number}")
    if machine != platform.machine():
        return f"was built for {machine}, this is {platform.machine()}"
    return ""


def _why_not_built() -> str:
    try:
        return f" (the installation built none: {NOT_BUILT.read_text().strip()})"
    except OSError:
        return ""
