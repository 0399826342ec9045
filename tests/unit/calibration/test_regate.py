"""The gate of a bundle that is there, repeated: a good one, a sabotaged one, one that nothing is known of."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from onnx import numpy_helper

from build_engine.bundle_writer import write_manifest
from calibration.dataset import from_folder, pixel_digest
from calibration.limits import DEFAULTS, NAMES
from calibration.quantize import quantize
from calibration.regate import main, regate
from edge.bundle import MANIFEST, Bundle, load_bundle, sign_bundle
from edge.errors import BundleError, MachineError, UsageError
from edge.labels import CHESTXRAY14
from edge.preprocess import Preprocess, load_image
from tests.conftest import tiny_network, write_tiny_bundle
from tests.once import made_once

SIZE = 64
IMAGES = 60
ANYTHING = [f"--{name.replace('_', '-')}=1" for name in NAMES]
"""The widest limits."""


def pictures(contrast: float) -> Iterator[np.ndarray]:
    """Blurred noise of many sharpnesses, (64, 64) uint8: of low contrast, wide steps round it away."""
    rng = np.random.default_rng(11)
    for _ in range(IMAGES):
        noise = cv2.GaussianBlur(rng.normal(size=(SIZE, SIZE)), (0, 0), rng.uniform(0.5, 4))
        values = 124 + rng.uniform(0.7, 1.4) * contrast * noise / noise.std()
        yield values.clip(0, 255).astype(np.uint8)


def write_int8(directory: Path) -> None:
    write_tiny_bundle(directory, size=SIZE)
    with tempfile.TemporaryDirectory() as scratch:
        for number, image in enumerate(pictures(50)):
            cv2.imwrite(f"{scratch}/{number}.png", image)
        float32 = tiny_network(SIZE)
        for node in float32.graph.node:
            node.name = node.output[0]
        model, _ = quantize(float32, from_folder(Path(scratch), IMAGES, Preprocess(SIZE)))
    onnx.save(model, directory / "model.int8.onnx")
    renew(directory, precision="int8", calibration={"method": "mse"})


def renew(directory: Path, **changes: Any) -> None:
    """The manifest's hashes as the files are now, and `changes` in its entries."""
    manifest = json.loads((directory / MANIFEST).read_text())
    write_manifest(directory, {key: value for key, value in {**manifest, **changes}.items() if key != "files"})


@pytest.fixture(scope="module")
def int8_tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An INT8 bundle of the tiny network: do not change its files."""
    return made_once(tmp_path_factory, "int8_tiny_bundle", write_int8)


@pytest.fixture
def bundle(int8_tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(int8_tiny, tmp_path / "bundle"))


@pytest.fixture(scope="module")
def labelled(int8_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images on which float32 is right by definition: a finding is in those of the upper half of its own logits."""
    directory = tmp_path_factory.mktemp("labelled")
    images = np.stack(list(pictures(4)))
    session = onnxruntime.InferenceSession(int8_tiny / "model.onnx")
    logits = session.run(["logits"], {"image": images[:, None]})[0]
    truth = logits > np.median(logits, axis=0)
    with (directory / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["Image Index", "Finding Labels"])
        for number, (image, row) in enumerate(zip(images, truth)):
            cv2.imwrite(str(directory / f"{number}.png"), image)
            found = "|".join(name for name, present in zip(CHESTXRAY14, row) if present)
            table.writerow([f"{number}.png", found or "No Finding"])
    return directory


@pytest.fixture
def unlabelled(labelled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(labelled, tmp_path / "unlabelled", ignore=shutil.ignore_patterns("*.csv")))


def sabotage(directory: Path) -> None:
    """Multiply the activation scale of the first convolution by 8, and give the manifest the file's new hash."""
    path = directory / "model.int8.onnx"
    model = onnx.load(path)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    node = next(n for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] not in constants)
    scale = constants[node.input[1]]
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * np.float32(8), scale.name))
    onnx.save(model, path)
    renew(directory)


def gate_of(directory: Path) -> dict[str, Any]:
    gate: dict[str, Any] = load_bundle(directory).manifest["gate"]
    return gate


