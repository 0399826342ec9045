"""benchmarks.footprint: what it counts, and that a limit that does not hold ends with status 1."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import footprint


def test_files_are_counted_for_the_distribution_that_lists_them(tmp_path: Path) -> None:
    for name, content in {
        "one/__init__.py": "x" * 10,
        "one/__pycache__/__init__.pyc": "x" * 100,
        "one-1.0.dist-info/METADATA": "Name: one\nVersion: 1.0\n",
        "one-1.0.dist-info/RECORD": "one/__init__.py,,\none/__pycache__/__init__.pyc,,\n../../bin/one,,\n",
        "pip/__init__.py": "x" * 1000,
        "pip-2.0.dist-info/METADATA": "Name: pip\nVersion: 2.0\n",
        "pip-2.0.dist-info/RECORD": "pip/__init__.py,,\n",
        "stray/data.bin": "x" * 7,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    sizes = footprint.by_distribution(tmp_path)
    assert (sizes["one 1.0"], sizes["pip 2.0"]) == (110, 1000)
    assert sizes.total() == sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    counted = footprint.megabytes(sizes)
    assert counted["in no record"] == pytest.approx((sizes.total() - 1110) / 1e6)
    assert sum(counted.values()) == pytest.approx((sizes.total() - 1000) / 1e6)


def test_imports_are_summed_by_package() -> None:
    told = """import time: self [us] | cumulative | imported package
import time:       200 |        200 |   numpy._core
import time:      1000 |       1200 | numpy
warning: something else
import time:        50 |       1250 | edge.cli
"""
    assert footprint.import_seconds(told) == pytest.approx({"numpy": 0.0012, "edge": 0.00005})


def test_a_command_is_timed_and_one_that_fails_is_told() -> None:
    python = sys.executable
    run = footprint.timed([python, "-c", "import time; time.sleep(0.2)"])
    assert run.seconds >= 0.2 and run.cpu_seconds < 0.2 + run.seconds and run.peak_mb > 1
    with pytest.raises(RuntimeError, match="status 3: no such bundle"):
        footprint.timed([python, "-c", "import sys; print('no such bundle', file=sys.stderr); sys.exit(3)"])


def test_a_limit_that_does_not_hold_ends_with_status_1(
    tiny_bundle_directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(footprint, "START_SECONDS", 0.001)
    assert footprint.main([str(tiny_bundle_directory), "start", "--repeats", "1"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines if "takes at most" in line] == ["NOT SO", "NOT SO"]
    assert any(line.endswith(" numpy") for line in lines)
    assert lines[-1] == "footprint: 2 of the limits did not hold"


def test_without_tensorrt_the_engine_is_left_out_and_said_to_be(
    tiny_bundle_directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert footprint.main([str(tiny_bundle_directory), "engine"]) == 0
    assert "engine: left out, TensorRT cannot run here: " in capsys.readouterr().out
