"""The daemon's metrics, in the words of Prometheus. No label ever comes from an image or from who sent it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from edge.telemetry import gpu_mhz, rails_w, temperatures_c, throttle_events

BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
"""Upper limits of the stage histograms, seconds: from a small network on a GPU to an image that waited in a queue."""


class Metrics:
    """All metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        ProcessCollector(registry=self.registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"edge_infer_{name}", text, labels, registry=self.registry)

        self.received = counter("received", "Images taken, safe on the disk", "origin")
        self.repeated = counter("repeated", "Images that were known already, and not run again", "origin")
        self.turned_away = counter("turned_away", "Images not taken", "origin", "why")
        self.finished = counter("finished", "Images with a result", "status")
        self.reloads = counter("reloads", "Reloads of the bundle", "outcome")
        self.self_tests = counter("self_tests", "Runs of the golden inputs", "outcome")
        self.shadowed = counter("shadowed", "Images run on the float32 reference too")
        self.shadow_skipped = counter("shadow_skipped", "Images chosen for the reference, which was busy")
        self.shadow_changed = counter("shadow_changed_decisions", "Findings that the reference decides otherwise")
        self.shadow_difference = Histogram(
            "edge_infer_shadow_difference",
            "Largest difference of a probability from the float32 reference, an image",
            buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1),
            registry=self.registry,
        )
        self.stages = Histogram(
            "edge_infer_stage_seconds",
            "Time of one image in each stage",
            ["stage"],
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.self_test_difference = Gauge(
            "edge_infer_self_test_difference",
            "Largest difference of a probability from the golden outputs, at the last self-test",
            registry=self.registry,
        )
        self.engine = Info("edge_infer_engine", "What runs the images", registry=self.registry)

    def observe(self, result: Mapping[str, Any]) -> None:
        """Count one finished image."""
        self.finished.labels(result["status"]).inc()
        if result["status"] == "done":
            for stage, milliseconds in result["timings_ms"].items():
                self.stages.labels(stage).observe(milliseconds / 1e3)

    def add_live(self, live: Callable[[], Mapping[str, Any]], root: Path = Path("/")) -> None:
        """Add what is read at each scrape: `live` as `edge.daemon.Server.status`, and the sensors below `root`."""
        self.registry.register(_Live(live, root))


class _Live(Collector):
    def __init__(self, live: Callable[[], Mapping[str, Any]], root: Path) -> None:
        self._live = live
        self._root = root

    def describe(self) -> list[Metric]:
        return []  # what there is depends on the machine

    def collect(self) -> Iterator[Metric]:
        live, root = self._live(), self._root
        yield _gauge("ready", "Whether images are run", {"": float(live["ready"])})
        yield _gauge("queue", "Images in the daemon", {k: live["queue"][k] for k in ("waiting", "running")}, "state")
        yield _gauge("runs", "Finished runs in the ledger", live["counts"], "status")
        yield _gauge("backlog", "Results still to deliver", _each(live["sinks"], "pending"), "sink")
        yield _gauge("given_up", "Results that a sink can never take", _each(live["sinks"], "failed"), "sink")
        yield _gauge("temperature_celsius", "Temperature of a thermal zone", temperatures_c(root), "zone")
        yield _gauge("power_watts", "Power of a rail", rails_w(root), "rail")
        for name, text, value in (
            ("gpu_clock_mhz", "Clock of the GPU", gpu_mhz(root)),
            ("throttle_events", "Throttle events since boot", throttle_events(root)),
        ):
            if value is not None:
                yield _gauge(name, text, {"": value})


class FrameCollector(Collector):
    """What became of the frames of one video source, as its `edge.sources.video.FrameCounts` counts them."""

    def __init__(self, source: str, frames: Any) -> None:
        self._source = source
        self._frames = frames

    def describe(self) -> list[Metric]:
        return []  # each source adds its own

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily("edge_infer_video_frames", "Frames of a video", labels=["source", "what"])
        for what in ("seen", "taken", "dropped"):
            family.add_metric([self._source, what], getattr(self._frames, what))
        yield family


def _each(sinks: Mapping[str, Any], key: str) -> dict[str, float]:
    return {name: facts[key] for name, facts in sinks.items()}


def _gauge(name: str, text: str, values: Mapping[str, float], label: str | None = None) -> Metric:
    family = GaugeMetricFamily(f"edge_infer_{name}", text, labels=[label] if label else [])
    for key, value in values.items():
        family.add_metric([key] if label else [], value)
    return family
