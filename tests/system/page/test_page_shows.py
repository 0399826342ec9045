"""What the daemon's page shows in a real browser, over HTTP; the daemon's part is played by `tests.page_service`."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests.page_service import PageService, page_app, served
from tests.system.page.browser import Seen, shows_picture

if TYPE_CHECKING:
    from playwright.sync_api import Route

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect

TOKEN = "a-token-of-32-digits-or-so"


def test_a_new_study_is_shown_and_told_within_two_seconds(
    service: PageService, address: str, visit: Callable[..., Seen]
) -> None:
    """The page's clock stands still but for the two seconds that it is given after the study is done."""
    seen = visit(address, hold_clock=True)
    page = seen.page
    expect(page.locator("#no-studies")).to_be_visible()
    service.finish({"Pleural_Thickening": 0.87})
    expect(page.locator("#list li")).to_have_count(0)
    page.clock.run_for(2000)
    expect(page.locator("#list li")).to_have_count(1)
    expect(page.locator("#list li")).to_contain_text("Pleural Thickening 0.87")
    expect(page.locator("#news")).to_have_text(re.compile(r"New study at .*positive: Pleural Thickening 0\.87$"))
    alternative = re.compile(r"heat map of Pleural Thickening: probability 0\.87, positive$")
    expect(page.locator("#image")).to_have_attribute("alt", alternative)
    shows_picture(page)
    assert seen.complaints == []
    assert all(url.startswith((address, f"blob:{address}")) for url in seen.requests)


def test_many_studies_at_once_are_told_in_one_sentence(
    service: PageService, address: str, visit: Callable[..., Seen]
) -> None:
    page = visit(address, hold_clock=True).page
    for _ in range(3):
        service.finish()
    service.finish(reason="it is no image")
    page.clock.run_for(2000)
    expect(page.locator("#news")).to_have_text(re.compile(r"^4 new studies, the last at .*, refused: it is no image$"))
    expect(page.locator("#list li")).to_have_count(4)
    expect(page.locator("#list li").first).to_contain_text("refused")


def test_the_daemons_state_is_told(service: PageService, address: str, visit: Callable[..., Seen]) -> None:
    page = visit(address).page
    verdict = page.locator("#verdict")
    expect(verdict).to_have_text("Ready, nothing waiting")
    expect(page.locator("#notice")).to_contain_text("Random weights, for tests only")
    service.live["queue"].update(waiting=1499, running=1)
    expect(verdict).to_have_text("Ready, 1,500 images under way")
    service.live["stopping"] = True
    expect(verdict).to_have_text("Stopping: finishing what is under way")
    expect(page.locator("#news")).to_have_text("Stopping: finishing what is under way")
    service.live.update(stopping=False, ready=False)
    expect(verdict).to_have_text(re.compile("^Starting"))


def test_every_figure_is_the_daemons(service: PageService, address: str, visit: Callable[..., Seen]) -> None:
    service.live["latency_ms"] = [(time.time(), 100.0 + i, 10.0 + i) for i in range(100)]
    service.live["counts"] = {"done": 12345, "refused": 6}
    service.live["sinks"] = {"mqtt": {"pending": 4, "delivered": 116, "failed": 1, "error": None}}
    page = visit(address).page
    tiles = page.locator("#tiles div")
    expect(tiles).to_have_text(
        ["waiting0 of 1,000", "running0 ", "done12,345 ", "refused6 "]
        + ["latency, p50149 ms", "latency, p99198 ms", "results to deliver4 ", "memory513 MB"]  # nearest rank
    )
    expect(page.locator("#latency-table tbody tr")).to_have_text(["total100149189198199", "inference10059.099.0108109"])
    expect(page.locator("#plot circle")).to_have_count(200)
    expect(page.locator("#sinks tbody tr")).to_have_text(["mqtt delivering41161"])
    expect(page.locator("#machine")).to_contain_text("power" + "unavailable")


