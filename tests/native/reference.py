"""The op in NumPy, written from its definition and from nothing of the kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.native.layer import Layer, Operands


def exact(layer: Layer, operands: Operands) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """For float types: y and the sum of the magnitudes that were added up for it, both (N, C, H', W') float64."""
    x, weight = operands.x.astype(np.float64), operands.weight.astype(np.float64)
    bias = operands.bias.astype(np.float64)[:, None, None]
    y = convolve(x, weight, layer) + bias
    magnitudes = convolve(np.abs(x), np.abs(weight), layer) + np.abs(bias)
    if layer.activation in ("relu", "relu6"):
        y = np.maximum(y, 0)
    if layer.activation == "relu6":
        y = np.minimum(y, 6)
    if layer.activation == "hardswish":
        y = y * np.clip(y / 6 + 0.5, 0, 1)
    return y, magnitudes


def int8(layer: Layer, operands: Operands) -> NDArray[np.int8]:
    """(N, C, H', W') int8, each step of mdconv_kernel.h's definition rounded to float32 once."""
    assert operands.weight_scale is not None
    x_scale, y_scale = np.float32(layer.x_scale), np.float32(layer.y_scale)
    sums = convolve(operands.x.astype(np.int32), operands.weight.astype(np.int32), layer).astype(np.float32)
    factor = (x_scale * operands.weight_scale / y_scale)[:, None, None]
    t = fused_multiply_add(sums, factor, (operands.bias / y_scale)[:, None, None])
    return _codes(layer, t)


def int8_bias(layer: Layer, codes: NDArray[np.int8], bias: NDArray[np.float32]) -> NDArray[np.int8]:
    """Bias and activation as a pass of its own over codes (N, C, H', W') of y_scale."""
    return _codes(layer, codes.astype(np.float32) + (bias / np.float32(layer.y_scale))[:, None, None])


def _codes(layer: Layer, t: NDArray[np.float32]) -> NDArray[np.int8]:
    y_scale = np.float32(layer.y_scale)
    if layer.activation in ("relu", "relu6"):
        t = np.maximum(t, np.float32(0))
    if layer.activation == "relu6":
        t = np.minimum(t, np.float32(6) / y_scale)
    if layer.activation == "hardswish":
        t = t * np.clip(fused_multiply_add(t, y_scale / np.float32(6), np.float32(0.5)), np.float32(0), np.float32(1))
    return np.clip(np.rint(t), -128, 127).astype(np.int8)


def convolve(x: NDArray[Any], weight: NDArray[Any], layer: Layer) -> NDArray[Any]:
    """Depthwise convolution of x (N, C, H, W) with weight (C, 1, K, K), "same" padding, in the type of x."""
    size, stride = layer.largest, layer.stride
    pad = size // 2
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    y = np.zeros(layer.y_shape, x.dtype)
    for i in range(size):
        for j in range(size):
            taps = weight[:, 0, i, j]
            used = np.flatnonzero(taps)  # few of a mixed layer's channels reach the rim
            if used.size == 0:
                continue
            part = slice(used[0], used[-1] + 1)  # a view, where an index array would copy
            window = padded[:, part, i : i + layer.height : stride, j : j + layer.width : stride]
            y[:, part] += window * taps[part, None, None]
    return y


def fused_multiply_add(a: NDArray[Any], b: Any, c: Any) -> NDArray[np.float32]:
    """a * b + c of float32, rounded once.

    The product is exact in float64; the sum is rounded to odd there (Boldo and Melquiond, "Emulation of a FMA and
    correctly rounded sums", IEEE TC 2008), after which rounding to float32 is right.
    """
    product = a.astype(np.float64) * np.float64(b)
    addend = np.broadcast_to(np.asarray(c, np.float64), product.shape)
    total = product + addend
    part = total - product
    error = (product - (total - part)) + (addend - part)  # Knuth's TwoSum: total + error is exact
    inexact_and_even = (error != 0) & (total.view(np.int64) % 2 == 0)
    odd = np.nextafter(total, np.where(error > 0, np.inf, -np.inf))
    rounded: NDArray[np.float32] = np.where(inexact_and_even, odd, total).astype(np.float32)
    return rounded
