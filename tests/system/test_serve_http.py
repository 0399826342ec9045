"""``edge-infer serve`` over HTTP: the real daemon, with curl, dicomweb-client, tritonclient and schemathesis."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import onnxruntime
import psutil
import pydicom
import pytest
from dicomweb_client.api import DICOMwebClient

from edge.bundle import load_bundle
from edge.sources.http.tokens import new_token
from edge.sources.priority import NICE
from tests.system.daemon import EDGE_INFER, HttpDaemon, serving_http
from tests.system.fuzz_http import SETTINGS, fuzz
from tests.unit.edge.dicom_writer import REAL
from tests.unit.edge.http.test_http_access import write_certificate

TRITON = """
import sys
import numpy as np
import tritonclient.http as triton

client = triton.InferenceServerClient(sys.argv[1], concurrency=8)
images = np.load(sys.argv[2])
pending = []
for one in images:
    image = triton.InferInput("image", [1, *one.shape], "UINT8")
    image.set_data_from_numpy(one[np.newaxis])
    pending.append(client.async_infer("tiny", [image]))
answers = [one.get_result() for one in pending]
found = {name: np.concatenate([a.as_numpy(name) for a in answers]) for name in ("logits", "cam", "probabilities")}
np.savez(sys.argv[3], **found)
client.close()
"""


@pytest.fixture
def daemon(tiny_bundle_directory: Path, tmp_path: Path) -> Iterator[HttpDaemon]:
    with serving_http(tiny_bundle_directory, tmp_path / "daemon", **SETTINGS) as running:
        yield running


def picture(path: Path, seed: int) -> Path:
    image = cv2.resize(np.random.default_rng(seed).integers(0, 256, (16, 16), dtype=np.uint8), (300, 280))
    assert cv2.imwrite(str(path), image)
    return path


def finished(url: str, location: str) -> dict[str, Any]:
    """The result of an image, once there is one."""
    end = time.monotonic() + 60
    while True:
        image = httpx.get(url + location).json()
        if image["result"] is not None:
            return dict(image["result"])
        assert time.monotonic() < end, image
        time.sleep(0.02)


def curl(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    if shutil.which("curl") is None:
        pytest.skip("curl is missing: apt-get install curl")
    command = ["curl", "--silent", "--show-error", "--max-time", "20", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_what_curl_sends_is_what_classify_finds(
    daemon: HttpDaemon, tiny_bundle_directory: Path, tmp_path: Path
) -> None:
    files = [picture(tmp_path / f"DOE^JANE {i}.png", i) for i in range(3)] + [REAL / "RG1_UNCR.dcm"]
    locations = []
    for file in files:
        done = curl("--data-binary", f"@{file}", "--header", "X-Priority: stat", f"{daemon.url}/v1/images")
        receipt = json.loads(done.stdout)
        assert receipt["new"] is True
        locations.append(f"/v1/images/{receipt['id']}")
    results = [finished(daemon.url, location) for location in locations]
    command = [EDGE_INFER, "classify", *files, "--json", "--bundle", tiny_bundle_directory, "--backend", "onnxruntime"]
    classified = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.splitlines()
    for result, line in zip(results, classified, strict=True):
        expected = json.loads(line)
        assert (result["findings"], result["sha256"]) == (expected["findings"], expected["sha256"])
    page = httpx.get(f"{daemon.url}/v1/results").text.splitlines()
    assert {json.loads(line)["id"] for line in page} == {result["id"] for result in results}
    assert "DOE" not in daemon.log + "".join(page)


def test_what_was_promised_survives_a_kill(tiny_bundle_directory: Path, tmp_path: Path) -> None:
    contents = [picture(tmp_path / f"{i}.png", i).read_bytes() for i in range(20)]
    with serving_http(tiny_bundle_directory, tmp_path / "daemon") as first:
        with httpx.Client(base_url=first.url) as client, ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda content: client.post("/v1/images", content=content), contents))
        first.process.kill()
    assert [answer.status_code for answer in answers] == [202] * 20
    with serving_http(tiny_bundle_directory, tmp_path / "daemon") as second:
        for answer in answers:
            result = finished(second.url, answer.headers["Location"])
            assert result["status"] == "done", result["reason"]
        again = httpx.post(f"{second.url}/v1/images", content=contents[0]).json()
        assert again == {**answers[0].json(), "new": False}


def test_a_signal_lets_the_daemon_end_in_peace(daemon: HttpDaemon) -> None:
    with httpx.Client(base_url=daemon.url) as client:
        assert client.post("/v1/images", content=b"x").status_code == 202
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(30) == 0
    assert "Traceback" not in daemon.log


def test_dicomweb_client_hands_in_a_radiograph_once(daemon: HttpDaemon) -> None:
    radiograph = pydicom.dcmread(REAL / "RG1_UNCR.dcm")
    archive = DICOMwebClient(daemon.url)
    for _ in range(2):
        stored = archive.store_instances([radiograph], study_instance_uid=radiograph.StudyInstanceUID)
        assert [item.ReferencedSOPInstanceUID for item in stored.ReferencedSOPSequence] == [radiograph.SOPInstanceUID]
    metrics = httpx.get(f"{daemon.url}/metrics").text
    assert 'edge_infer_received_total{origin="stow"} 1.0' in metrics
    assert 'edge_infer_repeated_total{origin="stow"} 1.0' in metrics
    log = daemon.log
    assert radiograph.SOPInstanceUID not in log
    assert str(radiograph.PatientName) not in log


def test_triton_client_gets_what_onnxruntime_computes(
    daemon: HttpDaemon, tiny_bundle_directory: Path, tmp_path: Path
) -> None:
    images = np.random.default_rng(3).integers(0, 256, (12, 1, 64, 64), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    address, files = daemon.url.removeprefix("http://"), (tmp_path / "images.npy", tmp_path / "found.npz")
    done = subprocess.run([sys.executable, "-c", TRITON, address, *files], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    model = load_bundle(tiny_bundle_directory).model_path
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    logits, cam = session.run(["logits", "cam"], {"image": images})
    with np.load(tmp_path / "found.npz") as found:
        np.testing.assert_allclose(found["logits"], logits, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found["cam"], cam, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found["probabilities"], 1 / (1 + np.exp(-logits)), rtol=1e-5, atol=1e-6)
    assert httpx.get(f"{daemon.url}/v1/results").text == ""  # nothing of it is kept


def test_tls_and_tokens(tiny_bundle_directory: Path, tmp_path: Path) -> None:
    certificate, key = write_certificate(tmp_path, "daemon")
    token, line = new_token("curl")
    (tmp_path / "tokens").write_text(f"{line}\n")
    settings = {"certificate": str(certificate), "key": str(key), "tokens": str(tmp_path / "tokens")}
    with serving_http(tiny_bundle_directory, tmp_path / "daemon", **settings) as running:
        trusting = ("--cacert", certificate, "--write-out", "%{http_code}", "--output", "/dev/null")
        for header, status in ((f"Authorization: Bearer {token}", "200"), ("Authorization: Bearer x", "401")):
            done = curl(*trusting, "--header", header, f"{running.url}/v1/status")
            assert (done.stdout, done.stderr) == (status, "")
        assert curl("--cacert", certificate, "--tls-max", "1.1", running.url).returncode != 0
        log = running.log
    assert token not in log


def test_an_open_daemon_is_refused(tiny_bundle_directory: Path, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('[http]\naddress = "0.0.0.0"\n')
    command = [EDGE_INFER, "serve", "--bundle", tiny_bundle_directory, "--state", tmp_path, "--config"]
    done = subprocess.run([*command, tmp_path / "config.toml"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "set tokens" in done.stderr


def test_the_description_is_true(daemon: HttpDaemon, tmp_path: Path) -> None:
    """schemathesis, seeded, finds nothing: every status is declared, every body has its form, nothing fails."""
    here = Path(__file__).parent
    command = [Path(sys.executable).with_name("schemathesis"), "--config-file", here / "schemathesis.toml"]
    command += ["run", f"{daemon.url}/openapi.json", "--seed", "1", "--max-examples", "10", "--no-color"]
    environment = {**os.environ, "NETWORK": "tiny", "SCHEMATHESIS_HOOKS": str(here / "schemathesis_hooks.py")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "Traceback" not in daemon.log


def test_its_server_lets_inference_go_first(daemon: HttpDaemon) -> None:
    assert httpx.get(f"{daemon.url}/v1/results").status_code == 200
    tasks = Path(f"/proc/{daemon.process.pid}/task")
    nice = {int(task.name): os.getpriority(os.PRIO_PROCESS, int(task.name)) for task in tasks.iterdir()}
    assert nice[daemon.process.pid] == os.getpriority(os.PRIO_PROCESS, 0)
    assert sum(value == NICE for value in nice.values()) >= 2  # the event loop, and a thread that asked the ledger


def test_spoilt_requests_break_nothing(daemon: HttpDaemon) -> None:
    outcomes = fuzz(daemon, count=150, seed=int(os.environ.get("FUZZ_SEED", "7")))
    assert sum(outcomes.values()) == 150
    assert len(outcomes) > 5  # it gets past the parser too


def test_many_large_bodies_at_once_stay_within_their_memory(tiny_bundle_directory: Path, tmp_path: Path) -> None:
    """Sixteen clients with 12 MB each, a memory of 30 MB: all is taken in the end, and the process hardly grows."""
    settings = {**SETTINGS, "max_memory_mb": 30, "body_seconds": 30.0}
    with serving_http(tiny_bundle_directory, tmp_path / "daemon", **settings) as running:
        process = psutil.Process(running.process.pid)
        before = process.memory_info().rss
        peak = 0

        def send(i: int) -> int:
            content = bytes([i]) * 12_000_000
            return httpx.post(f"{running.url}/v1/images", content=content, timeout=60).status_code

        with ThreadPoolExecutor(16) as pool:
            sent = [pool.submit(send, i) for i in range(16)]
            while not all(one.done() for one in sent):
                peak = max(peak, process.memory_info().rss)
                time.sleep(0.01)
        assert [one.result() for one in sent] == [202] * 16
        assert peak - before < 150_000_000
        assert httpx.get(f"{running.url}/v2/health/ready").status_code == 200
