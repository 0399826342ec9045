"""The modelled latency against latencies on Jetson modules that others published: a table, and how many it holds.

    python -m benchmarks.modelled_against_published

Nothing is measured here. Three of the four numbers of the expected range (`build_engine.modelled_latency`) are fitted
to the figures marked "fitted": `FASTEST.clocks` is the most with which none of them is below the range, `SLOWEST` the
pair that leaves none above it and has the least sum of upper ends, each relative to its figure. The others are held
out. The form of the model, and which figures to fit, were chosen with all of them in sight.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import onnx

from benchmarks.published_latencies import PUBLISHED, SOURCES, Published, in_precision, network, with_batch
from build_engine.graph_cost import KernelCost, kernel_costs
from build_engine.jetsons import jetson
from build_engine.modelled_latency import FASTEST, MODELLED, Band, Modelled, kernel_time, modelled


class Compared(NamedTuple):
    """A published latency beside the modelled one."""

    published: Published
    modelled: Modelled
    kernels: int

    @property
    def inside(self) -> bool:
        return self.modelled.low <= self.published.milliseconds <= self.modelled.high


@functools.lru_cache
def _network(name: str, classes: int) -> onnx.ModelProto:
    return network(name, classes)


@functools.lru_cache
def _kernels(name: str, classes: int, batch: int, precision: str) -> tuple[KernelCost, ...]:
    model = _network(name, classes)
    return tuple(kernel_costs(in_precision(model if batch == 1 else with_batch(model, batch), precision)))


def compare(row: Published) -> Compared:
    """`row` beside its model; float32 with TF32, as TensorRT's own default has it."""
    kernels = _kernels(row.network, row.classes, row.batch, row.precision)
    times = [kernel_time(kernel, jetson(row.module), tf32=True) for kernel in kernels]
    return Compared(row, modelled(times), len(kernels))


def fit(rows: Sequence[Compared]) -> tuple[Band, Band]:
    """`FASTEST` and `SLOWEST` from the rows that calibrate, rounded outwards: two digits, hundreds of clocks."""
    fitted = [row for row in rows if row.published.calibrates]
    clocks = min(_clocks(row, FASTEST.share) for row in fitted)
    # Of each row: by how much of the published time a unit of 1 / share, and a clock a kernel, lengthens the model.
    per_unit = [
        (
            row.modelled.floor / row.published.milliseconds,
            row.kernels / jetson(row.published.module).megahertz * 1e-3 / row.published.milliseconds,
        )
        for row in fitted
    ]
    corners = []
    for (a, b), (c, d) in itertools.combinations(per_unit, 2):  # the best pair makes two rows end at their figure
        determinant = a * d - b * c
        if determinant:
            inverse, each = (d - b) / determinant, (a - c) / determinant
            ends = [inverse * one + each * other for one, other in per_unit]
            if inverse >= 1 and each >= 0 and min(ends) >= 1 - 1e-9:
                corners.append((sum(ends), inverse, each))
    _, inverse, each = min(corners)
    slowest = Band(math.floor(100 / inverse) / 100, math.ceil(each / 100) * 100.0)
    return Band(FASTEST.share, math.floor(clocks / 100) * 100.0), slowest


def _clocks(row: Compared, share: float) -> float:
    """GPU clocks a kernel that are left of the published time if the floor is reached to `share`."""
    left = row.published.milliseconds - row.modelled.floor / share
    return left * 1e3 / row.kernels * jetson(row.published.module).megahertz


def table(rows: Sequence[Compared]) -> str:
    """Markdown."""
    lines = [
        "| source | network | batch | type | module | published (ms) | modelled floor | ratio | modelled range | |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        one, model = row.published, row.modelled
        verdict = "inside" if row.inside else "**above**" if one.milliseconds > model.high else "**below**"
        lines.append(
            f"| {one.source} | {one.network} | {one.batch} | {one.precision} | {one.module} | {one.milliseconds:.3f} "
            f"| {model.floor:.3f} | {one.milliseconds / model.floor:.2f} | {model.low:.2f} to {model.high:.2f} "
            f"| {verdict}, {'fitted' if one.calibrates else 'held out'} |"
        )
    return "\n".join(lines)


def counts(rows: Sequence[Compared]) -> str:
    """Of the held-out figures, how many lie inside, by source and module."""
    held = [row for row in rows if not row.published.calibrates]
    lines = []
    for source, module in dict.fromkeys((row.published.source, row.published.module) for row in held):
        group = [row for row in held if (row.published.source, row.published.module) == (source, module)]
        lines.append(f"{source}, {module}: {sum(row.inside for row in group)} of {len(group)} held out are inside")
    return "\n".join(lines)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rows = [compare(row) for row in PUBLISHED]
    print(f"{MODELLED} Published by:")
    print("\n".join(f"- {name}: {text}" for name, text in SOURCES.items()))
    print(f"\n{table(rows)}\n\n{counts(rows)}")
    print("fitted anew: fastest {}, slowest {}".format(*fit(rows)))


if __name__ == "__main__":
    main()
