"""A model of a Triton repository, made from a bundle: what central servers load instead of the edge daemon.

    <repository>/<bundle's name>/config.pbtxt  labels.txt  1/model.plan | 1/model.onnx  1/libmdconv_plugin.so

The configuration's fields are those of Triton's model_config.proto; how the backends read them was looked up in the
sources of triton-inference-server/onnxruntime_backend and tensorrt_backend.
"""

from __future__ import annotations

import filecmp
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edge.backends.onnxruntime import model_to_run
from edge.bundle import ENGINE, GOLDEN, PLUGIN_LIBRARY, Bundle
from edge.errors import BundleError, UsageError
from edge.gate import FAIL

CONFIG, LABELS, VERSION = "config.pbtxt", "labels.txt", "1"

QUEUE_MICROSECONDS = 2000
"""How long Triton may hold a request for others to make a full batch: less than an image takes on most machines."""

_DISABLE_ALL = 2
"""Of ``optimization.graph.level``: ONNX Runtime's ORT_DISABLE_ALL, by onnxruntime_backend's own numbers."""


class _Model(NamedTuple):
    platform: str
    kind: str
    """Of the instance group."""
    files: Mapping[str, Path]
    """What the version's folder holds, by name, and the bundle's file that each one is."""
    optimization: str
    """The configuration's field, or nothing."""


