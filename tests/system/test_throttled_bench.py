"""Real bench runs on a reproduced Jetson that throttles half-way, and on one without power sensors."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge.backends.onnxruntime import OnnxRuntimeBackend
from edge.bench import run_bench
from edge.bundle import Bundle
from edge.report import write_report
from edge.telemetry import UNAVAILABLE
from tests.unit.edge.jetson_trees import ORIN_NANO, THOR, tree
from tests.unit.edge.report_cases import Page

SECONDS = 2.2


def bench(bundle: Bundle, root: Path, change: Callable[[], object], scenario: str = "single-stream") -> dict[str, Any]:
    """Run it, while a thread makes the `change` once a second of the run is over."""
    second_is_over = threading.Event()

    def changed() -> None:
        assert second_is_over.wait(60)
        change()

    def progress(what: str, done: int, of: int) -> None:
        if done >= 1:
            second_is_over.set()

    thread = threading.Thread(target=changed)
    thread.start()
    try:
        return run_bench(
            bundle,
            lambda: OnnxRuntimeBackend(bundle),
            scenario=scenario,
            duration=SECONDS,
            generator="own",
            progress=progress,
            root=root,
        )
    finally:
        second_is_over.set()
        thread.join()


def first_paragraph(page: str) -> str:
    found = re.search(r"<p\b.*?</p>", page, re.DOTALL)
    assert found
    return Page(found[0]).text


@pytest.mark.parametrize(
    ("board", "changes", "named"),
    [
        (ORIN_NANO, {"sys/class/hwmon/hwmon1/oc3_event_cnt": "29"}, "2 throttle events"),
        (THOR, {"sys/class/thermal/cooling_device2/cur_state": "1"}, "gpu-throttle-alert"),
    ],
    ids=["a counter of JetPack 6", "an alert of JetPack 7"],
)
def test_throttling_is_in_the_first_paragraph_and_on_the_time_axis(
    tiny_bundle: Bundle, tmp_path: Path, board: dict[str, str], changes: dict[str, str], named: str
) -> None:
    root = tree(tmp_path / "root", board)
    report = bench(tiny_bundle, root, lambda: tree(root, changes))
    page = write_report(report, tmp_path / "report").read_text()
    assert "The machine throttled, first " in report["verdict"]
    assert named in report["verdict"]
    assert first_paragraph(page).split() == report["verdict"].split()

    (period,) = report["time_series"]["throttled"]
    machine = report["time_series"]["machine"]
    events, alerts = machine["throttle_events"], machine["throttle_alerts"]
    throttled = [
        bool(alerts[i]) or (events != UNAVAILABLE and events[i] > events[0]) for i in range(len(machine["t_s"]))
    ]
    first = throttled.index(True)
    assert first > 0
    assert machine["t_s"][first - 1] <= period["from_s"] <= machine["t_s"][first] <= period["to_s"]
    plot = re.search(r'<svg[^>]*"time-title.*?</svg>', page, re.DOTALL)
    assert plot
    assert plot[0].count('class="throttled"') == 1
    assert json.loads((tmp_path / "report/report.json").read_text())["verdict"] == report["verdict"]


def test_without_power_sensors_no_energy_is_printed(tiny_bundle: Bundle, tmp_path: Path) -> None:
    root = tree(tmp_path / "root", {name: text for name, text in ORIN_NANO.items() if "ina" not in text})
    report = bench(tiny_bundle, root, lambda: tree(root, {"sys/class/thermal/thermal_zone0/temp": "30000"}), "offline")
    page = write_report(report, tmp_path / "report").read_text()
    assert (
        report["energy"] == report["energy_per_image_j"] == report["time_series"]["machine"]["power_w"] == UNAVAILABLE
    )
    assert not re.search(r"\d\s*(?:J|W|mJ|mW)\b", re.sub(r"\b\d+W\b", "", Page(page).text))  # 15W is a power mode
    assert report["time_series"]["throttled"] == []
    assert "throttled" not in first_paragraph(page)


def test_with_power_sensors_the_energy_is_that_of_the_tree(tiny_bundle: Bundle, tmp_path: Path) -> None:
    root = tree(tmp_path / "root", THOR)
    report = bench(tiny_bundle, root, lambda: None)
    images = report["counts"]["done"]
    assert report["energy"]["rails"] == ["VIN"]
    assert report["energy_per_image_j"] == pytest.approx(41.5 * report["wall_seconds"] / images)
    shown = round(report["energy_per_image_j"], 4)  # the page has four decimals at most
    assert f"{shown:.3g}" in Page(write_report(report, tmp_path).read_text()).text
