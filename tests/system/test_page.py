"""The daemon's page in a real browser, over HTTP, with the daemon's part played by `tests.page_service`."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from edge.bundle import Bundle
from tests.page_service import PageService, page_app, served

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
expect = sync_api.expect

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")

WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
DESK = {"width": 1240, "height": 900}
PHONE = {"width": 360, "height": 740}
TOKEN = "a-token-of-32-digits-or-so"


@dataclass
class Seen:
    """A page, and all that went wrong on it or left it."""

    page: sync_api.Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    answered: list[str] = field(default_factory=list)

    def polls(self) -> int:
        return sum(url.endswith("/v1/page") for url in self.requests)

    def settle(self) -> None:
        """Wait until nothing is under way, and what came has been shown: then only the page's clock can go on."""
        while len(self.answered) < len(self.requests):
            self.page.wait_for_timeout(20)
        self.page.wait_for_timeout(200)


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: sync_api.Browser) -> Iterator[Callable[..., Seen]]:
    """Open the page: ``visit(address, viewport=..., color_scheme=...)``."""
    contexts = []

    def visit(address: str, hold_clock: bool = False, **options: object) -> Seen:
        context = browser.new_context(**{"viewport": DESK, **options})
        contexts.append(context)
        seen = Seen(context.new_page())
        seen.page.on("console", lambda message: seen.complaints.append(message.text))
        seen.page.on("pageerror", lambda error: seen.complaints.append(str(error)))
        seen.page.on("request", lambda request: seen.requests.append(request.url))
        for end in ("requestfinished", "requestfailed"):
            seen.page.on(end, lambda request: seen.answered.append(request.url))
        if hold_clock:
            seen.page.clock.install(time=time.time())
        seen.page.goto(address)
        if hold_clock:
            expect(seen.page.locator("#verdict")).to_have_text(re.compile("^Ready"))
            seen.settle()
            seen.page.clock.pause_at(time.time() + 2)  # less than the page waits for an answer that is under way
            seen.settle()
        return seen

    yield visit
    for context in contexts:
        context.close()


@pytest.fixture
def service(tiny_bundle: Bundle) -> PageService:
    return PageService(tiny_bundle)


@pytest.fixture
def address(service: PageService) -> Iterator[str]:
    with served(page_app(service)) as address:
        yield address


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


def shows_picture(page: sync_api.Page) -> None:
    page.wait_for_function("() => document.querySelector('#image').naturalWidth > 0")


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


def test_without_pictures_the_page_says_so(service: PageService, address: str, visit: Callable[..., Seen]) -> None:
    id = service.finish({"Mass": 0.7})
    del service.pictures[id]
    page = visit(address).page
    expect(page.locator("#no-image")).to_have_text("No picture is kept of this study.")
    expect(page.locator("#image")).to_be_hidden()


def test_what_the_daemon_says_is_never_markup(service: PageService, address: str, visit: Callable[..., Seen]) -> None:
    hostile = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    service.finish(reason=hostile, source=hostile, guard={hostile: hostile})
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
        assert_no_barrier(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_barrier_at_the_token(service: PageService, visit: Callable[..., Seen], scheme: str) -> None:
    with served(page_app(service, TOKEN)) as address:
        page = visit(address, color_scheme=scheme).page
        page.get_by_label("Access token").fill("wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#token-error")).to_contain_text("did not accept")
        assert_no_barrier(page)


def assert_no_barrier(page: sync_api.Page) -> None:
    found = axe.Axe().run(page, options={"runOnly": WCAG})
    assert found.violations_count == 0, found.generate_report()
    assert {"color-contrast", "label"} <= {rule["id"] for rule in found.response["passes"]}  # it did look


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
