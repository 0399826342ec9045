"""Every int8 model that an option of ``make.py`` can make is taken by NVIDIA's parser and builder, in its types.

Options are swept so that every pair of their values occurs: networks, lowerings, the number of images and their size;
and, of each network, MD-Conv in every two of its stages, in one of them, and in neither. What calibration chooses are
numbers: scales, weights and biases. So one network is calibrated in every way, and the others have made-up scales.
Fine-tuning for int8 (``mdconv.train --qat``) makes a checkpoint that is built like any other.

A new option that changes the graph becomes a field of `Case`, with its values in `_axes`, and is read in `calibrated`
or `left_in_float16`.
"""

from __future__ import annotations

import functools
import itertools
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest

from build_engine.export import to_onnx
from build_engine.lowering import KINDS, kept_padded, lower
from build_engine.make import parse
from build_engine.mixed_precision import mixed_model
from calibration.graph import CONVOLUTIONS, MDCONV, attributes, consumers, producers
from calibration.observers import METHODS
from calibration.placement import activations, place
from calibration.quantize import Calibrated, calibrate
from edge.labels import CHESTXRAY14
from mdconv.checkpoint import Checkpoint
from mdconv.networks import NETWORKS, build, stages
from tests.native.real_plugin import real_plugin
from tests.system.quantized import Phantoms, needs_rtx, portable, taken_by_tensorrt

CALIBRATED = "mobilenet"
"""The network that is calibrated in every way."""

SEED = 12
"""Of the order in which combinations are tried; of those from 0 to 99 the one that needs the fewest."""

ACTIVATIONS = ("Clip", "HardSigmoid", "HardSwish", "Relu")
CALIBRATION = {"calibration_method", "equalization", "bias_correction"}
IN_THE_SWEEP = {"network", "md_stages", "lowering", "batch", "input_size", "mixed_precision", *CALIBRATION}
NOT_IN_THE_GRAPH = {
    "precision",  # int8 here; tests/system/test_networks.py has float16
    *("checkpoint", "calibration_data", "calibration_images", "calibration_seed"),  # numbers
    *("backend", "workspace_mb", "timing_cache"),  # what is done with the graph
    *("gate", "gate_data", "limits", "regate"),
    *("thresholds", "threshold_data", "sign_key", "output", "triton_repository", "bundle"),  # stand beside it
}


Pair = tuple[tuple[str, str, Any], tuple[str, str, Any]]
"""Two options with their values, each with the network whose stage it is, if it is one."""


class Case(NamedTuple):
    """One way to call ``make.py --int8``."""

    network: str
    md_stages: tuple[str, ...]
    lowering: str
    batch: int
    input_size: int
    mixed_precision: str
    """Which layers are left in float16: none, some or all."""
    calibration_method: str | None = None
    """None: made-up scales."""
    equalization: bool = False
    bias_correction: bool = False

    def __str__(self) -> str:
        placed = "+".join(self.md_stages) or "none"
        calibrated = [self.calibration_method, self.equalization and "equalized", self.bias_correction and "corrected"]
        words = [
            self.network,
            placed,
            self.lowering,
            f"{self.batch}x{self.input_size}",
            self.mixed_precision,
            *calibrated,
        ]
        return "-".join(str(word) for word in words if word)


def _axes(network: str) -> dict[str, tuple[Any, ...]]:
    """The values that each option has for `network`; each of its stages is one that has MD-Conv or not."""
    axes: dict[str, tuple[Any, ...]] = dict.fromkeys(stages(network), (False, True))
    axes["lowering"] = KINDS if axes else ("padded",)  # without MD-Conv all lowerings are the same
    axes["batch"] = (1, 3)  # a fixed one, and one known only when the engine runs
    axes["input_size"] = (32, 45)
    axes["mixed_precision"] = ("none", "some", "all") if stages(network) else ("none", "some")
    if network == CALIBRATED:
        axes["calibration_method"] = (*METHODS,)
        axes["equalization"] = axes["bias_correction"] = (False, True)
    return axes


