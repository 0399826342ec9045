"""The two fuzzers, for a moment; `tests.system.fuzz_dicom` and `tests.system.fuzz_files` run them for longer."""

from __future__ import annotations

from pathlib import Path

from tests.system import fuzz_dicom, fuzz_files
from tests.system.test_serve_dicom import serving


def test_damaged_associations(tiny_bundle_directory: Path, tmp_path: Path) -> None:
    """The daemon lives, gives all back, and answers an echo."""
    with serving(tiny_bundle_directory, tmp_path, fuzz_dicom.SETTINGS) as daemon:
        fuzz_dicom.fuzz(daemon, tmp_path, count=100, seed=11)


def test_damaged_files() -> None:
    """Each is decoded or refused."""
    ends = fuzz_files.fuzz(count=400, seed=11)
    assert ends.total() == 400
    assert min(ends["refused"], ends["decoded"]) > 20
