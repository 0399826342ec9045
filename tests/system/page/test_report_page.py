"""The latency report in Debian's Chromium: no error, no barrier, and on paper."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pypdf
import pytest

from edge.report import write_report
from tests.system.page.barriers import assert_no_barrier
from tests.system.page.browser import DESK, PHONE, Seen
from tests.unit.edge.report_cases import COMPARED, MANIFEST, images, report_of, sample

if TYPE_CHECKING:
    from playwright.sync_api import Page

EFFECT = {"mean_difference": 0.031, "max_difference": 0.4, "auc_drop": 0.0123}
LAYERS = [
    {"Name": f"layer {i}", "LayerType": kind, "Outputs": [{"Format/Datatype": "Int8 NC/4HW4"}], "ms": 0.01 * i}
    for i, kind in enumerate(["CaskConvolution", "CaskConvolution", "Reformat"] * 12)
]


def everything() -> dict[str, Any]:
    """A report in which each section has something to show, of a run that throttled twice."""
    samples = [
        sample(
            0.5 * i,
            **{"cpu_load": 0.5, "other_load": 0.01, "gpu_mhz": 1020.0 - 300 * (i > 20), "cpu_mhz": 1728.0},
            **{"emc_mhz": 2133.0, "temperature_c": {"cpu-thermal": 50.0 + i, "gpu-thermal": 48.0 + i}},
            **{"power_w": {"VDD_IN": 11.0 + i % 3, "VDD_SOC": 2.0}, "throttle_events": 27 + i // 20},
            throttle_alerts=["gpu-throttle-alert"] if i > 30 else [],
        )
        for i in range(40)
    ]
    mixed = {
        "left": ["stem"],
        "of": 2,
        "images": 64,
        "reason": "the gate failed",
        "layers": {"stem": EFFECT, "md": EFFECT},
    }
    return report_of(
        images(1500, gpu=True),
        samples=samples,
        settings={"duration_s": 20.0},
        bundle_manifest={**MANIFEST, "lowering": COMPARED, "mixed_precision": mixed},
        backend_facts={"name": "tensorrt", "engine": "bundle", "layers": LAYERS},
    )


def little() -> dict[str, Any]:
    return report_of(images(3))


@pytest.fixture(params=[everything, little], ids=["all sections", "few figures"])
def report(request: pytest.FixtureRequest) -> dict[str, Any]:
    made: dict[str, Any] = request.param()
    return made


@pytest.fixture
def address(report: dict[str, Any], tmp_path: Path) -> str:
    return write_report(report, tmp_path).as_uri()


def open_all(page: Page) -> None:
    for closed in page.locator("details > summary").all():
        closed.click()


@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_barrier_and_the_console_is_silent(
    address: str, visit: Callable[..., Seen], scheme: str, viewport: dict[str, int]
) -> None:
    seen = visit(address, viewport=viewport, color_scheme=scheme)
    assert seen.page.evaluate("getComputedStyle(document.body).backgroundColor") == (
        "rgb(244, 245, 247)" if scheme == "light" else "rgb(16, 19, 23)"
    )
    open_all(seen.page)
    assert_no_barrier(seen.page, "scrollable-region-focusable" if viewport is PHONE else "document-title")
    assert seen.complaints == []
    assert seen.requests == [address]  # one file: nothing else is fetched


def test_the_first_screen_has_the_verdict_and_one_plot(
    report: dict[str, Any], address: str, visit: Callable[..., Seen]
) -> None:
    page = visit(address).page
    first = page.locator("main p, main svg")
    assert re.sub(r"\s+", " ", first.first.inner_text()) == report["verdict"]
    assert page.locator("main svg").first.get_attribute("aria-labelledby") == "histogram-title histogram-text"
    box = page.locator("main svg").first.bounding_box()
    assert box is not None
    assert box["y"] + box["height"] <= DESK["height"]


def test_only_plots_and_tables_scroll_sideways_and_no_text_overlaps(address: str, visit: Callable[..., Seen]) -> None:
    page = visit(address).page
    open_all(page)
    for width in (1000, 700, 360, 320):  # the last is what WCAG 1.4.10 asks for
        page.set_viewport_size({"width": width, "height": 740})
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), width
    page.set_viewport_size(DESK)
    assert page.evaluate(OVERLAPS) == []


OVERLAPS = """() => [...document.querySelectorAll('svg')].flatMap(svg => {
  const boxes = [...svg.querySelectorAll('text')].map(node => [node.textContent, node.getBoundingClientRect()]);
  const frame = svg.getBoundingClientRect();
  const out = boxes.filter(([, b]) => b.left < frame.left - 1 || b.right > frame.right + 1)
    .map(([name]) => 'out: ' + name);
  const hit = boxes.flatMap(([name, a], i) => boxes.slice(i + 1).filter(([, b]) =>
    a.left < b.right - 1 && b.left < a.right - 1 && a.top + 3 < b.bottom - 3 && b.top + 3 < a.bottom - 3)
    .map(([other]) => name + ' / ' + other));
  return [...out, ...hit];
})"""
"""Texts of a plot that lie over each other or stick out of it."""


def solid(text: str) -> str:
    """Without white space: where a line is broken is the printer's affair."""
    return "".join(text.split())


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_prints(report: dict[str, Any], address: str, visit: Callable[..., Seen], scheme: str) -> None:
    page = visit(address, color_scheme=scheme).page
    pdf = pypdf.PdfReader(io.BytesIO(page.pdf(format="A4", print_background=True)))
    assert 1 <= len(pdf.pages) <= 9
    first, whole = solid(pdf.pages[0].extract_text()), solid("".join(each.extract_text() for each in pdf.pages))
    assert solid(report["verdict"]) in first
    assert solid(report["notice"]) in first
    assert solid("How to read this") in whole
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"  # in dark, too


def test_every_part_that_scrolls_is_reached_with_the_keyboard_and_has_a_name(
    address: str, visit: Callable[..., Seen]
) -> None:
    page = visit(address, viewport=PHONE).page
    open_all(page)
    assert page.locator(".scroll:not([tabindex]), .plot:not([aria-label])").count() == 0
    names = page.locator("[role=region]").evaluate_all("nodes => nodes.map(node => node.ariaLabel)")
    assert len(names) == len(set(names))
