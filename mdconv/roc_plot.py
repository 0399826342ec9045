"""ROC curves as a picture (Hu et al., IEEE Access 2020, Fig. 6)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge.statistics import roc_auc
from mdconv.metrics import roc_points


def write_roc_plot(
    path: Path,
    labels: Sequence[str],
    truth: NDArray[np.bool_],
    scores: NDArray[np.floating],
    title: str,
    notice: str,
) -> list[Path]:
    """Write one panel with the curve of each label to `path` as ``.png`` and ``.svg``; returns both paths.

    `truth` and `scores` are (N, L). A label that all images have, or none, has no curve. The legend has the areas, the
    foot has `notice`.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 7.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    colours = mpl.colormaps["tab20"]
    for number, label in enumerate(labels):
        present = truth[:, number]
        if 0 < present.sum() < len(present):
            wrong, right = roc_points(present, scores[:, number])
            area = roc_auc(present, scores[:, number])
            axes.plot(wrong, right, color=colours(number), linewidth=1.4, label=f"{label}  {area:.3f}")
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=0.8, linestyle="--")
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.set_title(title, parse_math=False)
    axes.legend(loc="lower right", fontsize="small", title="area under the curve")
    figure.supxlabel(notice, fontsize="small", parse_math=False)
    written = [path.with_suffix(suffix) for suffix in (".png", ".svg")]
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "mdconv-edge"}):  # text stays text
        for target in written:
            figure.savefig(target, dpi=150, metadata={"Date": None} if target.suffix == ".svg" else None)
    return written
