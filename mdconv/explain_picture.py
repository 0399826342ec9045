"""The picture that shows where a network sees a finding: map, boxes, caption."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.heatmap import overlay
from mdconv.data.cases import Box

TRUE_COLOUR = (0, 255, 0)
OWN_COLOUR = (255, 255, 255)
"""Of the true boxes' frames and of the map's own: blue, green, red."""

LINE_HEIGHT = 18
"""Of the caption, pixels."""


def draw(
    pixels: NDArray[np.uint8],
    cam: NDArray[np.float32],
    *,
    boxes: Sequence[Box],
    own: Box | None,
    caption: Sequence[str],
) -> NDArray[np.uint8]:
    """The image (S, S) with the map (h, w) over it, the true boxes, the map's own, and below them the caption's lines.

    Returns (S + `caption_height`, S, 3) uint8: blue, green, red. A box's frame lies on the outermost of its pixels.
    """
    picture = overlay(pixels, cam)
    for box in boxes:
        _frame(picture, box, TRUE_COLOUR)
    if own is not None:
        _frame(picture, own, OWN_COLOUR)
    strip = np.zeros((caption_height(len(caption)), picture.shape[1], 3), np.uint8)
    for line, text in enumerate(caption):
        at = (4, 15 + LINE_HEIGHT * line)
        cv2.putText(strip, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.42, (255, 255, 255), 1, cv2.LINE_AA)
    return np.vstack([picture, strip])


def caption_height(lines: int) -> int:
    """Pixels that a caption of so many lines takes."""
    return 4 + LINE_HEIGHT * lines


def _frame(picture: NDArray[np.uint8], box: Box, colour: tuple[int, int, int]) -> None:
    first = (round(box.x), round(box.y))
    last = (round(box.x + box.width) - 1, round(box.y + box.height) - 1)
    cv2.rectangle(picture, first, last, colour, 1)
