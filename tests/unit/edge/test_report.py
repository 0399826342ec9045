"""edge.report: figures against numpy, and a page that is whole, safe and tells what is missing."""

from __future__ import annotations

import json
import re
import stat
import xml.etree.ElementTree as ElementTree
from datetime import datetime, timedelta, timezone
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from edge.errors import MachineError
from edge.report import build_report, write_report
from edge.report.build import verdict
from edge.report.html import report_html
from edge.report.svg import figure_text, ticks
from edge.report.taints import find_taints
from edge.report.time_series import energy_j
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
        ("cpu_load", "other_load", "rss_mb", "gpu_mhz", "cpu_mhz", "throttle_events", "throttle_alerts")
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


def test_stage_figures_are_those_of_the_images():
    results = images(1200)
    report = report_of(results)
    assert tuple(report["stages"]) == STAGES
    for stage in STAGES:
        values = [result["timings_ms"][stage] for result in results]
        figures = report["stages"][stage]
        assert figures["count"] == 1200
        assert figures["mean"] == pytest.approx(np.mean(values))
        assert figures["p50"] == np.percentile(values, 50, method="inverted_cdf")
        assert figures["p99"] == np.percentile(values, 99, method="inverted_cdf")
        assert figures["max"] == max(values)
        assert sum(figures["histogram"]["counts"]) == 1200
    assert report["throughput"] == 600
    assert report["counts"] == {"done": 1200, "refused": 0}
    assert report["format"] == 1


def test_refused_images_are_counted_but_not_timed():
    results = [*images(20), image({"queue": 1.0, "total": 9999.0}, 1.0, "refused")]
    report = report_of(results)
    assert report["counts"] == {"done": 20, "refused": 1}
    assert report["throughput"] == 10
    assert report["stages"]["total"]["count"] == 20
    assert report["stages"]["total"]["max"] < 9999


@pytest.mark.parametrize(("count", "missing"), [(99, ["p99 ", "p99.9 "]), (100, ["p99.9 "]), (1000, [])])
def test_a_percentile_that_the_count_does_not_support_is_absent_with_its_reason(count, missing):
    report = report_of(images(count))
    notes = [note for note in report["notes"] if "is not given" in note]
    assert len(notes) == len(missing)
    for note, name in zip(notes, missing):
        assert note.startswith(name)
        assert str(count) in note
        assert report["stages"]["total"][name.strip()] is None


def test_stages_that_no_image_passed_are_left_out_and_said_so():
    report = report_of(images(10, stages=("queue", "infer", "postprocess", "total")))
    assert tuple(report["stages"]) == ("queue", "infer", "postprocess", "total")
    assert any("no decode and preprocess stages" in note for note in report["notes"])


def test_gpu_time_stands_beside_wall_time_or_is_unavailable():
    results = images(50, gpu=True)
    report = report_of(results)
    assert report["gpu_ms"]["max"] == pytest.approx(report["stages"]["infer"]["max"] / 2)
    assert "gpu" not in report["stages"]
    assert report_of(images(50))["gpu_ms"] == UNAVAILABLE


def test_the_percentile_curve_goes_as_far_as_the_count_supports():
    results = images(200)
    curve = report_of(results)["percentile_curve"]
    totals = [result["timings_ms"]["total"] for result in results]
    assert curve["percentile"][-1] == 99.5
    assert curve["ms"] == sorted(curve["ms"])
    for percentile, value in zip(curve["percentile"], curve["ms"]):
        assert np.mean(np.array(totals) <= value) >= percentile / 100 - 1e-12


def test_no_images_make_a_report_that_claims_nothing(tmp_path):
    report = report_of([], wall_seconds=0.0)
    assert report["stages"] == {}
    assert report["throughput"] is None
    assert report["time_series"] == {"latency": UNAVAILABLE, "machine": UNAVAILABLE}
    assert "nothing to time" in report["verdict"]
    assert "nothing to time" in Page(write_report(report, tmp_path).read_text()).text


@pytest.mark.parametrize(
    ("scenario", "count", "start"),
    [
        ("single-stream", 1000, "90 % of images were answered within "),
        ("server", 1000, "99 % of images were answered within "),
        ("server", 99, "95 % of images were answered within "),
        ("offline", 1000, "500 images/s with the pipeline kept full"),
        ("single-stream", 1, "1 image was classified: too few"),
    ],
)
def test_the_verdict_is_the_figure_that_the_scenario_is_about(scenario, count, start):
    report = report_of(images(count), scenario=scenario)
    assert report["verdict"].startswith(start)


def test_the_verdict_of_multi_stream_is_about_queries():
    queries = [float(value) for value in range(1, 101)]
    report = report_of(images(800), scenario="multi-stream", query_ms=queries, settings={"samples_per_query": 8})
    assert report["query"]["p99"] == 99.0
    assert report["verdict"].startswith("99 % of queries of 8 images were answered within 99.0 ms")
    assert verdict(report) == report["verdict"]


