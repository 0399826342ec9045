"""Every int8 model that an option of ``make.py`` can make is taken by NVIDIA's parser and builder, and runs in int8.

Options are swept so that every pair of their values occurs: networks, lowerings, the number of images and their size;
and, of each network, MD-Conv in every two of its stages, in one of them, and in neither. What calibration chooses are
numbers: scales, weights and biases. So one network is calibrated in every way, and the others have made-up scales.
Fine-tuning for int8 (``mdconv.train --qat``) makes a checkpoint that is built like any other.

A new option that changes the graph becomes a field of `Case`, with its values in `_axes`, and is read in `int8_model`.
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
from calibration.graph import CONVOLUTIONS, MDCONV, attributes, producers
from calibration.insertion import insert
from calibration.observers import METHODS
from calibration.placement import activations, place
from calibration.quantize import quantize
from edge.labels import CHESTXRAY14
from mdconv.checkpoint import Checkpoint
from mdconv.networks import NETWORKS, build, stages
from tests.native.real_plugin import real_plugin
from tests.system.quantized import Phantoms, needs_rtx, portable, taken_by_tensorrt

CALIBRATED = "mobilenet"
"""The network that is calibrated in every way."""

SEED = 3
"""Of the order in which combinations are tried; of those from 0 to 99 the one that needs the fewest."""

CALIBRATION = {"calibration_method", "equalization", "bias_correction"}
IN_THE_SWEEP = {"network", "md_stages", "lowering", "batch", "input_size", *CALIBRATION}
NOT_IN_THE_GRAPH = {
    "precision",  # int8 here; tests/system/test_networks.py has float16
    *("checkpoint", "calibration_data", "calibration_images", "calibration_seed"),  # numbers
    *("backend", "workspace_mb", "timing_cache"),  # what is done with the graph
    *("gate", "gate_data", "max_auc_drop", "regate"),
    *("thresholds", "threshold_data", "sign_key", "output"),  # stand beside it
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
    calibration_method: str | None = None
    """None: made-up scales."""
    equalization: bool = False
    bias_correction: bool = False

    def __str__(self) -> str:
        placed = "+".join(self.md_stages) or "none"
        calibrated = [self.calibration_method, self.equalization and "equalized", self.bias_correction and "corrected"]
        words = [self.network, placed, self.lowering, f"{self.batch}x{self.input_size}", *calibrated]
        return "-".join(str(word) for word in words if word)


def _axes(network: str) -> dict[str, tuple[Any, ...]]:
    """The values that each option has for `network`; each of its stages is one that has MD-Conv or not."""
    axes: dict[str, tuple[Any, ...]] = dict.fromkeys(stages(network), (False, True))
    axes["lowering"] = KINDS if axes else ("padded",)  # without MD-Conv all lowerings are the same
    axes["batch"] = (1, 3)  # a fixed one, and one known only when the engine runs
    axes["input_size"] = (32, 45)
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


def int8_model(case: Case) -> onnx.ModelProto:
    """The model of `case` with Q/DQ pairs, before its lowering."""
    if case.calibration_method is None:
        model = to_onnx(untrained(case.network, case.md_stages), case.batch, case.input_size)
        placement = place(model.graph)
        return insert(model, placement, dict.fromkeys(activations(model.graph, placement), np.float32(0.1)))
    model = portable(case.network, case.md_stages, case.batch, case.input_size)
    repairs = {"equalization": case.equalization, "bias_correction": case.bias_correction}
    images = Phantoms(2, case.input_size)
    quantized, record = quantize(model, images, case.calibration_method, **repairs)
    assert [name for name in repairs if record[name] is not None] == [name for name in repairs if repairs[name]]
    return quantized


@needs_rtx
@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_is_taken_by_tensorrt_and_runs_in_int8(tmp_path: Path, case: Case) -> None:
    model = int8_model(case)
    lowered = lower(model, case.lowering)
    plugin = real_plugin() if case.lowering == "plugin" else None
    layers = taken_by_tensorrt(lowered, tmp_path, case.batch, plugin)
    kinds = {_node_of(layer): layer["Inputs"][0]["Datatype"] for layer in layers if layer["LayerType"] == "correlation"}
    in_int8 = {name for name, kind in kinds.items() if kind == "Int8"}
    assert in_int8 == expected_in_int8(model, case), "and no other, nor fewer"
    standard = {node.name for node in lowered.graph.node if node.op_type == "Conv"}
    assert {name for name, kind in kinds.items() if kind != "Int8"} <= standard - in_int8

    taken = [layer for layer in layers if layer["LayerType"] == "custom_layer"]
    units = {node.name for node in model.graph.node if node.op_type == MDCONV} if plugin else set()
    assert {_node_of(layer) for layer in taken} == units and len(taken) == len(units)
    assert {tensor["Datatype"] for layer in taken for tensor in (layer["Inputs"][0], *layer["Outputs"])} <= {"Int8"}
    if plugin:
        assert units and kept_padded(model) == {}
    if not stages(case.network):
        assert lower(model, "split") == lowered, "so that this is the case of both"


def _node_of(layer: dict[str, Any]) -> str:
    """The node that became a layer, which the builder numbers."""
    return re.sub(r"(_U\d+)?_myl\d+_\d+$", "", layer["Name"])


def expected_in_int8(model: onnx.ModelProto, case: Case) -> set[str]:
    """Names of the standard convolutions, after the lowering: all but the last and those on one value a channel."""
    made_by = producers(model.graph)

    def on_vector(node: onnx.NodeProto) -> bool:
        while node.op_type != "GlobalAveragePool":
            before = made_by.get(node.input[0])
            if before is None or before.op_type in ("DequantizeLinear", MDCONV):
                return False
            node = before
        return True

    convolutions = [node for node in model.graph.node if node.op_type in CONVOLUTIONS]
    expected: set[str] = set()
    for node in convolutions[:-1]:
        sizes = attributes(node)["kernel_sizes"] if node.op_type == MDCONV else []
        if case.lowering == "split" and len(sizes) > 1:
            expected.update(f"{node.name}.{size}x{size}" for size in sizes)
        elif not on_vector(node) and (node.op_type != MDCONV or case.lowering != "plugin"):
            expected.add(node.name)
    return expected


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
