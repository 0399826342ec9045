"""A loss that teaches class activation maps to point: for training data whose lesions have boxes.

Labels alone say that a finding is there, and a network may learn it from anywhere in the image. A few boxes beside the
labels are known to help (Li et al., "Thoracic Disease Identification and Localization with Limited Supervision", CVPR
2018, with the boxes of ChestX-ray14). The form here is the simplest that rewards the pointing game: the share of a
map's softmax over positions that lies in the box. The paper (Hu et al.) trains on labels alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mdconv.data.cases import Box

_LEAST = 1e-6
"""Share in the box below which the loss grows no more: a faint lesion must not outweigh all others."""


def cover(boxes: Sequence[Box], labels: Sequence[str], size: int, cells: int) -> NDArray[np.float32]:
    """Which share of each cell of each label's map lies in that label's boxes: (L, cells, cells), 0 to 1.

    Boxes are in pixels of a (size, size) image. Where boxes of one label overlap, the largest share counts.
    """
    edges = np.arange(cells + 1) * (size / cells)
    shares = np.zeros((len(labels), cells, cells), np.float32)
    for box in boxes:
        rows, columns = (
            np.clip(np.minimum(edges[1:], start + length) - np.maximum(edges[:-1], start), 0, None) * (cells / size)
            for start, length in ((box.y, box.height), (box.x, box.width))
        )
        label = labels.index(box.finding)
        shares[label] = np.maximum(shares[label], np.outer(rows, columns))
    return shares


def location_loss(cam: Tensor, covered: Tensor) -> Tensor:
    """Mean of -log(share of a map's softmax over positions that lies in its boxes), over the maps that have boxes.

    `cam` and `covered` (as `cover` gives it) are (N, L, h, w). Zero, with a gradient of zero, if no map has a box.
    """
    boxed = covered.flatten(2).sum(2) > 0
    attention = torch.softmax(cam.float().flatten(2), dim=2)
    inside = (attention * covered.flatten(2)).sum(2)[boxed].clamp(min=_LEAST)
    return -inside.log().sum() / max(len(inside), 1)