def test_the_map_of_any_finding_and_the_plain_image_can_be_chosen(
    service: PageService, address: str, visit: Callable[..., Seen]
) -> None:
    id = service.finish({"Mass": 0.7})
    seen = visit(address)
    page = seen.page
    expect(page.locator("#image")).to_have_attribute("alt", re.compile("Mass: probability 0.70, positive"))
    page.get_by_role("radio", name="Edema").check()
    expect(page.locator("#image")).to_have_attribute("alt", re.compile("Edema: probability 0.02, not positive"))
    page.get_by_label("Heat map over the image").uncheck()
    expect(page.locator("#image")).to_have_attribute("alt", re.compile(r"^The radiograph of [\d:]+$"))
    shows_picture(page)
    fetched = [url.removeprefix(f"{address}v1/images/{id}/") for url in seen.requests if "/v1/images/" in url]
    assert fetched == ["overlay.png?finding=Mass", "overlay.png?finding=Edema", "picture.png"]


def test_a_study_that_is_looked_at_stays_when_others_come(
    service: PageService, address: str, visit: Callable[..., Seen]
) -> None:
    service.finish({"Mass": 0.7})
    service.finish({"Hernia": 0.8})
    page = visit(address).page
    page.locator("#list li").nth(1).click()
    expect(page.locator("#image")).to_have_attribute("alt", re.compile("Mass"))
    for _ in range(30):
        service.finish({"Edema": 0.9})
    expect(page.locator("#list")).not_to_contain_text("Mass 0.70")
    expect(page.locator("#image")).to_have_attribute("alt", re.compile("Mass"))
    page.get_by_label("Show the newest as it is done").check()
    expect(page.locator("#image")).to_have_attribute("alt", re.compile("Edema"))


def test_no_picture_is_seen_beside_another_studys_findings(
    service: PageService, address: str, visit: Callable[..., Seen]
) -> None:
    """The second study's picture is held up on its way: until it is here, the first one's is gone."""
    service.finish({"Mass": 0.7})
    page = visit(address).page
    shows_picture(page)
    held: list[Route] = []
    page.route("**/overlay.png**", lambda route: held.append(route))
    service.finish({"Hernia": 0.8})
    expect(page.locator("#detail .is-positive")).to_contain_text("Hernia")
    expect(page.locator("#image")).to_be_hidden()
    expect(page.locator("#caption")).to_be_empty()
    (route,) = held
    route.continue_()
    expect(page.locator("#image")).to_have_attribute("alt", re.compile("Hernia"))
    shows_picture(page)


def test_a_picture_that_is_gone_is_told(service: PageService, address: str, visit: Callable[..., Seen]) -> None:
    id = service.finish({"Mass": 0.7})
    del service.pictures[id]
    page = visit(address).page
    expect(page.locator("#no-image")).to_have_text("No picture is kept of this study.")
    expect(page.locator("#image")).to_be_hidden()


def test_pictures_that_are_not_kept_are_not_asked_for(
    service: PageService, address: str, visit: Callable[..., Seen]
) -> None:
    service.live["pictures"] = False
    service.finish({"Mass": 0.7})
    seen = visit(address)
    expect(seen.page.locator("#no-image")).to_contain_text("This daemon keeps no pictures")
    expect(seen.page.locator("#detail")).to_contain_text("Mass")
    expect(seen.page.locator("#map-bar")).to_be_hidden()
    assert not [url for url in seen.requests if url.endswith(".png")]
    assert seen.complaints == []


def test_a_network_without_maps_shows_the_image(
    service: PageService, address: str, visit: Callable[..., Seen], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(service.bundle.manifest["model"], "cam", False)
    service.finish({"Mass": 0.7})
    seen = visit(address)
    shows_picture(seen.page)
    expect(seen.page.locator("#image")).to_have_attribute("alt", re.compile(r"^The radiograph of [\d:]+$"))
    expect(seen.page.locator("#map-bar")).to_be_hidden()
    assert seen.complaints == []


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        (
            {"score": 4.256, "threshold": 7.1, "refused": False, "off": False},
            "4.26 from the calibration images, at most 7.10",
        ),
        ({"score": 4.256, "threshold": None, "refused": False, "off": False}, "no limit is set"),
        ({"score": None, "threshold": None, "refused": False, "off": True}, "The guard was off"),
    ],
    ids=["passed", "unlimited", "off"],
)
def test_what_the_guard_found_is_told(
    service: PageService, address: str, visit: Callable[..., Seen], verdict: dict[str, object], words: str
) -> None:
    service.finish(guard=verdict)
    expect(visit(address).page.locator("#detail")).to_contain_text(words)


