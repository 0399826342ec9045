"""Modelled latency: peaks against the data sheets, times by hand, what must never be slower, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks import kernel_roofline
from build_engine.bundle_writer import write_manifest
from build_engine.export import to_onnx
from build_engine.graph_cost import KernelCost, kernel_costs
from build_engine.jetsons import JETSONS, jetson
from build_engine.lowering import KINDS, lower
from build_engine.modelled_latency import FASTEST, MODELLED, SLOWEST, as_json, kernel_time, main, modelled
from build_engine.modelled_variants import Variant, nominal_int8, variants
from calibration.insertion import insert
from calibration.placement import Placement
from edge.bundle import PRECISIONS
from mdconv.checkpoint import Checkpoint, load_checkpoint
from mdconv.weights import DEMO_CHECKPOINT
from tests.conftest import write_tiny_bundle
from tests.native.network_layers import NETWORK_LAYERS
from tests.unit.build_engine.small_models import fix_shapes, single

FIGURES = Path(__file__).parents[3] / "docs" / "figures.md"

# What NVIDIA's data sheets print: dense int8 TOPS of the tensor cores, without the DLA, and float32 TFLOPS.
PRINTED: dict[str, tuple[float, float | None]] = {
    "Orin Nano 4 GB": (10, 0.64),
    "Orin Nano 4 GB Super": (17, 1.04),
    "Orin Nano 8 GB": (20, 1.28),
    "Orin Nano 8 GB Super": (33, 2.08),
    "Orin NX 8 GB": (35 - 20 / 2, 1.56),
    "Orin NX 8 GB Super": (58 - 40 / 2, 2.40),
    "Orin NX 16 GB": (50 - 40 / 2, 1.88),
    "Orin NX 16 GB Super": (78 - 80 / 2, 2.40),
    "AGX Orin 32 GB": (108 / 2, 3.365),
    "AGX Orin 64 GB": (170 / 2, 5.32),
    "Thor T4000": (1200 / 4, 4.7),  # of sparse FP4
    "Thor T5000": (2070 / 4, None),
}


@pytest.fixture(scope="module")
def model_file(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("modelled") / "model.onnx"
    onnx.save(to_onnx(checkpoint, batch=4), file)
    return file


@pytest.fixture(scope="module")
def found(model_file: Path) -> list[Variant]:
    return variants(model_file)[1]


def test_peaks_are_those_of_the_data_sheets() -> None:
    assert list(PRINTED) == [module.name for module in JETSONS]
    for module in JETSONS:
        tops, tflops = PRINTED[module.name]
        assert module.peak("tensor", "int8") == pytest.approx(tops * 1e12, rel=0.04), module.name
        if tflops is not None:
            assert module.peak("cuda", "float32") == pytest.approx(tflops * 1e12, rel=0.01), module.name
        half = module.peak("tensor", "float16")
        assert half == 2 * module.peak("tensor", "tf32") == module.peak("tensor", "int8") / 2
        assert module.peak("tensor", "float32") == module.peak("cuda", "float32")


def test_a_kernel_by_hand() -> None:
    """On an Orin Nano 8 GB: 68 GB/s; 8 multiprocessors of 4096 int8 operations at 625 MHz are 20.48 TOPS."""
    module = jetson(" JETSON orin nano 8GB")
    memory = kernel_time(KernelCost("k", "conv", "int8", "tensor", 40_000, 20_000, 8_000, 2_048_000), module)
    assert (memory.memory, memory.operations, memory.floor, memory.bound) == pytest.approx((1, 0.1, 1, "memory"))
    assert memory.low == pytest.approx(1 / FASTEST.share + FASTEST.clocks / 625)
    assert memory.high == pytest.approx(1 / SLOWEST.share + SLOWEST.clocks / 625)
    busy = KernelCost("k", "conv", "float32", "tensor", 4000, 2000, 800, 10_240_000)
    assert kernel_time(busy, module).floor == pytest.approx(8)  # 1.28 TFLOPS
    assert kernel_time(busy, module, tf32=True).floor == pytest.approx(2)
    assert kernel_time(busy._replace(unit="cuda", dtype="float16"), module).floor == pytest.approx(4)


def test_all_precisions_and_lowerings(found: list[Variant]) -> None:
    assert [(each.precision, each.lowering) for each in found] == [(p, k) for p in PRECISIONS for k in KINDS]
    by_name = {(each.precision, each.lowering): each.kernels for each in found}
    for kind in KINDS:
        moved = [sum(kernel.bytes for kernel in by_name[precision, kind]) for precision in PRECISIONS]
        assert moved == sorted(moved, reverse=True)
    for precision in PRECISIONS:
        padded, split, plugin = (by_name[precision, kind] for kind in KINDS)
        assert len(padded) == len(plugin) < len(split)
        assert sum(kernel.operations for kernel in padded) > sum(kernel.operations for kernel in plugin)
    assert {kernel.dtype for kernel in by_name["int8", "plugin"] if "MDConv" in kernel.kind} == {"int8"}


def test_more_of_anything_is_never_slower(found: list[Variant]) -> None:
    for each in found:
        for module in JETSONS:
            base = modelled([kernel_time(kernel, module) for kernel in each.kernels])
            assert 0 < base.floor < base.low < base.high
            for better in (
                module._replace(gigabytes=module.gigabytes * 2),
                module._replace(cores=module.cores * 2),
                module._replace(megahertz=module.megahertz * 1.5),
            ):
                faster = modelled([kernel_time(kernel, better) for kernel in each.kernels])
                assert all(new <= old for new, old in zip(faster, base))


def test_split_has_the_highest_floor(found: list[Variant]) -> None:
    for module in JETSONS:
        for precision in PRECISIONS:
            floors = {
                each.lowering: modelled([kernel_time(kernel, module) for kernel in each.kernels]).floor
                for each in found
                if each.precision == precision
            }
            assert floors["split"] > max(floors["padded"], floors["plugin"])


def test_bytes_and_products_are_those_of_the_kernels_roofline() -> None:
    """In float32 twice its float16's bytes, and the bias, which it leaves out."""
    for (channels, size, stride), (_, kilobytes, millions, *_) in zip(
        NETWORK_LAYERS, kernel_roofline.table("float16")[1:]
    ):
        model, _, _ = single((3, 5), (channels // 2, channels // 2), stride, "relu6")
        fix_shapes(model, size, size, stride)
        (kernel,) = kernel_costs(lower(model, "plugin"))
        assert kernel.bytes - 4 * channels == pytest.approx(2e3 * float(kilobytes), abs=1e3)
        assert kernel.operations == pytest.approx(2e6 * float(millions), abs=1e5)


def test_a_bundle_s_own_int8_model_is_taken(tmp_path: Path) -> None:
    """Here one of which nothing is rounded but the first convolution."""
    directory = write_tiny_bundle(tmp_path / "bundle")
    name, plain = variants(directory)
    assert name == "tiny"
    assert [(each.precision, each.lowering, each.left_out) for each in plain] == [
        (precision, "padded", None) for precision in PRECISIONS
    ]
    model = onnx.shape_inference.infer_shapes(onnx.load(directory / "model.onnx"))
    model.graph.node[3].name = "first"
    placement = Placement(weighted=("first",), skips=())
    onnx.save(insert(model, placement, {"x2": np.float32(1)}), directory / "model.int8.onnx")
    manifest = json.loads((directory / "manifest.json").read_text())
    write_manifest(directory, {**manifest, "precision": "int8"})
    *_, int8 = variants(directory)[1]
    assert [kernel.dtype for kernel in int8.kernels if kernel.kind.startswith("conv")] == ["int8", "float32"]


@pytest.mark.parametrize("kind", ["padded", "plugin"])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_file_that_is_quantized_or_for_the_plugin_is_taken_as_it_is(
    precision: str, kind: str, found: list[Variant], model_file: Path, tmp_path: Path
) -> None:
    model = onnx.shape_inference.infer_shapes(onnx.load(model_file))
    onnx.save(lower(nominal_int8(model) if precision == "int8" else model, kind), tmp_path / "lowered.onnx")
    first, *others = variants(tmp_path / "lowered.onnx")[1]
    assert first in found
    assert first[:2] == (precision, kind)
    assert [each.precision for each in others] == (["fp16", "int8"] if (precision, kind) == ("fp32", "padded") else [])


def test_every_output_says_that_it_is_modelled(model_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(model_file)]) == 0
    blocks = capsys.readouterr().out.split("\n\n")
    assert blocks[0].startswith(MODELLED)
    assert [block.splitlines()[0] for block in blocks[1:]] == [f"{precision}, modelled" for precision in PRECISIONS]
    assert all(module.name in block for block in blocks[1:] for module in JETSONS)
    one = ["--module", "AGX Orin 64 GB", "--precision", "int8", "--lowering", "plugin"]
    assert main([str(model_file), *one]) == 0
    *_, kernels = capsys.readouterr().out.split("\n\n")
    assert kernels.startswith("kernels on AGX Orin 64 GB, modelled")
    assert len(kernels.splitlines()) == 2 + len(variants(model_file)[1][-1].kernels)


def test_json_has_what_the_sums_are_made_of(model_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(model_file), "--module", "thor t4000", "--batch", "4", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    name, found = variants(model_file, batch=4)
    assert shown == json.loads(json.dumps(as_json(name, found, [jetson("Thor T4000")], 4)))
    assert (shown["modelled"], shown["note"], shown["batch"]) == (True, MODELLED, 4)
    for each in shown["variants"]:
        figures = each["modelled_ms"]["Thor T4000"]
        assert len(figures["kernels"]) == len(each["kernels"])
        for end in ("floor", "low", "high"):
            assert figures[end] == pytest.approx(sum(row[f"{end}_us"] for row in figures["kernels"]) / 1e3)


@pytest.mark.parametrize(
    ("arguments", "expected", "status"),
    [
        (["{file}", "--module", "Xavier"], "module 'Xavier' is none of Orin Nano 4 GB", 2),
        (["{file}", "--batch", "0"], "--batch 0: expected 1 or more", 2),
        (["{folder}/none.onnx"], "cannot read", 2),
        (["{folder}/text.onnx"], "is no ONNX file", 2),
        (["{folder}/empty.onnx"], "holds no network", 2),
        (["{folder}/broken.onnx"], "is no valid ONNX model", 2),
        (["{folder}"], "manifest.json", 3),
        (["{folder}/plain.onnx", "--lowering", "split"], "no variant split: the network has fp32 padded", 2),
    ],
)
def test_wrong_use_is_one_line(
    arguments: list[str],
    expected: str,
    status: int,
    model_file: Path,
    tiny_bundle_directory: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "text.onnx").write_text("not a network")
    (tmp_path / "empty.onnx").touch()
    broken = onnx.load(model_file)
    del broken.graph.initializer[3]
    onnx.save(broken, tmp_path / "broken.onnx")
    (tmp_path / "plain.onnx").write_bytes((tiny_bundle_directory / "model.onnx").read_bytes())
    given = [argument.format(file=model_file, folder=tmp_path) for argument in arguments]
    assert main(given) == status
    shown = capsys.readouterr()
    assert not shown.out
    assert shown.err.startswith("error: ")
    assert expected in shown.err
    assert len(shown.err.splitlines()) == 1


def test_a_float32_input_is_cast_or_rounded_once_and_what_follows_is_narrow(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["": 19]> two (float[1, 4, 5, 7] x) => (float[1, 4, 5, 7] y)
        <float[4, 4, 1, 1] w = {1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4}>
        { a = Conv(x, w)  b = Conv(a, w)  y = Conv(b, w) }"""
    )
    onnx.save(model, tmp_path / "two.onnx")
    found = {each.precision: each.kernels for each in variants(tmp_path / "two.onnx")[1]}
    assert [(each.read, each.written) for each in found["fp32"]] == [(560, 560)] * 3
    assert [(each.read, each.written) for each in found["fp16"]] == [
        *((560, 280), (280, 280), (280, 280)),
        (280, 560),  # the cast back is part of the last one
    ]
    assert [(each.read, each.written) for each in found["int8"]] == [
        *((560, 140), (140, 140), (140, 560)),
        (560, 560),  # the last convolution is left in float32
    ]


def test_a_network_without_convolution_has_no_int8(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 19]> flat (float[1, 8] x) => (float[1, 8] y) { y = Relu(x) }'
    )
    onnx.save(model, tmp_path / "relu.onnx")
    found = variants(tmp_path / "relu.onnx")[1]
    assert [each.precision for each in found if each.left_out is None] == ["fp32", "fp16"]
    assert "no convolution" in str(found[-1].left_out)


def test_the_docs_show_the_demo_s_figures(tmp_path: Path) -> None:
    """Each cell of the table, and what is said about it; the demo's own int8 model has its values where this has."""
    onnx.save(to_onnx(load_checkpoint(DEMO_CHECKPOINT)), tmp_path / "demo.onnx")
    kernels = {(each.precision, each.lowering): each.kernels for each in variants(tmp_path / "demo.onnx")[1]}
    text = FIGURES.read_text()
    starts = []
    for module in JETSONS:
        cells = []
        for variant in (("int8", "padded"), ("int8", "split"), ("fp16", "padded"), ("fp32", "padded")):
            times = [kernel_time(kernel, module) for kernel in kernels[variant]]
            floor, low, high = modelled(times)
            cells.append(f"{floor:.3f}; {low:.2f} to {high:.2f}")
            assert variant[0] == "fp32" or {time.bound for time in times} == {"memory"}
            if variant == ("int8", "padded"):
                starts.append(len(times) * FASTEST.clocks / module.megahertz * 1e-3 / low)
        assert f"| {module.name} | {' | '.join(cells)} |" in text
    assert f"starting kernels is {100 * min(starts):.0f} to {100 * max(starts):.0f} %" in text