# Energy, time and taints


def test_energy_is_the_area_under_the_boards_rail():
    samples = [
        sample(0.0, power_w={"VDD_IN": 10.0, "VDD_SOC": 1.0}),
        sample(1.0, power_w={"VDD_IN": 20.0, "VDD_SOC": 1.0}),
        sample(3.0, power_w={"VDD_IN": 20.0, "VDD_SOC": 1.0}),
    ]
    # (15 W * 1 s + 20 W * 2 s) / 3 s over a run of 2 s.
    assert energy_j(samples, 2.0) == {
        "joules": pytest.approx(55 / 3 * 2),
        "mean_w": pytest.approx(55 / 3),
        "rails": ["VDD_IN"],
    }
    report = report_of(images(10), samples=samples)
    assert report["energy_per_image_j"] == pytest.approx(55 / 3 * 2 / 10)
    assert any("idle power included" in note for note in report["notes"])


@pytest.mark.parametrize(
    "samples",
    [
        [],
        [sample(0.0), sample(1.0)],
        [sample(0.0, power_w={"VDD_SOC": 1.0}), sample(1.0, power_w={"VDD_SOC": 1.0})],
        [sample(0.0, power_w={"VDD_IN": 9.0})],
    ],
)
def test_energy_that_cannot_be_read_is_unavailable_never_zero(samples):
    report = report_of(images(10), samples=samples)
    assert report["energy_per_image_j"] == UNAVAILABLE
    assert report["energy"] == UNAVAILABLE


def test_latency_and_machine_share_one_time_axis():
    results = [image({"total": 500.0}, 1.0), image({"total": 100.0}, 4.0), image({"total": 300.0}, 4.0)]
    samples = [sample(0.0, temperature_c={"cpu": 50.0}), sample(4.5, temperature_c={"cpu": 60.0, "gpu": 55.0})]
    series = report_of(results, samples=samples)["time_series"]
    assert series["machine"]["t_s"] == [0.0, 4.5]
    assert series["machine"]["temperature_c"] == {"cpu": [50.0, 60.0], "gpu": [None, 55.0]}
    assert series["machine"]["gpu_mhz"] == UNAVAILABLE
    assert series["machine"]["power_w"] == UNAVAILABLE
    latency = series["latency"]
    assert latency["count"] == [1, 2]
    assert latency["p50"] == [500.0, 100.0]
    assert latency["max"] == [500.0, 300.0]
    half = latency["bin_s"] / 2
    assert latency["t_s"] == pytest.approx([1.0, 4.0], abs=half + 1e-9)


def test_long_runs_keep_the_time_series_short():
    samples = [sample(0.5 * i, cpu_load=0.5) for i in range(10_000)]
    series = report_of(images(5000), samples=samples)["time_series"]
    assert len(series["machine"]["t_s"]) <= 240
    assert len(series["latency"]["t_s"]) <= 60
    assert sum(series["latency"]["count"]) == 5000


def states(machine, samples):
    return {taint["what"]: taint["state"] for taint in find_taints(machine, samples)}


def test_what_the_machine_does_not_tell_is_unknown():
    assert set(states(MACHINE, []).values()) == {"unknown"}
    assert set(states(MACHINE, [sample(0.0), sample(1.0)]).values()) == {"unknown"}


@pytest.mark.parametrize(
    ("samples", "state"),
    [
        ([sample(0.0, throttle_events=27), sample(1.0, throttle_events=27)], "clean"),
        ([sample(0.0, throttle_events=27), sample(1.0, throttle_events=28)], "tainted"),
        ([sample(0.0, throttle_alerts=[]), sample(1.0, throttle_alerts=[])], "clean"),
        (
            [sample(0.0, throttle_alerts=[]), sample(1.0, throttle_alerts=["gpu-throttle-alert"]), sample(2.0)],
            "tainted",
        ),
        ([sample(0.0, throttle_events=27)], "unknown"),
    ],
)
def test_throttling(samples, state):
    assert states(MACHINE, samples)["throttling"] == state


@pytest.mark.parametrize(
    ("cpu", "gpu", "state"), [(True, True, "clean"), (True, False, "tainted"), (False, True, "tainted")]
)
def test_clocks(cpu, gpu, state):
    limits = {"min_mhz": 100.0, "max_mhz": 1000.0, "governor": "schedutil"}
    clocks = {"cpu": {**limits, "locked": cpu}, "gpu": {**limits, "locked": gpu}}
    assert states({**MACHINE, "clocks": clocks}, [])["clocks not locked"] == state


