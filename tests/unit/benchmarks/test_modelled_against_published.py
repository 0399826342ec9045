"""The model beside published latencies: the docs' table comes out again, and the range's numbers from its fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.modelled_against_published import Compared, compare, counts, fit, table
from benchmarks.published_latencies import PUBLISHED
from build_engine.modelled_latency import FASTEST, SLOWEST

FIGURES = Path(__file__).parents[3] / "docs" / "figures.md"


@pytest.fixture(scope="module")
def rows() -> list[Compared]:
    return [compare(published) for published in PUBLISHED]


def test_the_range_is_what_its_fit_gives_and_holds_what_it_is_fitted_to(rows: list[Compared]) -> None:
    assert fit(rows) == (FASTEST, SLOWEST)
    fitted = [row for row in rows if row.published.calibrates]
    assert len(fitted) == 14
    assert all(row.inside for row in fitted)
    changed = [
        row._replace(published=row.published._replace(milliseconds=1.1 * row.published.milliseconds)) for row in fitted
    ]
    assert fit(changed) != (FASTEST, SLOWEST)


def test_no_published_latency_is_below_its_floor(rows: list[Compared]) -> None:
    assert all(row.published.milliseconds > row.modelled.floor for row in rows)


def test_the_docs_show_what_comes_out(rows: list[Compared]) -> None:
    text = FIGURES.read_text()
    assert table(rows) in text
    for line in counts(rows).splitlines():
        assert line in text