def export_to_triton(bundle: Bundle, repository: Path) -> Path:
    """Write `bundle` as a model into a Triton `repository`, which is made where there is none; returns its folder.

    The folder appears whole, by one rename. One that holds the very same files is left alone.

    Raises:
        UsageError: other files stand there; what Triton has cannot run this backend's engine.
        BundleError: the bundle failed its gate, lacks what its backend needs, or has a name that is no folder's.
        OSError: the place cannot be written.
    """
    if bundle.gate_verdict == FAIL:
        raise BundleError(f"{bundle.name} failed its accuracy gate, so no server gets it: build it anew with --fp16")
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", bundle.name):
        raise BundleError(f"the bundle is named {bundle.name!r}, expected letters, digits and _.-: build it anew")
    target = repository / bundle.name
    model = _model(bundle)
    repository.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{bundle.name}.", suffix=".partial", dir=repository))
    try:
        temporary.chmod(0o755)  # mkdtemp makes it private; the server is another user
        version = temporary / VERSION
        version.mkdir()
        for name, source in model.files.items():
            shutil.copyfile(source, version / name)
        (temporary / LABELS).write_text("".join(f"{label}\n" for label in _labels(bundle)))
        (temporary / CONFIG).write_text(_configuration(bundle, model))
        if not target.exists():
            temporary.rename(target)
        elif not _same(temporary, target):
            raise _occupied(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def check_export(repository: Path, name: str, backend: str) -> None:
    """Raises `UsageError` if a new build `name` for `backend` could not be exported: it never equals one that is there,
    since it has a new date."""
    if backend not in ("onnxruntime", "tensorrt"):
        raise _foreign(backend)
    if (repository / name).exists():
        raise _occupied(repository / name)


def _foreign(backend: str) -> UsageError:
    return UsageError(
        f"a bundle for {backend} runs in no backend of Triton: build one with --backend tensorrt or onnxruntime"
    )


def _occupied(target: Path) -> UsageError:
    return UsageError(
        f"{target} is there, and nothing in a model repository is overwritten, since servers may read it: choose "
        "another --triton-repository, or remove that folder once no server needs it"
    )


def _same(one: Path, other: Path) -> bool:
    names = [sorted(file.relative_to(top).as_posix() for file in top.rglob("*")) for top in (one, other)]
    files = [name for name in names[0] if (one / name).is_file()]
    return names[0] == names[1] and not any(filecmp.cmpfiles(one, other, files, shallow=False)[1:])


def _labels(bundle: Bundle) -> Sequence[str]:
    """Triton reads one label a line, so that one of two lines would give all behind it another's name."""
    for label in bundle.labels:
        if len(label.splitlines()) != 1:
            raise BundleError(f"the finding {label!r} is not one line of text: build the bundle with another name")
    return bundle.labels


def _model(bundle: Bundle) -> _Model:
    backend = bundle.manifest["backend"]
    if backend == "onnxruntime":
        # At its usual level ONNX Runtime sums some products of a Q/DQ graph as int8, on x86 without VNNI in 16 bits
        # (see `edge.backends.onnxruntime.open_session`), and Triton cannot ask it not to.
        exact = f"graph {{ level: {_DISABLE_ALL} }}" if bundle.precision == "int8" else ""
        return _Model("onnxruntime_onnx", "KIND_CPU", {"model.onnx": model_to_run(bundle)}, exact)
    if backend != "tensorrt":
        raise _foreign(backend)
    files = {"model.plan": bundle.path(ENGINE)}
    if bundle.manifest["lowering"].get("kind") == "plugin":
        files[PLUGIN_LIBRARY] = bundle.path(PLUGIN_LIBRARY)
    present = {name: path for name, path in files.items() if path is not None}
    if missing := files.keys() - present.keys():
        raise BundleError(
            f"{bundle.directory} has no {', '.join(sorted(missing))}: build it with --backend tensorrt on a machine "
            "with the servers' kind of GPU and TensorRT"
        )
    return _Model("tensorrt_plan", "KIND_GPU", present, "")


def _configuration(bundle: Bundle, model: _Model) -> str:
    return "".join(f"{line}\n" for line in (*_comments(bundle, model), *_fields(bundle, model), *_parameters(bundle)))


def _comments(bundle: Bundle, model: _Model) -> Iterator[str]:
    if bundle.notice:
        yield f"# {' '.join(bundle.notice.split())}"
    yield f"# Written by build_engine/make.py from the bundle {bundle.sha256}"
    yield "# Triton runs the network alone: send an image as edge.preprocess makes it, take the sigmoid of the logits,"
    yield "# and mind that nothing here refuses an image that the network was not made for."
    if model.platform == "tensorrt_plan":
        platform = bundle.manifest["platform"]
        yield f"# The plan runs on TensorRT {platform.get('tensorrt')} and GPUs of sm_{platform.get('sm')} only."
    if PLUGIN_LIBRARY in model.files:
        yield "# It needs the plugin, which Triton loads for all models at once; with the repository's path:"
        yield "#   MDCONV_PLUGIN_REGISTER=1 tritonserver --model-repository=REPOSITORY \\"
        yield f"#     --backend-config=tensorrt,plugins=REPOSITORY/{bundle.name}/{VERSION}/{PLUGIN_LIBRARY}"


def _fields(bundle: Bundle, model: _Model) -> Iterator[str]:
    # A model of one image has a batch dimension of 1, which is then a dimension like the others (max_batch_size 0).
    batched = bundle.batch > 1
    size, labels = bundle.input_size, len(bundle.labels)
    yield f"name: {_quoted(bundle.name)}"
    yield f"platform: {_quoted(model.platform)}"
    yield f"max_batch_size: {bundle.batch if batched else 0}"
    yield f'input {{ name: "image" data_type: TYPE_UINT8 dims: {_dims(batched, 1, size, size)} }}'
    yield (
        f'output {{ name: "logits" data_type: TYPE_FP32 dims: {_dims(batched, labels)} '
        f"label_filename: {_quoted(LABELS)} }}"
    )
    if bundle.has_cam:
        height, width = _map_size(bundle)
        yield f'output {{ name: "cam" data_type: TYPE_FP32 dims: {_dims(batched, labels, height, width)} }}'
    yield f"instance_group {{ kind: {model.kind} count: 1 }}"
    if batched:
        yield (
            f"dynamic_batching {{ preferred_batch_size: [{bundle.batch}] "
            f"max_queue_delay_microseconds: {QUEUE_MICROSECONDS} }}"
        )
    if model.optimization:
        yield f"optimization {{ {model.optimization} }}"


def _parameters(bundle: Bundle) -> Iterator[str]:
    """What a client must know to make findings of the logits, and what an operator, to know what runs."""
    facts = {
        "bundle_sha256": bundle.sha256,
        "precision": bundle.precision,
        "gate": bundle.gate_verdict,
        "thresholds": json.dumps(bundle.thresholds),
        "preprocess": json.dumps(bundle.manifest["preprocess"]),
        **({"notice": bundle.notice} if bundle.notice else {}),
    }
    for key, value in facts.items():
        yield f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(value)} }} }}"


def _map_size(bundle: Bundle) -> tuple[int, int]:
    """Height and width of the class activation maps, as the bundle's golden outputs (N, L, h, w) have them."""
    with np.load(bundle.directory / GOLDEN) as golden:
        height, width = golden["cam"].shape[2:]
    return int(height), int(width)


def _dims(batched: bool, *sizes: int) -> str:
    return str(list(sizes if batched else (1, *sizes)))


def _quoted(text: str) -> str:
    """A string of protobuf's text format: what is not plain ASCII as octal bytes, which every version reads."""
    plain = {byte: chr(byte) for byte in range(32, 127)} | {ord('"'): r"\"", ord("\\"): r"\\"}
    return '"' + "".join(plain.get(byte, rf"\{byte:03o}") for byte in text.encode()) + '"'
