"""The sources and sinks that the settings ask for. Each one's libraries are loaded only if it is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from edge.config import Config
from edge.service import Service
from edge.sinks import Sink


def _nothing() -> None:
    return None


@dataclass(frozen=True)
class Source:
    """Something that listens or captures, in threads of its own."""

    start: Callable[[], None]
    """Raises `UsageError` or `MachineError` if it cannot."""
    stop: Callable[[], None]
    """Takes nothing more; may be called twice."""
    describe: Callable[[], str]
    """Where it listens, for the log."""
    check: Callable[[], None] = _nothing
    """Raises the error that ended it, if one did."""


def make_sources(service: Service, config: Config, registry: CollectorRegistry) -> Iterator[Source]:
    """The sources, not started yet."""
    yield from ()


def make_sinks(config: Config) -> Iterator[Sink]:
    """The sinks; none has connected yet."""
    if config.jsonl is not None:
        from edge.sinks.jsonl import JsonlSink

        yield JsonlSink(config.jsonl.path)
