"""Chromium for the tests of the page, and the page of a stand-in for the daemon."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator

import pytest

from edge.bundle import Bundle
from tests.page_service import PageService, page_app, served
from tests.system.page.browser import CHROMIUM, DESK, Seen

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium here: apt-get install chromium")
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
            sync_api.expect(seen.page.locator("#verdict")).to_have_text(re.compile("^Ready"))
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
