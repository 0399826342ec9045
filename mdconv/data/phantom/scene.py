"""The picture of a patient: layers of attenuation, and how they become gray levels.

Attenuation adds along the beam, but lung tissue can lose its air only once: opacities in the lung are fractions of air
replaced by fluid or tissue, and several of them combine as ``1 - (1 - a)(1 - b)``. So nothing in a lung gets whiter
than a lung without air, as on a radiograph.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from mdconv.data.phantom.anatomy import (
    MIDLINE,
    Patient,
    body_outline,
    dome,
    heart_outline,
    lung_outline,
    wall_u,
)
from mdconv.data.phantom.canvas import Canvas, Mask, Points, band, ellipse, lump, smooth

Layer = NDArray[np.float32]

SHARPNESS = 0.0017
"""Standard deviation of the whole system's blur, a fraction of the side."""


class Scene:
    """One patient being drawn.

    `air` (size, size) float32 is the share of air left in the lungs' beam, 1 where it is untouched; `extra` is
    attenuation added outside that rule (bones, calcium, devices; negative for gas outside the lung).
    """

    def __init__(self, canvas: Canvas, patient: Patient) -> None:
        self.canvas = canvas
        self.patient = patient
        self.lungs: list[Mask] = [canvas.shape(lung_outline(patient, side), soft=0.0) for side in (0, 1)]
        self.lung: Mask = np.maximum(self.lungs[0], self.lungs[1])
        self.vessels: Mask = canvas.empty()
        self.lucent: Layer = np.ones((canvas.size, canvas.size), np.float32)
        """Relative lucency of the air: above 1 where lung is overinflated or absent."""
        self.air: Layer = np.ones((canvas.size, canvas.size), np.float32)
        self.extra: Layer = np.zeros((canvas.size, canvas.size), np.float32)

    def opacify(self, mask: Mask | Layer, strength: float) -> None:
        """Replace a share of the lung's air by fluid or tissue: `strength` where `mask` is full."""
        area = _area(mask)
        taken = np.multiply(mask[area], _unit(mask, strength), dtype=np.float32)
        self.air[area] *= np.subtract(1, taken, out=taken)

    def add(self, mask: Mask | Layer, strength: float) -> None:
        """Add attenuation (of bone, say), independent of the lung's air."""
        area = _area(mask)
        self.extra[area] += np.multiply(mask[area], _unit(mask, strength), dtype=np.float32)

    def attenuation(self) -> Layer:
        """The sum of all layers; about 0 is air beside the patient, 1 the abdomen."""
        patient, canvas = self.patient, self.canvas
        body = canvas.shape(body_outline(patient), soft=0.012)
        rows = (np.arange(canvas.size, dtype=np.float32) + 0.5) / canvas.size
        # The trunk thickens towards the abdomen and thins towards the neck.
        thickness = (0.60 + 0.10 * np.clip((rows - 0.1) / 0.9, 0, 1)) * patient.soft_tissue
        self.opacify(self.vessels, 0.42 * patient.vessels)
        air = np.multiply(self.lung, patient.lucency / 255, dtype=np.float32)
        air *= self.air
        air *= self.lucent
        below = canvas.shape(_below_diaphragm(patient), soft=0.006)
        total = np.multiply(below, 0.07 / 255, dtype=np.float32)
        total += thickness[:, None]
        total *= np.multiply(body, 1 / 255, dtype=np.float32)
        total -= air
        total += self.extra
        return cv2.GaussianBlur(total, (0, 0), max(0.3, SHARPNESS * canvas.size))  # type: ignore[return-value]


def _area(mask: Mask | Layer) -> tuple[slice, slice]:
    """Where a mask is not empty: most shapes cover little of the picture, and the rest need not be computed."""
    if mask.dtype != np.uint8:
        return slice(None), slice(None)
    x, y, width, height = cv2.boundingRect(mask)
    return slice(y, y + height), slice(x, x + width)


