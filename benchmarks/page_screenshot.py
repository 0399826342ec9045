"""The pictures of the daemon's page in docs/images: `page.png` and, of a phone, `page-phone.png`.

    python -m benchmarks.page_screenshot --bundle out/demo/bundle

A real `edge-infer serve` runs synthetic phantoms, and one file that is no image; Debian's Chromium, driven by
Playwright, shows its page.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.errors import EdgeError, MachineError
from mdconv.data.phantom import DEMO_SEEDS
from mdconv.data.phantom.folder import write_folder

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).parents[1]
IMAGES = 120
IMAGE_SIZE = 512
EVERY_SECONDS = 0.2
START_SECONDS = 120.0

SHOTS: dict[str, dict[str, Any]] = {
    "page": {"viewport": {"width": 1240, "height": 1520}},
    "page-phone": {"viewport": {"width": 360, "height": 1500}},
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page_screenshot", description="Photograph the page.")
    parser.add_argument("--bundle", type=Path, required=True, help="the bundle to serve")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/images", help="folder of the pictures")
    options = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory() as folder:
            _photograph(options.bundle, Path(folder), options.output)
    except EdgeError as error:
        print(f"page_screenshot: {error}", file=sys.stderr)
        return error.exit_status
    return 0


def _photograph(bundle: Path, folder: Path, output: Path) -> None:
    write_folder(folder / "phantoms", IMAGES, DEMO_SEEDS.start, IMAGE_SIZE)
    inbox = folder / "inbox"
    inbox.mkdir()
    with _daemon(bundle, inbox, folder / "state") as address:
        shutil.move(folder / "phantoms/labels.csv", inbox)
        for path in sorted((folder / "phantoms").iterdir()):
            path.rename(inbox / path.name)
            time.sleep(EVERY_SECONDS)
        output.mkdir(parents=True, exist_ok=True)
        _take(address, output)


@contextmanager
def _daemon(bundle: Path, inbox: Path, state: Path) -> Iterator[str]:
    """`edge-infer serve` as a process; yields its page's address once it answers there."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    address = f"http://127.0.0.1:{port}/"
    command = [sys.executable, "-m", "edge", "serve", "--bundle", str(bundle), "--watch", str(inbox)]
    settings = {**os.environ, "EDGE_INFER_RETENTION__PICTURES": "true"}
    process = subprocess.Popen([*command, "--state", str(state), "--http-port", str(port)], cwd=ROOT, env=settings)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(address):
            if process.poll() is not None or time.monotonic() > deadline:
                raise MachineError("edge-infer serve does not come up: see what it says above")
            time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait()


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5):
            return True
    except OSError:
        return False


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's Chromium; raises `MachineError` where it is not installed."""
    from playwright.sync_api import sync_playwright  # a test dependency

    program = shutil.which("chromium")
    if program is None:
        raise MachineError("no chromium here: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


def _take(address: str, output: Path) -> None:
    from playwright.sync_api import expect

    with chromium() as browser:
        for name, options in SHOTS.items():
            page = browser.new_page(**options)
            page.goto(address)
            tiles = page.locator("#tiles")
            expect(tiles).to_contain_text(f"done{IMAGES}", timeout=START_SECONDS * 1e3)
            page.locator("#list li").nth(_most_certain(page.locator("#list li").all_inner_texts())).click()
            page.wait_for_function("() => document.querySelector('#image:not([hidden])')?.naturalWidth > 0")
            page.evaluate("document.activeElement.blur(), scrollTo(0, 0)")
            page.screenshot(path=output / f"{name}.png")
            print(output / f"{name}.png")


def _most_certain(rows: Sequence[str]) -> int:
    """The row of the list with the highest probability."""
    return max(range(len(rows)), key=lambda i: max(map(float, re.findall(r"\b[01]\.\d\d\b", rows[i])), default=0.0))


if __name__ == "__main__":
    sys.exit(main())
