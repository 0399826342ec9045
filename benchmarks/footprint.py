"""What mdconv-edge takes of a machine: disk, start-up, memory; ends with status 1 if that is more than it may be.

    python -m benchmarks.footprint BUNDLE [install] [start] [memory] [engine] [--repeats 9]

Without names, all of them, which takes some two minutes. `install` needs a package index: it installs this checkout
into an environment of its own, and then one extra after the other on top. `memory` runs the daemon with folder, HTTP
and DICOM, once on each backend of processors that is installed here. `engine` needs TensorRT on a GPU, as a Jetson
has it: elsewhere it is left out, and says so.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from pydicom.data import get_testdata_file

from edge.backends.tensorrt import probe_platform
from edge.bundle import load_bundle
from edge.engine_cache import engine_source
from edge.engine_from_onnx import build_engine
from edge.errors import MachineError
from tests.system.daemon import free_port, serving

ROOT = Path(__file__).resolve().parents[1]
EDGE_INFER = Path(sys.executable).with_name("edge-infer")

INSTALL_MB, START_SECONDS, MEMORY_MB = 300, 1.2, 250
"""Limits. The megabytes of a disk are 10**6 bytes, those of memory 2**20, as ``ps`` and ``top`` have them."""

TOOLS = ("pip", "setuptools")
"""What a new environment brings by itself."""

EXTRAS = ("onnxruntime", "openvino", "gdcm", "serve")
"""In the order in which they are put on top of the base."""

SHOWN = 8
"""Rows of a table."""

IMAGES = 40

Check = tuple[str, bool]


# ---- disk


def by_distribution(site_packages: Path) -> Counter[str]:
    """Bytes of the files below `site_packages`, by the distribution (name and version) whose record lists them."""
    owners = {
        os.path.normpath(site_packages / file): f"{distribution.name} {distribution.version}"
        for distribution in metadata.distributions(path=[str(site_packages)])
        for file in distribution.files or ()
    }
    sizes: Counter[str] = Counter()
    for path in site_packages.rglob("*"):
        if path.is_file() and not path.is_symlink():
            sizes[owners.get(str(path), "in no record")] += path.stat().st_size
    return sizes


def megabytes(sizes: Counter[str]) -> dict[str, float]:
    """The same in MB, without the environment's own tools."""
    return {name: size / 1e6 for name, size in sizes.items() if name.split()[0] not in TOOLS}


def install(place: Path, options: argparse.Namespace) -> Iterator[Check]:
    # A copy, since building writes into the folder that it builds.
    source = place / "source"
    left_out = shutil.ignore_patterns(".*", "build", "out", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=left_out)
    subprocess.run([sys.executable, "-m", "venv", place / "venv"], check=True)
    python = place / "venv" / "bin" / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    site_packages = Path(found.stdout.strip())
    pip: list[str | Path] = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    subprocess.run([*pip, source], check=True)
    installed = by_distribution(site_packages)
    base = total = sum(megabytes(installed).values())
    tools = sum(installed.values()) / 1e6 - base
    show(f"base install, {base:.1f} MB, {' and '.join(TOOLS)} ({tools:.1f} MB) apart", megabytes(installed), "MB")
    for extra in EXTRAS:
        subprocess.run([*pip, f"{source}[{extra}]"], check=True)
        before, total = total, sum(megabytes(by_distribution(site_packages)).values())
        print(f"[{extra}] on top: {total - before:.1f} MB", flush=True)
    yield f"the base install is at most {INSTALL_MB} MB of site-packages", base <= INSTALL_MB


# ---- start-up


class Run(NamedTuple):
    """One run of a command."""

    seconds: float
    """From the process's start to its exit."""
    cpu_seconds: float
    """Of all its threads."""
    peak_mb: float


def timed(command: Sequence[str | Path]) -> Run:
    """Run `command`, by way of a small process: a child is billed for the memory of the one it was forked from.

    Raises `RuntimeError` if it fails; a refused image, status 1, is none of that.
    """
    code = """
import resource, subprocess, sys, time
start = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL)
seconds = time.perf_counter() - start
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(done.returncode, seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)
"""
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=True)
    status, *figures = done.stdout.split()
    if status not in ("0", "1"):
        raise RuntimeError(f"{' '.join(map(str, command))} ended with status {status}: {done.stderr}")
    return Run(*map(float, figures))


def start(place: Path, options: argparse.Namespace) -> Iterator[Check]:
    for image in (phantoms(place / "phantoms", 1)[0], radiograph()):
        command = [EDGE_INFER, "classify", image, "--bundle", options.bundle]
        runs = [timed(command) for _ in range(options.repeats + 1)][1:]  # the first brings the files into memory
        seconds = [run.seconds for run in runs]
        median = statistics.median(seconds)
        print(
            f"classify {image.name}: {median:.2f} s ({min(seconds):.2f} to {max(seconds):.2f}, {len(runs)} runs), "
            f"{statistics.median(run.cpu_seconds for run in runs):.2f} s of processor time, "
            f"{max(run.peak_mb for run in runs):.0f} MB at the peak"
        )
        command = [sys.executable, "-X", "importtime", "-m", "edge", *command[1:]]
        told = subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stderr
        show("imports by package, waiting for other threads included", import_seconds(told), "s")
        yield f"classify {image.name} takes at most {START_SECONDS} s", median <= START_SECONDS


