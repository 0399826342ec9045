"""How far a tensor's values reach: a streaming histogram, and the ways to choose a symmetric int8 range from it.

A range [-t, t] maps to the integers -127 to 127. All choices depend on the multiset of values only, not on the order in
which batches came.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

BINS = 4096
LEVELS = 128
"""Magnitudes that symmetric int8 tells apart, zero among them."""

BEYOND = 100_000
"""`percentile` and `entropy` let one value in so many lie beyond the range. Channels of a depthwise network differ
much: what is rare in all of a tensor can be what one of its channels says."""

_STEP = 16
_CANDIDATES = 128
_TINY_EXPONENT = -100


class Histogram:
    """Histogram of |x| over any number of arrays, in constant memory.

    Bins are [i w, (i + 1) w) with w a power of two. When a value falls outside, w doubles and pairs of bins merge, and
    that is exact: the result is as if the largest value had been known before. Exact zeros are counted apart, since
    every range represents them exactly; after a ReLU they would drown the rest.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, np.int64)
        self.zeros = 0
        self.low = math.inf
        self.high = -math.inf
        self._exponent = _TINY_EXPONENT

    @property
    def width(self) -> float:
        """Width w of a bin, in the values' unit."""
        return math.ldexp(1.0, self._exponent)

    @property
    def largest(self) -> float:
        """Largest magnitude seen; 0 before the first value."""
        return max(abs(self.low), abs(self.high)) if self.low <= self.high else 0.0

    def update(self, values: NDArray[np.float32]) -> None:
        """Count the float32 `values`, of any shape. Raises `ValueError` if one is not finite."""
        low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError("values are not finite")
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._widen()
        # Multiplying by a power of two is exact, so a value's bin does not depend on when it came.
        bins = (np.abs(values) * np.float32(1 / self.width)).astype(np.int32)
        counts = np.bincount(bins.ravel(), minlength=BINS)
        zeros = int(values.size - np.count_nonzero(values))
        counts[0] -= zeros
        self.zeros += zeros
        self.counts += counts

    def _widen(self) -> None:
        while self.largest >= BINS * self.width:
            self.counts = np.concatenate([self.counts.reshape(-1, 2).sum(axis=1), np.zeros(BINS // 2, np.int64)])
            self._exponent += 1


def minmax(histogram: Histogram) -> float:
    """The largest magnitude: nothing saturates, outliers take resolution from the rest."""
    return histogram.largest


def percentile(histogram: Histogram) -> float:
    """The 99.999th percentile of the magnitudes, zeros included, by nearest rank and to within a bin."""
    total = histogram.zeros + int(histogram.counts.sum())
    below = histogram.zeros + np.cumsum(histogram.counts)
    first = int(np.searchsorted(below, total - total // BEYOND))
    return min((first + 1) * histogram.width, histogram.largest)


def mse(histogram: Histogram) -> float:
    """The range with the least mean squared error of quantization, rounding and saturation weighed together."""
    if histogram.largest == 0:
        return 0.0
    centres = (np.arange(BINS) + 0.5) * histogram.width
    candidates = histogram.largest * np.arange(1, _CANDIDATES + 1) / _CANDIDATES
    errors = []
    for threshold in candidates:
        scale = threshold / (LEVELS - 1)
        quantized = np.minimum(np.rint(centres / scale), LEVELS - 1) * scale
        errors.append(float((histogram.counts * (centres - quantized) ** 2).sum()))
    return float(candidates[int(np.argmin(errors))])


def entropy(histogram: Histogram) -> float:
    """The range of `least_divergence`, but none that is exceeded more often than `percentile`'s.

    Divergence alone cuts off up to 2 % of a tensor's values: it weighs how many they are, not how far they are off.
    """
    return max(least_divergence(histogram), percentile(histogram))


def least_divergence(histogram: Histogram) -> float:
    """The range whose quantized distribution diverges least from the true one (Kullback-Leibler).

    Migacz, "8-bit inference with TensorRT", GTC 2017. Values beyond a candidate range count at its end.
    """
    if histogram.largest == 0:
        return 0.0
    used = int(histogram.largest / histogram.width) + 1  # more than BINS / 2, since w is as small as it can be
    candidates = [*range(LEVELS, used, _STEP), used]
    divergences = [_divergence(histogram.counts, bins) for bins in candidates]
    best = candidates[int(np.argmin(divergences))]
    return float(min(best * histogram.width, histogram.largest))


def _divergence(counts: NDArray[np.int64], bins: int) -> float:
    """Divergence of `counts`, clipped to the first `bins` bins, from the same bins quantized to `LEVELS`."""
    kept = counts[:bins].astype(np.float64)
    reference = kept.copy()
    reference[-1] += counts[bins:].sum()
    group = np.arange(len(kept)) * LEVELS // bins
    filled = kept > 0
    members = np.bincount(group, filled, LEVELS)
    mean = np.bincount(group, kept, LEVELS) / np.maximum(members, 1)
    quantized = np.where(filled, mean[group], 0.0)
    present = reference > 0
    if not quantized[present].all():
        return math.inf  # the end bin holds nothing but what was clipped: no distribution to compare with
    p = reference[present] / reference.sum()
    q = quantized[present] / quantized.sum()
    return float((p * np.log(p / q)).sum())


METHODS: Mapping[str, Callable[[Histogram], float]] = {
    "entropy": entropy,
    "minmax": minmax,
    "percentile": percentile,
    "mse": mse,
}
"""The ways to choose a range, by the name that commands know them by."""
