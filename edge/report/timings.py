"""The timings of single images that a report keeps, so that a comparison can tell a difference from chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edge.results import STAGES

KEPT = 2000
"""Images whose timings are kept at most: enough for an interval, and small enough to mail."""

SEED = 0


def kept_timings(done: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """``{"of", "ms": {stage: [...]}}``: of how many images, and milliseconds in the order in which they came.

    Of more than `KEPT` a random choice (not every n-th, which would fall in step with images that come in turns). None
    stands where an image did not pass a stage. ``gpu`` is among the stages where it was measured.
    """
    chosen = done
    if len(done) > KEPT:
        picked = np.random.default_rng(SEED).choice(len(done), KEPT, replace=False)
        chosen = [done[index] for index in sorted(picked.tolist())]
    columns = {stage: [image["timings_ms"].get(stage) for image in chosen] for stage in (*STAGES, "gpu")}
    return {
        "of": len(done),
        "ms": {stage: values for stage, values in columns.items() if any(value is not None for value in values)},
    }
