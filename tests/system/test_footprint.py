"""What ``edge-infer classify`` costs: what it imports, its memory, its processor time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydicom.data import get_testdata_file

EDGE_INFER = Path(sys.executable).with_name("edge-infer")

FORBIDDEN = {"torch", "onnx", "mdconv", "calibration", "build_engine", "safetensors", "cryptography"}
"""Of these only `cryptography` may be on a device at all, and is loaded where a key is configured."""


def modules_after(*arguments: str | Path) -> set[str]:
    """Top-level modules that are loaded when a command ends."""
    code = """
import sys
from edge.cli import main
try:
    status = main(sys.argv[1:])
except SystemExit as ended:
    status = ended.code
print("\\nmodules", *sorted({name.split(".")[0] for name in sys.modules}))
sys.exit(status)
"""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split()[1:])


def test_no_command_imports_what_a_device_does_not_have(tiny_bundle_directory: Path, tmp_path: Path) -> None:
    bundle = ["--bundle", tiny_bundle_directory, "--backend", "onnxruntime"]
    chest = get_testdata_file("RG1_UNCR.dcm")
    assert isinstance(chest, str)
    (tmp_path / "inbox").mkdir()
    for arguments in (
        ["classify", chest, *bundle, "--cam", tmp_path / "maps"],
        ["selftest", *bundle],
        ["bench", *bundle, "--duration", "0.1", "--report", tmp_path / "bench"],
        ["serve", *bundle, "--watch", tmp_path / "inbox", "--state", tmp_path / "state", "--drain"],
        ["report", "--state", tmp_path / "state"],
        ["doctor"],
        ["passport", "--bundle", tiny_bundle_directory],
    ):
        assert not modules_after(*arguments) & FORBIDDEN, arguments


def test_help_loads_no_decoder_and_no_backend() -> None:
    assert not modules_after("--help") & {"cv2", "onnxruntime", "pydicom", "tensorrt", "pycuda", *FORBIDDEN}


def test_no_command_loads_gdcm_beside_the_process_that_decodes_by_it(tiny_bundle_directory: Path) -> None:
    chest = get_testdata_file("RG1_UNCR.dcm")
    assert isinstance(chest, str)
    loaded = modules_after("classify", chest, "--bundle", tiny_bundle_directory)
    assert "pydicom" in loaded and "_gdcm" not in loaded


@pytest.mark.parametrize("name", ["RG1_UNCR.dcm", "RG1_J2KR.dcm"])
def test_one_radiograph_costs_at_most_350_mb_and_2_s_of_processor_time(int8_bundle: Path, name: str) -> None:
    """Processor time of all threads: it bounds the wall time on an idle machine, whatever else runs here.

    A process is billed for the memory of the one it was forked from, so a small one in between starts it.
    """
    path = get_testdata_file(name)
    assert isinstance(path, str)
    # The guard looks at it as at any other, and refuses it: the demo network was trained on phantoms.
    code = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], capture_output=True, text=True)
assert done.returncode == 1 and "unlike those that the guard was fitted on" in done.stderr, done.stderr
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(usage.ru_maxrss / 1024, usage.ru_utime + usage.ru_stime)
"""
    command = [sys.executable, "-c", code, EDGE_INFER, "classify", path, "--bundle", int8_bundle]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    megabytes, seconds = map(float, done.stdout.split())
    assert 50 < megabytes <= 350
    assert seconds <= 2
