"""The hard case, small: the demo network at 128 pixels on a few phantoms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.hard_case import VARIANTS, Phantoms, joints, judge, quantized_as, runner, spread_channels
from build_engine.export import to_onnx
from calibration.equalization import find_junctions, survey
from mdconv.checkpoint import load_checkpoint
from mdconv.data.phantom import CALIBRATION_SEEDS, TEST_SEEDS
from mdconv.weights import DEMO_CHECKPOINT

SIZE = 128
CALIBRATION, TEST = Phantoms(CALIBRATION_SEEDS[:12], SIZE), Phantoms(TEST_SEEDS[:12], SIZE)


@pytest.fixture(scope="module")
def models() -> tuple[Any, Any]:
    """The demo's portable model, and the hard one's."""
    demo = load_checkpoint(DEMO_CHECKPOINT)
    return to_onnx(demo, 1, SIZE), to_onnx(spread_channels(demo, CALIBRATION), 1, SIZE)


def test_the_hard_case_is_the_same_function(models: tuple[Any, Any]) -> None:
    demo, hard = models
    for image in CALIBRATION:
        np.testing.assert_allclose(runner(hard)(image), runner(demo)(image), rtol=0, atol=2e-5)
    # On other images a channel may pass ReLU6's bound that did not before: rarely.
    figures = judge(runner(demo), runner(hard), TEST, load_checkpoint(DEMO_CHECKPOINT))
    assert figures["mean_difference"] < 1e-3


def test_channels_around_every_depthwise_layer_are_spread(models: tuple[Any, Any]) -> None:
    demo, _ = models
    tensors = [junction.tensor for junction in find_junctions(demo.graph).found]
    assert len(tensors) == len(joints(load_checkpoint(DEMO_CHECKPOINT).model)) == 34
    before, after = (survey(model, tensors, CALIBRATION).peaks for model in models)
    for tensor in tensors:
        alive = before[tensor] > 0
        factors = before[tensor][alive] / after[tensor][alive]
        assert factors.min() >= 0.99 and 100 < factors.max() <= 1001
        np.testing.assert_allclose(factors[before[tensor][alive] >= 6], 1)


def test_what_is_lost_without_repair_is_kept_with_it(models: tuple[Any, Any]) -> None:
    """With the repairs the hard network loses what the demo's loses; without them many times that."""
    demo, hard = models
    checkpoint = load_checkpoint(DEMO_CHECKPOINT)

    def lost(model: Any, variant: str) -> float:
        quantized = quantized_as(VARIANTS[variant], model, CALIBRATION)
        return float(judge(runner(model), runner(quantized), TEST, checkpoint)["mean_difference"])

    easy = lost(demo, "default")
    assert lost(hard, "default") < 1.25 * easy
    assert lost(hard, "minmax, no repair") > 5 * easy
