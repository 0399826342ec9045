"""How large findings are, from ChestX-ray14's 984 boxes (Figure 1 of Hu et al., IEEE Access 2020).

    python -m mdconv.data.box_statistics [--boxes BBox_List_2017.csv] [--output DIR]

Prints a table of width, height and square root of the area by finding, in pixels of NIH's 1024 x 1024 images and as a
share of the side. With --output, a plot of the square roots too: `box_sizes.png` and `box_sizes.svg`. Without --boxes
the sizes come from a list that the package carries, rounded to 0.1 pixels.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge.errors import EdgeError, MachineError, UsageError, describe_os_error
from edge.labels import CHESTXRAY14
from mdconv.data.chestxray14 import NOTICE, read_boxes
from mdconv.data.nih_tables import SIDE
from mdconv.data.tables import read_rows

MEASURES = ("width", "height", "sqrt(area)")
ALL = "all"
PLOT = "box_sizes"

Sizes = Mapping[str, NDArray[np.float64]]
"""(n, 2) widths and heights in pixels of 1024, by finding, in the order of `edge.labels.CHESTXRAY14`."""


class Summary(NamedTuple):
    """One measure of one finding's boxes, in pixels of 1024. Quartiles interpolate linearly (Hyndman and Fan's 7)."""

    finding: str
    measure: str
    boxes: int
    minimum: float
    lower: float
    median: float
    upper: float
    maximum: float


def read_sizes(boxes: Path | None = None) -> Sizes:
    """Sizes from a list of boxes as NIH distributes it, or those that the package carries. Raises `UsageError`."""
    found: dict[str, list[tuple[float, float]]] = {}
    if boxes is not None:
        for box in (box for each in read_boxes(boxes).values() for box in each):
            found.setdefault(box.finding, []).append((box.width, box.height))
    else:
        with resources.as_file(resources.files("mdconv.data").joinpath("nih_box_sizes.csv")) as path:
            rows = [row for row in read_rows(path) if not row[0].startswith("#")]
        for finding, width, height in rows[1:]:
            found.setdefault(finding, []).append((float(width), float(height)))
    if not found:
        raise UsageError(f"{boxes} lists no box: get it again")
    return {finding: np.array(found[finding]) for finding in CHESTXRAY14 if finding in found}


def summarise(sizes: Sizes) -> list[Summary]:
    """All measures of each finding, then those of all boxes together."""
    summaries = []
    for finding, pairs in [*sizes.items(), (ALL, np.concatenate(list(sizes.values())))]:
        columns = (pairs[:, 0], pairs[:, 1], np.sqrt(pairs.prod(axis=1)))
        for measure, values in zip(MEASURES, columns):
            summaries.append(
                Summary(finding, measure, len(values), *np.percentile(values, (0, 25, 50, 75, 100)).tolist())
            )
    return summaries


def as_text(summaries: list[Summary]) -> str:
    """The table: pixels of 1024, then shares of the side in percent."""
    heads = "".join(f"{head:>8}" for head in ("min", "lower", "median", "upper", "max"))
    lines = [
        f"{'':29}{f'pixels of {SIDE}':>40}  {'percent of the side':>40}",
        f"{'finding':14}{'measure':11}{'n':>4}{heads}  {heads}",
    ]
    for finding, measure, count, *numbers in summaries:
        left = "".join(f"{number:8.1f}" for number in numbers)
        right = "".join(f"{100 * number / SIDE:8.1f}" for number in numbers)
        lines.append(f"{finding:14}{measure:11}{count:4d}{left}  {right}")
    return "\n".join([*lines, f"Boxes of {NOTICE}."])


def plot(sizes: Sizes, folder: Path) -> list[Path]:
    """Draw the square root of each box's area, by finding, quartiles over them; returns the files written.

    Raises `MachineError` if they cannot be.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    roots = [np.sqrt(pairs.prod(axis=1)) for pairs in sizes.values()]
    rng = np.random.default_rng(0)  # only spreads the points sideways
    for place, values in enumerate(roots, 1):
        axes.plot(place + rng.uniform(-0.28, 0.28, len(values)), values, ".", color="tab:blue", markersize=3, alpha=0.4)
    axes.boxplot(roots, showfliers=False, widths=0.6, medianprops={"color": "tab:orange"})
    axes.set_xticks(range(1, len(sizes) + 1), [f"{name}\n{len(pairs)}" for name, pairs in sizes.items()], fontsize=7)
    axes.set_ylabel(f"square root of the box's area, pixels of {SIDE}")
    axes.set_ylim(0, SIDE)
    shares = axes.twinx()
    shares.set_ylim(0, 100)
    shares.set_ylabel("percent of the side")
    figure.suptitle(f"Sizes of findings: boxes of {NOTICE}", fontsize=8)
    paths = [folder / f"{PLOT}.png", folder / f"{PLOT}.svg"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context({"svg.hashsalt": PLOT}):  # the same file from the same boxes
            figure.savefig(paths[0], dpi=150)
            figure.savefig(paths[1], metadata={"Date": None})
    except OSError as error:
        raise MachineError(f"cannot write the plot: {describe_os_error(error)}") from None
    return paths


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m mdconv.data.box_statistics", description="Sizes of findings in ChestX-ray14's boxes (Figure 1)."
    )
    parser.add_argument(
        "--boxes", type=Path, metavar="FILE", help="BBox_List_2017.csv, plain or .gz (default: built in)"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder to draw the plot into, as PNG and SVG")
    options = parser.parse_args(arguments)
    try:
        sizes = read_sizes(options.boxes)
        print(as_text(summarise(sizes)))
        for path in plot(sizes, options.output) if options.output else []:
            print(path)
    except EdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
