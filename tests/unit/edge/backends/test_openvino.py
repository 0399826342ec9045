from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from edge.backends import X86, open_backend
from edge.bundle import PORTABLE_MODEL, Bundle, load_bundle
from edge.errors import MachineError

module = pytest.importorskip("edge.backends.openvino", reason="OpenVINO is not installed, which is for x86")
OpenVinoBackend = module.OpenVinoBackend


def images(count: int, size: int = 64) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(count).integers(0, 256, (count, 1, size, size), dtype=np.uint8)


@pytest.mark.parametrize("size", [16, 63, 64, 97])
def test_outputs_are_those_of_onnx_runtime(make_bundle: Callable[..., Path], size: int) -> None:
    bundle = load_bundle(make_bundle(size=size))
    given = images(3, size)
    session = onnxruntime.InferenceSession(bundle.model_path, providers=["CPUExecutionProvider"])
    logits, cam = session.run(["logits", "cam"], {"image": given})
    with OpenVinoBackend(bundle) as backend:
        outputs = backend.infer(given)
    np.testing.assert_allclose(outputs.logits, logits, atol=1e-5)
    assert outputs.cam is not None
    np.testing.assert_allclose(outputs.cam, cam, atol=1e-5)
    assert outputs.gpu_ms is None


def test_a_result_depends_on_no_other_image_and_stays_what_it_was(tiny_bundle: Bundle) -> None:
    given = images(4)
    with OpenVinoBackend(tiny_bundle) as backend:
        together = backend.infer(given)
        kept = together.logits.copy()
        for number in range(4):
            alone = backend.infer(given[number : number + 1])
            np.testing.assert_array_equal(together.logits[number], alone.logits[0])
        np.testing.assert_array_equal(together.logits, kept)


def test_an_image_is_read_where_it_lies_and_left_as_it_is(tiny_bundle: Bundle) -> None:
    given = images(3)
    kept = given.copy()
    with OpenVinoBackend(tiny_bundle) as backend:
        for number in range(3):
            outputs = backend.infer(given[number : number + 1])
            assert np.shares_memory(backend._request.get_input_tensor().data, given[number])
            np.testing.assert_array_equal(outputs.logits, backend.infer(kept[number : number + 1]).logits)
    np.testing.assert_array_equal(given, kept)


def test_images_that_nobody_may_write_are_taken(tiny_bundle: Bundle) -> None:
    given = images(2)
    given.flags.writeable = False
    with OpenVinoBackend(tiny_bundle) as backend:
        assert np.isfinite(backend.infer(given).logits).all()


def test_the_facts_say_how_it_ran_and_why_it_was_chosen(tiny_bundle: Bundle) -> None:
    with open_backend(tiny_bundle, "openvino") as backend:
        assert re.fullmatch(r"\d+\.\d+\.\d+", backend.facts["openvino"])
        assert module.openvino.__version__.startswith(backend.facts["openvino"])
        assert backend.facts["device"]
        assert backend.facts["threads"] >= 1
        assert backend.facts["chosen_because"] == "--backend openvino"


@pytest.mark.parametrize(("machine", "name"), [(X86[0], "openvino"), ("aarch64", "onnxruntime")])
def test_it_is_the_automatic_choice_on_x86_only(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, machine: str, name: str
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with open_backend(tiny_bundle) as backend:
        assert backend.name == name
        assert backend.facts["chosen_because"].startswith("auto: tensorrt cannot run here (")


def test_a_model_that_it_cannot_load_is_one_line_and_left_to_onnx_runtime(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """With the MD-Conv op as a function of the model, which ONNX Runtime can run, and OpenVINO cannot."""
    import onnx

    directory = Path(shutil.copytree(tiny_bundle.directory, tmp_path / "copy"))
    model = onnx.load(directory / PORTABLE_MODEL)
    text = '<opset_import: ["" : 19], domain: "mdconv"> Same (x) => (y) {y = Identity(x)}'
    function = onnx.parser.parse_function(text)
    cast = model.graph.node[0]
    renamed = f"{cast.output[0]}.same"
    for node in model.graph.node[1:]:
        node.input[:] = [renamed if name == cast.output[0] else name for name in node.input]
    model.graph.node.insert(1, onnx.helper.make_node("Same", [cast.output[0]], [renamed], domain="mdconv"))
    model.functions.append(function)
    model.opset_import.append(onnx.helper.make_opsetid("mdconv", 1))
    onnx.save(model, directory / PORTABLE_MODEL)
    changed = Bundle(directory, tiny_bundle.manifest, tiny_bundle.sha256)
    with pytest.raises(MachineError, match=r"OpenVINO .* cannot load .*model\.onnx: ") as raised:
        OpenVinoBackend(changed)
    assert "\n" not in str(raised.value)
    assert "mdconv.Same" in str(raised.value)
    with open_backend(changed) as backend, open_backend(tiny_bundle, "onnxruntime") as reference:
        assert backend.name == "onnxruntime"
        assert "openvino cannot run here (OpenVINO" in backend.facts["chosen_because"]
        np.testing.assert_array_equal(backend.infer(images(1)).logits, reference.infer(images(1)).logits)


def test_an_image_of_another_size_is_one_line(tiny_bundle: Bundle) -> None:
    with OpenVinoBackend(tiny_bundle) as backend, pytest.raises(MachineError, match="OpenVINO failed") as raised:
        backend.infer(images(1, size=32))
    assert "\n" not in str(raised.value)


def test_nothing_is_sent_anywhere(tiny_bundle: Bundle) -> None:
    """OpenVINO reports its own import, if its library for that can be loaded."""
    code = f"""
import sys
from pathlib import Path
from edge.backends import open_backend
from edge.bundle import load_bundle
from edge.doctor import examine
asked = []
sys.addaudithook(lambda event, arguments: event in ("socket.connect", "socket.getaddrinfo") and asked.append(event))
examine()
open_backend(load_bundle(Path({str(tiny_bundle.directory)!r})), "openvino").close()
print(asked, sys.modules.get("openvino_telemetry"))
"""
    command = [sys.executable, "-c", code]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert said.strip() == "[] None"


def test_a_machine_without_it_is_told(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "edge.backends.openvino")
    monkeypatch.setitem(sys.modules, "openvino", None)  # as if it were not installed
    with pytest.raises(MachineError, match=r"pip install 'mdconv-edge\[openvino\]'"):
        open_backend(tiny_bundle, "openvino")