@pytest.mark.parametrize(
    ("name", "modes", "state"),
    [
        ("MAXN_SUPER", ["15W", "25W", "MAXN_SUPER"], "clean"),
        ("25W", ["15W", "25W", "MAXN_SUPER"], "tainted"),
        ("15W", ["15W", "7W"], "clean"),
        ("7W", ["15W", "7W"], "tainted"),
        ("mode 3", [], "unknown"),
    ],
)
def test_power_mode(name, modes, state):
    mode = {"id": 0, "name": name, "modes": {mode: i for i, mode in enumerate(modes)}}
    assert states({**MACHINE, "power_mode": mode}, [])["power mode"] == state


@pytest.mark.parametrize(("load", "state"), [(0.02, "clean"), (0.5, "tainted")])
def test_other_load(load, state):
    assert states(MACHINE, [sample(0.0), sample(1.0, other_load=load)])["other load"] == state


# Layers


def test_layers_of_inspector_and_of_builder_log():
    inspector = {"Name": "conv1", "LayerType": "CaskConvolution", "Outputs": [{"Format/Datatype": "Int8 NC/32HW32"}]}
    log = {
        "Name": "Reformatting CopyNode for Input Tensor 0 to conv1",
        "LayerType": "Reformat",
        "Outputs": [{"Name": "x", "Dimensions": [1, 8, 4, 4], "Datatype": "Int8", "Format": "NC/4HW4"}],
    }
    manifest = {**MANIFEST, "platform": {"layers": [inspector, log]}}
    report = report_of(images(10), bundle_manifest=manifest)
    assert report["layers"] == [
        {"name": "conv1", "type": "CaskConvolution", "format": "Int8 NC/32HW32", "reformat": False, "ms": None},
        {"name": log["Name"], "type": "Reformat", "format": "Int8 NC/4HW4", "reformat": True, "ms": None},
    ]
    assert any("did not use" in note for note in report["notes"])
    ran = report_of(images(10), bundle_manifest=manifest, backend_facts={"name": "tensorrt", "engine": "bundle"})
    assert not any("did not use" in note for note in ran["notes"])
    assert "2 layers, of which 1 only change" in Page(report_html(report)).text
    assert report_of(images(10))["layers"] == UNAVAILABLE


# The page


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


@pytest.mark.parametrize("count", [0, 1, 2, 9, 10, 150, 1500])
def test_the_page_is_whole_and_self_contained_at_any_count(count, tmp_path):
    page = write_report(full_report(count), tmp_path)
    content = page.read_text(encoding="utf-8")
    parsed = Page(content)
    assert parsed.references == []
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(parsed.tags)
    assert not re.search(r"url\(|@import|https?:", content)
    assert "prefers-color-scheme: dark" in content
    assert "@media print" in content
    assert "synthetic phantoms, research use only" in parsed.text
    assert MANIFEST["name"] in parsed.text
    assert "ab" * 32 in parsed.text


def test_every_plot_is_sound_xml_with_a_title_a_description_and_finite_numbers():
    content = report_html(full_report())
    plots = re.findall(r"<svg.*?</svg>", content, re.DOTALL)
    assert len(plots) == 4
    ids = re.findall(r' id="([^"]+)"', content)
    assert len(ids) == len(set(ids))
    for plot in plots:
        root = ElementTree.fromstring(plot)
        assert root.get("role") == "img"
        assert [root.find("title").get("id"), root.find("desc").get("id")] == root.get("aria-labelledby").split()
        assert root.find("title").text
        assert root.find("desc").text
        assert "nan" not in plot
        assert "inf" not in plot.replace("infer", "")
        width, height = (float(part) for part in root.get("viewBox").split()[2:])
        for element in root.iter():
            for key in ("x", "x1", "x2", "cx"):
                assert 0 <= float(element.get(key, 0)) <= width
            for key in ("y", "y1", "y2", "cy"):
                assert 0 <= float(element.get(key, 0)) <= height


def test_the_histogram_draws_every_bin_in_proportion():
    report = report_of(images(500))
    counts = [n for n in report["stages"]["total"]["histogram"]["counts"] if n]
    plot = ElementTree.fromstring(re.search(r"<svg.*?</svg>", report_html(report), re.DOTALL)[0])
    bars = [
        float(r.get("height"))
        for r in plot.iter("rect")
        if r.get("class") in ("bar", "tail") and float(r.get("height"))
    ]
    assert len(bars) == len(counts)
    assert np.array(bars) / max(bars) == pytest.approx(np.array(counts) / max(counts), abs=1e-3)


