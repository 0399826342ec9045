"""Video in the real daemon: a film in, its frames' results out; what is private stays so."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge.ledger import read_ledger
from edge.sources.video_frames import silence
from tests.system.daemon import EDGE_INFER, free_port, serving, wait_for


def film(path: Path, frames: int) -> Path:
    silence()
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"FFV1"), 10.0, (96, 80))
    rng = np.random.default_rng(5)
    for _ in range(frames):
        writer.write(rng.integers(0, 256, (80, 96, 3), np.uint8))
    writer.release()
    return path


def drain(bundle: Path, place: Path, *sources: dict[str, object]) -> subprocess.CompletedProcess[str]:
    """Serve until the films have ended; the sources come from the environment, as JSON."""
    command = [
        EDGE_INFER,
        "serve",
        "--bundle",
        bundle,
        "--state",
        place / "state",
        "--backend",
        "onnxruntime",
        "--drain",
    ]
    environment = {**os.environ, "EDGE_INFER_VIDEO": json.dumps(sources)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_of_a_film_a_frame_a_second_is_run(tiny_bundle_directory: Path, tmp_path: Path) -> None:
    """Three seconds of film are done in less, and the daemon ends when the film does."""
    path = film(tmp_path / "DOE^JANE.avi", 31)
    ended = drain(tiny_bundle_directory, tmp_path, {"address": str(path), "every_seconds": 1})
    assert ended.returncode in (0, 1), ended.stderr
    results = read_ledger(tmp_path / "state").results
    assert len(results) == 4
    assert len({result["sha256"] for result in results}) == 4
    assert {result["source"] for result in results} == {None}
    assert "JANE" not in ended.stderr


@pytest.mark.parametrize("content", [None, b"no film at all"], ids=["missing", "damaged"])
def test_a_film_that_cannot_be_run_is_told_without_its_name(
    tiny_bundle_directory: Path, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "DOE^JANE.avi"
    if content is not None:
        path.write_bytes(content)
    ended = drain(tiny_bundle_directory, tmp_path, {"address": str(path)})
    assert ended.returncode == (2 if content is None else 1)
    assert "video: the " in ended.stderr.splitlines()[-1]
    assert "JANE" not in ended.stderr and "Traceback" not in ended.stderr


def test_a_camera_that_is_not_there_stops_nothing_and_its_password_is_not_told(
    tiny_bundle_directory: Path, tmp_path: Path
) -> None:
    port = free_port()
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    settings = f'bundle = "{tiny_bundle_directory}"\nwatch = ["{inbox}"]\nbackend = "onnxruntime"\n[[video]]\n'
    settings += f'address = "rtsp://user:secret@127.0.0.1:{port}/stream"\n'
    with serving(tmp_path, settings) as daemon:
        wait_for(lambda: f"video from rtsp://127.0.0.1:{port}: no frames come in" in daemon.log)
        image = np.random.default_rng(1).integers(0, 256, (80, 96), np.uint8)
        (inbox / "a.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())
        assert len(daemon.wait_for_results(1)) == 1
        daemon.stop()
        assert "secret" not in daemon.log


@pytest.fixture
def camera() -> Iterator[int]:
    """The port of a real RTSP server, whose password is ``secret``."""
    python, needed = shutil.which("python3", path="/usr/bin"), "import gi; gi.require_version('GstRtspServer', '1.0')"
    if python is None or subprocess.run([python, "-c", needed], capture_output=True).returncode != 0:
        packages = "gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-good python3-gi"
        pytest.skip(f"no RTSP server of GStreamer's here: apt-get install {packages}")
    port = free_port()
    command = [python, Path(__file__).with_name("rtsp_camera.py"), str(port), "secret"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=clean) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "serving\n"
        yield port
        process.terminate()


def test_a_network_camera_is_run_behind_its_password(tiny_bundle_directory: Path, tmp_path: Path, camera: int) -> None:
    settings = f'bundle = "{tiny_bundle_directory}"\nbackend = "onnxruntime"\n[[video]]\nevery_seconds = 0.2\n'
    settings += f'address = "rtsp://user:secret@127.0.0.1:{camera}/stream"\n'
    with serving(tmp_path, settings) as daemon:
        results = daemon.wait_for_results(3)
        assert daemon.stop() in (0, 1)
        assert len({result["sha256"] for result in results}) == len(results) >= 3
        assert f"video from rtsp://127.0.0.1:{camera}: frames come in" in daemon.log
        assert "secret" not in daemon.log