def _unit(mask: Mask | Layer, strength: float) -> float:
    """The factor that makes a full mask worth `strength`."""
    return strength / 255 if mask.dtype == np.uint8 else strength


def _below_diaphragm(patient: Patient) -> Points:
    """The abdomen: everything under both domes."""
    u = np.linspace(0, 1.1, 16)
    left = patient.place(1, u, dome(patient, 1, u))
    right = patient.place(0, u[::-1], dome(patient, 0, u[::-1]))
    corners = np.array([(MIDLINE + patient.half_width * 1.1, 1.3), (MIDLINE - patient.half_width * 1.1, 1.3)])
    return np.vstack([right, left, corners])


def draw_normal(scene: Scene, rng: np.random.Generator) -> None:
    """Everything that a patient without findings has. Randomness does not depend on the size."""
    _bones(scene, rng)
    _mediastinum(scene, rng)
    _vessels(scene, rng)
    _soft_tissue(scene, rng)


def _bones(scene: Scene, rng: np.random.Generator) -> None:
    canvas, patient = scene.canvas, scene.patient
    spacing = (patient.base[0] - patient.apex) / rng.uniform(8.6, 9.8)
    slope = rng.uniform(0.8, 1.2)
    thick = rng.uniform(0.85, 1.15)
    height = patient.base[0] - patient.apex
    mirror = np.array([[-1.0], [1.0]])[None]  # (1, 2, 1): both sides of each rib
    t = np.linspace(0, 1, 16)

    number = np.arange(11)[:, None]
    y = (
        patient.apex
        - 0.045
        + number * spacing
        + rng.normal(0, 0.0025, (11, 1))
        - 0.022 * np.sin(np.pi * np.minimum(1.3 * t, 1))
    )
    y = y + slope * (0.035 + 0.011 * number) * t**2.2
    level = np.clip((y - patient.apex) / height, 0.02, 1)
    reach = np.sin(t * np.pi / 2) * wall_u(level) * 1.02 * patient.half_width + 0.02 * (1 - t)
    x = MIDLINE + patient.turn * (1 - t) + mirror * reach[:, None]
    lines = np.stack([x, np.broadcast_to(y[:, None], x.shape)], -1).reshape(-1, len(t), 2)
    posterior = canvas.empty()
    canvas.fill(posterior, band(lines, 0.022 * thick), 255)
    canvas.fill(posterior, band(lines, 0.011 * thick), 165)

    number = np.arange(7)[:, None]
    y = patient.apex + 0.10 + number * spacing * 1.02 + slope * (0.11 * t**1.2 + 0.02 * np.sin(np.pi * t))
    level = np.clip((y - patient.apex) / height, 0.02, 1)
    reach = patient.half_width * (wall_u(level) * 1.01 - (0.62 - 0.03 * number) * t**1.1)
    x = MIDLINE + mirror * reach[:, None]
    lines = np.stack([x, np.broadcast_to(y[:, None], x.shape)], -1).reshape(-1, len(t), 2)
    anterior = canvas.empty()
    canvas.fill(anterior, band(lines, 0.026 * thick * (1 - 0.1 * t)), 255)
    canvas.fill(anterior, band(lines, 0.014 * thick), 175)
    dense = rng.uniform(0.8, 1.25)
    scene.add(posterior, 0.085 * dense)
    scene.add(anterior, 0.045 * dense)

    spine = canvas.empty()
    column = smooth(np.array([(0, -0.1), (rng.normal(0, 0.004), 0.35), (rng.normal(0, 0.006), 0.7), (0, 1.1)]))
    column += (MIDLINE + patient.turn * 0.5, 0)
    canvas.fill(spine, band(column, 0.075), 190)
    tops = np.arange(-0.05, 1.05, 0.062)
    corners = np.stack([np.interp(tops, column[:, 1], column[:, 0]), tops], 1)[:, None]
    vertebra = np.array([(-0.037, 0), (0.037, 0), (0.033, 0.026), (0.037, 0.05), (-0.037, 0.05), (-0.033, 0.026)])
    canvas.fill(spine, corners + vertebra, 255)
    scene.add(canvas.blur(spine, 0.004), 0.11 * dense)

    collar = canvas.empty()
    lift, droop = rng.normal(0, 0.012), rng.normal(0, 0.006)
    for outward in (-1, 1):
        y0 = patient.apex + 0.075 + lift + outward * droop
        line = np.array([(0.035, y0), (0.12, y0 - 0.012), (0.22, y0 - 0.05), (0.32, y0 - 0.068), (0.42, y0 - 0.05)])
        line = smooth(line * (outward, 1)) + (MIDLINE + patient.turn, 0)
        width = 0.024 + 0.008 * np.cos(np.linspace(0, 2 * np.pi, len(line)))
        canvas.fill(collar, band(line, width), 255)
        canvas.fill(collar, band(line, width * 0.5), 180)
        blade = np.array([(0.40, 0.16), (0.47, 0.22), (0.42, 0.42), (0.36, 0.47), (0.345, 0.36), (0.36, 0.22)])
        canvas.fill(collar, smooth(blade + rng.normal(0, 0.006, 2)) * (outward, 1) + (MIDLINE, 0), 90)
    scene.add(collar, 0.10 * dense)


