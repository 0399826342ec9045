from __future__ import annotations

import http.server
import logging
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pydantic import ValidationError

from edge.errors import BusyError, InputRefusedError, MachineError, StorageFullError, UsageError
from edge.service import Receipt
from edge.sources import video
from edge.sources.video import VideoSource
from edge.sources.video_config import VideoConfig, describe, kind_of
from edge.sources.video_frames import encode, silence

NAME = "DOE^JANE.avi"
RATE = 10.0


class Receiver:
    """The daemon's `receive`; `answers` are the exceptions of its first calls, None where it takes the frame."""

    def __init__(self, *answers: Exception | None) -> None:
        self.answers = list(answers)
        self.frames: list[np.ndarray] = []
        self.sources: list[str | None] = []
        self.gate: Callable[[], object] = lambda: None

    def receive(self, content: bytes, *, origin: str, source: str | None, **rest: Any) -> Receipt:
        assert origin == "video" and rest == {}
        self.gate()
        answer = self.answers.pop(0) if self.answers else None
        if answer is not None:
            raise answer
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
        assert image is not None and image.ndim == 2, "a gray PNG"
        self.frames.append(image)
        self.sources.append(source)
        return Receipt(f"{len(self.frames):032x}", "0" * 64, True)


def source_of(receiver: Receiver, address: object, every_seconds: float = 0.0) -> VideoSource:
    return VideoSource(receiver, VideoConfig(address=str(address), every_seconds=every_seconds))  # type: ignore[arg-type]


def ended(source: VideoSource) -> VideoSource:
    source.start()
    wait_for(lambda: not source.running)
    frames = source.frames
    assert frames.seen == frames.taken + frames.dropped
    return source


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.005)


def film(path: Path, frames: list[np.ndarray], codec: str = "FFV1") -> Path:
    """Write colour frames (H, W, 3); FFV1 keeps them as they are."""
    silence()
    height, width = frames[0].shape[:2]
    by = cv2.CAP_FFMPEG if codec == "FFV1" else cv2.CAP_OPENCV_MJPEG  # FFmpeg's writer makes an odd size even
    writer = cv2.VideoWriter(str(path), by, cv2.VideoWriter_fourcc(*codec), RATE, (width, height))
    assert writer.isOpened()
    for frame in frames:
        writer.write(frame)
    writer.release()
    return path


def levels(count: int, width: int = 64, height: int = 48) -> list[np.ndarray]:
    """Frames that are told apart by their gray level: 10, 13, 16..."""
    return [np.full((height, width, 3), 10 + 3 * i, np.uint8) for i in range(count)]


