"""A page in Debian's Chromium, and all that a test wants to know of it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page

CHROMIUM = shutil.which("chromium")
DESK = {"width": 1240, "height": 900}
PHONE = {"width": 360, "height": 740}


@dataclass
class Seen:
    """A page, and all that went wrong on it or left it."""

    page: Page
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


def shows_picture(page: Page) -> None:
    """Wait until the picture is there."""
    page.wait_for_function("() => document.querySelector('#image:not([hidden])')?.naturalWidth > 0")