def test_what_the_daemon_says_is_never_markup(service: PageService, address: str, visit: Callable[..., Seen]) -> None:
    hostile = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    service.finish(reason=hostile, source=hostile)
    seen = visit(address)
    expect(seen.page.locator("#detail")).to_contain_text(hostile)
    assert seen.page.locator("main img").count() == 1
    assert seen.complaints == []


def test_nothing_is_asked_while_nobody_looks(service: PageService, address: str, visit: Callable[..., Seen]) -> None:
    seen = visit(address, hold_clock=True)
    hide = "hidden => { Object.defineProperty(document, 'hidden', { value: hidden, configurable: true });"
    hide += " document.dispatchEvent(new Event('visibilitychange')); }"
    before = seen.polls()
    seen.page.clock.run_for(3000)
    seen.settle()
    assert seen.polls() > before
    seen.page.evaluate(hide, True)
    before = seen.polls()
    seen.page.clock.run_for(60000)
    seen.settle()
    assert seen.polls() == before
    service.finish()
    seen.page.evaluate(hide, False)
    expect(seen.page.locator("#list li")).to_have_count(1)


def test_a_daemon_that_is_gone_is_told_and_found_again(service: PageService, visit: Callable[..., Seen]) -> None:
    service.finish({"Mass": 0.7})
    with served(page_app(service)) as address:
        page = visit(address).page
        expect(page.locator("#verdict")).to_have_text(re.compile("^Ready"))
    expect(page.locator("#verdict")).to_have_text("No news from the daemon")
    expect(page.locator("#news")).to_have_text("No news from the daemon")
    expect(page.locator("#about")).to_contain_text("It does not answer; this page goes on trying. What is below is of")
    port = int(address.rstrip("/").rpartition(":")[2])
    with served(page_app(service), port):
        expect(page.locator("#verdict")).to_have_text("Ready, nothing waiting", timeout=20000)
        expect(page.locator("#about")).to_contain_text("tiny")


def test_the_token_is_asked_for_and_kept_in_this_tab_only(service: PageService, visit: Callable[..., Seen]) -> None:
    service.finish({"Mass": 0.7})
    with served(page_app(service, TOKEN)) as address:
        page = visit(address).page
        field = page.get_by_label("Access token")
        expect(field).to_be_focused()
        expect(page.locator("#live")).to_be_hidden()
        for wrong, answer in (("wrong", "did not accept"), ("pass wörd", "letters, digits and signs")):
            field.fill(wrong)
            page.keyboard.press("Enter")
            expect(page.locator("#token-error")).to_contain_text(answer)
        field.fill(TOKEN)
        page.keyboard.press("Enter")
        expect(page.locator("#image")).to_have_attribute("alt", re.compile("Mass"))
        shows_picture(page)
        assert page.evaluate("Object.values(sessionStorage)") == [TOKEN]
        assert page.evaluate("[localStorage.length, document.cookie, location.href]") == [0, "", address]
        page.reload()
        expect(page.locator("#list li")).to_have_count(1)
        page.get_by_role("button", name="Forget the token").click()
        expect(page.locator("#token-form")).to_be_visible()
        assert page.evaluate("sessionStorage.length") == 0
        assert "Mass" not in page.content()
        field.fill(TOKEN)
        page.keyboard.press("Enter")
        expect(page.locator("#notice")).to_contain_text("Random weights")
        expect(page.locator("#passport")).to_contain_text("Bundle")
