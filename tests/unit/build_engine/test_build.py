"""The self-test's tolerance follows what the build showed, within the limit of its precision."""

from __future__ import annotations

import pytest

from build_engine.build import GOLDEN_LIMIT, golden_tolerance


@pytest.mark.parametrize(
    ("precision", "difference", "tolerance"),
    [("int8", 0.0, 0.03), ("int8", 0.05, 0.1), ("int8", 0.2, 0.3), ("fp32", 1e-7, 1e-4), ("fp16", 4e-3, 8e-3)],
)
def test_golden_tolerance(precision: str, difference: float, tolerance: float) -> None:
    assert golden_tolerance(precision, difference) == pytest.approx(tolerance)
    assert golden_tolerance(precision, difference) <= GOLDEN_LIMIT[precision]
