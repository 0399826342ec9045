"""The page for everybody: what axe finds in both colour schemes and on a phone, the keyboard, a narrow window."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from tests.page_service import PageService, page_app, served
from tests.system.page.barriers import assert_no_barrier
from tests.system.page.browser import DESK, PHONE, Seen, shows_picture

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect


def busy(service: PageService) -> None:
    """Something to see in every part of the page."""
    service.finish(reason="it has 3 frames, expected one: export the frame to be read")
    for number in range(120):
        service.finish({"Effusion": 0.93, "Mass": 0.61} if number % 2 else None)
    service.receive_only("f" * 32, state="running")
    service.live["queue"]["running"] = 1
    service.live["sinks"] = {
        "jsonl": {"pending": 0, "delivered": 120, "failed": 0, "error": None},
        "mqtt": {"pending": 4, "delivered": 116, "failed": 1, "error": "the broker does not answer"},
    }
    service.live["temperatures"] = {"cpu-thermal": 48.1}
    service.live["power"] = {"VDD_IN": 7.9}


@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_barrier(
    service: PageService, address: str, visit: Callable[..., Seen], scheme: str, viewport: dict[str, int]
) -> None:
    """WCAG 2.2 A and AA as far as a program can tell: contrast, names, roles, structure."""
    busy(service)
    service.bundle.manifest["gate"]["verdict"] = "fail"
    try:
        page = visit(address, viewport=viewport, color_scheme=scheme).page
        expect(page.locator("#gate")).to_be_visible()
    finally:
        service.bundle.manifest["gate"]["verdict"] = "not assessed"
    shows_picture(page)
    for refused in (False, True):
        if refused:
            page.locator("#list li", has_text="refused").or_(page.locator("#list li").first).first.click()
        for closed in page.locator("details:not([open]) summary").all()[:3]:
            closed.click()
        assert_no_barrier(page, "label")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_barrier_at_the_token(service: PageService, visit: Callable[..., Seen], scheme: str) -> None:
    with served(page_app(service, "a-token")) as address:
        page = visit(address, color_scheme=scheme).page
        page.get_by_label("Access token").fill("wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#token-error")).to_contain_text("did not accept")
        assert_no_barrier(page, "label")


def test_nothing_has_to_be_scrolled_sideways(service: PageService, address: str, visit: Callable[..., Seen]) -> None:
    busy(service)
    page = visit(address).page
    shows_picture(page)
    expect(page.locator("#passport details").first).to_be_visible()
    too_wide = "[document.documentElement, ...document.querySelectorAll('.scroll')]"
    too_wide += ".filter(node => node.scrollWidth > node.clientWidth).map(node => node.textContent)"
    for width in (1000, 700, 360, 320):  # the last is what WCAG 1.4.10 asks for
        page.set_viewport_size({"width": width, "height": 740})
        assert page.evaluate(too_wide) == [], width


def test_all_of_it_works_with_the_keyboard(service: PageService, address: str, visit: Callable[..., Seen]) -> None:
    """Skip link, follow, studies, map, findings, passport: one stop each, each seen to have the focus."""
    service.finish({"Mass": 0.7})
    service.finish({"Hernia": 0.8})
    page = visit(address).page
    shows_picture(page)
    expect(page.locator("#passport details").first).to_be_visible()

    def press(key: str) -> str:
        page.keyboard.press(key)
        outlined = (
            "() => [document.activeElement, document.activeElement.closest('label')]"
            ".some(node => node && getComputedStyle(node).outlineStyle === 'solid'"
            " && parseFloat(getComputedStyle(node).outlineWidth) >= 3)"
        )
        assert page.evaluate(outlined), f"no visible focus after {key}"
        return str(
            page.evaluate("document.activeElement.name || document.activeElement.id || document.activeElement.tagName")
        )

    assert press("Tab") == "A"
    expect(page.get_by_text("Skip to the last studies")).to_be_in_viewport()
    page.keyboard.press("Enter")
    assert press("Tab") == "follow"
    assert press("Tab") == "study"
    assert press("ArrowDown") == "study"
    expect(page.get_by_label("Show the newest as it is done")).not_to_be_checked()
    expect(page.locator("#image")).to_have_attribute("alt", re.compile("Mass"))
    service.finish({"Edema": 0.9})
    expect(page.locator("#list li")).to_have_count(3)
    expect(page.locator("#list li").nth(2).locator("input")).to_be_focused()
    assert press("Tab") == "map"
    page.keyboard.press("Space")
    expect(page.locator("#image")).to_have_attribute("alt", re.compile(r"^The radiograph of [\d:]+$"))
    page.keyboard.press("Space")
    assert press("Tab") == "finding"
    assert press("ArrowDown") == "finding"
    expect(page.locator("#image")).not_to_have_attribute("alt", re.compile("Mass"))
    assert press("Tab") == "SUMMARY"
    page.keyboard.press("Enter")
    expect(page.locator("#passport details").first).to_have_attribute("open", "")