def _mediastinum(scene: Scene, rng: np.random.Generator) -> None:
    canvas, patient = scene.canvas, scene.patient
    middle, half = patient.middle, patient.upper_mediastinum
    core = canvas.empty()
    border = np.array([(half * 0.75, -0.1), (half * 0.8, 0.15), (half, 0.28), (half * 1.05, 0.4), (half * 1.2, 0.95)])
    right, left = smooth(border * (-1, 1)), smooth(border)[::-1]
    canvas.fill(core, np.vstack([right, left]) + (middle, 0))
    knob = rng.uniform(0.05, 0.075)
    canvas.fill(core, ellipse((middle + half * 0.85, 0.285 + rng.normal(0, 0.01)), knob, knob * 1.15))
    scene.opacify(canvas.blur(core, 0.004), 0.88)

    heart = canvas.shape(heart_outline(patient), soft=0.0035)
    scene.opacify(heart, 0.86)
    scene.add(heart, 0.05)
    for outward in (-1, 1):  # the hila
        x, y = middle + outward * (half + 0.022), 0.435 - 0.012 * outward
        hilum = lump(rng, (x, y), 0.062, 0.10, 0.12)
        scene.opacify(canvas.shape(hilum, soft=0.009), rng.uniform(0.32, 0.45) * patient.vessels)

    windpipe = canvas.empty()
    carina = 0.365 + rng.normal(0, 0.012)
    canvas.fill(windpipe, band(np.array([(middle, -0.1), (middle + 0.004, 0.2), (middle, carina)]), 0.034))
    for outward, steep in ((-1, 1.1), (1, 0.75)):
        tip = (middle + outward * 0.075, carina + 0.075 * steep)
        canvas.fill(windpipe, band(np.array([(middle, carina - 0.01), tip]), 0.02))
    scene.add(canvas.blur(windpipe, 0.004), -0.085)


