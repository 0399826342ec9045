"""What this machine has, what is missing, and what to do about it."""

from __future__ import annotations

import ctypes
import importlib
import platform
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from edge.backends import X86
from edge.bundle import ENGINE, load_bundle
from edge.errors import BundleError, EdgeError, MachineError
from edge.gate import require_gate
from edge.plugin_library import find_plugin
from edge.telemetry import UNAVAILABLE, Sampler, machine_facts

DISK_MB = 500
"""Free space below which a ledger, or an engine built here, may soon not fit."""

MEMORY_MB = 512
"""Free memory below which one large radiograph may not be decoded beside the network."""

TENSORRT = ((10, 3), (12, 0))
"""TensorRT releases that the code is written for: from the first, before the second."""


@dataclass(frozen=True)
class Finding:
    """One line of the examination."""

    what: str
    ok: bool
    detail: str
    advice: str = ""
    needed: bool = False
    """Whether nothing runs without it; else its lack only takes something away."""


def examine(bundle: Path | None = None, root: Path = Path("/"), *, public_key: Path | None = None) -> list[Finding]:
    """Look at the machine, and at a bundle's files if one is named. Opens no GPU context and builds nothing.

    The bundle must be signed by `public_key`, if there is one. `root` holds ``proc``, ``sys``, ``etc`` and ``var``, as
    in `edge.telemetry`.
    """
    libraries = [library(*facts) for facts in _LIBRARIES]
    tensorrt = [
        _tensorrt(),
        library("pycuda.driver", "pycuda", "it drives the GPU: pip install pycuda"),
        _cuda(),
    ]
    plugin = _plugin()
    host = list(_host_backends())
    findings = [_python(), *libraries, *_decoders(), *host, *tensorrt, plugin]
    gpu_works = all(finding.ok for finding in tensorrt)
    findings.append(_backends([*(["tensorrt"] if gpu_works else []), *(found.what for found in host if found.ok)]))
    findings += [*_jetson(root, gpu_works), _memory(root), _disk(bundle or Path.cwd())]
    if bundle is not None:
        findings.append(_bundle(bundle, public_key))
    return findings


def render(findings: list[Finding], color: bool = False) -> str:
    """The findings as text, one line each, advice below what is not as it should be."""
    width = max(len(finding.what) for finding in findings)
    lines = []
    for finding in findings:
        mark = "ok" if finding.ok else "MISSING" if finding.needed else "-"
        tint = "32" if finding.ok else "31" if finding.needed else "33"
        shown = f"\033[{tint}m{mark:<8}\033[0m" if color else f"{mark:<8}"
        lines.append(f"{shown}{finding.what:<{width}}  {finding.detail}")
        if not finding.ok and finding.advice:
            lines.append(f"{'':<8}{'':<{width}}  -> {finding.advice}")
    return "\n".join(lines)


_LIBRARIES = (
    ("numpy", "numpy", "pip install numpy", True),
    ("cv2", "opencv-python-headless", "it reads and resizes images: pip install opencv-python-headless", True),
    ("pydicom", "pydicom", "it reads DICOM: pip install pydicom", True),
    ("simplejpeg", "simplejpeg", "it reads JPEG: pip install simplejpeg", True),
)


def library(module: str, package: str, advice: str, needed: bool = False) -> Finding:
    try:
        importlib.import_module(module)
    except Exception as error:  # a broken native library may raise anything
        return Finding(package, False, f"cannot be loaded: {' '.join(str(error).split())}", advice, needed)
    version = UNAVAILABLE
    with suppress(metadata.PackageNotFoundError):
        version = metadata.version(package)
    return Finding(package, True, version)


def _decoders() -> Iterator[Finding]:
    """Whether compressed DICOM can be decoded; without a decoder its files are refused, and others are not."""
    try:
        from edge.codecs import missing_packages
    except ImportError:
        return  # the missing pydicom has its own line
    for what, syntax in _COMPRESSED.items():
        missing = missing_packages(syntax)
        yield Finding(what, not missing, "refused" if missing else "decoded", f"pip install {missing}")


_COMPRESSED = {
    "DICOM JPEG lossless": "1.2.840.10008.1.2.4.70",
    "DICOM JPEG-LS": "1.2.840.10008.1.2.4.80",
    "DICOM JPEG 2000": "1.2.840.10008.1.2.4.90",
    "DICOM RLE": "1.2.840.10008.1.2.5",
}


def _python() -> Finding:
    version = ".".join(str(part) for part in sys.version_info[:3])
    good = (3, 10) <= sys.version_info[:2] <= (3, 13)
    return Finding("Python", good, version, "install Python 3.10 to 3.13", needed=True)


def _tensorrt() -> Finding:
    what = "TensorRT"
    try:
        import tensorrt

        version = str(tensorrt.__version__)
    except Exception as error:  # as above
        advice = (
            "on a Jetson it comes with JetPack: apt install nvidia-jetpack, and let the environment see system packages"
        )
        return Finding(what, False, f"cannot be loaded: {' '.join(str(error).split())}", advice)
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    return Finding(
        what, TENSORRT[0] <= numbers < TENSORRT[1], version, "install TensorRT 10.3 to 11.x (JetPack 6.1 or later)"
    )


