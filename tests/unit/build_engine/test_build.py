"""Options of a build; the self-test's tolerance follows what the build showed, within the limit of its precision."""

from __future__ import annotations

import pytest

from build_engine.golden import GOLDEN_LIMIT, golden_tolerance
from build_engine.make import parse
from edge.selftest import KINDS


@pytest.mark.parametrize(
    ("precision", "difference", "tolerance"),
    [
        ("int8", (0.0, 0.0), (0.03, 0.003)),
        ("int8", (0.05, 0.01), (0.1, 0.02)),
        ("int8", (0.2, 0.02), (0.3, 0.03)),
        ("fp32", (1e-7, 1e-8), (1e-4, 1e-5)),
        ("fp16", (4e-3, 1e-4), (8e-3, 2e-4)),
    ],
)
def test_golden_tolerance(precision: str, difference: tuple[float, float], tolerance: tuple[float, float]) -> None:
    found = golden_tolerance(precision, dict(zip(KINDS, difference)))
    assert found == pytest.approx(dict(zip(KINDS, tolerance)))
    assert all(found[kind] <= GOLDEN_LIMIT[precision][kind] for kind in KINDS)


@pytest.mark.parametrize(
    ("options", "repairs"),
    [
        ([], (True, True)),
        (["--no-equalization"], (False, True)),
        (["--no-bias-correction"], (True, False)),
        (["--no-equalization", "--no-bias-correction"], (False, False)),
    ],
)
def test_repairs_are_on_by_default_and_each_can_be_switched_off(options: list[str], repairs: tuple[bool, bool]) -> None:
    found = parse(options)
    assert (found.equalization, found.bias_correction) == repairs
