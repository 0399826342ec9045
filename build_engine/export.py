"""Export: a checkpoint to one portable ONNX file.

python -m build_engine.export --checkpoint FILE --output model.onnx
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, shape_inference
from torch import nn

from build_engine.lowering import OPSET, mdconv_function
from build_engine.onnx_from_torch import write_classifier, write_features
from calibration.graph import MDCONV, MDCONV_DOMAIN, MDCONV_VERSION, add_constant, attributes
from edge import __version__
from edge.errors import EdgeError, MachineError, UsageError, describe_os_error
from mdconv.checkpoint import Checkpoint, load_checkpoint
from mdconv.data.phantom import DEMO_SEEDS, render
from mdconv.networks import GRAY_MEAN, GRAY_STD, log_odds, normalise
from mdconv.weights import DEMO_CHECKPOINT

IR_VERSION = 9
PARITY_LIMIT = 1e-4
"""Largest difference between ONNX Runtime and PyTorch, in logits and in class activation maps, on any image: absolute
up to values of 1, beyond them a share of the largest value, since float32 rounds in proportion."""

PARITY_PHANTOMS = 4


class Parity(NamedTuple):
    """Largest differences between an ONNX file in ONNX Runtime and its checkpoint in PyTorch (see `PARITY_LIMIT`)."""

    logits: float
    cam: float | None
    """None for a network without class activation maps."""

    def __str__(self) -> str:
        maps = "" if self.cam is None else f", activation maps by {self.cam:.1e}"
        return f"logits differ by {self.logits:.1e}{maps} at most"


def has_cam(checkpoint: Checkpoint) -> bool:
    """Whether the network's head is linear after global average pooling: then class activation maps exist."""
    return isinstance(checkpoint.model.classifier, nn.Linear)


def to_onnx(checkpoint: Checkpoint, batch: int = 1, input_size: int | None = None) -> onnx.ModelProto:
    """The network as a portable ONNX model: float32, batch norm folded, MD-Conv as `MDConv` nodes with their function.

    Input ``image`` (N, 1, S, S) uint8; outputs ``logits`` (N, L), whose sigmoid is each label's probability, and, where
    the head is linear after global average pooling, ``cam`` (N, L, h, w), both float32: cam = conv1x1(features,
    classifier weight) and logits = mean(cam) + bias. N is 1, or the symbol ``N`` if `batch` > 1.

    Raises `UsageError` for a network that holds a layer without a form in ONNX, or for more than two labels that
    exclude each other: their log-odds are no linear function of the outputs.
    """
    network: Any = checkpoint.model
    size = checkpoint.input_size if input_size is None else input_size
    count, labels = ("N" if batch > 1 else 1), len(checkpoint.labels)
    if checkpoint.exclusive and labels != 2:
        raise UsageError(f"{labels} labels that exclude each other: the export knows two, or any number of others")
    graph = onnx.GraphProto(name=checkpoint.network)
    graph.input.append(helper.make_tensor_value_info("image", TensorProto.UINT8, [count, 1, size, size]))
    graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, [count, labels]))
    channels = checkpoint.config.get("in_channels", 3)
    features = write_features(network, graph, _write_normalisation(graph), size, channels)
    if has_cam(checkpoint):
        graph.output.append(helper.make_tensor_value_info("cam", TensorProto.FLOAT, [count, labels, None, None]))
        _write_head(graph, features, _log_odds_layer(network.classifier, checkpoint.exclusive))
    else:
        *hidden, last = network.classifier
        if not isinstance(last, nn.Linear):
            raise UsageError(f"{checkpoint.network} ends in {type(last).__name__}, expected a linear layer")
        write_classifier(nn.Sequential(*hidden, _log_odds_layer(last, checkpoint.exclusive)), graph, features)
        graph.node[-1].output[0] = "logits"
    return _finish(graph, checkpoint)


def _log_odds_layer(layer: nn.Linear, exclusive: bool) -> nn.Linear:
    """`layer` itself or, for two labels that exclude each other, the one whose outputs are their log-odds.

    softmax(z)_0 = sigmoid(z_0 - z_1), so the difference of the two rows does it exactly, and devices need no softmax.
    """
    if not exclusive:
        return layer
    composed = nn.Linear(layer.in_features, layer.out_features)
    with torch.no_grad():
        composed.weight.copy_(layer.weight - layer.weight.flip(0))
        composed.bias.copy_(layer.bias - layer.bias.flip(0))
    return composed


def _write_normalisation(graph: onnx.GraphProto) -> str:
    """(gray / 255 - mean) / deviation, as a subtraction and a product. Returns the result's name."""
    mean = add_constant(graph, "normalise.mean", np.array(GRAY_MEAN * 255, np.float32))
    factor = add_constant(graph, "normalise.factor", np.array(1 / (GRAY_STD * 255), np.float32))
    graph.node.extend(
        [
            helper.make_node("Cast", ["image"], ["normalise.gray"], name="normalise.cast", to=TensorProto.FLOAT),
            helper.make_node("Sub", ["normalise.gray", mean], ["normalise.centred"], name="normalise.subtract"),
            helper.make_node("Mul", ["normalise.centred", factor], ["normalised"], name="normalise.scale"),
        ]
    )
    return "normalised"


