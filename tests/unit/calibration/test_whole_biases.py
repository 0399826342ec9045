from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from calibration.graph import initializers
from calibration.whole_biases import LARGEST, make_biases_whole

MODEL = """
    <ir_version: 9, opset_import: ["" : 19]>
    g (float[1, 2, 4, 4] x) => (float[1, 3, 4, 4] y)
    <float xs = {0.02}, int8 zero = {0}, int8[3] zeros = {0, 0, 0}, float[3] plain = {0.123, 0.456, 0.789}>
    {
        xq = QuantizeLinear(x, xs, zero)
        xd = DequantizeLinear(xq, xs, zero)
        w = DequantizeLinear<axis = 0>(codes, scale, zeros)
        c = Conv(xd, w, bias)
        y = Conv(c, other, plain)
    }"""


def rounded(
    codes: list[int], scale: list[float], bias: list[float]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The constants of a quantized convolution with these, and another that is not, before and behind."""
    model = onnx.parser.parse_model(MODEL)
    constants = {
        "codes": np.array(codes, np.int8).repeat(2).reshape(3, 2, 1, 1),
        "scale": np.array(scale, np.float32),
        "bias": np.array(bias, np.float32),
        "other": np.ones((3, 3, 1, 1), np.float32),
    }
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    before = {name: numpy_helper.to_array(tensor) for name, tensor in initializers(model.graph).items()}
    make_biases_whole(model)
    return before, {name: numpy_helper.to_array(tensor) for name, tensor in initializers(model.graph).items()}


def test_a_bias_is_the_nearest_whole_number_of_steps() -> None:
    before, behind = rounded([127, -127, 5], [0.01, 0.003, 0.0007], [0.7123, -0.4, 0.00001])
    steps = behind["bias"] / (0.02 * behind["scale"].astype(np.float64))
    np.testing.assert_allclose(steps, [3562, -6667, 1], atol=1e-3)  # 3561.5, 6666.67, 0.71
    for name in before.keys() - {"bias"}:
        np.testing.assert_array_equal(behind[name], before[name])


def test_weights_next_to_nothing_get_a_scale_with_which_the_bias_fits() -> None:
    before, behind = rounded([127, -127, 127], [0.01, 1e-12, 1e-30], [0.5, 6.0, -6.0])
    steps = np.abs(behind["bias"] / (0.02 * behind["scale"].astype(np.float64)))
    assert steps.max() <= LARGEST * (1 + 1e-6)
    np.testing.assert_allclose(behind["bias"], before["bias"], rtol=1e-6, atol=1e-4)
    weights = [each["codes"][:, 0, 0, 0] * each["scale"].astype(np.float64) for each in (before, behind)]
    assert np.abs(weights[0] - weights[1]).max() <= behind["scale"][1:].max() / 2
    np.testing.assert_array_equal(behind["codes"][:, 0, 0, 0], [127, 0, 0])
