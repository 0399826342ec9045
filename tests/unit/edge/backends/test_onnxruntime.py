from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import onnx
import onnxruntime
import pytest

from build_engine.bundle_writer import write_manifest
from edge.backends import open_backend
from edge.backends.onnxruntime import OnnxRuntimeBackend, open_session
from edge.bundle import MANIFEST, PORTABLE_MODEL, Bundle, load_bundle, read_manifest
from edge.errors import BundleError, MachineError, UsageError


def images(count: int, size: int = 64) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(count).integers(0, 256, (count, 1, size, size), dtype=np.uint8)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_outputs_are_those_of_the_model(tiny_bundle: Bundle, count: int) -> None:
    given = images(count)
    session = onnxruntime.InferenceSession(tiny_bundle.model_path, providers=["CPUExecutionProvider"])
    logits, cam = session.run(["logits", "cam"], {"image": given})
    with OnnxRuntimeBackend(tiny_bundle) as backend:
        outputs = backend.infer(given)
    np.testing.assert_allclose(outputs.logits, logits, atol=1e-5)
    assert outputs.cam is not None
    np.testing.assert_allclose(outputs.cam, cam, atol=1e-5)
    assert outputs.gpu_ms is None


def test_a_result_does_not_depend_on_what_else_was_in_the_batch(tiny_bundle: Bundle) -> None:
    given = images(4)
    with OnnxRuntimeBackend(tiny_bundle) as backend:
        together = backend.infer(given)
        for number in range(4):
            alone = backend.infer(given[number : number + 1])
            np.testing.assert_array_equal(together.logits[number], alone.logits[0])


def test_outputs_stay_what_they_were_after_the_next_call(tiny_bundle: Bundle) -> None:
    with OnnxRuntimeBackend(tiny_bundle) as backend:
        first = backend.infer(images(2))
        kept = first.logits.copy()
        backend.infer(images(3))
        np.testing.assert_array_equal(first.logits, kept)


def test_an_image_is_read_where_it_lies(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The session is given the very memory, and ONNX Runtime makes its tensor of it: no copy on the way."""
    given = images(1)
    with OnnxRuntimeBackend(tiny_bundle) as backend:
        session = backend._session
        monkeypatch.setattr(backend, "_session", Mock(wraps=session))
        backend.infer(given)
        ((_, feed),) = (call.args for call in backend._session.run.call_args_list)
    assert np.shares_memory(feed["image"], given)
    assert onnxruntime.OrtValue.ortvalue_from_numpy(feed["image"]).data_ptr() == given.ctypes.data


def test_a_network_without_cam_has_none(make_bundle: Callable[..., Path]) -> None:
    directory = make_bundle()
    manifest, _ = read_manifest(directory)
    model = onnx.load(directory / PORTABLE_MODEL)
    model.graph.output.pop()
    onnx.save(model, directory / PORTABLE_MODEL)
    (directory / MANIFEST).unlink()
    write_manifest(directory, {key: manifest[key] for key in manifest if key not in ("format", "created", "files")})
    with OnnxRuntimeBackend(load_bundle(directory)) as backend:
        assert backend.infer(images(1)).cam is None


def test_a_file_that_is_no_model_is_one_line(tiny_bundle: Bundle, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(tiny_bundle.directory, tmp_path / "copy"))
    (directory / PORTABLE_MODEL).write_bytes(b"no model at all")
    broken = Bundle(directory, tiny_bundle.manifest, tiny_bundle.sha256)
    with pytest.raises(BundleError, match=r"cannot load .*model\.onnx") as raised:
        OnnxRuntimeBackend(broken)
    assert "\n" not in str(raised.value)


def test_an_image_of_another_size_is_one_line(tiny_bundle: Bundle) -> None:
    with OnnxRuntimeBackend(tiny_bundle) as backend, pytest.raises(MachineError, match="ONNX Runtime failed") as raised:
        backend.infer(images(1, size=32))
    assert "\n" not in str(raised.value)


def test_the_facts_say_how_it_ran_and_why_it_was_chosen(tiny_bundle: Bundle) -> None:
    with open_backend(tiny_bundle, "onnxruntime") as backend:
        assert backend.facts["onnxruntime"] == onnxruntime.__version__
        assert backend.facts["threads"] >= 1
        assert backend.facts["chosen_because"] == "--backend onnxruntime"


def test_an_unknown_backend_is_wrong_use(tiny_bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="is none of auto, tensorrt, openvino, onnxruntime"):
        open_backend(tiny_bundle, "tensorflow")


def test_a_machine_without_onnx_runtime_is_told(tiny_bundle: Bundle) -> None:
    code = f"""
import sys
sys.modules["onnxruntime"] = None  # as if it were not installed
from pathlib import Path
from edge.backends import open_backend
from edge.bundle import load_bundle
from edge.errors import MachineError
try:
    open_backend(load_bundle(Path({str(tiny_bundle.directory)!r})), "onnxruntime")
except MachineError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout
    assert "pip install 'mdconv-edge[onnxruntime]'" in said


@pytest.mark.parametrize("activation", ["Identity(c)", "Relu(c)"])
def test_the_bias_of_an_int8_convolution_is_not_rounded(activation: str) -> None:
    """One that is 0.4 of a step of the integer sum: rounded to an int32, nothing would be left of it."""
    model = onnx.parser.parse_model(f"""
        <ir_version: 9, opset_import: ["" : 19]>
        g (float[1, 1, 4, 4] x) => (float[1, 1, 4, 4] y)
        <float one = {{1.0}}, float tenth = {{0.1}}, int8 zero = {{0}}, float[1] scale = {{1.0}}, int8[1] zeros = {{0}},
         int8[1, 1, 1, 1] codes = {{3}}, float[1] bias = {{0.4}}>
        {{
            q = QuantizeLinear(x, one, zero)
            d = DequantizeLinear(q, one, zero)
            w = DequantizeLinear<axis = 0>(codes, scale, zeros)
            c = Conv(d, w, bias)
            a = {activation}
            r = QuantizeLinear(a, tenth, zero)
            y = DequantizeLinear(r, tenth, zero)
        }}""")
    onnx.checker.check_model(model, full_check=True)
    x = np.full((1, 1, 4, 4), 2, np.float32)
    (y,) = open_session(model.SerializeToString(), threads=1).run(["y"], {"x": x})
    np.testing.assert_allclose(y, 6.4, rtol=1e-6)
    (rounded,) = onnxruntime.InferenceSession(model.SerializeToString()).run(["y"], {"x": x})
    np.testing.assert_allclose(rounded, 6.0, rtol=1e-6, err_msg="ONNX Runtime has mended it: `REWRITES` can go")
