"""The tensors of the KServe v2 inference protocol, in JSON or in Triton's binary form: requests in, answers out.

Sources: the Open Inference Protocol (``POST /v2/models/{name}/infer``) and Triton's extension "binary tensor data": the
JSON comes first, ``Inference-Header-Content-Length`` says how long it is, and the binary tensors follow in its order.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.sources.http.answers import Refusal

HEADER_LENGTH = "Inference-Header-Content-Length"
JSON_BYTES_PER_VALUE = 8
"""Room for one pixel in JSON: its digits, a comma, white space."""
JSON_ROOM = 65536
"""Room for all else in a request."""

REQUEST_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string"},
        "parameters": {"type": "object", "properties": {"binary_data_output": {"type": "boolean"}}},
        "inputs": {
            "type": "array",
            "minItems": 1,
            "maxItems": 1,
            "items": {
                "type": "object",
                "required": ["name", "datatype", "shape"],
                "properties": {
                    "name": {"const": "image"},
                    "datatype": {"const": "UINT8"},
                    "shape": {"type": "array", "items": {"type": "integer"}, "minItems": 4, "maxItems": 4},
                    "parameters": {"type": "object", "properties": {"binary_data_size": {"type": "integer"}}},
                    "data": {"type": "array", "description": "the pixels, flat or nested, from 0 to 255"},
                },
            },
        },
        "outputs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {
                    "name": {"enum": ["logits", "probabilities", "cam"]},
                    "parameters": {"type": "object", "properties": {"binary_data": {"type": "boolean"}}},
                },
            },
        },
    },
}
"""The request in JSON schema; the sizes are the network's."""


@dataclass(frozen=True)
class InferRequest:
    """A checked request."""

    images: NDArray[np.uint8]
    """(N, 1, S, S) uint8."""
    id: str | None
    outputs: tuple[tuple[str, bool], ...]
    """Name of each wanted output, and whether it is wanted in binary."""


def body_limit(batch: int, size: int) -> int:
    """Largest body of a request for `batch` images of `size` pixels a side, in bytes."""
    return batch * size * size * JSON_BYTES_PER_VALUE + JSON_ROOM


def parse(body: bytes, header_length: str | None, batch: int, size: int, outputs: Sequence[str]) -> InferRequest:
    """Read a request for a network that takes `batch` images and has these `outputs`. Raises `Refusal` (400)."""
    length = _header_length(header_length, len(body))
    request = _json_object(body[:length])
    tensor = _only_input(request)
    _check_shape(tensor, batch, size)
    parameters = _object(tensor.get("parameters", {}), "the input's parameters")
    if "binary_data_size" in parameters:
        values = _binary_values(memoryview(body)[length:], tensor["shape"], parameters["binary_data_size"], tensor)
    else:
        values = _json_values(tensor)
        if length != len(body):
            raise _wrong("bytes follow the JSON that no input claims", "binary_data_size on the input")
    identifier = request.get("id")
    if not (identifier is None or isinstance(identifier, str)):
        raise _wrong("id is no string", "a string or none")
    return InferRequest(values.reshape(tensor["shape"]), identifier, _outputs(request, outputs))


def render(
    outputs: Sequence[tuple[str, bool]], tensors: Mapping[str, NDArray[np.float32]], facts: Mapping[str, Any]
) -> tuple[bytes, int | None]:
    """The answer's body, and the length of its JSON if binary tensors follow it."""
    described: list[dict[str, Any]] = []
    binary: list[bytes] = []
    for name, in_binary in outputs:
        tensor = tensors[name]
        entry: dict[str, Any] = {"name": name, "datatype": "FP32", "shape": list(tensor.shape)}
        if in_binary:
            binary.append(tensor.astype("<f4").tobytes())
            entry["parameters"] = {"binary_data_size": len(binary[-1])}
        else:
            entry["data"] = tensor.ravel().tolist()
        described.append(entry)
    header = json.dumps({**facts, "outputs": described}, allow_nan=False, separators=(",", ":")).encode("ascii")
    return b"".join((header, *binary)), len(header) if binary else None


