"""The KServe v2 protocol: in JSON and in binary, as tritonclient speaks it and as it must not be spoken."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.errors import BusyError
from edge.results import probabilities
from edge.sources.http import tensors
from edge.sources.http.answers import Refusal
from edge.sources.http.server import HttpServer
from tests.unit.edge.http.conftest import Serve
from tests.unit.edge.http.service import FakeService

INFER = "/v2/models/tiny/infer"
SIZE, BATCH = 64, 4
OUTPUTS = ("logits", "probabilities", "cam")

TRITON = """
import sys
import numpy as np
import tritonclient.http as triton

client = triton.InferenceServerClient(sys.argv[1])
assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("tiny")
assert not client.is_model_ready("other")
assert client.get_server_metadata()["name"] == "edge-infer"
described = client.get_model_metadata("tiny")
assert described["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, 1, 64, 64]}]
with np.load(sys.argv[2]) as arrays:
    images = arrays["images"]
    expected = {name: arrays[name] for name in ("logits", "probabilities", "cam")}
for in_binary in (True, False):
    for out_binary in (True, False):
        image = triton.InferInput("image", list(images.shape), "UINT8")
        image.set_data_from_numpy(images, binary_data=in_binary)
        wanted = [triton.InferRequestedOutput(name, binary_data=out_binary) for name in reversed(list(expected))]
        answer = client.infer("tiny", [image], outputs=wanted, request_id="a-1")
        assert answer.get_response()["id"] == "a-1"
        for name, values in expected.items():
            np.testing.assert_array_equal(answer.as_numpy(name), values)
answer = client.infer("tiny", [image])
np.testing.assert_array_equal(answer.as_numpy("cam"), expected["cam"])
try:
    wrong = triton.InferInput("image", [1, 1, 32, 32], "UINT8")
    wrong.set_data_from_numpy(np.zeros((1, 1, 32, 32), np.uint8))
    client.infer("tiny", [wrong])
except triton.InferenceServerException as error:
    assert error.status() == "400" and "[N, 1, 64, 64]" in error.message()
else:
    raise SystemExit("a wrong shape was taken")
client.close()
"""


def expected_outputs(service: FakeService, images: np.ndarray) -> dict[str, np.ndarray]:
    outcomes = service.infer(images, 1)
    logits = np.stack([outcome.logits for outcome in outcomes])
    cam = np.stack([outcome.cam for outcome in outcomes])
    return {"logits": logits, "probabilities": probabilities(logits).astype(np.float32), "cam": cam}


def pixels(count: int = 3, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 1, SIZE, SIZE), dtype=np.uint8)


def described(images: np.ndarray, **changes: Any) -> dict[str, Any]:
    image = {"name": "image", "datatype": "UINT8", "shape": list(images.shape), "data": images.ravel().tolist()}
    return {"inputs": [{**image, **changes}]}


def test_triton_client(start: Callable[..., HttpServer], service: FakeService, tmp_path: Path) -> None:
    """In a process of its own: it brings gevent, which bends this one's sockets."""
    np.savez(tmp_path / "arrays.npz", images=pixels(), **expected_outputs(service, pixels()))  # type: ignore[arg-type]
    address = f"127.0.0.1:{start().port}"
    script = [sys.executable, "-c", TRITON, address, tmp_path / "arrays.npz"]
    done = subprocess.run(script, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_json_alone(serve: Serve, service: FakeService) -> None:
    client = serve()
    images = pixels(2)
    for data in (images.tolist(), images.ravel().tolist()):
        request = {**described(images, data=data), "id": "ü\ud800", "outputs": [{"name": "cam"}, {"name": "logits"}]}
        answer = client.post(INFER, content=json.dumps(request)).json()
        assert (answer["model_name"], answer["id"]) == ("tiny", "ü\ud800")
        assert [output["name"] for output in answer["outputs"]] == ["cam", "logits"]
        for output in answer["outputs"]:
            values = np.array(output["data"], np.float32).reshape(output["shape"])
            np.testing.assert_array_equal(values, expected_outputs(service, images)[output["name"]])


@pytest.mark.parametrize("black", [[0], [2], [1, 2]])
def test_an_image_that_the_guard_refuses_is_named_and_no_row_moves_up(
    serve: Serve, service: FakeService, black: list[int]
) -> None:
    service.refused = "the image is unlike those that the guard was fitted on"
    images = pixels(3)
    client = serve()
    assert client.post(INFER, content=json.dumps(described(images))).status_code == 200
    images[black] = 0
    answer = client.post(INFER, content=json.dumps(described(images)))
    assert answer.status_code == 422
    assert answer.json() == {"error": f"image {black[0]} of 3, counted from 0: {service.refused}"}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"name": "x"}, "name"),
        ({"datatype": "FP32"}, "UINT8"),
        ({"shape": [1, 1, SIZE]}, "shape"),
        ({"shape": [0, 1, SIZE, SIZE]}, "from 1 to 4"),
        ({"shape": [5, 1, SIZE, SIZE]}, "from 1 to 4"),
        ({"shape": [-1, 1, SIZE, SIZE]}, "shape"),
        ({"shape": [True, 1, SIZE, SIZE]}, "shape"),
        ({"shape": [1.0, 1, SIZE, SIZE]}, "shape"),
        ({"shape": "1"}, "shape"),
        ({"shape": [2, 1, SIZE, SIZE]}, "8192 integers"),
        ({"data": None}, "integers"),
        ({"data": [[1], [1, 2]]}, "integers"),
        ({"data": [256] * SIZE * SIZE}, "from 0 to 255"),
        ({"data": [-1] * SIZE * SIZE}, "from 0 to 255"),
        ({"data": [0.5] * SIZE * SIZE}, "integers"),
        ({"data": [True] * SIZE * SIZE}, "integers"),
        ({"data": [10**30] * SIZE * SIZE}, "integers"),
        ({"data": {"a": 1}}, "integers"),
        ({"data": "AAAA"}, "integers"),
        ({"parameters": 1}, "object"),
        ({"parameters": {"binary_data_size": 4096}}, "0 bytes"),
    ],
)
def test_a_wrong_input_is_refused(change: dict[str, Any], complaint: str) -> None:
    body = json.dumps(described(pixels(1), **change)).encode()
    with pytest.raises(Refusal, match=complaint) as caught:
        tensors.parse(body, None, BATCH, SIZE, OUTPUTS)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"inputs": NaN}',
        b'{"inputs": ' + b"9" * 10_000 + b"}",
        b'{"inputs": []}',
        b'{"inputs": [1]}',
    ],
)
def test_what_is_no_request_is_refused(body: bytes) -> None:
    with pytest.raises(Refusal):
        tensors.parse(body, None, BATCH, SIZE, OUTPUTS)


