"""Tables from runs: mean AUC an arm, and its difference to the reference, with two intervals.

A result differs from run to run (other initial weights, another order of the images) and from test set to test set. So
two 95 % intervals stand beside a difference: over runs (Student's t on the differences of runs of the same seed) and
over test images (bootstrap, the same resamples for both arms, of the arms' means over their runs).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mdconv.metrics import resampled_areas

DRAWS = 1000
_T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""0.975 quantile of Student's t for 1 to 9 degrees of freedom."""


class Result(NamedTuple):
    """One arm's result at one input size."""

    arm: str
    size: int
    areas: NDArray[np.float64]
    """(runs, L): AUC of each label by run."""
    resampled: NDArray[np.float64]
    """(runs, draws, L): AUC on resampled test images, the same resamples for all arms."""

    @property
    def mean(self) -> float:
        return float(self.areas.mean())


def judge(arm: str, size: int, truth: NDArray[np.bool_], logits: Sequence[NDArray[np.float32]]) -> Result:
    """The result of runs that gave `logits`, each (N, L), on images of `truth` (N, L)."""
    found = [resampled_areas(truth, scores, draws=DRAWS, seed=0) for scores in logits]
    return Result(arm, size, np.stack([areas.all for areas in found]), np.stack([areas.resampled for areas in found]))


class Difference(NamedTuple):
    """Mean AUC of one arm less that of another."""

    value: float
    over_runs: tuple[float, float] | None
    """95 % interval; None for a single run."""
    over_images: tuple[float, float]


def difference(result: Result, reference: Result) -> Difference:
    """How much better `result` is than `reference`, by the module's two intervals."""
    by_run = result.areas.mean(axis=1) - reference.areas.mean(axis=1)
    over_runs = None
    if len(by_run) > 1:
        half = _T_975[len(by_run) - 2] * float(by_run.std(ddof=1)) / len(by_run) ** 0.5
        over_runs = (float(by_run.mean()) - half, float(by_run.mean()) + half)
    by_draw = result.resampled.mean(axis=(0, 2)) - reference.resampled.mean(axis=(0, 2))
    low, high = np.percentile(by_draw, (2.5, 97.5))
    return Difference(float(by_run.mean()), over_runs, (float(low), float(high)))


def as_markdown(results: Sequence[Result], reference: str, costs: Mapping[tuple[str, int], Any]) -> str:
    """One row an arm and input size, in the order given."""
    lines = [
        "| network | pixels | MACs (M) | parameters (M) | runs | mean AUC | by run "
        "| difference | over runs | over images |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    references = {result.size: result for result in results if result.arm == reference}
    for result in results:
        cost = costs[result.arm, result.size]
        runs = " ".join(f"{mean:.3f}" for mean in result.areas.mean(axis=1))
        cells = [
            result.arm,
            str(result.size),
            f"{cost.macs / 1e6:.0f}",
            f"{cost.parameters / 1e6:.2f}",
            str(len(result.areas)),
            f"{result.mean:.4f}",
            runs,
        ]
        if result.arm == reference:
            cells += ["", "", ""]
        else:
            found = difference(result, references[result.size])
            cells += [f"{found.value:+.4f}", _interval(found.over_runs), _interval(found.over_images)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def by_finding(results: Sequence[Result], labels: Sequence[str]) -> str:
    """One row a finding, one column an arm and input size: AUC with its 95 % interval over test images."""
    heads = [f"{result.arm}, {result.size} px" for result in results]
    lines = [f"| finding | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for number, label in enumerate(labels):
        cells = []
        for result in results:
            low, high = np.percentile(result.resampled[:, :, number].mean(axis=0), (2.5, 97.5))
            cells.append(f"{result.areas[:, number].mean():.3f} ({low:.3f} to {high:.3f})")
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join([*lines, f"| mean | {' | '.join(f'{result.mean:.3f}' for result in results)} |"])


def _interval(pair: tuple[float, float] | None) -> str:
    return "" if pair is None else f"{pair[0]:+.4f} to {pair[1]:+.4f}"
