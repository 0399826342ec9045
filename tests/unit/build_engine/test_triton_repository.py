"""The model repository for Triton, read by Triton's own definition of a configuration, as tritonclient ships it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from build_engine.make import main as make
from build_engine.make import parse
from build_engine.triton_repository import export_to_triton
from edge.bundle import Bundle, load_bundle, sha256_of
from edge.errors import BundleError, EdgeError, UsageError
from tests.conftest import NOTICE

MakeBundle = Callable[..., Path]


def configuration(model: Path) -> pb.ModelConfig:
    parsed: pb.ModelConfig = text_format.Parse((model / "config.pbtxt").read_text(), pb.ModelConfig())
    return parsed


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        file.relative_to(folder).as_posix(): (file.stat().st_mtime_ns, file.read_bytes())
        for file in folder.rglob("*")
        if file.is_file()
    }


def with_engine(directory: Path, plugin: bool = True) -> Bundle:
    """Give the bundle's manifest the files of a TensorRT build; what they hold is nobody's business but TensorRT's."""
    manifest = json.loads((directory / "manifest.json").read_text())
    for name in ("model.engine", *(["libmdconv_plugin.so"] if plugin else [])):
        (directory / name).write_bytes(name.encode() * 100)
        path = directory / name
        manifest["files"][name] = {"sha256": sha256_of(path), "size": path.stat().st_size}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return load_bundle(directory)