@pytest.mark.parametrize(
    "change",
    [
        {"id": 5},
        {"parameters": []},
        {"parameters": {"binary_data_output": 1}},
        {"outputs": {}},
        {"outputs": ["cam"]},
        {"outputs": [{"name": "other"}]},
        {"outputs": [{"name": ["cam"]}]},
        {"outputs": [{"name": "cam"}, {"name": "cam"}]},
        {"outputs": [{"name": "cam", "parameters": {"classification": 3}}]},
        {"outputs": [{"name": "cam", "parameters": {"binary_data": "yes"}}]},
    ],
)
def test_wrong_wishes_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(Refusal):
        tensors.parse(json.dumps({**described(pixels(1)), **change}).encode(), None, BATCH, SIZE, OUTPUTS)


def binary_request(images: np.ndarray, size: int, **more: Any) -> bytes:
    image = {"name": "image", "datatype": "UINT8", "shape": list(images.shape), **more}
    return json.dumps({"inputs": [{**image, "parameters": {"binary_data_size": size}}]}).encode()


def test_a_binary_tensor_must_fill_what_follows_the_json() -> None:
    images = pixels(1)
    good = binary_request(images, images.size)
    content = images.tobytes()
    parsed = tensors.parse(good + content, str(len(good)), BATCH, SIZE, OUTPUTS)
    np.testing.assert_array_equal(parsed.images, images)
    for body, length in [
        (good + content[:-1], len(good)),
        (good + content + b"x", len(good)),
        (good + content, len(good) + 1),
        (good + content, len(good + content) + 1),
        (good + content, 0),
        (good + content, -1),
        (good + content, "1e3"),
        (good + content, "9" * 5000),
        (good + content, "²"),
        (good + content, None),
        (binary_request(images, images.size - 1) + content, len(good)),
        (binary_request(images, images.size, data=[1]) + content, len(binary_request(images, images.size, data=[1]))),
        (json.dumps(described(images)).encode() + b"x", len(json.dumps(described(images)))),
    ]:
        with pytest.raises(Refusal):
            tensors.parse(body, None if length is None else str(length), BATCH, SIZE, OUTPUTS)


def test_the_largest_request_fits_and_no_larger_one() -> None:
    images = np.full((BATCH, 1, SIZE, SIZE), 255, np.uint8)
    assert len(json.dumps(described(images))) < tensors.body_limit(BATCH, SIZE)


def test_states(serve: Serve, service: FakeService) -> None:
    client = serve()
    request = json.dumps(described(pixels(1)))
    assert client.post("/v2/models/other/infer", content=request).status_code == 404
    assert client.get("/v2/models/other").status_code == 404
    too_large = client.post(INFER, content=b" " * (tensors.body_limit(BATCH, SIZE) + 1))
    assert too_large.status_code == 413
    assert client.post(INFER, content=request, headers={"Content-Encoding": "gzip"}).status_code == 415
    service.error = BusyError("no result within 30 s", 1.0)
    busy = client.post(INFER, content=request)
    assert (busy.status_code, busy.headers["Retry-After"]) == (429, "1")
    service.error, service.is_ready = None, False
    for path in ("/v2/health/ready", "/v2/models/tiny/ready"):
        assert client.get(path).status_code == 503
    assert client.post(INFER, content=request).status_code == 503
    assert client.get("/v2/health/live").status_code == 200


def test_a_network_without_maps_offers_none(serve: Serve, service: FakeService) -> None:
    service.bundle.manifest["model"]["cam"] = False
    try:
        client = serve()
        assert [one["name"] for one in client.get("/v2/models/tiny").json()["outputs"]] == ["logits", "probabilities"]
        wanted = {**described(pixels(1)), "outputs": [{"name": "cam"}]}
        assert client.post(INFER, content=json.dumps(wanted)).status_code == 400
        assert len(client.post(INFER, content=json.dumps(described(pixels(1)))).json()["outputs"]) == 2
    finally:
        del service.bundle.manifest["model"]["cam"]