def _possible(network: str) -> Iterator[dict[str, Any]]:
    """Every combination, but for the plugin without MD-Conv, which ``make.py`` refuses."""
    axes = _axes(network)
    for values in itertools.product(*axes.values()):
        row = dict(zip(axes, values))
        if row["lowering"] != "plugin" or any(row[stage] for stage in stages(network)):
            yield row


def _pairs(network: str, row: dict[str, Any]) -> Iterator[Pair]:
    """The pairs of values in a combination; of stages, those with another stage of the network."""
    own = stages(network)
    for (one, value), (other, second) in itertools.combinations({"network": network, **row}.items(), 2):
        if (one in own) == (other in own):
            where = network if one in own else ""
            yield (where, one, value), (where, other, second)


def _cover_pairs() -> Iterator[Case]:
    """Few cases with every pair that is possible: for each network those with the most new ones, until none is left."""
    shuffle = random.Random(SEED).shuffle
    bits: dict[Pair, int] = {}
    missing = -1  # all
    for network in (CALIBRATED, *(name for name in NETWORKS if name != CALIBRATED)):
        rows = list(_possible(network))
        shuffle(rows)
        masks = [sum(1 << bits.setdefault(pair, len(bits)) for pair in _pairs(network, row)) for row in rows]
        while True:
            new, best = max(((mask & missing).bit_count(), number) for number, mask in enumerate(masks))
            if not new:
                break
            missing &= ~masks[best]
            yield _case(network, rows[best])


def _case(network: str, row: dict[str, Any]) -> Case:
    placed = tuple(stage for stage in stages(network) if row[stage])
    return Case(network, placed, **{name: value for name, value in row.items() if name not in stages(network)})


CASES = [*_cover_pairs()]


@functools.cache
def untrained(network: str, md_stages: tuple[str, ...]) -> Checkpoint:
    config: dict[str, Any] = {"labels": 14, **({"md_stages": md_stages} if stages(network) else {})}
    model = build(network, **config).eval()
    return Checkpoint(model, network, config, CHESTXRAY14, 32, dict.fromkeys(CHESTXRAY14, 0.5), "untrained")


def calibrated(case: Case) -> Calibrated:
    if case.calibration_method is None:
        model = to_onnx(untrained(case.network, case.md_stages), case.batch, case.input_size)
        placement = place(model.graph)
        scales = dict.fromkeys(activations(model.graph, placement), np.float32(0.1))
        return Calibrated(model, placement, scales, None, {"tensors": {}})
    return calibrate(
        portable(case.network, case.md_stages, case.batch, case.input_size),
        Phantoms(2, case.input_size),
        case.calibration_method,
        equalization=case.equalization,
        bias_correction=case.bias_correction,
    )


def left_in_float16(case: Case, layers: tuple[str, ...]) -> tuple[str, ...]:
    return {"none": (), "some": layers[::5], "all": layers}[case.mixed_precision]


@needs_rtx
@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_is_taken_by_tensorrt_and_runs_in_its_types(tmp_path: Path, case: Case) -> None:
    found = calibrated(case)
    left = left_in_float16(case, found.layers)
    model = mixed_model(found, left)
    lowered = lower(model, case.lowering)
    plugin = real_plugin() if case.lowering == "plugin" else None
    layers = taken_by_tensorrt(lowered, tmp_path, case.batch, plugin)
    expected = expected_types(found.model.graph, left, case.lowering)

    convolutions = {node_of(layer): types_of(layer) for layer in layers if layer["LayerType"] == "correlation"}
    for name, types in convolutions.items():
        assert types[0] == expected.standard[name], name
    # Others are fused with their neighbours, and do not tell their names; two that read one tensor can be one.
    fused = [layer for layer in layers if layer["LayerType"] == "runtime_fusion"]
    missing = expected.standard.keys() - convolutions.keys()
    assert len(fused) <= len(missing) and bool(fused) == bool(missing)
    assert {expected.standard[name] for name in missing} <= {"Float", "Half"}, "int8 has kernels of its own"

    taken = {node_of(layer): types_of(layer) for layer in layers if layer["LayerType"] == "custom_layer"}
    assert taken == {name: [kind, kind] for name, kind in expected.plugin.items()}
    if plugin:
        assert taken and set(kept_padded(model)) == expected.plugin_cannot
    if not stages(case.network):
        assert lower(model, "split") == lowered, "so that this is the case of both"


