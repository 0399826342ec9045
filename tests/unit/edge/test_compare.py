"""edge.report.compare: ratios of two reports, and what forbids to believe them."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree

import pytest

from edge.report import COMPARISON_JSON, write_comparison
from edge.report.compare import compare_reports
from edge.report.comparison_page import NOTHING_DIFFERS, comparison_html
from edge.telemetry import UNAVAILABLE
from tests.unit.edge.report_cases import MACHINE, MANIFEST, Page, full_report, image, images, report_of, sample


def slower(results, factor):
    """The same images with every stage longer."""
    return [
        image({stage: factor * value for stage, value in result["timings_ms"].items()}, 0.01 * index)
        for index, result in enumerate(results)
    ]


def rows_of(comparison):
    return {row["what"]: row for row in comparison["rows"]}


def test_every_figure_has_its_ratio_and_interval():
    a = report_of(images(900, seed=1))
    b = report_of(slower(images(900, seed=2), 1.25), wall_seconds=2.5)
    rows = rows_of(compare_reports(a, b))
    assert list(rows) == [
        *("total, p50", "total, p90", "total, mean"),
        *("queue, p50", "decode, p50", "preprocess, p50", "infer, p50", "postprocess, p50", "throughput"),
    ]
    for what, row in rows.items():
        if what != "throughput":
            stage, name = what.split(", ")
            assert row["ratio"] == pytest.approx(b["stages"][stage][name] / a["stages"][stage][name])
            assert row["low"] < 1.25 < row["high"]
            assert row["high"] / row["low"] < 1.3
    assert rows["throughput"]["ratio"] == pytest.approx(0.8)
    assert rows["throughput"]["low"] < 0.8 < rows["throughput"]["high"]
    assert rows["throughput"]["better"] == "higher"


def test_swapping_the_reports_turns_every_ratio_round():
    a, b = report_of(images(300, seed=1)), report_of(images(400, seed=2))
    there, back = (rows_of(compare_reports(*pair)) for pair in ((a, b), (b, a)))
    for what, row in there.items():
        assert row["ratio"] == pytest.approx(1 / back[what]["ratio"])
        assert row["low"] == pytest.approx(1 / back[what]["high"])


def test_it_says_that_the_runs_were_not_paired():
    comparison = compare_reports(report_of(images(300)), report_of(images(300, seed=1)))
    assert comparison["paired"] is False
    assert "measured apart" in comparison["verdict"]
    assert "made apart" in comparison["notes"][0]
    assert "finding" not in comparison


@pytest.mark.parametrize("count", [0, 1, 50, 99])
def test_too_few_images_have_no_interval(count):
    comparison = compare_reports(report_of(images(count)), report_of(images(500)))
    assert all(row["low"] is row["high"] is None for row in comparison["rows"])
    if count < 2:
        assert comparison["verdict"] == "The two reports have no median latency to compare."


def test_energy_and_gpu_stand_where_both_have_them():
    with_both = full_report(200)
    rows = rows_of(compare_reports(with_both, full_report(400)))
    assert rows["energy per image"]["ratio"] == pytest.approx(0.5)
    assert rows["energy per image"]["low"] is None
    assert rows["gpu, p50"]["low"] is not None
    without = rows_of(compare_reports(with_both, report_of(images(200))))
    assert not {"energy per image", "gpu, p50"} & set(without)


def test_queries_are_compared_without_an_interval():
    run = {"scenario": "multi-stream", "settings": {"samples_per_query": 8}}
    a = report_of(images(800), query_ms=[float(value) for value in range(1, 101)], **run)
    b = report_of(images(800), query_ms=[2.0 * value for value in range(1, 101)], **run)
    row = rows_of(compare_reports(a, b))["query, p90"]
    assert (row["ratio"], row["low"]) == (2.0, None)


ORIN = {**MACHINE, "cpu": "Arm", "clocks": {"cpu": {"locked": True}, "gpu": UNAVAILABLE}}


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"machine_facts": ORIN}, "machine differs: cpu: a CPU against Arm; clocks cpu: unavailable against {'locked"),
        ({"backend_facts": {"name": "openvino"}}, "backend differs: name: onnxruntime against openvino"),
        ({"scenario": "offline"}, "run differs: scenario: single-stream against offline"),
        ({"settings": {"images": "3 files"}}, "run differs: images: none against 3 files"),
        ({"kind": "ledger"}, "run differs: kind: bench against ledger"),
        ({"bundle_manifest": {**MANIFEST, "precision": "fp16"}}, "bundle differs: precision: int8 against fp16"),
        (
            {"samples": [sample(0.0), sample(1.0, other_load=0.5)]},
            "other load: A unknown; B tainted (",
        ),
    ],
)
def test_what_differs_is_a_warning(changes, warning):
    comparison = compare_reports(report_of(images(200)), report_of(images(200), **changes))
    assert len(comparison["warnings"]) == 1
    assert comparison["warnings"][0].startswith(warning)
    assert comparison["verdict"].endswith("; 1 warning.")


def test_what_may_differ_is_none():
    a = report_of(images(200), settings={"duration_s": 1.0}, backend_facts={"name": "x", "chosen_because": "--backend"})
    b = report_of(images(300), settings={"duration_s": 9.0}, backend_facts={"name": "x", "chosen_because": "auto"})
    assert compare_reports(a, b)["warnings"] == []


def test_many_differences_are_cut_short():
    a, b = ({"name": "x", **{f"fact {i}": value for i in range(40)}} for value in (1, "y" * 500))
    [warning] = compare_reports(report_of([], backend_facts=a), report_of([], backend_facts=b))["warnings"]
    assert warning.endswith("and 32 more")
    assert len(warning) < 1000


# The page


@pytest.mark.parametrize("count", [0, 5, 300])
def test_the_page_is_whole_and_self_contained(count, tmp_path):
    a, b = report_of(images(count)), full_report(count)
    path = write_comparison(compare_reports(a, b), tmp_path / "new")
    content = path.read_text(encoding="utf-8")
    parsed = Page(content)
    assert parsed.references == []
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(parsed.tags)
    assert not re.search(r"url\(|@import|https?:", content)
    comparison = json.loads((tmp_path / "new" / COMPARISON_JSON).read_text())
    assert comparison["verdict"] in parsed.text
    for line in (*comparison["warnings"], *comparison["notes"], comparison["notice"]):
        assert line in parsed.text
    for plot in re.findall(r"<svg.*?</svg>", content, re.DOTALL):
        root = ElementTree.fromstring(plot)
        width, height = (float(part) for part in root.get("viewBox").split()[2:])
        for element in root.iter():
            assert all(0 <= float(element.get(key, 0)) <= width for key in ("x", "x1", "x2", "cx"))
            assert all(0 <= float(element.get(key, 0)) <= height for key in ("y", "y1", "y2", "cy"))


def test_the_page_of_the_same_says_that_nothing_differs():
    report = report_of(images(200))
    assert NOTHING_DIFFERS in Page(comparison_html(compare_reports(report, report))).text


def test_texts_from_outside_cannot_become_markup():
    evil = "<script>alert(1)</script>\"'&"
    manifest = {**MANIFEST, "name": evil, "model": {**MANIFEST["model"], "network": evil, "notice": evil}}
    b = report_of(
        images(20),
        bundle_manifest=manifest,
        scenario=evil,
        backend_facts={"name": evil, evil: evil},
        machine_facts={**MACHINE, "cpu": evil, evil: {evil: evil}},
        settings={evil: evil},
    )
    parsed = Page(comparison_html(compare_reports(report_of(images(20)), b)))
    assert "script" not in parsed.tags
    assert parsed.text.count("<script>alert(1)</script>") >= 10
