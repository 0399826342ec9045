"""Reports to test with: results of images, samples of a machine, and a reader of the page."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from html.parser import HTMLParser

import numpy as np

from edge.report import build_report
from edge.telemetry import UNAVAILABLE

STAGES = ("queue", "decode", "preprocess", "infer", "postprocess", "total")
BEGIN = datetime(2026, 1, 1, tzinfo=timezone.utc)

MANIFEST = {
    "name": "network-int8-onnxruntime",
    "created": "2026-01-01T00:00:00+00:00",
    "model": {
        "network": "mobilenet_v2",
        "input_size": 448,
        "batch": 1,
        "notice": "synthetic phantoms, research use only",
    },
    "precision": "int8",
    "lowering": {"kind": "padded"},
    "backend": "onnxruntime",
    "platform": {},
    "gate": {"verdict": "pass"},
}
MACHINE = {"cpu": "a CPU", "clocks": {"cpu": UNAVAILABLE, "gpu": UNAVAILABLE}, "power_mode": UNAVAILABLE}


def image(timings, seconds, status="done"):
    return {"status": status, "timings_ms": timings, "time": (BEGIN + timedelta(seconds=seconds)).isoformat()}


def images(count, seed=0, stages=STAGES, gpu=False):
    rng = np.random.default_rng(seed)
    results, now = [], 0.0
    for _ in range(count):
        timings = {stage: float(rng.gamma(9, 0.3)) for stage in stages[:-1]}
        timings["total"] = sum(timings.values())
        now += timings["total"] / 1e3
        if gpu:
            timings["gpu"] = timings["infer"] / 2
        results.append(image(timings, now))
    return results


def sample(time, **readings):
    nothing = dict.fromkeys(
        ("cpu_load", "other_load", "rss_mb", "gpu_mhz", "cpu_mhz", "emc_mhz", "throttle_events", "throttle_alerts")
    )
    return {"time": BEGIN.timestamp() + time, **nothing, "temperature_c": {}, "power_w": {}, **readings}


def report_of(results, **changes):
    arguments = {
        "kind": "bench",
        "scenario": "single-stream",
        "wall_seconds": 2.0,
        "bundle_manifest": MANIFEST,
        "bundle_sha256": "ab" * 32,
        "backend_facts": {"name": "onnxruntime"},
        "machine_facts": MACHINE,
    }
    return build_report(results, **{**arguments, **changes})


class Page(HTMLParser):
    """Collects what a page refers to and checks that every tag that needs it is closed in its order."""

    VOID = frozenset({"meta", "br", "line", "rect", "path", "circle"})

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.references, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.references += [v for k, v in attributes if k in ("src", "href", "srcset", "data", "action", "xlink:href")]
        self.references += [k for k, _ in attributes if k.startswith("on")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return " ".join(self.words)


# The figures


def full_report(count=1500):
    samples = [
        sample(
            0.5 * i,
            cpu_load=0.5,
            other_load=0.01,
            gpu_mhz=1020.0,
            cpu_mhz=1728.0,
            temperature_c={"cpu": 50.0 + i},
            power_w={"VDD_IN": 11.0},
            throttle_events=i // 20,
        )
        for i in range(40)
    ]
    return report_of(images(count, gpu=True), samples=samples, settings={"duration_s": 20.0})


COMPARED = {
    "kind": "plugin",
    "reason": "timed here",
    "builder_model": "model.int8.plugin.onnx",
    "timed_on": {"device": "Orin", "cores": 6},
    "comparison": [
        {"kind": "padded", "median_ms": 6.0, "p10_ms": 5.9, "p90_ms": 6.6, "runs": 40, "builder": "TensorRT 10.3"},
        {"kind": "split", "left_out": "no memory"},
        {"kind": "plugin", "median_ms": 4.0, "p10_ms": 3.9, "p90_ms": 4.1, "runs": 40, "builder": "TensorRT 10.3"},
    ],
}
