"""Synthetic frontal chest radiographs with the 14 findings of ChestX-ray14, from a seed. For software tests and demos.

A phantom is no patient and imitates none; weights trained on phantoms are for research use only. What each sign
imitates is said where it is painted (`findings`); what makes a normal chest is in `anatomy` and `scene`.

Determinism: all randomness comes from `numpy.random.PCG64`, seeded with (seed, stream), one stream each for the labels,
the patient, the picture, the noise and every finding. So one seed means one case on any machine, at any size, and a
finding can be added or taken away without changing the rest. NumPy keeps the bits of PCG64 for good; a test pins what
is drawn from them. Gray levels agree to rounding across versions of OpenCV.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.labels import CHESTXRAY14
from mdconv.data.phantom.anatomy import draw_patient
from mdconv.data.phantom.canvas import Canvas, Mask
from mdconv.data.phantom.cases import draw_findings
from mdconv.data.phantom.findings import paint
from mdconv.data.phantom.lesion import BOXED, Lesion, draw_lesion, reshape
from mdconv.data.phantom.scene import Layer, Scene, draw_normal

NOTICE = "synthetic phantoms, research use only"
"""Said wherever a picture of a phantom, or an output of weights trained on phantoms, is shown."""

TRAIN_SEEDS = range(0, 1_000_000)
VALIDATION_SEEDS = range(1_000_000, 2_000_000)
TEST_SEEDS = range(2_000_000, 3_000_000)
CALIBRATION_SEEDS = range(3_000_000, 4_000_000)
DEMO_SEEDS = range(4_000_000, 5_000_000)

SHOULDER = 0.6
"""How much the film compresses its bright end, where scatter hides contrast."""

_LABELS, _PATIENT, _PICTURE, _NOISE, _FINDINGS = range(5)

Box = tuple[str, float, float, float, float]
"""Finding, then x, y (top left corner), width and height in pixels of the image, as ChestX-ray14 gives boxes."""


@dataclass(frozen=True)
class Phantom:
    """A rendered case."""

    image: NDArray[np.uint8]
    """(size, size), 0 black = air."""
    labels: tuple[bool, ...]
    """14 findings in the order of `edge.labels.CHESTXRAY14`."""
    boxes: list[Box]
    """Of the eight findings that ChestX-ray14 has boxes for."""

    @property
    def findings(self) -> tuple[str, ...]:
        """The names of the findings present."""
        return tuple(name for name, present in zip(CHESTXRAY14, self.labels) if present)


def render(
    seed: int, size: int = 448, *, findings: Collection[str] | None = None, strength: float | None = None
) -> Phantom:
    """The phantom of a seed, `size` pixels a side.

    `findings` replaces the findings that the seed would draw, `strength` (0 faint to 1 plain) how marked they are: the
    same patient can so be had with and without a finding. Raises `ValueError` for a negative seed, a size under 32 or
    an unknown finding.
    """
    if seed < 0 or size < 32:
        raise ValueError(f"seed {seed}, size {size}: expected a seed >= 0 and a size >= 32 pixels")
    if findings is None:
        labels = labels_of(seed)
    else:
        if unknown := sorted(set(findings) - set(CHESTXRAY14)):
            raise ValueError(f"no finding {', '.join(unknown)}: expected some of {', '.join(CHESTXRAY14)}")
        labels = tuple(name in findings for name in CHESTXRAY14)
    scene, lesions = _begin(seed, size, labels, strength)
    draw_normal(scene, _stream(seed, _PICTURE))
    boxes = _paint(scene, lesions)
    return Phantom(_expose(scene.attenuation(), _stream(seed, _NOISE)), labels, boxes)


def boxes_of(seed: int, size: int = 448) -> list[Box]:
    """The boxes of the phantom of a seed, without rendering it: several times as fast."""
    return _paint(*_begin(seed, size, labels_of(seed), None))


def labels_of(seed: int) -> tuple[bool, ...]:
    """Which of the 14 findings the phantom of a seed has, without rendering it."""
    return draw_findings(_stream(seed, _LABELS))


def _begin(seed: int, size: int, labels: Sequence[bool], strength: float | None) -> tuple[Scene, list[Lesion]]:
    """The patient, nothing painted yet, and the lesions to paint."""
    lesions = [
        draw_lesion(name, _stream(seed, _FINDINGS + number), strength)
        for number, (name, present) in enumerate(zip(CHESTXRAY14, labels))
        if present
    ]
    patient = draw_patient(_stream(seed, _PATIENT))
    for lesion in lesions:
        reshape(patient, lesion)
    return Scene(Canvas(size, patient.scale, patient.degrees, patient.shift), patient), lesions


def _paint(scene: Scene, lesions: Sequence[Lesion]) -> list[Box]:
    boxes = []
    for lesion in lesions:
        area = paint(scene, lesion)
        if area is not None and lesion.finding in BOXED:
            boxes.append((lesion.finding, *_bounds(area)))
    return boxes


def _stream(seed: int, purpose: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64((seed, purpose)))


def _bounds(area: Mask) -> tuple[float, float, float, float]:
    x, y, width, height = cv2.boundingRect((area >= 128).astype(np.uint8))
    return float(x), float(y), float(width), float(height)


def _expose(attenuation: Layer, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Attenuation to gray levels: quantum noise, the film's latitude, and a faint unevenness of the beam.

    Noise is drawn a pixel; a smaller image averages more quanta a pixel, so its deviation is in proportion to the size.
    """
    size = attenuation.shape[0]
    dark, bright = rng.normal(0.10, 0.025), rng.normal(0.90, 0.035)
    gamma = rng.uniform(1.0, 1.5)
    tilt_x, tilt_y = rng.normal(0, 0.02, 2)
    grain = rng.uniform(0.008, 0.017) * min(size / 448, 2)
    at = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    picture = attenuation + np.float32(tilt_x) * at[None, :] + np.float32(tilt_y) * at[:, None]
    picture += np.float32(grain) * rng.standard_normal((size, size), np.float32)
    exposure = np.clip((picture - np.float32(dark)) / np.float32(bright - dark), 0, 1)
    levels = np.linspace(0, 1, 4096, dtype=np.float32)
    curve = ((1 + SHOULDER) * levels / (1 + SHOULDER * levels)) ** np.float32(gamma)
    table: NDArray[np.uint8] = np.rint(255 * curve).astype(np.uint8)
    image: NDArray[np.uint8] = table[(exposure * 4095 + 0.5).astype(np.uint16)]
    return image
