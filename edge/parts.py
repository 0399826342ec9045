"""The sources and sinks that the settings ask for. Each one's libraries are loaded only if it is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from edge.config import Config
from edge.metrics import FrameCollector
from edge.service import Service
from edge.sinks import Sink
from edge.sources.video_config import VideoConfig, kind_of

STOP_SECONDS = 5.0
"""How long requests under way may take when the daemon stops."""


def _nothing() -> None:
    return None


def _no() -> bool:
    return False


@dataclass(frozen=True)
class Source:
    """Something that listens or captures, in threads of its own."""

    name: str
    start: Callable[[], None]
    """Raises `UsageError` or `MachineError` if it cannot."""
    stop: Callable[[], None]
    """Takes nothing more; may be called twice."""
    check: Callable[[], None] = _nothing
    """Raises the error that ended it, if one did."""
    running: Callable[[], bool] = _no
    """Whether images still come of something that ends by itself."""
    reload: Callable[[], None] = _nothing
    """Reads its tokens and certificates anew; changes nothing if it raises `UsageError`."""


def make_sources(service: Service, config: Config, registry: CollectorRegistry) -> Iterator[Source]:
    """The sources, not started yet. Raises `UsageError`; `ImportError` where what one needs is not installed."""
    if config.http is not None:
        from edge.sources.http.server import HttpServer

        http = HttpServer(service, config.http, registry)
        yield Source("http", http.start, lambda: http.stop(STOP_SECONDS), http.check, reload=http.reload)
    if config.dicom is not None:
        from edge.sources.dicom import DicomServer

        dicom = DicomServer(service, config.dicom)
        yield Source("dicom", dicom.start, dicom.stop, reload=dicom.reload)
    for number, settings in enumerate(config.video, 1):
        yield _video(service, settings, str(number), registry)


def _video(service: Service, settings: VideoConfig, number: str, registry: CollectorRegistry) -> Source:
    from edge.sources.video import VideoSource

    video = VideoSource(service, settings)
    registry.register(FrameCollector(number, video.frames))
    ends = kind_of(settings.address.get_secret_value()) == "file"
    return Source(
        f"video {number}", video.start, video.stop, video.check, running=(lambda: video.running) if ends else _no
    )


def make_sinks(config: Config) -> Iterator[Sink]:
    """The sinks; none has connected yet. Raises as `make_sources`."""
    if config.jsonl is not None:
        from edge.sinks.jsonl import JsonlSink

        yield JsonlSink(config.jsonl.path)
    if config.pacs is not None:
        from edge.sinks.dicom import PacsSink

        yield PacsSink(config.pacs)
    if config.mqtt is not None:
        from edge.sinks.mqtt import MqttSink

        yield MqttSink(config.mqtt)
