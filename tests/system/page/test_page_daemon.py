"""The page of a real `edge-infer serve`: real images go in, their findings and maps come out in a real browser."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import cv2
import httpx
import numpy as np
import pytest

from edge.bundle import load_bundle
from edge.web.status import Status
from tests.system.daemon import free_port, serving
from tests.system.page.browser import Seen, shows_picture

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect

TOKEN = "page-" + "0123456789abcdef" * 2


def settings(bundle: Path, port: int, *more: str) -> str:
    lines = [f'bundle = "{bundle}"', 'backend = "onnxruntime"', "[retention]", "pictures = true"]
    return "\n".join([*lines, "[http]", f"port = {port}", *more])


def radiograph(seed: int) -> bytes:
    image = np.random.default_rng(seed).integers(0, 256, (90, 80), dtype=np.uint8)
    return cv2.imencode(".png", image)[1].tobytes()


def test_an_image_goes_in_and_its_finding_comes_out(
    visit: Callable[..., Seen], tiny_bundle_directory: Path, tmp_path: Path
) -> None:
    port = free_port()
    address = f"http://127.0.0.1:{port}/"
    results = ["[jsonl]", f'path = "{tmp_path}/results.jsonl"']
    with serving(tmp_path, settings(tiny_bundle_directory, port, *results)) as daemon:
        seen = visit(address)
        page = seen.page
        bundle = load_bundle(tiny_bundle_directory)
        expect(page.locator("#verdict")).to_have_text("Ready, nothing waiting")
        expect(page.locator("#about")).to_contain_text(f"{bundle.name} · fp32 on onnxruntime")
        expect(page.locator("#passport details")).not_to_have_count(0)
        for content in (b"no image at all", radiograph(3)):
            assert httpx.post(f"{address}v1/images", content=content, trust_env=False).status_code == 202
        expect(page.locator("#list li")).to_have_count(2)
        expect(page.locator("#tiles")).to_contain_text("refused1")
        expect(page.locator("#list li", has_text="expected DICOM, PNG or JPEG")).to_have_count(1)

        (result,) = [result for result in daemon.results() if result["status"] == "done"]
        findings = result["findings"]
        top = max(findings, key=lambda label: (findings[label]["positive"], findings[label]["probability"]))
        expect(page.locator("#image")).to_have_attribute("alt", re.compile(f"heat map of {top.replace('_', ' ')}:"))
        shows_picture(page)
        assert page.evaluate("document.querySelector('#image').naturalWidth") == bundle.input_size
        expect(page.locator("#detail .is-positive")).to_have_count(sum(f["positive"] for f in findings.values()))
        expect(page.locator("#plot circle")).to_have_count(2)
        expect(page.locator("#sinks")).to_contain_text("jsonl")
        expect(page.locator("#sinks")).to_contain_text("up to date")
        assert seen.complaints == []
        status = httpx.get(f"{address}v1/status", trust_env=False).json()
        assert status.keys() == Status.__annotations__.keys()
        daemon.stop()
        expect(page.locator("#verdict")).to_have_text("No news from the daemon")


def test_with_tokens_the_page_shows_nothing_without_one_and_follows_a_reload(
    visit: Callable[..., Seen], make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    port = free_port()
    tokens = tmp_path / "tokens"
    tokens.write_text(f"page:{hashlib.sha256(TOKEN.encode()).hexdigest()}\n")
    tokens.chmod(0o600)
    access = f'tokens = "{tokens}"'
    with serving(tmp_path, settings(make_bundle("first"), port, access)) as daemon:
        page = visit(f"http://127.0.0.1:{port}/").page
        expect(page.get_by_label("Access token")).to_be_focused()
        assert "tiny" not in page.content()
        page.get_by_label("Access token").fill(TOKEN)
        page.keyboard.press("Enter")
        expect(page.locator("#passport")).to_contain_text("tiny, made")
        sent = httpx.post(
            f"http://127.0.0.1:{port}/v1/images",
            content=radiograph(4),
            headers={"Authorization": f"Bearer {TOKEN}"},
            trust_env=False,
        )
        assert sent.status_code == 202
        shows_picture(page)

        daemon.write(settings(make_bundle("second", gate={"verdict": "pass"}), port, access))
        assert daemon.reload().returncode == 0
        expect(page.locator("#about")).to_contain_text("gate passed")
        expect(page.locator("#passport")).to_contain_text("pass: ")
        expect(page.locator("#detail .meta")).to_contain_text("by another bundle")
