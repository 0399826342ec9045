"""The pictures of a latency report in docs/images: `report.png` and, further down and in dark, `report-dark.png`.

    python -m benchmarks.report_screenshot --bundle out/demo/bundle

A real `edge-infer bench` runs synthetic phantoms; Debian's Chromium, driven by Playwright, shows its report.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from benchmarks.page_screenshot import ROOT, chromium
from edge.errors import EdgeError, MachineError
from mdconv.data.phantom import DEMO_SEEDS
from mdconv.data.phantom.folder import write_folder

IMAGES = 60
IMAGE_SIZE = 1024
SECONDS = 30
WIDTH = 1100

Shot = tuple[Literal["light", "dark"], str, int]

SHOTS: dict[str, Shot] = {
    "report": ("light", "header", 1110),
    "report-dark": ("dark", "section:has(#waterfall-title)", 1000),
}
"""Of each picture the colour scheme, what stands at its top, and its height."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report_screenshot", description="Photograph a report.")
    parser.add_argument("--bundle", type=Path, required=True, help="the bundle to measure")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/images", help="folder of the pictures")
    options = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory() as folder:
            _take(_measure(options.bundle, Path(folder)), options.output)
    except EdgeError as error:
        print(f"report_screenshot: {error}", file=sys.stderr)
        return error.exit_status
    return 0


def _measure(bundle: Path, folder: Path) -> Path:
    """`edge-infer bench` as a process; returns the path of its page."""
    write_folder(folder / "phantoms", IMAGES, DEMO_SEEDS.start, IMAGE_SIZE)
    images = sorted(map(str, (folder / "phantoms").glob("*.png")))
    command = [sys.executable, "-m", "edge", "bench", "--bundle", str(bundle.resolve()), "--duration", str(SECONDS)]
    if subprocess.run([*command, "--report", str(folder), "--images", *images], cwd=ROOT).returncode != 0:
        raise MachineError("edge-infer bench failed: see what it says above")
    return folder / "report.html"


def _take(report: Path, output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    with chromium() as browser:
        for name, (scheme, top, height) in SHOTS.items():
            page = browser.new_page(viewport={"width": WIDTH, "height": height}, color_scheme=scheme)
            page.goto(report.as_uri())
            page.locator(top).evaluate("node => scrollTo(0, node.getBoundingClientRect().top - 16)")
            page.screenshot(path=output / f"{name}.png")
            print(output / f"{name}.png")


if __name__ == "__main__":
    sys.exit(main())
