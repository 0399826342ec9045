"""The sources and sinks that the settings ask for. Each one's libraries are loaded only if it is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from edge.config import Config
from edge.service import Service
from edge.sinks import Sink

STOP_SECONDS = 5.0
"""How long requests under way may take when the daemon stops."""


def _nothing() -> None:
    return None


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
    reload: Callable[[], None] = _nothing
    """Reads its tokens and certificates anew; changes nothing if it raises `UsageError`."""


def make_sources(service: Service, config: Config, registry: CollectorRegistry) -> Iterator[Source]:
    """The sources, not started yet. Raises `UsageError`; `ImportError` where what one needs is not installed."""
    if config.http is not None:
        from edge.sources.http.server import HttpServer

        http = HttpServer(service, config.http, registry)
        yield Source("http", http.start, lambda: http.stop(STOP_SECONDS), http.check, http.reload)
    if config.dicom is not None:
        from edge.sources.dicom import DicomServer

        dicom = DicomServer(service, config.dicom)
        yield Source("dicom", dicom.start, dicom.stop)


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