def node_of(layer: dict[str, Any]) -> str:
    """The node that became a layer, which the builder numbers."""
    return re.sub(r"(_U\d+)?_myl\d+_\d+$", "", layer["Name"])


def types_of(layer: dict[str, Any]) -> list[str]:
    """Of X and of Y."""
    (y,) = layer["Outputs"]
    return [layer["Inputs"][0]["Datatype"], y["Datatype"]]


class Types(NamedTuple):
    """The types that convolutions are to read, by the name of the node."""

    standard: dict[str, str]
    plugin: dict[str, str]
    plugin_cannot: set[str]
    """Units of which the next layer is left in float16, so that nothing rounds what they put out."""


def expected_types(graph: onnx.GraphProto, left: tuple[str, ...], lowering: str) -> Types:
    """Of the float32 `graph`, after the lowering: int8 but for the last one and those on one value a channel."""
    made_by, read_by = producers(graph), consumers(graph)

    def on_vector(node: onnx.NodeProto) -> bool:
        before = made_by[node.input[0]]
        while before.op_type in ("Conv", *ACTIVATIONS) and before.input[0] in made_by:
            before = made_by[before.input[0]]
        return before.op_type == "GlobalAveragePool"

    def next_is_left(node: onnx.NodeProto) -> bool:
        behind = read_by[node.output[0]]
        while behind[0].op_type in ACTIVATIONS:
            behind = read_by[behind[0].output[0]]
        return any(reader.name in left for reader in behind)

    convolutions = [node for node in graph.node if node.op_type in CONVOLUTIONS]
    types = Types({}, {}, set())
    for node in convolutions:
        kind = "Half" if node.name in left else "Float" if node is convolutions[-1] or on_vector(node) else "Int8"
        sizes = attributes(node)["kernel_sizes"] if node.op_type == MDCONV else []
        if lowering == "plugin" and sizes and kind == "Int8" and next_is_left(node):
            types.plugin_cannot.add(node.name)
            types.standard[node.name] = kind
        elif lowering == "plugin" and sizes:
            types.plugin[node.name] = kind
        elif lowering == "split" and len(sizes) > 1:
            types.standard.update({f"{node.name}.{size}x{size}": kind for size in sizes})
        else:
            types.standard[node.name] = kind
    return types


def test_the_sweep_has_every_pair_of_values() -> None:
    """Counted from the cases, of which each network can have but some: a baseline has no MD-Conv to lower."""
    options: dict[str, tuple[Any, ...]] = {"network": (*NETWORKS,), **_axes(CALIBRATED)}
    for stage in stages(CALIBRATED):
        del options[stage]
    assert (options["lowering"], options["calibration_method"]) == (KINDS, tuple(METHODS))
    for (one, of_one), (other, of_other) in itertools.combinations(options.items(), 2):
        wanted = {*itertools.product(of_one, of_other)}
        if one == "network":
            wanted = {(network, value) for network, value in wanted if value in _axes(network).get(other, ())}
        cases = [case._asdict() for case in CASES if case.calibration_method or other not in CALIBRATION]
        assert {(case[one], case[other]) for case in cases} == wanted, (one, other)
    for network in NETWORKS:
        placed = [case.md_stages for case in CASES if case.network == network]
        for one, other in itertools.combinations(stages(network), 2):
            assert len({(one in chosen, other in chosen) for chosen in placed}) == 4, (network, one, other)


def test_every_option_of_make_is_in_the_sweep_or_known_not_to_change_the_graph() -> None:
    options = {*vars(parse([]))}
    assert options == IN_THE_SWEEP | NOT_IN_THE_GRAPH, "a new option belongs into one of the two, here"
    assert not IN_THE_SWEEP & NOT_IN_THE_GRAPH