def _cuda() -> Finding:
    what, advice = "CUDA device", "without a GPU, bundles run on the processor"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Finding(what, False, "no CUDA driver (libcuda.so.1) on this machine", advice)
    status = driver.cuInit(0)
    if status != 0:
        return Finding(
            what, False, f"the CUDA driver does not start (cuInit returned {status})", f"check `nvidia-smi`; {advice}"
        )
    count, device = ctypes.c_int(), ctypes.c_int()
    if driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return Finding(what, False, "the CUDA driver sees no GPU", advice)
    name, major, minor = ctypes.create_string_buffer(256), ctypes.c_int(), ctypes.c_int()
    driver.cuDeviceGet(ctypes.byref(device), 0)
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceGetAttribute(ctypes.byref(major), _CAPABILITY_MAJOR, device)
    driver.cuDeviceGetAttribute(ctypes.byref(minor), _CAPABILITY_MINOR, device)
    return Finding(what, True, f"{name.value.decode(errors='replace')}, sm_{major.value}{minor.value}")


_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*, cuda.h


def _plugin() -> Finding:
    """The machine's own plugin library; a bundle that was made for the plugin may bring another."""
    what, advice = "MD-Conv plugin", "a bundle that was made for the plugin and brings none runs its fallback model"
    try:
        plugin = find_plugin()
    except MachineError as error:
        return Finding(what, False, str(error), advice)
    return Finding(what, True, f"{plugin.path} ({plugin.origin}, SHA-256 {plugin.sha256[:16]}...)")


def _host_backends() -> Iterator[Finding]:
    """The backends that need no GPU, the faster first."""
    if platform.machine() in X86:
        advice = "it runs bundles faster than ONNX Runtime, INT8 ones many times: pip install 'mdconv-edge[openvino]'"
        yield library("edge.backends.openvino", "openvino", advice)  # which keeps its telemetry out
    advice = "it runs bundles without a GPU: pip install 'mdconv-edge[onnxruntime]'"
    yield library("onnxruntime", "onnxruntime", advice)


def _backends(works: list[str]) -> Finding:
    detail = f"auto takes {works[0]}" if works else "none works here"
    return Finding("backend", bool(works), detail, "install one of those above", needed=True)


def _jetson(root: Path, gpu: bool) -> Iterator[Finding]:
    facts = machine_facts(root)
    if facts["jetson"] == UNAVAILABLE:
        if gpu:
            return
        yield Finding(
            "Jetson", False, "this machine is none", "nothing to do: bundles run here too, without the GPU path"
        )
        return
    yield Finding("Jetson", True, f"{facts['jetson']}, L4T {facts['l4t']}")
    mode: Any = facts["power_mode"]
    known = mode != UNAVAILABLE
    yield Finding("power mode", known, mode["name"] if known else "cannot be read", "set one: sudo nvpmodel -m 0")
    gpu_clocks: Any = facts["clocks"]["gpu"]
    locked = gpu_clocks != UNAVAILABLE and bool(gpu_clocks["locked"])
    detail = "locked" if locked else "follow the load: measured latencies will vary"
    yield Finding("GPU clocks", locked, detail, "for measuring: sudo jetson_clocks")
    with Sampler(root=root) as sampler:
        pass
    power = sampler.samples[-1]["power_w"]
    yield Finding(
        "power sensors", bool(power), ", ".join(power) or "cannot be read", "reports will say: energy unavailable"
    )


def _memory(root: Path) -> Finding:
    free = UNAVAILABLE
    for line in (root / "proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            free = line.split()[1]
    if free == UNAVAILABLE:
        return Finding("memory", False, "free memory cannot be read")
    megabytes = int(free) // 1024
    return Finding(
        "memory", megabytes >= MEMORY_MB, f"{megabytes} MB free", f"{MEMORY_MB} MB should be: stop other programs"
    )


def _disk(place: Path) -> Finding:
    while not place.exists():
        place = place.parent
    megabytes = shutil.disk_usage(place).free // 1_000_000
    detail = f"{megabytes} MB free at {place.resolve()}"
    return Finding("disk", megabytes >= DISK_MB, detail, f"{DISK_MB} MB should be: free some")


def _bundle(directory: Path, public_key: Path | None) -> Finding:
    try:
        bundle = load_bundle(directory, public_key)
        from edge.preprocess import Preprocess

        Preprocess.from_manifest(bundle.manifest["preprocess"])
    except (EdgeError, OSError) as error:
        return Finding("bundle", False, str(error), "see above", needed=True)
    engine = "holds an engine" if bundle.path(ENGINE) else "no engine: TensorRT builds one at first load"
    detail = f"{bundle.name}: {bundle.precision}, {len(bundle.manifest['files'])} files verified; {engine}"
    try:
        require_gate(bundle.manifest)
    except BundleError as error:
        return Finding("bundle", False, f"{detail}; {error}", "see above", needed=True)
    detail += f"; accuracy gate: {bundle.gate_verdict}"
    detail += f"; signature: {bundle.signature}"
    return Finding("bundle", True, f"{detail}; try it: edge-infer selftest --bundle {directory}")
