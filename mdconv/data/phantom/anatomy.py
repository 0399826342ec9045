"""A patient: the measures of one thorax and the outlines that follow from them, in body coordinates.

Side 0 is the patient's right lung, which a frontal radiograph shows on the image's left; side 1 the left one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mdconv.data.phantom.canvas import Points, ellipse, smooth

MIDLINE = 0.5


@dataclass
class Patient:
    """Measures of one patient, fractions of the side; findings change them before anything is drawn."""

    scale: float
    degrees: float
    shift: tuple[float, float]
    turn: float
    """Rotation about the long axis: how far midline structures lie from the thorax's centre."""
    half_width: float
    """Midline to the inner chest wall at its widest."""
    apex: float
    base: list[float]
    """y of each costophrenic angle."""
    rise: list[float]
    """Height of each diaphragm dome above its costophrenic angle."""
    heart_width: float
    heart_height: float
    heart_tilt: float
    upper_mediastinum: float
    """Half width of the vascular pedicle."""
    lucency: float
    """How much of the tissue's attenuation an air-filled lung takes away."""
    vessels: float
    """Relative prominence of the pulmonary vessels."""
    soft_tissue: float
    """Thickness of the chest wall, relative to the mean."""
    midline_shift: float = 0.0
    """Displacement of heart and trachea to a side (volume loss pulls, pneumothorax pushes)."""

    @property
    def middle(self) -> float:
        """x of heart and trachea's reference line."""
        return MIDLINE + self.turn + self.midline_shift

    def place(self, side: int, u: float | Points, v: float | Points) -> Points:
        """Lung to body coordinates: u from midline (0) to lateral wall (1), v from apex (0) to base (1)."""
        outward = 1 if side else -1
        x = MIDLINE + outward * self.half_width * np.asarray(u)
        y = self.apex + (self.base[side] - self.apex) * np.asarray(v)
        return np.stack(np.broadcast_arrays(x, y), -1)


def draw_patient(rng: np.random.Generator) -> Patient:
    """A patient without findings: size, habitus, inspiration, position."""
    half_width = rng.normal(0.355, 0.016)
    base = rng.normal(0.835, 0.022)  # lower on a deep breath
    heart_ratio = rng.normal(0.445, 0.026)  # cardiothoracic ratio
    rise = 0.5 * (rng.normal(0.11, 0.018) + 0.11)
    heart_width = float(np.clip(heart_ratio, 0.38, 0.51)) * 2 * half_width
    return Patient(
        scale=float(np.clip(rng.normal(1.0, 0.045), 0.9, 1.1)),
        degrees=float(np.clip(rng.normal(0, 1.6), -4.5, 4.5)),
        shift=(float(rng.normal(0, 0.012)), float(rng.normal(0, 0.016))),
        turn=float(np.clip(rng.normal(0, 0.010), -0.025, 0.025)),
        half_width=half_width,
        apex=rng.normal(0.115, 0.013),
        base=[base + rng.normal(-0.004, 0.006), base + rng.normal(0.004, 0.006)],
        rise=[rise + rng.normal(0.016, 0.008), rise + rng.normal(0.0, 0.008)],  # the liver lifts the right dome
        heart_width=heart_width,
        heart_height=heart_width * rng.uniform(0.76, 0.92),
        heart_tilt=rng.uniform(0.15, 0.45),
        upper_mediastinum=float(np.clip(rng.normal(0.066, 0.006), 0.052, 0.085)),
        lucency=float(np.clip(rng.normal(0.46, 0.022), 0.40, 0.52)),
        vessels=rng.uniform(0.75, 1.25),
        soft_tissue=float(np.clip(rng.normal(1.0, 0.06), 0.85, 1.2)),
    )


_WALL = np.array(  # u, v from the costophrenic angle up the lateral wall, over the apex and down the mediastinum
    [
        (0.975, 1.0), (1.0, 0.86), (0.99, 0.66), (0.95, 0.44), (0.87, 0.26), (0.76, 0.12), (0.62, 0.03), (0.48, 0.0),
        (0.34, 0.04), (0.23, 0.15), (0.17, 0.34), (0.15, 0.55), (0.14, 0.75),
    ]
)  # fmt: skip
_WALL_TOP = 8
"""Index of the apex in `_WALL`, one past it: what lies before is the chest wall."""


def dome(patient: Patient, side: int, u: Points) -> Points:
    """v of the diaphragm at u: top at u = 0.5, falling steeply to the costophrenic angle and gently to the heart."""
    height = patient.rise[side] / (patient.base[side] - patient.apex)
    lateral = 1 - (np.maximum(u - 0.5, 0) / 0.475) ** 2
    medial = 1 - 0.4 * (np.maximum(0.5 - u, 0) / 0.37) ** 2
    return 1 - height * np.where(u > 0.5, lateral, medial)


def lung_outline(patient: Patient, side: int) -> Points:
    """The closed outline of one lung."""
    wall = smooth(_WALL)
    u = np.linspace(0.14, 0.975, 24)
    floor = np.stack([u, dome(patient, side, u)], 1)
    outline = np.vstack([wall[wall[:, 1] <= floor[0, 1]] if wall[-1, 1] > floor[0, 1] else wall, floor])
    return patient.place(side, outline[:, 0], outline[:, 1])


def chest_wall(patient: Patient, side: int, top: float = 0.0, bottom: float = 1.0) -> Points:
    """The inner chest wall as an open curve from below up, v between `bottom` and `top`."""
    wall = smooth(_WALL[:_WALL_TOP])
    wall = wall[(wall[:, 1] >= top) & (wall[:, 1] <= bottom)]
    return patient.place(side, wall[:, 0], wall[:, 1])


def wall_u(v: float | Points) -> Points:
    """u of the chest wall at a height v."""
    curve = smooth(_WALL[:_WALL_TOP])[::-1]
    return np.interp(np.asarray(v, np.float64), curve[:, 1], curve[:, 0])


def heart_outline(patient: Patient) -> Points:
    """The heart: about a third of its width to the right of the midline, its lower edge on the diaphragm."""
    width, height = patient.heart_width, patient.heart_height
    floor = patient.base[1] - patient.rise[1] + 0.045
    centre = (patient.middle + 0.16 * width, floor - height / 2)
    return ellipse(centre, width, height, patient.heart_tilt)


def body_outline(patient: Patient) -> Points:
    """Neck, shoulders, axillae and flanks."""
    flank = patient.half_width + 0.055 * patient.soft_tissue**2
    half = smooth(
        np.array(
            [
                (0.085, -0.2), (0.085, -0.02), (0.13, 0.03), (0.26, 0.06), (0.42, 0.11), (0.50, 0.20), (0.53, 0.32),
                (flank + 0.03, 0.40), (flank, 0.50), (flank, 0.75), (flank + 0.01, 1.2),
            ]
        )
    )  # fmt: skip
    half[:, 1] += patient.apex - 0.13  # shoulders go with the lungs' tops
    left = half + (MIDLINE, 0)
    right = half[::-1] * (-1, 1) + (MIDLINE, 0)
    return np.vstack([left, right])