def _vessels(scene: Scene, rng: np.random.Generator) -> None:
    """Two trees of tapering branches from the hila, thickest at the base where gravity fills them."""
    canvas, patient = scene.canvas, scene.patient
    steps = np.linspace(0, 1, 9)
    trunks = 11
    angle = np.linspace(-1.45, 1.5, trunks) + rng.normal(0, 0.10, (2, trunks))
    reach = np.array([0.62, 0.46]) * rng.uniform(0.85, 1.1, (2, trunks, 1))
    bend = rng.normal(0, 0.28, (2, trunks))
    width = 0.0125 * rng.uniform(0.7, 1.1, (2, trunks)) * (1 + 0.25 * np.sin(angle))
    trunk = _branches(np.broadcast_to([0.20, 0.47], (2, trunks, 2)), angle, bend, reach, steps)

    forks = np.array([3, 5, 6])
    turn = rng.choice((-1, 1), (2, trunks, 3)) * rng.uniform(0.35, 0.8, (2, trunks, 3))
    fork = _branches(trunk[:, :, forks], angle[..., None] + turn, bend[..., None], reach[:, :, None] * 0.45, steps)
    lines = np.concatenate([trunk, fork.reshape(2, -1, len(steps), 2)], 1)
    widths = np.concatenate([width, (width[..., None] * (0.75 - 0.07 * forks)).reshape(2, -1)], 1)

    placed = np.concatenate([patient.place(side, lines[side, ..., 0], lines[side, ..., 1]) for side in (0, 1)])
    order = np.argsort(widths.ravel(), kind="stable")  # the thickest last: they cover the ends of the others
    widest = widths.ravel()[order]
    values = np.minimum(255, 60 + 17000 * widest).astype(int).tolist()
    canvas.fill(scene.vessels, band(placed[order], widest[:, None] * (1 - 0.8 * steps)), values)


def _branches(roots: Points, heading: Points, bend: Points, reach: Points, steps: Points) -> Points:
    """Curves (..., steps, 2) in lung coordinates from `roots` (..., 2), `reach` (..., 2) long in u and v."""
    angle = heading[..., None] + bend[..., None] * steps
    stride = np.stack([np.cos(angle), np.sin(angle)], -1) * reach[..., None, :] / (len(steps) - 1)
    return roots[..., None, :] + np.cumsum(stride, -2) - stride[..., :1, :]


def _soft_tissue(scene: Scene, rng: np.random.Generator) -> None:
    """What else lies in the beam: breasts, stomach gas, uneven muscle, a letter that marks the side, an electrode."""
    canvas, patient = scene.canvas, scene.patient
    fullness = rng.uniform(0, 1)
    size = rng.uniform(0.24, 0.32)
    for outward in (-1, 1):
        x = MIDLINE + outward * rng.uniform(0.19, 0.23)
        y = 0.66 + rng.normal(0, 0.02)
        if fullness > 0.5:
            scene.add(canvas.shape(ellipse((x, y), size, size * 1.05), soft=0.012), 0.05 * fullness)
    if rng.uniform() < 0.6:
        x, width = MIDLINE + rng.uniform(0.12, 0.2), rng.uniform(0.05, 0.13)
        y = patient.base[1] - patient.rise[1] + 0.03 + width * 0.35
        scene.add(canvas.shape(lump(rng, (x, y), width, width * 0.6, 0.06), soft=0.004), -rng.uniform(0.08, 0.2))
    else:
        rng.uniform(size=3)
    scene.add(canvas.texture(rng, 9), 0.016)
    scene.add(canvas.texture(rng, 34), 0.008)
    if rng.uniform() < 0.5:
        scene.add(_letter(canvas, right=bool(rng.uniform() < 0.8), y=rng.uniform(0.06, 0.14)), 0.5)
    if rng.uniform() < 0.25:
        spots = canvas.empty()
        for _ in range(3):
            spot = (rng.uniform(0.2, 0.8), rng.uniform(0.25, 0.75))
            canvas.fill(spots, ellipse(spot, 0.026, 0.026), 160)
            canvas.fill(spots, ellipse(spot, 0.010, 0.010), 255)
        scene.add(spots, 0.22)


def _letter(canvas: Canvas, right: bool, y: float) -> Mask:
    """The side marker, an R or an L beside the shoulder, as a line drawing."""
    x = 0.06 if right else 0.90
    strokes: list[tuple[float, float]] = [(0, 4), (0, 0)] if right else [(0, 0), (0, 4), (2, 4)]
    if right:
        strokes += [(1.6, 0.2), (2, 1), (1.6, 1.8), (0, 2), (2, 4)]
    mask = canvas.empty()
    canvas.fill(mask, band(np.array(strokes, np.float64) * 0.011 + (x, y), 0.007))
    return mask
