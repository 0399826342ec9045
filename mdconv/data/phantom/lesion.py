"""A finding of one case: how strong, where, how large. Drawn before the picture: some findings reshape the patient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mdconv.data.phantom.anatomy import Patient
from mdconv.data.phantom.cases import draw_size

BOXED = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
)
"""The findings that ChestX-ray14 has boxes for."""

_OTHER_SIZES: dict[str, tuple[float, float]] = {  # smallest and largest extent, fractions of the side
    "Consolidation": (0.14, 0.32),
    "Hernia": (0.09, 0.19),
    "Pleural_Thickening": (0.15, 0.55),
}


@dataclass
class Lesion:
    """One finding of one case.

    `strength` in [0, 1] grades it from barely visible to plain; `side` as in `anatomy`; `width` and `height` in body
    coordinates; `rng` for all further detail.
    """

    finding: str
    strength: float
    side: int
    width: float
    height: float
    rng: np.random.Generator

    def between(self, faint: float, plain: float) -> float:
        """A measure that grows with the strength, from `faint` at 0 to `plain` at 1."""
        return faint + (plain - faint) * self.strength


def draw_lesion(finding: str, rng: np.random.Generator, strength: float | None) -> Lesion:
    """A lesion of a finding; unless given, its strength is drawn from [0.15, 1], more often plain than faint."""
    drawn = 0.15 + 0.85 * float(rng.uniform()) ** 0.7
    side = int(rng.integers(2))
    if finding in BOXED:
        width, height = draw_size(rng, finding)
    else:
        low, high = _OTHER_SIZES.get(finding, (0.1, 0.3))
        width, height = rng.uniform(low, high, 2).tolist()
    return Lesion(finding, drawn if strength is None else strength, side, width, height, rng)


def reshape(patient: Patient, lesion: Lesion) -> None:
    """Change the patient's measures as the finding does."""
    side, between = lesion.side, lesion.between
    toward = 1 if side else -1
    if lesion.finding == "Cardiomegaly":
        patient.heart_width = min(max(lesion.width, patient.heart_width * 1.04), 1.8 * patient.half_width)
        patient.heart_height = float(np.clip(lesion.height, 0.62 * patient.heart_width, 0.95 * patient.heart_width))
    elif lesion.finding == "Emphysema":
        patient.base = [base + between(0.012, 0.06) for base in patient.base]
        patient.rise = [rise * between(0.85, 0.25) for rise in patient.rise]
        patient.half_width += between(0.002, 0.018)
        patient.lucency += between(0.005, 0.045)
        patient.vessels *= between(0.9, 0.5)
        patient.heart_width *= between(0.99, 0.84)
    elif lesion.finding == "Atelectasis":  # lost volume pulls the diaphragm up and the heart over
        patient.rise[side] += between(0.002, 0.05)
        patient.midline_shift += toward * between(0, 0.016)
    elif lesion.finding == "Pneumothorax":
        patient.midline_shift -= toward * between(0, 0.016)
    elif lesion.finding == "Edema":
        patient.vessels *= between(1.05, 1.35)
        patient.heart_width = min(patient.heart_width * between(1.0, 1.06), 1.8 * patient.half_width)
    elif lesion.finding == "Fibrosis":
        patient.base = [base - between(0.0, 0.025) for base in patient.base]