def import_seconds(told: str) -> dict[str, float]:
    """Seconds of importing, by top-level package, of what ``-X importtime`` told."""
    seconds: Counter[str] = Counter()
    for own, name in re.findall(r"^import time: +(\d+) \| +\d+ \| +([\w.]+)", told, re.MULTILINE):
        seconds[name.split(".")[0]] += int(own)
    return {name: microseconds / 1e6 for name, microseconds in seconds.items()}


# ---- memory


def memory(place: Path, options: argparse.Namespace) -> Iterator[Check]:
    images = [*phantoms(place / "phantoms", IMAGES), radiograph()]
    for backend in ("onnxruntime", "openvino"):
        if importlib.util.find_spec(backend) is None:
            print(f"memory: {backend} left out, it is not installed")
            continue
        inbox = place / backend / "inbox"
        inbox.mkdir(parents=True)
        settings = f'bundle = "{options.bundle}"\nbackend = "{backend}"\nwatch = ["{inbox}"]\n'
        settings += f"[http]\nport = {free_port()}\n[dicom]\nport = {free_port()}\n"
        with serving(inbox.parent, settings) as daemon:
            time.sleep(2)
            idle = daemon.rss_mb()
            for image in images:
                shutil.copy(image, inbox)
            if len(daemon.wait_for_results(len(images), 300)) < len(images):
                raise RuntimeError(f"the daemon ended: {daemon.log}")
            after, peak = daemon.rss_mb(), daemon.rss_mb("VmHWM")
        print(
            f"daemon, {backend}: {idle:.0f} MB idle, {after:.0f} MB after {len(images)} images, {peak:.0f} MB at most"
        )
        yield f"the daemon with {backend} takes at most {MEMORY_MB} MB", peak <= MEMORY_MB


# ---- the engine


def engine(place: Path, options: argparse.Namespace) -> Iterator[Check]:
    try:
        platform = probe_platform()
    except MachineError as error:
        print(f"engine: left out, TensorRT cannot run here: {error}")
        return
    bundle = load_bundle(options.bundle)
    source = engine_source(bundle, register=lambda library: None)  # the builder's process does it
    first, second = (
        build_engine(
            source.onnx,
            place / "model.engine",
            target="tensorrt",
            batch=bundle.batch,
            timing_cache=place / "engine.timing",
            plugin=source.plugin.path if source.plugin else None,
        )
        for _ in range(2)
    )
    for facts in (first, second):
        print(f"engine on {platform['device']}: {facts['seconds']:.1f} s, timing cache {facts['timing_cache']}")
    print(f"engine: the second build took {second['seconds'] / first['seconds']:.2f} of the first one's time")
    yield "the second build reads the first one's timing cache", second["timing_cache"] == "read"


# ---- the command

PARTS: dict[str, Callable[[Path, argparse.Namespace], Iterator[Check]]] = {
    "install": install,
    "start": start,
    "memory": memory,
    "engine": engine,
}


def phantoms(folder: Path, count: int) -> list[Path]:
    """PNG files of 1024 x 1024 pixels, which the demo network's guard lets pass."""
    command = [sys.executable, "-m", "mdconv.data.phantom", "--output", str(folder), "--size", "1024"]
    subprocess.run([*command, "--count", str(count), "--seed", "4000000"], check=True, stdout=subprocess.DEVNULL)
    return sorted(folder.rglob("*.png"))


def radiograph() -> Path:
    """A real one of 1841 x 1955 pixels, uncompressed; the demo's guard refuses it once it has seen it."""
    path = get_testdata_file("RG1_UNCR.dcm")
    if not isinstance(path, str):
        raise FileNotFoundError("RG1_UNCR.dcm: pip install pydicom-data")
    return Path(path)


def show(title: str, figures: dict[str, float], unit: str) -> None:
    """Print the largest, and the sum of the others."""
    ordered = sorted(figures.items(), key=lambda item: -item[1])
    print(f"{title}:")
    for name, figure in ordered[:SHOWN]:
        print(f"  {figure:8.2f} {unit}  {name}")
    print(f"  {sum(figure for _, figure in ordered[SHOWN:]):8.2f} {unit}  {len(ordered[SHOWN:])} others")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--repeats", type=int, default=9, help="runs of `start`; default: %(default)s")
    options = parser.parse_args(arguments)
    options.bundle = options.bundle.resolve()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"{', '.join(sorted(unknown))}: expected some of {', '.join(PARTS)}")
    failed = 0
    for name in options.parts or PARTS:
        print(f"-- {name}", flush=True)
        with tempfile.TemporaryDirectory(prefix="mdconv-edge-") as place:
            for what, held in PARTS[name](Path(place), options):
                failed += not held
                print(f"{'ok' if held else 'NOT SO'}: {what}", flush=True)
    print(f"footprint: {failed} of the limits did not hold" if failed else "footprint: all held")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
