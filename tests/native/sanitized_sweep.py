"""The kernels compiled with AddressSanitizer and UndefinedBehaviorSanitizer, on small layers of all kinds.

``python -m tests.native.sanitized_sweep``, in the environment of `test_sanitizers.py`. The first finding ends the
process; at the end it prints how many layers ran and how many were right.
"""

from __future__ import annotations

import numpy as np

from tests.native import reference
from tests.native.cases import sweep
from tests.native.host_kernel import run, run_unfused, tactic_count
from tests.native.layer import Layer, Operands, random_operands


def is_right(layer: Layer, operands: Operands, y: np.ndarray) -> bool:
    """To a coarse tolerance: a wrong read that no sanitizer sees would be far off."""
    if layer.dtype == "int8":
        return np.array_equal(y, reference.int8(layer, operands))
    expected, magnitudes = reference.exact(layer, operands)
    return bool(np.all(np.abs(y - expected) <= 1e-2 * np.maximum(np.abs(expected).max(), magnitudes)))


def main() -> None:
    layers = sweep(per_layout=28, most_outputs=1500, seed=21)
    right = 0
    for index, layer in enumerate(layers):
        operands = random_operands(layer, np.random.default_rng(index))
        y = run(layer, operands, 1 + index % tactic_count(layer.dtype, layer.layout), count=True, check=True).y
        right += is_right(layer, operands, y)
        if layer.layout == "linear" and index % 4 == 0:
            run_unfused(layer, operands, check=True)
    print(f"{len(layers)} layers, {right} right")


if __name__ == "__main__":
    main()
