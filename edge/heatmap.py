"""Writes an image's class activation maps as files: the numbers, and a picture of one finding's map over the image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CAPTION_HEIGHT = 40
"""Pixels below the picture that say what it shows, in two lines."""
_LINE_HEIGHT = 18
_TEXT_SCALE = 0.42
"""Of OpenCV's font, whose letters are then 9 pixels high."""


def normalised(cam: NDArray[np.float32]) -> NDArray[np.float32]:
    """The positive part of one finding's map (h, w), scaled to a maximum of 1; all 0 if it has none.

    For a linear head after global average pooling this is Grad-CAM (Selvaraju et al., ICCV 2017, section 3).
    """
    positive = np.maximum(cam, 0.0)
    scaled: NDArray[np.float32] = positive / max(float(positive.max()), np.finfo(np.float32).tiny)
    return scaled


def overlay(pixels: NDArray[np.uint8], cam: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The image (S, S) uint8 in gray, the map (h, w) over it in colour: (S, S, 3) uint8, blue, green, red."""
    import cv2

    size = pixels.shape[::-1]
    heat = np.clip(cv2.resize(normalised(cam), size, interpolation=cv2.INTER_CUBIC), 0.0, 1.0)
    colour = cv2.applyColorMap(np.round(heat * 255).astype(np.uint8), cv2.COLORMAP_INFERNO).astype(np.float32)
    opacity = 0.6 * heat[..., np.newaxis]  # where the map is 0 the image stays as it is
    mixed = (1.0 - opacity) * pixels[..., np.newaxis] + opacity * colour
    return np.round(mixed).astype(np.uint8)


def caption(lines: Sequence[str], width: int, scale: float = _TEXT_SCALE) -> NDArray[np.uint8]:
    """`lines` in white on black: (h, `width`, 3) uint8, to be put below a picture; what does not fit is cut off."""
    import cv2

    height = round(_LINE_HEIGHT * scale / _TEXT_SCALE)
    strip = np.zeros((4 + height * len(lines), width, 3), np.uint8)
    for i, text in enumerate(lines):
        place = (4, height * (i + 1) - 3)
        cv2.putText(strip, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, (255, 255, 255), 1, cv2.LINE_AA)
    return strip


def write_heatmap(
    directory: Path,
    stem: str,
    *,
    pixels: NDArray[np.uint8],
    cam: NDArray[np.float32],
    labels: tuple[str, ...],
    result: dict[str, Any],
    notice: str,
) -> dict[str, str]:
    """Write ``STEM.cam.npy``, all maps (L, h, w) float32 in logit units, and ``STEM.cam.png``, the likeliest one's.

    Returns the result's ``cam``: the two paths and the finding. Raises `OSError` if they cannot be written.
    """
    import cv2

    chances = [result["findings"][label]["probability"] for label in labels]
    top = int(np.argmax(chances))
    picture = overlay(pixels, cam[top])
    strip = caption((f"{labels[top]} {chances[top]:.2f}", notice), picture.shape[1])
    _, png = cv2.imencode(".png", np.vstack([picture, strip]))
    array_path, picture_path = directory / f"{stem}.cam.npy", directory / f"{stem}.cam.png"
    np.save(array_path, cam)
    picture_path.write_bytes(png.tobytes())
    return {"finding": labels[top], "array": str(array_path), "overlay": str(picture_path)}