@pytest.mark.parametrize("batch", [1, 4])
def test_the_configuration_describes_the_model_that_lies_beside_it(
    batch: int, make_bundle: MakeBundle, tmp_path: Path
) -> None:
    """Names, types and sizes are those that ONNX Runtime reads from the file; a symbolic batch is left to Triton."""
    bundle = load_bundle(make_bundle(batch=batch, size=48))
    model = export_to_triton(bundle, tmp_path / "models")
    config = configuration(model)
    assert (config.name, model.name, config.platform) == (bundle.name, bundle.name, "onnxruntime_onnx")
    session = onnxruntime.InferenceSession(model / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    types = {"tensor(uint8)": pb.TYPE_UINT8, "tensor(float)": pb.TYPE_FP32}
    leading = 0 if batch == 1 else 1
    assert config.max_batch_size == (0 if batch == 1 else batch)
    for described, tensors in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
        assert {entry.name for entry in described} == {tensor.name for tensor in tensors}
        for entry in described:
            (tensor,) = [tensor for tensor in tensors if tensor.name == entry.name]
            assert entry.data_type == types[tensor.type]
            # The tiny network's batch is symbolic throughout; a model of one image would have a 1 there.
            assert list(entry.dims) == ([1, *tensor.shape[1:]] if leading == 0 else tensor.shape[1:])
    assert list(config.dynamic_batching.preferred_batch_size) == ([] if batch == 1 else [batch])
    assert config.HasField("dynamic_batching") == (batch > 1)
    assert [group.kind for group in config.instance_group] == [pb.ModelInstanceGroup.KIND_CPU]
    labelled = next(entry for entry in config.output if entry.name == "logits").label_filename
    assert tuple((model / labelled).read_text().splitlines()) == bundle.labels


def test_the_model_gives_what_the_bundle_gives(make_bundle: MakeBundle, tmp_path: Path) -> None:
    directory = make_bundle()
    model = export_to_triton(load_bundle(directory), tmp_path)
    session = onnxruntime.InferenceSession(model / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    with np.load(directory / "golden.npz") as golden:
        logits, cam = session.run(["logits", "cam"], {"image": golden["images"]})
        np.testing.assert_allclose(logits, golden["logits"], atol=1e-5)
        np.testing.assert_allclose(cam, golden["cam"], atol=1e-5)


def test_who_reads_the_configuration_learns_what_runs(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = load_bundle(make_bundle())
    model = export_to_triton(bundle, tmp_path)
    facts = {key: value.string_value for key, value in configuration(model).parameters.items()}
    assert facts["bundle_sha256"] == sha256_of(bundle.directory / "manifest.json")
    assert json.loads(facts["thresholds"]) == bundle.thresholds
    assert json.loads(facts["preprocess"]) == bundle.manifest["preprocess"]
    assert NOTICE in facts["notice"]
    assert (model / "config.pbtxt").read_text().startswith(f"# {NOTICE}")
    assert (facts["precision"], facts["gate"]) == ("fp32", "not assessed")


@pytest.mark.parametrize(
    "text", ['"quoted" \\ back', "Ödem Μάζα 腫瘤", "tab\tbell\x07 end", "octal \\101 1", "two\nlines"]
)
def test_any_text_comes_back_from_the_configuration(text: str, make_bundle: MakeBundle, tmp_path: Path) -> None:
    thresholds = {f"a {text.splitlines()[0]}": 0.5}
    model = {"network": "tiny", "input_size": 64, "batch": 4, "labels": list(thresholds), "thresholds": thresholds}
    folder = export_to_triton(load_bundle(make_bundle(model={**model, "notice": text})), tmp_path)
    facts = {key: value.string_value for key, value in configuration(folder).parameters.items()}
    assert json.loads(facts["thresholds"]) == thresholds
    assert text in facts["notice"]
    assert (folder / "labels.txt").read_text().splitlines() == list(thresholds)


@pytest.mark.parametrize("batch", [1, 8])
def test_an_engine_comes_with_its_plugin_and_how_to_load_it(
    batch: int, make_bundle: MakeBundle, tmp_path: Path
) -> None:
    platform = {"tensorrt": "10.13.3.9", "sm": "89"}
    directory = make_bundle(
        name="engine", backend="tensorrt", lowering={"kind": "plugin"}, platform=platform, batch=batch
    )
    bundle = with_engine(directory)
    model = export_to_triton(bundle, tmp_path)
    config = configuration(model)
    assert (config.platform, config.max_batch_size) == ("tensorrt_plan", 0 if batch == 1 else batch)
    assert [group.kind for group in config.instance_group] == [pb.ModelInstanceGroup.KIND_GPU]
    assert (model / "1" / "model.plan").read_bytes() == (directory / "model.engine").read_bytes()
    library = model / "1" / "libmdconv_plugin.so"
    assert library.read_bytes() == (directory / "libmdconv_plugin.so").read_bytes()
    text = (model / "config.pbtxt").read_text()
    assert "MDCONV_PLUGIN_REGISTER=1" in text and f"plugins=REPOSITORY/{library.relative_to(tmp_path)}" in text
    assert "TensorRT 10.13.3.9 and GPUs of sm_89" in text
    assert not list(model.rglob("*.onnx"))


def test_an_engine_without_plugin_names_none(make_bundle: MakeBundle, tmp_path: Path) -> None:
    directory = make_bundle(backend="tensorrt", lowering={"kind": "padded"})
    model = export_to_triton(with_engine(directory, plugin=False), tmp_path)
    assert sorted(file.name for file in (model / "1").iterdir()) == ["model.plan"]
    assert "plugin" not in (model / "config.pbtxt").read_text()


def test_a_network_without_maps_has_one_output(make_bundle: MakeBundle, tmp_path: Path) -> None:
    directory = make_bundle()
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["model"]["cam"] = False
    (directory / "manifest.json").write_text(json.dumps(manifest))
    config = configuration(export_to_triton(load_bundle(directory), tmp_path))
    assert [output.name for output in config.output] == ["logits"]


def test_a_second_run_changes_nothing_and_nothing_is_overwritten(make_bundle: MakeBundle, tmp_path: Path) -> None:
    one, other = load_bundle(make_bundle("one")), load_bundle(make_bundle("other", gate={"verdict": "pass"}))
    repository = tmp_path / "models"
    before = contents(export_to_triton(one, repository))
    assert contents(export_to_triton(one, repository)) == before
    with pytest.raises(UsageError, match="nothing in a model repository is overwritten"):
        export_to_triton(other, repository)
    assert contents(repository / one.name) == before
    (repository / one.name / "config.pbtxt").write_text("# tuned by hand\n")
    for bundle in (one, other):
        with pytest.raises(UsageError, match="is there"):
            export_to_triton(bundle, repository)
    assert (repository / one.name / "config.pbtxt").read_text() == "# tuned by hand\n"
    assert [entry.name for entry in repository.iterdir()] == [one.name], "no folder is left half written"


def test_a_server_of_another_user_can_read_it(tiny_bundle: Bundle, tmp_path: Path) -> None:
    model = export_to_triton(tiny_bundle, tmp_path)
    assert all(entry.stat().st_mode & 0o044 == 0o044 for entry in (model, *model.rglob("*")))


def _model_with(**changes: object) -> dict[str, object]:
    model = {"network": "tiny", "input_size": 64, "batch": 1, "labels": ["A"], "thresholds": {"A": 0.5}}
    return {"model": {**model, **changes}}


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"backend": "tensorrt-rtx"}, UsageError, "for tensorrt-rtx runs in no backend of Triton"),
        ({"backend": "tensorrt"}, BundleError, "has no model.plan: build it with --backend tensorrt"),
        ({"gate": {"verdict": "fail", "reason": "worse"}}, BundleError, "failed its accuracy gate"),
        ({"_name": "../elsewhere"}, BundleError, "expected letters, digits"),
        ({"_name": ".hidden"}, BundleError, "expected letters, digits"),
        (_model_with(labels=["A\nB"], thresholds={"A\nB": 0.5}), BundleError, "is not one line of text"),
        (_model_with(labels=[""], thresholds={"": 0.5}), BundleError, "is not one line of text"),
    ],
)
def test_what_no_server_should_get_is_refused_and_leaves_nothing(
    changes: dict[str, object], error: type[EdgeError], said: str, make_bundle: MakeBundle, tmp_path: Path
) -> None:
    directory = make_bundle(**{key: value for key, value in changes.items() if key != "_name"})
    if "_name" in changes:
        manifest = json.loads((directory / "manifest.json").read_text())
        (directory / "manifest.json").write_text(json.dumps({**manifest, "name": changes["_name"]}))
    with pytest.raises(error, match=said):
        export_to_triton(load_bundle(directory), tmp_path / "models")
    assert not (tmp_path / "models").exists() or not list((tmp_path / "models").iterdir())
    assert not (tmp_path / "elsewhere").exists()


