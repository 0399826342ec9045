"""The page of a real `edge-infer serve`: a real image goes in, its finding and its map come out in a real browser."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import httpx
import numpy as np
import pytest

from edge.bundle import load_bundle
from tests.system.page.browser import Seen, shows_picture

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect

START_SECONDS = 60.0


@pytest.fixture
def daemon(tiny_bundle_directory: Path, tmp_path: Path) -> Iterator[str]:
    """The address of a daemon that keeps pictures and writes into a file."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "edge", "serve", "--bundle", str(tiny_bundle_directory), "--http-port", str(port)]
    command += ["--state", str(tmp_path / "state"), "--backend", "onnxruntime"]
    settings = {"EDGE_INFER_RETENTION__PICTURES": "true", "EDGE_INFER_JSONL__PATH": str(tmp_path / "results.jsonl")}
    process = subprocess.Popen(command, env={**os.environ, **settings}, stderr=subprocess.PIPE, text=True)
    address = f"http://127.0.0.1:{port}/"
    try:
        wait_for(address, process)
        yield address
    finally:
        process.terminate()
        _, log = process.communicate()
    assert process.returncode in (0, 1), log


def wait_for(address: str, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            httpx.get(address, trust_env=False)
            return
        except httpx.TransportError:
            time.sleep(0.1)
    process.kill()
    pytest.fail(f"the daemon did not come up: {process.communicate()[1]}")


def test_an_image_goes_in_and_its_finding_comes_out(
    daemon: str, visit: Callable[..., Seen], tiny_bundle_directory: Path
) -> None:
    seen = visit(daemon)
    page = seen.page
    bundle = load_bundle(tiny_bundle_directory)
    expect(page.locator("#verdict")).to_have_text("Ready, nothing waiting")
    expect(page.locator("#about")).to_contain_text(f"{bundle.name} · fp32 on onnxruntime")
    expect(page.locator("#passport details")).not_to_have_count(0)
    image = np.random.default_rng(3).integers(0, 256, (90, 80), dtype=np.uint8)
    for content in (b"no image at all", cv2.imencode(".png", image)[1].tobytes()):
        sent = httpx.post(f"{daemon}v1/images", content=content, trust_env=False)
        assert sent.status_code == 202, sent.text
    expect(page.locator("#list li")).to_have_count(2)
    expect(page.locator("#tiles")).to_contain_text("refused1")
    expect(page.locator("#list li", has_text="expected DICOM, PNG or JPEG")).to_have_count(1)

    done = httpx.get(f"{daemon}v1/images/{sent.json()['id']}", trust_env=False).json()["result"]
    found = sorted(done["findings"].items(), key=lambda item: (not item[1]["positive"], -item[1]["probability"]))
    top = found[0][0]
    shows_picture(page)
    words = f"heat map of {top.replace('_', ' ')}: probability "
    expect(page.locator("#image")).to_have_attribute("alt", re.compile(re.escape(words)))
    assert page.locator("#detail .is-positive").count() == sum(fact["positive"] for _, fact in found)
    assert page.evaluate("document.querySelector('#image').naturalWidth") == bundle.input_size
    expect(page.locator("#plot circle")).to_have_count(2)
    expect(page.locator("#sinks")).to_contain_text("jsonl")
    expect(page.locator("#sinks")).to_contain_text("up to date")
    assert seen.complaints == []