def test_a_good_bundle_passes(bundle: Path, labelled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = load_bundle(bundle)
    assert main([str(bundle), "--gate-data", str(labelled), "--backend", "onnxruntime"]) == 0
    gate, after = gate_of(bundle), load_bundle(bundle)
    assert (gate["verdict"], gate["images"], gate["ran_on"]) == ("pass", IMAGES, "onnxruntime")
    assert gate["figures"]["mean_auc"]["reference"] == 1
    assert gate["backend"]["model"] == "model.int8.onnx"
    assert gate["replaces"] == {"verdict": "not assessed"}
    assert gate["data"] == "user's images"  # never a path: it may name a patient or a ward
    assert after.sha256 != before.sha256
    assert {**after.manifest, "gate": 0} == {**before.manifest, "gate": 0}
    assert sorted(path.name for path in bundle.iterdir()) == sorted([*before.manifest["files"], MANIFEST])
    shown = capsys.readouterr()
    assert shown.out.strip() == str(bundle)
    assert "gate: pass: mean AUC 1.0000 to" in shown.err and "95 % interval" in shown.err


def test_the_manifest_names_no_folder_of_this_machine(
    bundle: Path, labelled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Why TensorRT cannot run is printed; the manifest, which is handed on, has no more than that it cannot."""

    def fail(_: Bundle) -> None:
        raise MachineError("the engine cache cannot be used: Permission denied (/home/someone/.cache)")

    monkeypatch.setattr("edge.backends.tensorrt.open_tensorrt", fail)
    assert main([str(bundle), "--gate-data", str(labelled)]) == 0
    assert "/home/someone" in capsys.readouterr().err
    assert gate_of(bundle)["backend"]["chosen_because"] == "auto: tensorrt cannot run here"
    assert "/" not in json.dumps(gate_of(bundle)["backend"])


def test_a_sabotaged_bundle_fails_and_no_longer_runs(
    bundle: Path, labelled: Path, unlabelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sabotage(bundle)
    assert main([str(bundle), "--gate-data", str(labelled), "--backend", "onnxruntime"]) == 3
    gate = gate_of(bundle)
    assert gate["verdict"] == "fail"
    assert gate["figures"]["mean_auc"]["interval"][0] > 0
    failed = (bundle / MANIFEST).read_bytes()

    # Images without labels tell too little to lift that.
    assert main([str(bundle), "--gate-data", str(unlabelled), "--backend", "onnxruntime", *ANYTHING]) == 2
    assert "cannot lift that (agreement only" in capsys.readouterr().err
    assert (bundle / MANIFEST).read_bytes() == failed

    # Wider limits do, and the manifest says what was allowed and what stood there before.
    assert main([str(bundle), "--gate-data", str(labelled), "--backend", "onnxruntime", *ANYTHING]) == 0
    assert (gate_of(bundle)["verdict"], set(gate_of(bundle)["limits"].values())) == ("pass", {1.0})
    assert gate_of(bundle)["replaces"]["verdict"] == "fail"


def test_images_without_labels_tell_the_agreement_only(bundle: Path, unlabelled: Path) -> None:
    assert main([str(bundle), "--gate-data", str(unlabelled)]) == 0
    gate = gate_of(bundle)
    assert gate["verdict"] == "not assessed"
    assert gate["reason"].startswith("agreement only")
    assert set(gate["figures"]) == {"mean_difference", "max_difference", "changed_decisions"}
    assert gate["images"] == IMAGES


def test_images_without_labels_find_a_sabotaged_bundle(bundle: Path, unlabelled: Path) -> None:
    """Whether it agrees with float32 needs no labels."""
    judged = [str(bundle), "--gate-data", str(unlabelled), "--backend", "onnxruntime", "--max-mean-difference=0.003"]
    assert main(judged) == 0
    assert gate_of(bundle)["verdict"] == "not assessed"
    sabotage(bundle)
    assert main(judged) == 3
    gate = gate_of(bundle)
    assert (gate["verdict"], gate["failed"]) == ("fail", ["max_mean_difference"])
    assert gate["reason"].startswith("agreement only, since there are no labels: mean difference of a probability 0.00")
    assert gate["limits"] == {**DEFAULTS.to_json(), "max_mean_difference": 0.003}


def test_an_image_that_the_bundle_was_calibrated_on_is_refused(
    bundle: Path, labelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = sorted(labelled.glob("*.png"))[7]
    digest = pixel_digest(load_image(picture, Preprocess(SIZE)))
    (bundle / "calibration.json").write_text(json.dumps({"pixels": ["0" * 64, digest]}))
    renew(bundle)
    before = (bundle / MANIFEST).read_bytes()
    assert main([str(bundle), "--gate-data", str(labelled), "--backend", "onnxruntime"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"image {picture} of --gate-data is one of those that the bundle was calibrated on" in said
    assert (bundle / MANIFEST).read_bytes() == before

    (bundle / "calibration.json").write_text(json.dumps({"pixels": ["0" * 64]}))
    renew(bundle)
    assert main([str(bundle), "--gate-data", str(labelled), "--backend", "onnxruntime"]) == 0


def test_a_bundle_that_does_not_know_its_calibration_images_says_so(
    bundle: Path, labelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for record in (None, "{}"):
        if record:
            (bundle / "calibration.json").write_text(record)
            renew(bundle)
        assert main([str(bundle), "--gate-data", str(labelled), "--backend", "onnxruntime"]) == 0
        assert "does not say what images it was calibrated on" in capsys.readouterr().err
    for record in ("[]", '{"pixels": 3}'):
        (bundle / "calibration.json").write_text(record)
        renew(bundle)
        assert main([str(bundle), "--gate-data", str(labelled), "--backend", "onnxruntime"]) == 3
        assert "calibration.json cannot be read" in capsys.readouterr().err.splitlines()[-1]


def test_a_portable_model_that_does_not_load_is_one_line(
    bundle: Path, labelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (bundle / "model.onnx").write_bytes(b"no model")
    renew(bundle)
    assert main([str(bundle), "--gate-data", str(labelled), "--backend", "onnxruntime"]) == 3
    assert "model.onnx" in capsys.readouterr().err.splitlines()[-1]


def test_a_manifest_that_changed_meanwhile_is_left_alone(bundle: Path, labelled: Path) -> None:
    changed: list[bytes] = []

    def change(text: str) -> None:
        if "comparing" in text:
            renew(bundle, name="another")
            changed.append((bundle / MANIFEST).read_bytes())

    with pytest.raises(BundleError, match="was changed while the gate ran"):
        regate(bundle, labelled, "test", DEFAULTS, "onnxruntime", change)
    assert (bundle / MANIFEST).read_bytes() == changed[0]
    assert not list(bundle.glob(".*"))


def test_a_bundle_that_was_signed_meanwhile_is_left_alone(bundle: Path, labelled: Path) -> None:
    before = (bundle / MANIFEST).read_bytes()

    def sign(text: str) -> None:
        if "comparing" in text:
            sign_bundle(bundle, Ed25519PrivateKey.generate())

    with pytest.raises(BundleError, match="is signed, so its manifest is not written again"):
        regate(bundle, labelled, "test", DEFAULTS, "onnxruntime", sign)
    assert (bundle / MANIFEST).read_bytes() == before
    assert not list(bundle.glob(".*"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda bundle, data: shutil.rmtree(data), "is no folder"),
        (lambda bundle, data: [path.unlink() for path in data.iterdir()], "holds no image"),
        (lambda bundle, data: (data / "0.png").write_bytes(b"text"), "0.png"),
    ],
)
def test_images_that_cannot_be_used_change_nothing(
    bundle: Path, unlabelled: Path, change: Callable[[Path, Path], Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (bundle / MANIFEST).read_bytes()
    change(bundle, unlabelled)
    assert main([str(bundle), "--gate-data", str(unlabelled)]) == UsageError.exit_status
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert (bundle / MANIFEST).read_bytes() == before


def test_a_bundle_that_cannot_be_written_is_told_before_the_work(bundle: Path, unlabelled: Path) -> None:
    bundle.chmod(0o555)
    # Root may write all the same, unless it gives that right away.
    unprivileged = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    command = [*unprivileged, sys.executable, "-m", "calibration.regate", bundle, "--gate-data", unlabelled]
    done = subprocess.run(command, capture_output=True, text=True)
    bundle.chmod(0o755)
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert "cannot be written, where the verdict goes" in line


def test_no_bundle_is_one_line(tmp_path: Path, labelled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "--gate-data", str(labelled)]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert "has no manifest.json" in line


def test_it_runs_where_there_is_no_torch_and_no_onnx(bundle: Path, labelled: Path) -> None:
    code = """
import sys
for name in ("torch", "onnx"):
    sys.modules[name] = None  # an import raises ImportError
from calibration.regate import main
sys.exit(main(sys.argv[1:]))
"""
    command = [sys.executable, "-c", code, bundle, "--gate-data", labelled, "--backend", "onnxruntime"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert gate_of(bundle)["verdict"] == "pass"