def test_texts_from_outside_cannot_become_markup():
    evil = "<script>alert(1)</script>\"'&"
    lowering = {
        **{"kind": evil, "reason": evil, evil: evil, "timed_on": {evil: evil}},
        "comparison": [{"kind": evil, "median_ms": 1.0, "builder": evil}, {"kind": evil, "left_out": evil}],
    }
    manifest = {**MANIFEST, "name": evil, "precision": evil, "lowering": lowering, "backend": evil}
    manifest["model"] = {**MANIFEST["model"], "network": evil, "notice": evil}
    manifest["platform"] = {"layers": [{"Name": evil, "LayerType": evil, "Outputs": [{"Format/Datatype": evil}]}]}
    report = report_of(
        images(20),
        bundle_manifest=manifest,
        scenario=evil,
        backend_facts={"name": evil, evil: [evil, {evil: evil}]},
        machine_facts={**MACHINE, "cpu": evil, evil: evil},
        samples=[
            sample(i, power_w={evil: 1.0, "VDD_SOC": 1.0}, temperature_c={evil: 5.0}, throttle_alerts=[evil])
            for i in range(3)
        ],
        notes=[evil],
        settings={evil: evil},
    )
    report["verdict"] = evil
    parsed = Page(report_html(report))
    assert "script" not in parsed.tags
    assert parsed.references == []
    assert parsed.text.count("<script>alert(1)</script>") >= 15


def test_a_bundle_without_a_notice_gets_the_general_one():
    manifest = {**MANIFEST, "model": {**MANIFEST["model"], "notice": ""}}
    assert "Research use only" in report_of(images(2), bundle_manifest=manifest)["notice"]


def test_unavailable_is_said_and_no_zero_is_shown_for_it():
    text = Page(report_html(report_of(images(20)))).text
    assert "Not readable on this machine: temperature, GPU clock, CPU clock, power, throttle events, CPU load." in text
    assert text.count(UNAVAILABLE) >= 3


# Lowerings


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


def test_the_comparison_of_lowerings_is_shown_with_ratios():
    report = report_of(images(5), bundle_manifest={**MANIFEST, "lowering": COMPARED})
    lowerings = report["lowerings"]
    assert (lowerings["chosen"], lowerings["timed_on"]) == ("plugin", {"device": "Orin", "cores": 6})
    assert [row["ratio"] for row in lowerings["rows"]] == [1.5, None, 1.0]
    assert [row["left_out"] for row in lowerings["rows"]] == [None, "no memory", None]
    assert report["bundle"]["lowering"] == {key: COMPARED[key] for key in ("kind", "reason", "builder_model")}
    text = " ".join(Page(report_html(report)).text.split())
    assert "padded 6.00 5.90 6.60 1.50 40 TensorRT 10.3" in text
    assert re.search(r"split( \N{EN DASH}){4} left out: no memory", text)
    assert "plugin (chosen) 4.00 3.90 4.10 1.00 40" in text
    assert "device Orin" in text


def test_without_a_comparison_there_is_no_such_section():
    report = report_of(images(5))
    assert report["lowerings"] == UNAVAILABLE
    assert "Lowerings" not in report_html(report)


# The files


def test_the_page_is_made_from_the_json_alone(tmp_path):
    page = write_report(full_report(), tmp_path / "new" / "report")
    assert page == tmp_path / "new" / "report" / "report.html"
    kept = json.loads((page.parent / "report.json").read_text())
    assert report_html(kept) == page.read_text(encoding="utf-8")
    assert stat.S_IMODE(page.stat().st_mode) == 0o644


def test_writing_again_replaces_and_leaves_nothing_else(tmp_path):
    write_report(report_of(images(5)), tmp_path)
    write_report(report_of(images(7)), tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["counts"]["done"] == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="the report cannot be written to") as caught:
        write_report(report_of(images(5)), tmp_path / "file" / "report")
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_one_line_and_keeps_the_old_report(tmp_path, monkeypatch):
    write_report(report_of(images(5)), tmp_path)
    monkeypatch.setattr("edge.report.report_html", lambda report: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(MachineError, match="free space"):
        write_report(report_of(images(7)), tmp_path)
    assert (tmp_path / "report.html").read_text().count("<svg") > 0
    assert not list(Path(tmp_path).glob(".report*"))


# Figures on axes


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "\N{EN DASH}"),
        (0, "0"),
        (1234.5, "1,234"),
        (123.4, "123"),
        (12.34, "12.3"),
        (1.234, "1.23"),
        (0.01234, "0.0123"),
    ],
)
def test_figures_have_three_significant_digits(value, text):
    assert figure_text(value) == text


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 17.7), (7.6, 21.4), (0, 1e-4), (995, 1005), (0, 123456)])
def test_ticks_are_round_and_within(low, high):
    found = ticks(low, high)
    assert 1 <= len(found) <= 7
    assert all(low - 1e-9 <= tick <= high * (1 + 1e-9) for tick in found)
    steps = np.diff(found)
    assert steps == pytest.approx(steps[:1].repeat(len(steps)), rel=1e-6)