def level(frame: np.ndarray) -> int:
    return round((float(frame.mean()) - 10) / 3)


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that is silent holds its thread up for a while; no test waits for that."""
    monkeypatch.setattr(video, "STOP_SECONDS", 0.5)


@pytest.mark.parametrize(("width", "height"), [(64, 48), (100, 76), (2, 2), (640, 4)])
def test_frames_arrive_in_order_and_without_loss(tmp_path: Path, width: int, height: int) -> None:
    rng = np.random.default_rng(width)
    gray = [rng.integers(0, 256, (height, width), dtype=np.uint8) for _ in range(7)]
    path = film(tmp_path / NAME, [cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) for image in gray])
    receiver = Receiver()
    source = ended(source_of(receiver, path))
    source.check()
    assert (source.frames.seen, source.frames.taken) == (7, 7)
    np.testing.assert_array_equal(np.stack(receiver.frames), np.stack(gray))


@pytest.mark.parametrize(("width", "height"), [(64, 48), (101, 77), (33, 31), (1, 17)])
def test_motion_jpeg_of_any_size_is_read(tmp_path: Path, width: int, height: int) -> None:
    receiver = Receiver()
    ended(source_of(receiver, film(tmp_path / NAME, levels(12, width, height), "MJPG")))
    assert [level(frame) for frame in receiver.frames] == list(range(12))
    assert {frame.shape for frame in receiver.frames} == {(height, width)}


@pytest.mark.parametrize("delay", [0.0, 0.05], ids=["quick", "slow"])
def test_of_a_file_the_same_frames_are_taken_however_slow_the_daemon_is(tmp_path: Path, delay: float) -> None:
    receiver = Receiver()
    receiver.gate = lambda: time.sleep(delay)
    source = ended(source_of(receiver, film(tmp_path / NAME, levels(21)), every_seconds=0.5))
    assert [level(frame) for frame in receiver.frames] == [0, 5, 10, 15, 20]
    assert receiver.sources == [f"{NAME} {seconds} s" for seconds in ("0.000", "0.500", "1.000", "1.500", "2.000")]
    assert (source.frames.taken, source.frames.dropped) == (5, 16)


def test_a_frame_of_a_file_is_offered_until_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "STORAGE_SECONDS", 0.01)
    full = StorageFullError("the disk is full: free space")
    receiver = Receiver(None, BusyError("busy", 0.01), full, BusyError("busy", 0.01))
    source = ended(source_of(receiver, film(tmp_path / NAME, levels(4))))
    assert [level(frame) for frame in receiver.frames] == [0, 1, 2, 3]
    assert source.frames.dropped == 0


def test_a_refused_frame_does_not_stop_the_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    receiver = Receiver(None, InputRefusedError("it is too large"))
    source = ended(source_of(receiver, film(tmp_path / NAME, levels(3))))
    assert [level(frame) for frame in receiver.frames] == [0, 2]
    assert (source.frames.taken, source.frames.dropped) == (2, 1)
    assert "a frame was refused: it is too large" in caplog.text


@pytest.mark.parametrize("failure", [MachineError("the ledger cannot be written"), RuntimeError("DOE^JANE")])
def test_a_failure_of_the_daemon_ends_the_source(tmp_path: Path, failure: Exception) -> None:
    source = ended(source_of(Receiver(None, failure), film(tmp_path / NAME, levels(9))))
    assert source.frames.taken == 1
    with pytest.raises(MachineError, match=r"^(the ledger cannot|video: the source failed with RuntimeError)"):
        source.check()


def test_stopping_does_not_wait_for_room(tmp_path: Path) -> None:
    receiver = Receiver(BusyError("busy", 3600.0))
    source = source_of(receiver, film(tmp_path / NAME, levels(9)))
    source.start()
    wait_for(lambda: receiver.answers == [])
    source.stop()
    assert not source.running
    assert source.frames.taken == 0
    assert source.frames.seen == source.frames.dropped


@pytest.mark.parametrize("content", [b"", b"no video" * 500, b"RIFF\xff\xff\xff\x7fAVI LIST" + bytes(400)])
def test_what_is_no_video_is_refused(tmp_path: Path, content: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / NAME
    path.write_bytes(content)
    source = ended(source_of(Receiver(), path))
    with pytest.raises(InputRefusedError, match=r"^video: the file has no frame that can be read") as caught:
        source.check()
    assert "JANE" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_a_damaged_film_gives_what_can_be_read_of_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(2)
    whole = film(tmp_path / "whole.avi", levels(40), "MJPG").read_bytes()
    path = tmp_path / NAME
    for _ in range(30):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), 40):
            damaged[place] = rng.integers(0, 256)
        path.write_bytes(bytes(damaged[: rng.integers(len(whole) // 2, len(whole))]))
        source = ended(source_of(Receiver(), path))
        assert source.error is None or isinstance(source.error, InputRefusedError)
    assert capfd.readouterr().err == ""


def test_a_film_that_was_cut_off_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = film(tmp_path / NAME, [np.random.default_rng(i).integers(0, 256, (48, 64, 3), np.uint8) for i in range(60)])
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    source = ended(source_of(Receiver(), path))
    source.check()
    assert 20 < source.frames.taken < 60
    assert "of 60 frames: it is damaged or cut off" in caplog.text
    assert "JANE" not in caplog.text


def test_a_file_that_is_not_there_is_wrong_use(tmp_path: Path) -> None:
    source = source_of(Receiver(), tmp_path / NAME)
    with pytest.raises(UsageError, match="neither a file that is there") as caught:
        source.start()
    assert "JANE" not in str(caught.value)
    source.stop()


def test_a_kind_of_source_that_opencv_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2.videoio_registry, "getBackends", lambda: [cv2.CAP_FFMPEG])
    with pytest.raises(MachineError, match="is a pipeline, for which OpenCV needs GStreamer"):
        source_of(Receiver(), "nvarguscamerasrc ! appsink").start()


class Camera(http.server.BaseHTTPRequestHandler):
    """A network camera: Motion JPEG over HTTP, the frames as the test puts them; None ends the connection."""

    shots: queue.Queue[int | None]
    connections: list[int]

    def do_GET(self) -> None:
        self.connections.append(1)
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        while (number := self.shots.get()) is not None:
            jpeg = cv2.imencode(".jpg", levels(number + 1)[-1])[1].tobytes()
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
            try:
                self.wfile.write(head.encode() + jpeg + b"\r\n")
            except OSError:
                return

    def log_message(self, format: str, *values: Any) -> None:
        pass


@pytest.fixture
def camera() -> Iterator[tuple[str, type[Camera]]]:
    kind = type("OneCamera", (Camera,), {"shots": queue.Queue(), "connections": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://user:secret@127.0.0.1:{server.server_port}/JANE?key=secret", kind
        kind.shots.put(None)
        server.shutdown()
        thread.join()


def test_of_a_live_stream_the_newest_frame_is_taken_and_the_others_are_counted(
    camera: tuple[str, type[Camera]],
) -> None:
    """The daemon is busy with the first frame while twenty others come; the next that it takes is the newest."""
    address, kind = camera
    receiver = Receiver()
    busy, free = threading.Event(), threading.Event()

    def gate() -> None:
        busy.set()
        assert free.wait(30)

    receiver.gate = gate
    source = source_of(receiver, address)
    source.start()
    for _ in range(21):
        kind.shots.put(1)
    assert busy.wait(30)
    wait_for(lambda: source.frames.seen >= 20)  # FFmpeg may hold one back until the next one comes
    assert source.connected
    free.set()
    wait_for(lambda: source.frames.taken >= 1)
    for _ in range(3):
        kind.shots.put(40)
    wait_for(lambda: len(receiver.frames) >= 2)
    source.stop()
    assert level(receiver.frames[0]) == 1
    assert {level(frame) for frame in receiver.frames[1:]} <= {1, 40}
    assert source.frames.dropped >= 18
    assert source.frames.seen == source.frames.taken + source.frames.dropped


def test_a_frame_that_a_busy_daemon_turns_away_is_dropped(camera: tuple[str, type[Camera]]) -> None:
    address, kind = camera
    receiver = Receiver(BusyError("busy", 0.01), StorageFullError("the disk is full: free space"))
    source = source_of(receiver, address)
    video_pause = video.STORAGE_SECONDS
    video.STORAGE_SECONDS = 0.01
    try:
        source.start()
        for number in range(60):
            kind.shots.put(number)
            time.sleep(0.005)
        wait_for(lambda: len(receiver.frames) > 0)
        source.stop()
    finally:
        video.STORAGE_SECONDS = video_pause
    assert level(receiver.frames[0]) > 1  # the first two came too early, and were not kept
    assert source.frames.seen == source.frames.taken + source.frames.dropped


def test_no_more_frames_are_taken_than_wanted(camera: tuple[str, type[Camera]]) -> None:
    address, kind = camera
    receiver = Receiver()
    source = source_of(receiver, address, every_seconds=3600)
    source.start()
    for number in range(30):
        kind.shots.put(number)
    wait_for(lambda: source.frames.seen >= 29)
    source.stop()
    assert len(receiver.frames) == 1
    assert source.frames.dropped == source.frames.seen - 1


def test_a_stream_that_breaks_off_is_opened_again(
    camera: tuple[str, type[Camera]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(video, "RECONNECT_SECONDS", (0.02, 0.1))
    caplog.set_level(logging.DEBUG)
    address, kind = camera
    receiver = Receiver()
    source = source_of(receiver, address)
    source.start()
    for connection in range(3):
        for _ in range(5):
            kind.shots.put(connection)
        kind.shots.put(None)
        wait_for(lambda: len(kind.connections) > connection + 1)  # noqa: B023
    source.stop()
    source.check()
    assert {level(frame) for frame in receiver.frames} == {0, 1, 2}
    port = address.split(":")[3].split("/")[0]
    assert f"video from http://127.0.0.1:{port}: no frames come in; trying again" in caplog.text
    for said in (caplog.text, capfd.readouterr().err):
        assert "secret" not in said and "JANE" not in said


def test_a_camera_that_is_not_there_is_looked_for_with_growing_pauses(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(video, "RECONNECT_SECONDS", (0.01, 0.04))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    source = source_of(Receiver(), f"rtsp://user:secret@127.0.0.1:{port}/stream?token=secret")
    pauses: list[float | None] = []
    wait = source._stopping.wait

    def noting(seconds: float | None = None) -> bool:
        pauses.append(seconds)
        return wait(seconds)

    monkeypatch.setattr(source._stopping, "wait", noting)
    source.start()
    wait_for(lambda: len(pauses) >= 5)
    source.stop()
    assert pauses[:5] == [0.01, 0.02, 0.04, 0.04, 0.04]
    source.check()
    for said in (caplog.text, capfd.readouterr().err):
        assert "secret" not in said
    assert f"rtsp://127.0.0.1:{port}" in caplog.text


@pytest.mark.parametrize(
    ("address", "kind", "words"),
    [
        ("/data/DOE^JANE.avi", "file", "a file"),
        ("/dev/video0", "camera", "/dev/video0"),
        ("rtsp://user:secret@10.0.0.7:554/JANE?secret", "url", "rtsp://10.0.0.7:554"),
        ("rtsp://user:sec!ret@camera/JANE", "url", "rtsp://camera"),
        ("rtsp://user:secret@[bad/JANE", "url", "a stream"),
        ("rtsp://user:secret@camera:secret/", "url", "a stream"),
        ("rtspsrc location=rtsp://u:secret@c ! decodebin ! appsink", "pipeline", "a pipeline"),
    ],
)
def test_an_address_is_known_by_its_form_and_told_without_what_is_private(address: str, kind: str, words: str) -> None:
    assert (kind_of(address), describe(address)) == (kind, words)
    assert "secret" not in describe(address) and "JANE" not in describe(address)


def test_the_settings_never_show_the_address() -> None:
    config = VideoConfig(address="rtsp://user:secret@camera/")  # type: ignore[arg-type]
    assert "secret" not in f"{config!r} {config} {config.model_dump()} {config.model_dump_json()}"
    with pytest.raises(ValidationError) as caught:
        VideoConfig(address=["rtsp://user:secret@camera/"], every_seconds=-1)  # type: ignore[arg-type]
    assert "secret" not in str(caught.value)
    assert "every_seconds" in str(caught.value)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1)])
def test_gray_frames_are_kept_as_they_are(kind: type, shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, np.iinfo(kind).max, shape, dtype=kind)
    image = cv2.imdecode(np.frombuffer(encode(pixels), np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(image, pixels.reshape(5, 7))


@pytest.mark.parametrize("pixels", [np.zeros((5, 7), np.float32), np.zeros((5, 7, 2), np.uint8), np.zeros(5, np.uint8)])
def test_frames_of_another_kind_are_refused(pixels: np.ndarray) -> None:
    with pytest.raises(MachineError, match="expected gray or colour of 8 or 16 bits"):
        encode(pixels)