def _write_head(graph: onnx.GraphProto, features: str, classifier: nn.Linear) -> None:
    weight = add_constant(graph, "cam.weight", classifier.weight.detach().numpy()[:, :, None, None])
    bias = add_constant(graph, "classifier.bias", classifier.bias.detach().numpy())
    axes = add_constant(graph, "classifier.axes", np.array([2, 3], np.int64))
    graph.node.extend(
        [
            helper.make_node("Conv", [features, weight], ["cam"], name="cam", kernel_shape=[1, 1]),
            helper.make_node("ReduceMean", ["cam", axes], ["classifier.mean"], name="classifier.mean", keepdims=0),
            helper.make_node("Add", ["classifier.mean", bias], ["logits"], name="classifier"),
        ]
    )


def _finish(graph: onnx.GraphProto, checkpoint: Checkpoint) -> onnx.ModelProto:
    """The checked model around `graph`: versions, the `MDConv` function, where it came from, every tensor's shape."""
    kinds = sorted({attributes(node)["activation"] for node in graph.node if node.op_type == MDCONV})
    domains = [helper.make_opsetid("", OPSET)]
    if kinds:
        domains.append(helper.make_opsetid(MDCONV_DOMAIN, MDCONV_VERSION))
    model = helper.make_model(
        graph,
        functions=[mdconv_function(kind) for kind in kinds],
        opset_imports=domains,
        ir_version=IR_VERSION,
        producer_name="mdconv-edge",
        producer_version=__version__,
    )
    facts = {
        "checkpoint_sha256": checkpoint.sha256,
        "labels": ",".join(checkpoint.labels),
        "network": checkpoint.network,
        "notice": checkpoint.notice,
        "thresholds": json.dumps(checkpoint.thresholds, sort_keys=True),
    }
    helper.set_model_props(model, facts)
    model = shape_inference.infer_shapes(model, strict_mode=True)
    onnx.checker.check_model(model, full_check=True)
    return model


def save_model(model: onnx.ModelProto, path: Path) -> None:
    """Write `model` to `path`, by way of a temporary file beside it; the same model always gives the same bytes."""
    temporary = path.with_name(path.name + ".partial")
    try:
        temporary.write_bytes(model.SerializeToString(deterministic=True))
        temporary.replace(path)
    except OSError as error:
        raise MachineError(f"cannot write {path}: {describe_os_error(error)}") from None
    finally:
        temporary.unlink(missing_ok=True)


def export_onnx(checkpoint: Checkpoint, path: Path, batch: int = 1, input_size: int | None = None) -> None:
    """Write the portable model of `checkpoint` (see `to_onnx`) to `path`."""
    save_model(to_onnx(checkpoint, batch, input_size), path)


def check_parity(checkpoint: Checkpoint, path: Path, images: NDArray[np.uint8]) -> Parity:
    """Run (N, 1, S, S) uint8 `images` through the file in ONNX Runtime and through the checkpoint in PyTorch.

    Raises `MachineError` if logits or class activation maps differ by more than `PARITY_LIMIT` anywhere.
    """
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    worst = dict.fromkeys(names, 0.0)
    for image in np.split(images, len(images)):
        outputs, references = session.run(names, {"image": image}), reference_outputs(checkpoint, image)
        for name, found, expected in zip(names, outputs, references):
            assert expected is not None
            worst[name] = max(worst[name], float(np.abs(found - expected).max() / max(1, np.abs(expected).max())))
    parity = Parity(worst["logits"], worst.get("cam"))
    if not max(worst.values()) <= PARITY_LIMIT:
        raise MachineError(
            f"{path} differs from its checkpoint: {parity}, expected at most {PARITY_LIMIT:.0e}: this export cannot be "
            "trusted, report it with the checkpoint"
        )
    return parity


@torch.inference_mode()
def reference_outputs(
    checkpoint: Checkpoint, images: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Logits (N, L) and class activation maps (N, L, h, w), or None, of (N, 1, S, S) uint8 `images`, by PyTorch."""
    network: Any = checkpoint.model
    x = normalise(torch.from_numpy(images), checkpoint.config.get("in_channels", 3))
    logits = log_odds(network(x), checkpoint.exclusive).numpy()
    if not has_cam(checkpoint):
        return logits, None
    weight = _log_odds_layer(network.classifier, checkpoint.exclusive).weight
    return logits, torch.einsum("nchw,lc->nlhw", network.features(x), weight).numpy()


def main(arguments: Sequence[str] | None = None) -> int:
    """Export, compare with PyTorch, print the differences. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m build_engine.export", description="Export a checkpoint to ONNX.")
    parser.add_argument(
        "--checkpoint", type=Path, default=DEMO_CHECKPOINT, help="safetensors file (default: the demo's)"
    )
    parser.add_argument("--output", type=Path, required=True, help="ONNX file to write")
    parser.add_argument("--input-size", type=int, help="height and width in pixels (default: the checkpoint's)")
    parser.add_argument(
        "--batch", type=int, default=1, help="largest batch; above 1 the batch axis is symbolic (default: 1)"
    )
    options = parser.parse_args(arguments)
    try:
        checkpoint = load_checkpoint(options.checkpoint)
        size = options.input_size or checkpoint.input_size
        export_onnx(checkpoint, options.output, options.batch, size)
        images = np.stack([render(seed, size).image[None] for seed in DEMO_SEEDS[:PARITY_PHANTOMS]])
        parity = check_parity(checkpoint, options.output, images)
    except EdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    print(f"{options.output}: against the checkpoint in PyTorch on {len(images)} synthetic phantoms {parity}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
