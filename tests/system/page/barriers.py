"""What axe finds on a page: WCAG 2.2 A and AA as far as a program can tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")

WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]


def assert_no_barrier(page: Page, looked_at: str) -> None:
    """Besides contrast, the rule `looked_at` must have found something to look at."""
    found = axe.Axe().run(page, options={"runOnly": WCAG})
    assert found.violations_count == 0, found.generate_report()
    assert {"color-contrast", looked_at} <= {rule["id"] for rule in found.response["passes"]}  # it did look
