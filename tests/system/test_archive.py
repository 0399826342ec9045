"""``edge-infer archive`` on real Ray: a driver and a worker are killed, and each content has its one result."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest

NO_RAY = importlib.util.find_spec("ray") is None
needs_ray = pytest.mark.skipif(NO_RAY, reason="Ray is not installed: pip install '.[cluster]'")

EAGER = """
import sys
from edge.archive import command
from edge.cli import main
command.PART_SECONDS = 0
sys.exit(main())
"""
"""The command, writing a part for each block: so there is something to be seen, and to be killed for, at once."""

WITHOUT = """
import sys
sys.modules[sys.argv.pop(1)] = None
from edge.cli import main
sys.exit(main())
"""


def draw(path: Path, seed: int, size: int = 2000) -> None:
    """A large image: it takes a worker a while, so that a kill comes while others wait."""
    ramp = np.linspace(0, 200, size).astype(np.uint8)
    cv2.imwrite(str(path), ramp[None, :] + np.roll(ramp, 37 * seed)[:, None] // 4)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """60 contents in 62 files, one of them no image."""
    folder = tmp_path / "images"
    (folder / "deeper").mkdir(parents=True)
    for number in range(59):
        draw(folder / f"DOE^JOHN {number}.png", number)
    (folder / "letter.txt").write_text("Dear colleague")
    shutil.copy(folder / "DOE^JOHN 3.png", folder / "deeper" / "again.png")
    shutil.copy(folder / "DOE^JOHN 58.png", folder / "deeper" / "and again.png")
    return folder


class Driver:
    """A run of the command."""

    def __init__(self, bundle: Path, source: Path, output: Path) -> None:
        self.output = output
        self._before = self.parts()
        options = ["--backend", "onnxruntime", "--workers", str(min(2, len(os.sched_getaffinity(0))))]
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                EAGER,
                "archive",
                "--bundle",
                bundle,
                "--source",
                source,
                "--output",
                output,
                *options,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def parts(self) -> int:
        return len(list(self.output.glob("files/part-*.parquet")))

    def wait_for_parts(self, number: int) -> list[psutil.Process]:
        """The processes below the driver, once this run has written so many parts of about twenty."""
        deadline = time.monotonic() + 90
        while self.parts() < self._before + number:
            assert self.process.poll() is None and time.monotonic() < deadline, self.process.communicate()
            time.sleep(0.01)
        return psutil.Process(self.process.pid).children(recursive=True)

    def finish(self) -> tuple[int, str, str]:
        stdout, stderr = self.process.communicate(timeout=120)
        return self.process.returncode, stdout, stderr


def rows(output: Path, table: str) -> list[dict[str, Any]]:
    from pyarrow import parquet

    found: list[dict[str, Any]] = parquet.read_table(output / table).to_pylist()
    return found


def classified(bundle: Path, images: Path) -> dict[str, dict[str, Any]]:
    """What `edge-infer classify` says of each content."""
    files = [path for path in images.rglob("*") if path.is_file()]
    command = [
        sys.executable,
        "-m",
        "edge",
        "classify",
        *files,
        "--bundle",
        bundle,
        "--backend",
        "onnxruntime",
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    return {result["sha256"]: result for result in map(json.loads, done.stdout.splitlines())}


@needs_ray
def test_a_killed_driver_and_a_killed_worker_cost_no_result_and_double_none(
    tiny_bundle_directory: Path, images: Path, tmp_path: Path
) -> None:
    """kill -9 of the driver after the first part; again, with kill -9 of a worker; a third run has nothing to do.

    What comes out is what `edge-infer classify` says, once a content.
    """
    output = tmp_path / "scores.parquet"
    first = Driver(tiny_bundle_directory, images, output)
    # Ray's own agents look for it now and then only, and end within a minute.
    below = [child for child in first.wait_for_parts(4) if not child.name().endswith("Agent")]
    os.kill(first.process.pid, signal.SIGKILL)
    first.finish()
    _, alive = psutil.wait_procs(below, timeout=30)
    assert not alive, "Ray ends with the driver"
    early = {row["sha256"]: row for row in rows(output, "scores")}
    recorded = len(rows(output, "files"))
    assert 0 < len(early) < 60, "the kill was to come in between"

    second = Driver(tiny_bundle_directory, images, output)
    workers = [child for child in second.wait_for_parts(1) if "".join(child.cmdline()[:1]).startswith("ray::MapWorker")]
    os.kill(workers[0].pid, signal.SIGKILL)
    status, stdout, stderr = second.finish()
    assert status == 1, stderr  # the letter is no image
    assert "; " in stdout and stdout.endswith(f"{output} has 60 images\n")
    assert "Traceback" not in stderr
    assert int(stdout.split()[0]) == 62 - recorded, "only what is missing is scored"

    expected, scores = classified(tiny_bundle_directory, images), rows(output, "scores")
    assert sorted(row["sha256"] for row in scores) == sorted(expected), "each content once"
    for row in scores:
        assert row == early.get(row["sha256"], row), "what was written stays"
        result = expected[row["sha256"]]
        assert [row[name] for name in ("status", "reason", "guard", "bundle", "gate", "backend")] == [
            result[name] for name in ("status", "reason", "guard", "bundle", "gate", "backend")
        ]
        for label, entry in (result["findings"] or {}).items():
            assert row["findings"][label] == pytest.approx(entry, abs=1e-6)
    files = rows(output, "files")
    assert len(files) == len({row["file"] for row in files}) == 62
    assert {row["sha256"] for row in files} == set(expected)
    assert b"DOE" not in b"".join(part.read_bytes() for part in output.rglob("*") if part.is_file())
    assert "DOE" not in stdout + stderr

    before = sorted(output.rglob("*"))
    status, stdout, _ = Driver(tiny_bundle_directory, images, output).finish()
    assert (status, sorted(output.rglob("*"))) == (0, before)
    assert stdout.startswith("0 files scored") and "62 were done before" in stdout


@pytest.mark.parametrize("library", ["ray", "pyarrow"])
def test_without_the_extra_it_says_what_to_install(library: str, tiny_bundle_directory: Path, tmp_path: Path) -> None:
    if NO_RAY and library == "ray":
        pytest.skip("Ray is not installed, nor is Arrow, which is missed first")
    draw(tmp_path / "image.png", 0, size=64)
    (tmp_path / "list").write_text(f"{tmp_path / 'image.png'}\n")
    options = ["--bundle", tiny_bundle_directory, "--source", tmp_path / "list", "--output", tmp_path / "out"]
    command = [sys.executable, "-c", WITHOUT, library, "archive", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3
    assert "pip install 'mdconv-edge[cluster]'" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
