"""A report in the words of OpenMetrics 1.0, for whatever keeps figures of many devices: base units, no image's name.

Every sample carries the time at which the report was made: the file may be read long after.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.registry import Collector

from edge.statistics import PERCENTILES
from edge.telemetry import UNAVAILABLE

PREFIX = "edge_infer_report"

STATES = {"clean": 0.0, "tainted": 1.0}


def openmetrics(report: Mapping[str, Any]) -> str:
    """The text of a report, ``# EOF`` at its end."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Report(report))
    text: bytes = generate_latest(registry)  # type: ignore[no-untyped-call]
    return text.decode()


class _Report(Collector):
    def __init__(self, report: Mapping[str, Any]) -> None:
        self._report = report
        self._time = datetime.fromisoformat(report["created"].replace("Z", "+00:00")).timestamp()
        self._labels = {
            "bundle": report["bundle"]["name"],
            "backend": str(report["backend"]["name"]),
            "scenario": report["scenario"],
        }

    def describe(self) -> Iterable[Metric]:
        return []  # what there is depends on the report

    def collect(self) -> Iterator[Metric]:
        report = self._report
        yield self._info()
        summaries = dict(report["stages"])
        if report["gpu_ms"] != UNAVAILABLE:
            summaries["gpu"] = report["gpu_ms"]
        if report["query"] is not None:
            summaries["query"] = report["query"]
        yield self._histogram({name: summary for name, summary in summaries.items() if summary["count"]})
        yield self._quantiles(summaries)
        images = CounterMetricFamily(f"{PREFIX}_images", "Images of the run", labels=[*self._labels, "status"])
        for status, count in report["counts"].items():
            images.add_metric([*self._labels.values(), status], count, timestamp=self._time)
        yield images
        yield self._gauge("wall_seconds", "Duration of the run", {"": report["wall_seconds"]}, unit="seconds")
        if report["throughput"] is not None:
            yield self._gauge("throughput", "Images done a second of the run", {"": report["throughput"]})
        if report["energy"] != UNAVAILABLE:
            joules = {report["energy"]["covers"]: report["energy"]["joules"]}
            yield self._gauge("energy_joules", "Energy of the run, idle power included", joules, "covers", "joules")
        if report["energy"] != UNAVAILABLE and report["energy_per_image_j"] != UNAVAILABLE:
            each = {report["energy"]["covers"]: report["energy_per_image_j"]}
            yield self._gauge("image_energy_joules", "Energy of the run over its images done", each, "covers", "joules")
        taints = {t["what"]: STATES[t["state"]] for t in report["taints"] if t["state"] in STATES}
        yield self._gauge("tainted", "Whether the run was tainted so; absent where it is not known", taints, "suspect")

    def _info(self) -> Metric:
        report, bundle = self._report, self._report["bundle"]
        facts = {
            "kind": report["kind"],
            "schema_version": str(report["schema_version"]),
            "bundle_sha256": str(bundle["sha256"] or UNAVAILABLE),
            "network": str(bundle["network"]),
            "precision": str(bundle["precision"]),
            "input_size": str(bundle["input_size"]),
            "gate": str(bundle["gate"]),
            "cpu": str(report["machine"].get("cpu", UNAVAILABLE)),
            "jetson": str(report["machine"].get("jetson", UNAVAILABLE)),
        }
        info = InfoMetricFamily(f"{PREFIX}_run", "What was measured, and on what", labels=list(self._labels))
        info.add_metric(list(self._labels.values()), facts, timestamp=self._time)
        return info

    def _histogram(self, summaries: Mapping[str, Any]) -> Metric:
        """Cumulative, as OpenMetrics has it. A bucket holds what is below its limit, the last one the maximum too."""
        family = HistogramMetricFamily(
            f"{PREFIX}_stage_seconds",
            "Time of one image in each stage, and of one query",
            labels=[*self._labels, "stage"],
            unit="seconds",
        )
        for stage, summary in summaries.items():
            limits = [str(edge / 1e3) for edge in summary["histogram"]["edges"][1:]]
            counts = list(accumulate(summary["histogram"]["counts"]))
            family.add_metric(
                [*self._labels.values(), stage],
                [*zip(limits, counts), ("+Inf", summary["count"])],
                summary["mean"] * summary["count"] / 1e3,
                timestamp=self._time,
            )
        return family

    def _quantiles(self, summaries: Mapping[str, Any]) -> Metric:
        name = f"{PREFIX}_stage_quantiles_seconds"
        family = SummaryMetricFamily(name, "Percentiles of the same, measured values", unit="seconds")
        for stage, summary in summaries.items():
            for percentile in PERCENTILES:
                if summary[f"p{percentile}"] is not None:
                    labels = {**self._labels, "stage": stage, "quantile": f"{float(percentile) / 100:g}"}
                    family.add_sample(name, labels, summary[f"p{percentile}"] / 1e3, timestamp=self._time)
        return family

    def _gauge(self, name: str, text: str, values: Mapping[str, float], label: str = "", unit: str = "") -> Metric:
        family = GaugeMetricFamily(
            f"{PREFIX}_{name}", text, labels=[*self._labels, *([label] if label else [])], unit=unit
        )
        for key, value in values.items():
            family.add_metric([*self._labels.values(), *([key] if label else [])], value, timestamp=self._time)
        return family
