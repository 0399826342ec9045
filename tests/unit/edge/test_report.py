"""edge.report: figures against numpy, energy and what tainted a run."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from edge.report import write_report
from edge.report.build import verdict
from edge.report.html import report_html
from edge.report.taints import find_taints
from edge.report.time_series import energy_j, time_series
from edge.telemetry import UNAVAILABLE
from tests.unit.edge.report_cases import (
    BEGIN,
    MACHINE,
    MANIFEST,
    STAGES,
    Page,
    image,
    images,
    report_of,
    sample,
)


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
    assert report["schema_version"] == 2


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
    assert report["time_series"] == {"latency": UNAVAILABLE, "machine": UNAVAILABLE, "throttled": UNAVAILABLE}
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
        "covers": "the module",
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
        [sample(0.0, power_w={"VDD_IN": 0.0}), sample(1.0, power_w={"VDD_IN": 0.0})],
    ],
)
def test_energy_that_cannot_be_read_is_unavailable_never_zero(samples):
    report = report_of(images(10), samples=samples)
    assert report["energy_per_image_j"] == UNAVAILABLE
    assert report["energy"] == UNAVAILABLE
    assert not re.search(r"\d J\b|Energy", Page(report_html(report)).text)


def test_energy_begins_with_the_first_reading_of_a_tool_that_comes_up_later():
    samples = [sample(0.0), *(sample(t, power_w={"VIN": 40.0}) for t in (1.0, 2.0, 3.0))]
    assert energy_j(samples, 3.0)["joules"] == pytest.approx(120)


def test_a_graphics_cards_energy_is_not_the_machines():
    report = report_of(images(10), samples=[sample(t, power_w={"GPU board": 50.0}) for t in (0.0, 1.0)])
    text = Page(report_html(report)).text
    assert report["energy"]["covers"] == "the GPU board alone"
    assert "energy per image, the GPU board alone 10.0 J" in " ".join(text.split())


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


def test_a_step_of_the_wall_clock_moves_no_image_against_the_samples():
    results = [{**image({"total": 500.0}, 1.0 if i < 5 else 3600.0), "ended": BEGIN.timestamp() + i} for i in range(10)]
    series = report_of(results, samples=[sample(0.0), sample(9.0)])["time_series"]
    assert series["latency"]["count"] == [1] * 10
    assert series["latency"]["t_s"][-1] - series["latency"]["t_s"][0] == pytest.approx(9, abs=0.2)


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


def spans(samples):
    return time_series([], samples)["throttled"]


def test_when_it_throttled_is_told():
    alerts = {2: ["gpu"], 3: ["gpu", "cpu"], 6: ["cpu"]}
    samples = [sample(float(t), throttle_alerts=alerts.get(t, [])) for t in range(8)]
    assert spans(samples) == [
        {"from_s": 2.0, "to_s": 3.0, "what": ["gpu", "cpu"]},
        {"from_s": 6.0, "to_s": 6.0, "what": ["cpu"]},
    ]
    # A counter rose since the sample before it.
    counts = [27, 27, 29, 30, 30, None, 31]
    assert spans([sample(float(t), throttle_events=n) for t, n in enumerate(counts)]) == [
        {"from_s": 1.0, "to_s": 3.0, "what": ["throttle events"]},
        {"from_s": 5.0, "to_s": 6.0, "what": ["throttle events"]},
    ]
    assert spans([sample(0.0), sample(1.0)]) == UNAVAILABLE
    assert spans([sample(0.0, throttle_alerts=[]), sample(1.0, throttle_alerts=[])]) == []


def test_an_alert_of_one_moment_is_not_lost_in_a_long_run():
    samples = [sample(0.5 * i, throttle_alerts=["gpu"] if i == 4321 else []) for i in range(10_000)]
    report = report_of(images(100), samples=samples)
    (period,) = report["time_series"]["throttled"]
    assert period["from_s"] == period["to_s"] == pytest.approx(2160.5)
    assert not any(report["time_series"]["machine"]["throttle_alerts"])  # thinned: the plot's samples missed it
    assert report_html(report).count('class="throttled"') == 1


def test_the_verdict_tells_of_throttling_first_of_all():
    samples = [
        sample(float(t), throttle_events=27 + (t > 3), throttle_alerts=["gpu"] if t > 3 else []) for t in range(6)
    ]
    report = report_of(images(100), samples=samples)
    warning = "The machine throttled, first 3 s into the run (1 throttle event, gpu): "
    assert report["verdict"].startswith("90 % of images were answered within ")
    assert warning in report["verdict"]
    first = re.search(r"<p.*?</p>", report_html(report))[0]
    assert f'<strong class="alarm">{warning}' in first
    from_the_start = [sample(float(t), throttle_alerts=["gpu"]) for t in range(6)]
    assert "throttled, from the start on (gpu)" in report_of(images(100), samples=from_the_start)["verdict"]
    calm = [sample(float(t), throttle_events=27, throttle_alerts=[]) for t in range(6)]
    assert "throttled" not in report_of(images(100), samples=calm)["verdict"]


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
    text = " ".join(Page(report_html(report)).text.split())
    assert "2 layers, of which 1 only change a tensor's format." in text
    assert f"Layers that only change a format layer type output format ms {log['Name']} Reformat Int8 NC/4HW4" in text
    assert report_of(images(10))["layers"] == UNAVAILABLE


def test_reformat_layers_are_called_out_with_their_share_of_the_time():
    layers = [{"Name": f"conv{i}", "LayerType": "CaskConvolution", "Outputs": [], "ms": 0.5} for i in range(30)]
    layers += [{"Name": f"copy{i:02}", "LayerType": "Reformat", "Outputs": [], "ms": i / 10} for i in range(20)]
    page = report_html(report_of(images(10), backend_facts={"name": "tensorrt", "layers": layers}))
    open_text = Page(re.sub(r"<details>.*?</details>", "", page, flags=re.DOTALL)).text
    assert "they take 19.0 of 34.0 ms (56%)" in open_text
    assert "copy19" in open_text
    assert "copy07" not in open_text
    assert "conv1" not in open_text
    assert page.count("<tr class=flag>") == 20
    assert page.count(">conv") == 30


def test_the_waterfall_adds_up_to_the_total_even_if_some_images_skip_a_stage():
    results = [image({"decode": 4.0, "infer": 6.0, "total": 10.0}, 1.0), image({"infer": 6.0, "total": 6.0}, 2.0)]
    plot = re.search(r"<svg[^>]*waterfall-title.*?</svg>", report_html(report_of(results)), re.DOTALL)[0]
    assert "decode: 2.00 ms, 25%; infer: 6.00 ms, 75%; total: 8.00 ms, 100%" in plot
    bars = [(float(r.get("x")), float(r.get("width"))) for r in ElementTree.fromstring(plot).iter("rect")]
    (decode, wide), (infer, wider), (total, whole) = bars
    assert (decode, infer, whole) == pytest.approx((total, decode + wide, wide + wider), abs=0.02)
