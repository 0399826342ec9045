"""``/v1``: what goes in, what comes out, and every way in which the daemon turns something away."""

from __future__ import annotations

import hashlib
import json
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from edge.errors import EdgeError, InputRefusedError
from edge.passport import passport
from edge.service import BusyError, StorageFullError
from tests.unit.edge.http.conftest import Serve
from tests.unit.edge.http.service import FakeService


def test_an_image_is_handed_over_byte_by_byte_and_found_again(serve: Serve, service: FakeService) -> None:
    client = serve()
    content = bytes(range(256)) * 1000
    answer = client.post("/v1/images", content=content)
    assert answer.status_code == 202
    receipt = answer.json()
    assert receipt["sha256"] == hashlib.sha256(content).hexdigest()
    assert receipt["new"] is True
    assert [(one.content, one.origin, one.stat) for one in service.received] == [(content, "http", False)]
    assert answer.headers["Location"] == f"/v1/images/{receipt['id']}"
    assert client.get(answer.headers["Location"]).json() == service.images[receipt["id"]]
    assert client.post("/v1/images", content=content).json() == {**receipt, "new": False}


def test_a_chunked_upload_is_the_same_image(serve: Serve, service: FakeService) -> None:
    pieces = [b"a" * 70_000, b"b" * 70_000]
    assert serve().post("/v1/images", content=iter(pieces)).status_code == 202
    assert service.received[0].content == b"".join(pieces)


@pytest.mark.parametrize(("priority", "stat"), [("stat", True), ("routine", False)])
def test_the_priority_is_passed_on(serve: Serve, service: FakeService, priority: str, stat: bool) -> None:
    assert serve().post("/v1/images", content=b"x", headers={"X-Priority": priority}).status_code == 202
    assert service.received[0].stat is stat


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"X-Priority": "urgent"}, 422),
        ({"Content-Type": "multipart/form-data; boundary=x"}, 415),
        ({"Content-Encoding": "gzip"}, 415),
    ],
)
def test_what_is_not_taken_is_told(serve: Serve, service: FakeService, headers: dict[str, str], status: int) -> None:
    answer = serve().post("/v1/images", content=b"x", headers=headers)
    assert answer.status_code == status
    assert set(answer.json()) == {"error"}
    assert not service.received


@pytest.mark.parametrize(
    ("error", "status", "wait"),
    [
        (BusyError("the queue is full", 2.3), 429, "3"),
        (StorageFullError("the disk is full"), 507, None),
        (InputRefusedError("the file is empty"), 422, None),
        (EdgeError("stopping"), 503, None),
    ],
)
def test_each_refusal_of_the_daemon_has_its_status(
    serve: Serve, service: FakeService, error: Exception, status: int, wait: str | None
) -> None:
    service.error = error
    answer = serve().post("/v1/images", content=b"x")
    assert (answer.status_code, answer.json()) == (status, {"error": str(error)})
    assert answer.headers.get("Retry-After") == wait


def test_a_failure_is_answered_and_its_text_stays_out_of_the_log(
    serve: Serve, service: FakeService, caplog: pytest.LogCaptureFixture
) -> None:
    client = serve()
    service.error = RuntimeError("DOE^JANE")
    answer = client.post("/v1/images?patient=DOE", content=b"DOE")
    assert answer.status_code == 500
    assert "DOE" not in answer.text
    end = time.monotonic() + 10
    while "RuntimeError" not in caplog.text and time.monotonic() < end:
        time.sleep(0.01)  # the answer goes out first
    text = "\n".join(record.getMessage() for record in caplog.records)
    assert "RuntimeError" in text
    assert "DOE" not in text
    service.error = None
    assert client.post("/v1/images", content=b"x").status_code == 202


@pytest.mark.parametrize("id", ["0" * 32, "0" * 31, "G" * 32, "..%2F..%2Fetc%2Fpasswd", "%00", "%F0%9F%92%A9"])
def test_what_is_no_image_is_not_found(serve: Serve, id: str) -> None:
    answer = serve().get(f"/v1/images/{id}")
    assert answer.status_code == 404
    assert set(answer.json()) == {"error"}


def test_results_are_read_page_by_page(serve: Serve, service: FakeService) -> None:
    service.finished = [(3 * i, {"id": f"{i}", "status": "done"}) for i in range(1, 8)]
    client = serve()
    seen, after = [], 0
    while True:
        page = client.get("/v1/results", params={"after": after, "limit": 3})
        assert page.headers["Content-Type"] == "application/jsonl"
        lines = [json.loads(line) for line in page.text.splitlines()]
        assert int(page.headers["X-Next-Cursor"]) == (lines[-1]["cursor"] if lines else after)
        if not lines:
            break
        seen += lines
        after = int(page.headers["X-Next-Cursor"])
    assert seen == [{**result, "cursor": cursor} for cursor, result in service.finished]


@pytest.mark.parametrize("query", ["after=-1", "after=x", f"after={2**63}", "limit=0", "limit=1001", "limit="])
def test_a_bad_page_is_refused(serve: Serve, query: str) -> None:
    answer = serve().get(f"/v1/results?{query}")
    assert answer.status_code == 422
    assert query.split("=")[0] in answer.json()["error"]


def test_state_and_bundle(serve: Serve, service: FakeService) -> None:
    client = serve()
    assert client.get("/v1/status").json() == service.status()
    assert client.get("/v1/passport").json() == passport(service.bundle)


def test_requests_are_counted_by_route_and_never_by_path(serve: Serve) -> None:
    client = serve()
    client.get("/v1/images/" + "a" * 32)
    client.get("/secret/DOE")
    client.request("BREW", "/v1/status")
    text = client.get("/metrics").text
    assert "DOE" not in text
    assert "a" * 32 not in text
    counts = {
        tuple(sample.labels[name] for name in ("route", "method", "status")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "edge_infer_http_requests_total"
    }
    assert counts["/v1/images/{id}", "GET", "404"] == 1
    assert counts["none", "GET", "404"] == 1
    assert {status for _, method, status in counts if method == "other"} == {"405"}


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v3", 404), ("PUT", "/v1/images", 405)])
def test_what_is_not_there(serve: Serve, method: str, path: str, status: int) -> None:
    answer = serve().request(method, path)
    assert answer.status_code == status
    assert set(answer.json()) == {"error"}
    assert (status == 405) == ("Allow" in answer.headers)


def test_no_answer_may_be_kept_or_guessed_at(serve: Serve) -> None:
    headers = serve().get("/v1/status").headers
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "server" not in headers
