"""The page of a comparison in Debian's Chromium: no error, no barrier, nothing over another, and on paper."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pypdf
import pytest

from edge.bench_against import judge
from edge.intervals import Interval
from edge.report import write_comparison
from edge.report.compare import compare_reports, comparison_of, row
from tests.system.page.barriers import assert_no_barrier
from tests.system.page.browser import DESK, PHONE, Seen
from tests.system.page.test_report_page import OVERLAPS
from tests.unit.edge.report_cases import MACHINE, full_report, images, report_of


def apart() -> dict[str, Any]:
    slow = {"name": "another", "threads": 1}
    b = report_of(images(400), machine_facts={**MACHINE, "cpu": "another"}, backend_facts=slow, scenario="offline")
    return compare_reports(full_report(200), b)


def paired() -> dict[str, Any]:
    report = report_of(images(3))
    interval = Interval(1.012, 0.991, 1.034)
    return comparison_of(
        {name: {key: report[key] for key in ("notice", "bundle", "backend")} for name in ("a", "b")},
        [row(f"{stage}, p50", "ms", 5.0, 5.1, interval) for stage in ("total", "queue", "infer", "postprocess")],
        paired=True,
        verdict="Undecided: B takes 1.012 times as long as A.",
        warnings=[],
        notes=["both were opened 40 times"],
        finding=judge(interval, 0.03),
        margin=0.03,
        settings={"duration_s": 10.0},
        machine=MACHINE,
        log_ratios=[0.03 * math.sin(i) for i in range(40)],
    )


@pytest.fixture(params=[apart, paired])
def comparison(request: pytest.FixtureRequest) -> dict[str, Any]:
    made: dict[str, Any] = request.param()
    return made


@pytest.fixture
def address(comparison: dict[str, Any], tmp_path: Path) -> str:
    return write_comparison(comparison, tmp_path).as_uri()


@pytest.mark.parametrize(("scheme", "viewport"), [("light", DESK), ("dark", PHONE)], ids=["light desk", "dark phone"])
def test_axe_finds_no_barrier_and_no_text_is_hidden(
    address: str, visit: Callable[..., Seen], scheme: str, viewport: dict[str, int]
) -> None:
    seen = visit(address, viewport=viewport, color_scheme=scheme)
    assert_no_barrier(seen.page, "scrollable-region-focusable" if viewport is PHONE else "document-title")
    assert seen.complaints == []
    assert seen.requests == [address]
    assert seen.page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert seen.page.evaluate(OVERLAPS) == []


def test_it_prints_with_its_verdict_on_the_first_sheet(
    comparison: dict[str, Any], address: str, visit: Callable[..., Seen]
) -> None:
    pdf = pypdf.PdfReader(io.BytesIO(visit(address, color_scheme="dark").page.pdf(format="A4", print_background=True)))
    assert 1 <= len(pdf.pages) <= 4
    assert "".join(comparison["verdict"].split()) in "".join(pdf.pages[0].extract_text().split())
