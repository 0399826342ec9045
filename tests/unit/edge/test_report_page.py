"""edge.report: a page that is whole, safe and tells what is missing."""

from __future__ import annotations

import json
import re
import stat
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from edge.errors import MachineError
from edge.report import write_report
from edge.report.html import report_html
from edge.report.svg import figure_text, ticks
from edge.telemetry import UNAVAILABLE
from tests.unit.edge.report_cases import (
    COMPARED,
    MACHINE,
    MANIFEST,
    Page,
    full_report,
    images,
    report_of,
    sample,
)


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
    assert len(plots) == 6
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
    unread = "temperature, GPU clock, CPU clock, memory clock, power, throttle events, CPU load"
    assert f"Not readable on this machine: {unread}." in text
    assert text.count(UNAVAILABLE) >= 3


# Lowerings


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


# Precisions

EFFECT = {"mean_difference": 0.031, "max_difference": 0.4, "auc_drop": 0.0123}
MIXED = {
    "left": ["stem"],
    "of": 3,
    "tried": 2,
    "images": 64,
    "reason": "the gate failed with all layers in int8",
    "layers": {"stem": EFFECT, "md": {"mean_difference": 0.0, "max_difference": 0.0, "auc_drop": None}},
}


def test_the_layers_that_are_left_in_float16_are_drawn_and_named():
    report = report_of(images(5), bundle_manifest={**MANIFEST, "mixed_precision": MIXED})
    assert report["precisions"]["rows"][0] == {"layer": "stem", "precision": "float16", **EFFECT}
    page = report_html(report)
    text = " ".join(Page(page).text.split())
    assert "2 layers in int8, 1 left in float16: the gate failed with all layers in int8." in text
    assert "stem float16 3.10 40.0 0.0123 md int8 0 0" in text
    assert page.count('class="tail"><title>stem, float16: 3.10 percentage points') == 1
    assert page.count('class="bar"><title>md, int8: 0 percentage points') == 1


def test_where_no_effect_was_measured_there_is_a_sentence_and_no_plot():
    plan = {**MIXED, "left": [], "images": None, "layers": {}, "reason": "the self-test passes with all layers in int8"}
    page = report_html(report_of(images(5), bundle_manifest={**MANIFEST, "mixed_precision": plan}))
    assert "3 layers in int8, 0 left in float16: the self-test passes with all layers in int8." in page
    assert "precisions-title" not in page


@pytest.mark.parametrize("manifest", [MANIFEST, {**MANIFEST, "mixed_precision": None}])
def test_a_bundle_of_one_precision_has_no_such_section(manifest):
    report = report_of(images(5), bundle_manifest=manifest)
    assert report["precisions"] == UNAVAILABLE
    assert "Precision by layer" not in report_html(report)


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