def test_make_exports_a_bundle_that_is_there(
    tiny_bundle_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--bundle", str(tiny_bundle_directory), "--triton-repository", str(tmp_path / "models")]
    for _ in range(2):
        assert make(arguments) == 0
        shown = capsys.readouterr()
        assert shown.out == f"{tmp_path / 'models' / 'tiny'}\n"
        assert NOTICE in shown.err
    (tmp_path / "models" / "tiny" / "labels.txt").write_text("mine\n")
    assert make(arguments) == 2
    assert "nothing in a model repository is overwritten" in capsys.readouterr().err


def test_make_refuses_before_it_builds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mobilenet_v2-fp32-onnxruntime").mkdir()
    options = ["--fp32", "--backend", "onnxruntime", "--output", str(tmp_path / "out")]
    assert make([*options, "--triton-repository", str(tmp_path)]) == 2
    assert "is there" in capsys.readouterr().err
    options[2] = "tensorrt-rtx"
    assert make([*options, "--triton-repository", str(tmp_path / "other")]) == 2
    assert "for tensorrt-rtx runs in no backend of Triton" in capsys.readouterr().err
    assert [entry.name for entry in tmp_path.iterdir()] == ["mobilenet_v2-fp32-onnxruntime"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--bundle", "b"], "--bundle is for --triton-repository"),
        (["--bundle", "b", "--triton-repository", "r", "--fp16"], "takes no option about precision"),
        (["--regate", "b", "--triton-repository", "r"], "takes no option about triton_repository"),
    ],
)
def test_an_export_builds_nothing(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(arguments)
    assert ended.value.code == 2 and said in capsys.readouterr().err