def _header_length(text: str | None, size: int) -> int:
    if text is None:
        return size
    if not (text.isascii() and text.isdigit() and len(text) < 16 and 0 < int(text) <= size):
        raise _wrong(f"{HEADER_LENGTH} does not lie in the body of {size} bytes", "the length of the JSON")
    return int(text)


def _json_object(text: bytes) -> dict[str, Any]:
    def no_number(name: str) -> None:
        raise ValueError(name)

    try:
        value = json.loads(text, parse_constant=no_number)
    except (ValueError, RecursionError):  # ValueError: also bad UTF-8, NaN, and integers of very many digits
        raise _wrong("the body is no JSON", "an inference request") from None
    return _object(value, "the request")


def _only_input(request: Mapping[str, Any]) -> dict[str, Any]:
    inputs = request.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1:
        raise _wrong("the request has not one input", "inputs: [image]")
    tensor = _object(inputs[0], "the input")
    if tensor.get("name") != "image" or tensor.get("datatype") != "UINT8":
        raise _wrong("the input has another name or datatype", "name image, datatype UINT8")
    return tensor


def _check_shape(tensor: Mapping[str, Any], batch: int, size: int) -> None:
    shape: Any = tensor.get("shape")
    whole = isinstance(shape, list) and len(shape) == 4 and all(type(n) is int for n in shape)
    if not (whole and shape[1:] == [1, size, size] and 1 <= shape[0] <= batch):
        raise _wrong("the input has another shape", f"[N, 1, {size}, {size}] with N from 1 to {batch}")


def _binary_values(
    rest: memoryview, shape: Sequence[int], declared: Any, tensor: Mapping[str, Any]
) -> NDArray[np.uint8]:
    count = math.prod(shape)
    if type(declared) is not int or not declared == count == len(rest) or "data" in tensor:
        raise _wrong(f"the binary tensor has {len(rest)} bytes", f"{count}, as its shape and binary_data_size say")
    return np.frombuffer(rest, np.uint8)


def _json_values(tensor: Mapping[str, Any]) -> NDArray[np.uint8]:
    count = math.prod(tensor["shape"])
    try:
        values = np.asarray(tensor.get("data"))
    except (ValueError, OverflowError):  # ragged lists, or integers beyond 64 bits
        values = np.empty(0)
    if values.dtype.kind not in "iu" or values.size != count or values.min() < 0 or values.max() > 255:
        raise _wrong("data does not hold the input's pixels", f"{count} integers from 0 to 255")
    return values.astype(np.uint8)


def _outputs(request: Mapping[str, Any], known: Sequence[str]) -> tuple[tuple[str, bool], ...]:
    parameters = _object(request.get("parameters", {}), "the request's parameters")
    default = _flag(parameters, "binary_data_output", False)
    wanted = request.get("outputs", [])
    if not isinstance(wanted, list):
        raise _wrong("outputs is no list", "a list of outputs, or none for all")
    chosen: dict[str, bool] = {}
    for entry in wanted or [{"name": name} for name in known]:
        output = _object(entry, "an output")
        name = output.get("name")
        if name not in known or name in chosen:
            raise _wrong("an output is not known, or named twice", f"each of {', '.join(known)} at most once")
        options = _object(output.get("parameters", {}), "an output's parameters")
        if options.get("classification"):
            raise _wrong("classification is not offered", "no such parameter: take `probabilities`")
        chosen[str(name)] = _flag(options, "binary_data", default)
    return tuple(chosen.items())


def _flag(parameters: Mapping[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise _wrong(f"{name} is no boolean", "true or false")
    return value


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(f"{what} is no JSON object", "an object")
    return value


def _wrong(what: str, expected: str) -> Refusal:
    return Refusal(400, f"{what}, expected {expected}: see the KServe v2 inference protocol")
