"""The signs of the 14 findings, painted into a scene.

Every painter takes the scene and its lesion and returns the mask of what a reader would put a box around, or None for a
finding without one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mdconv.data.phantom.anatomy import MIDLINE, chest_wall, dome, heart_outline, wall_u
from mdconv.data.phantom.canvas import Mask, Points, band, ellipse, lump, smooth
from mdconv.data.phantom.lesion import Lesion
from mdconv.data.phantom.scene import Layer, Scene

BILATERAL_WIDTH = 0.42
"""A real box wider than this spans both lungs."""


def paint(scene: Scene, lesion: Lesion) -> Mask | None:
    """Paint a finding's sign."""
    return _PAINTERS[lesion.finding](scene, lesion)


def _seat(scene: Scene, lesion: Lesion, top: float, bottom: float) -> tuple[float, float]:
    """A centre, v in [top, bottom], for a box of the lesion's size in its lung (between both if it is wide)."""
    patient = scene.patient
    half_height = lesion.height / 2 / (patient.base[lesion.side] - patient.apex)
    low, high = max(top, half_height), min(bottom, 0.92 - half_height)
    v = lesion.rng.uniform(low, high) if low < high else 0.5 * (top + bottom)
    half = lesion.width / 2 / patient.half_width
    inner, outer = 0.22 + half, float(wall_u(v)) - 0.04 - half
    u = lesion.rng.uniform(inner, outer) if inner < outer else 0.58
    x, y = patient.place(lesion.side, u, v)
    return (MIDLINE if lesion.width > BILATERAL_WIDTH else float(x)), float(y)


def _float(mask: Mask) -> Layer:
    return np.multiply(mask, 1 / 255, dtype=np.float32)


def _atelectasis(scene: Scene, lesion: Lesion) -> Mask:
    """Plates of collapsed lung along the box's diagonal; volume loss is `lesion.reshape`'s part."""
    canvas, rng = scene.canvas, lesion.rng
    centre = _seat(scene, lesion, 0.5, 0.85)
    half = np.array([lesion.width, lesion.height * rng.choice((-1, 1))]) / 2
    thickness = float(np.clip(0.22 * min(lesion.width, lesion.height), 0.014, 0.045))
    t = np.linspace(-1, 1, 13)
    plates = canvas.empty()
    across = np.array([-half[1], half[0]]) / np.hypot(*half)
    for offset, length, width in ((0, 1.0, 1.0), (1.6, 0.7, 0.7), (-1.7, 0.55, 0.6)):
        bow = 0.12 * np.outer(1 - t**2, across) * np.hypot(*half)
        line = np.asarray(centre) + np.outer(t * length, half) + bow + across * offset * thickness
        canvas.fill(plates, band(line, thickness * width * np.sqrt(np.maximum(1.05 - t**2, 0))))
    scene.opacify(canvas.blur(plates, 0.003), lesion.between(0.14, 0.62))
    area = canvas.shape(ellipse(centre, lesion.width, lesion.height))
    scene.opacify(canvas.blur(area, 0.02), lesion.between(0.03, 0.14))
    return area


def _cardiomegaly(scene: Scene, lesion: Lesion) -> Mask:
    """The heart itself, which `lesion.reshape` enlarged."""
    return scene.canvas.shape(heart_outline(scene.patient))


def _effusion(scene: Scene, lesion: Lesion) -> Mask:
    """Fluid from the costophrenic angle up, its surface a meniscus that climbs the lateral wall."""
    canvas, patient, side = scene.canvas, scene.patient, lesion.side
    base = patient.base[side]
    height = float(np.clip(lesion.height, 0.055, 0.62)) * lesion.between(0.75, 1.0)
    top = (base - height - patient.apex) / (base - patient.apex)
    reach = min(lesion.width / patient.half_width, 0.9)
    u_wall = float(wall_u(top)) + 0.03
    t = np.linspace(0, 1, 24)
    u = u_wall - max(reach, 0.25) * t
    end = min(float(dome(patient, side, u[-1:])[0]), top + 0.75 * (1 - top))
    v = top + (max(end, top + 0.02) - top) * (1 - (1 - t) ** 2.6)
    surface = patient.place(side, u, v)
    under = patient.place(side, np.array([0.0, 0.0, 1.15, 1.15]), np.array([v[-1], 1.1, 1.1, top]))
    fluid = canvas.shape(np.vstack([surface, under]), soft=0.005)
    scene.opacify(fluid, lesion.between(0.45, 0.95))
    return np.minimum(fluid, scene.lungs[side])


def _infiltration(scene: Scene, lesion: Lesion) -> Mask:
    """An ill-defined patch of streaks and dots through which vessels stay visible."""
    canvas, rng = scene.canvas, lesion.rng
    outline = lump(rng, _seat(scene, lesion, 0.3, 0.8), lesion.width, lesion.height, 0.18)
    area = canvas.shape(outline)
    soft = _float(canvas.blur(area, 0.13 * min(lesion.width, lesion.height, 0.3)))
    grain = np.clip(0.5 + 0.55 * canvas.texture(rng, 48), 0, 1.4)
    scene.opacify(soft * grain, lesion.between(0.13, 0.42))
    return np.minimum(area, scene.lung)


def _mass(scene: Scene, lesion: Lesion) -> Mask:
    """A round, lobulated, well-defined opacity of 3 cm and more."""
    canvas = scene.canvas
    lesion.width, lesion.height = min(lesion.width, 0.28), min(lesion.height, 0.36)
    area = canvas.shape(lump(lesion.rng, _seat(scene, lesion, 0.15, 0.8), lesion.width, lesion.height, 0.06))
    scene.opacify(canvas.blur(area, 0.0045), lesion.between(0.22, 0.8))
    return area


def _nodule(scene: Scene, lesion: Lesion) -> Mask:
    """A small round opacity."""
    canvas = scene.canvas
    area = canvas.shape(lump(lesion.rng, _seat(scene, lesion, 0.1, 0.85), lesion.width, lesion.height, 0.025))
    scene.opacify(canvas.blur(area, 0.0026), lesion.between(0.22, 0.72))
    return area


def _pneumonia(scene: Scene, lesion: Lesion) -> Mask:
    """Mottled, confluent foci that fill a lobe up to its fissure, which bounds them sharply."""
    canvas, rng = scene.canvas, lesion.rng
    centre = _seat(scene, lesion, 0.35, 0.8)
    outline = lump(rng, centre, lesion.width, lesion.height, 0.12)
    fissure = centre[1] - 0.32 * lesion.height
    area = canvas.shape(outline)
    soft = _float(canvas.blur(area, 0.016))
    rows = (np.arange(canvas.size) + 0.5) / canvas.size
    edge = canvas.shape(np.array([(-0.3, fissure + 0.015), (1.3, fissure - 0.025), (1.3, 1.3), (-0.3, 1.3)]))
    fade = np.clip(1.15 - (rows - fissure) / lesion.height, 0.35, 1).astype(np.float32)
    mottle = np.clip(0.8 + 0.35 * canvas.texture(rng, 22), 0.15, 1.3)
    scene.opacify(soft * _float(edge) * mottle * fade[:, None], lesion.between(0.2, 0.72))
    return np.minimum(np.minimum(area, edge), scene.lung)


def _pneumothorax(scene: Scene, lesion: Lesion) -> Mask:
    """Air between lung and chest wall: a rim without vessels, bounded by the white line of the visceral pleura."""
    canvas, patient, side = scene.canvas, scene.patient, lesion.side
    height = float(np.clip(lesion.height, 0.07, 0.6))
    bottom = min(height / (patient.base[side] - patient.apex), 0.97)
    depth = float(np.clip(0.5 * lesion.width / patient.half_width, 0.08, 0.42)) * lesion.between(0.7, 1.0)
    wall = chest_wall(patient, side, bottom=bottom)
    along = np.linspace(0, 1, len(wall))
    pulled = wall.copy()  # the pleura, pulled to the hilum; most at the apex, where air collects
    hilum = patient.place(side, 0.25, 0.5)
    pulled += (hilum - wall) * (depth * np.sqrt(along) * 1.1)[:, None]
    apex_end = patient.place(side, np.array([0.28, 0.2]), np.array([0.06, 0.12 + 0.2 * depth]))
    line = smooth(np.vstack([pulled[::6], pulled[-1:], apex_end[1:]]))
    beyond = wall + (wall - hilum) * 0.2
    rim = canvas.shape(np.vstack([line, beyond[::-1]]))
    rim = np.minimum(rim, scene.lungs[side])
    scene.vessels = (scene.vessels * (1 - _float(rim))).astype(np.uint8)
    scene.lucent += _float(rim) * lesion.between(0.05, 0.22)
    collapsed = scene.lungs[side] - rim
    scene.opacify(collapsed, lesion.between(0.02, 0.13))
    pleura = canvas.shape(band(line, 0.0045))
    scene.add(np.minimum(pleura, scene.lungs[side]), lesion.between(0.03, 0.10))
    return rim


def _consolidation(scene: Scene, lesion: Lesion) -> Mask:
    """Airless lung, even and dense, with the dark branches of bronchi that still hold air."""
    canvas, rng = scene.canvas, lesion.rng
    centre = np.array(_seat(scene, lesion, 0.3, 0.8))
    area = canvas.blur(canvas.shape(lump(rng, tuple(centre), lesion.width, lesion.height, 0.14)), 0.011)
    bronchi = canvas.empty()
    hilum = scene.patient.place(lesion.side, 0.2, 0.47)
    inward = (hilum - centre) / max(float(np.hypot(*(hilum - centre))), 1e-6)
    start = centre + inward * 0.45 * lesion.width
    outward = np.arctan2(*(-inward)[::-1])
    for spread in (-0.5, -0.1, 0.35):
        angle = outward + spread + rng.normal(0, 0.1) + np.linspace(0, 0.3, 7)
        line = start + np.cumsum(np.stack([np.cos(angle), np.sin(angle)], 1), 0) * lesion.width * 0.12
        canvas.fill(bronchi, band(line, np.linspace(0.011, 0.005, 7)))
    airless = _float(area) * (1 - 0.75 * _float(bronchi))
    scene.opacify(airless, lesion.between(0.25, 0.85))
    return area


def _edema(scene: Scene, lesion: Lesion) -> None:
    """Haze around both hila like a bat's wings, and short septal lines at the lateral bases."""
    canvas, patient, rng = scene.canvas, scene.patient, lesion.rng
    wings = canvas.empty()
    septa = canvas.empty()
    for side in (0, 1):
        width = rng.uniform(0.42, 0.60)
        x, y = patient.place(side, 0.22 + width / 2, 0.52)
        span = patient.half_width
        canvas.fill(
            wings, lump(rng, (float(x), float(y)), width * span, 0.42 * (patient.base[side] - patient.apex), 0.10)
        )
        for v in np.linspace(0.76, 0.92, 6) + rng.normal(0, 0.006, 6):
            wall = float(wall_u(v))
            canvas.fill(septa, band(patient.place(side, np.array([wall - 0.08, wall]), np.array([v, v])), 0.0035))
    haze = _float(canvas.blur(wings, 0.035)) * np.clip(0.9 + 0.22 * canvas.texture(rng, 26), 0.3, 1.4)
    scene.opacify(haze, lesion.between(0.13, 0.62))
    scene.opacify(scene.lung, lesion.between(0.01, 0.08))
    scene.opacify(septa, lesion.between(0.08, 0.4))


def _emphysema(scene: Scene, lesion: Lesion) -> None:
    """Bullae in overinflated lungs; the shape of the thorax is `lesion.reshape`'s part."""
    canvas, patient, rng = scene.canvas, scene.patient, lesion.rng
    for _ in range(5):
        side, v = int(rng.integers(2)), rng.uniform(0.1, 0.5)
        x, y = patient.place(side, rng.uniform(0.45, 0.8), v)
        size = rng.uniform(0.05, 0.11)
        bulla = canvas.shape(lump(rng, (float(x), float(y)), size, size * 1.15, 0.05))
        scene.vessels = (scene.vessels * (1 - lesion.strength * _float(bulla))).astype(np.uint8)
        scene.lucent += _float(bulla) * lesion.between(0.01, 0.10)


def _fibrosis(scene: Scene, lesion: Lesion) -> None:
    """A net of fine lines at both bases and along the periphery."""
    canvas, patient, rng = scene.canvas, scene.patient, lesion.rng
    net = np.exp(-((canvas.texture(rng, 72) / 0.33) ** 2))
    core = canvas.empty()
    for side in (0, 1):
        u, v = 0.42, rng.uniform(0.30, 0.42)
        x, y = patient.place(side, u, v)
        canvas.fill(core, ellipse((float(x), float(y)), 0.80 * patient.half_width, 0.72))
    periphery = _float(scene.lung - np.minimum(scene.lung, canvas.blur(core, 0.02)))
    scene.opacify(periphery * net.astype(np.float32), lesion.between(0.13, 0.55))
    scene.opacify(periphery, lesion.between(0.02, 0.10))


def _pleural_thickening(scene: Scene, lesion: Lesion) -> None:
    """An uneven band along the lateral chest wall, sometimes with a cap over the apex."""
    canvas, patient, side, rng = scene.canvas, scene.patient, lesion.side, lesion.rng
    length = lesion.height
    top = rng.uniform(0.1, max(0.95 - length / 0.7, 0.12))
    wall = chest_wall(patient, side, top=top, bottom=min(top + length / 0.7, 0.97))
    along = np.linspace(0, 1, len(wall))
    wave = 1 + 0.3 * np.sin(along * rng.uniform(9, 16) + rng.uniform(0, 6))
    depth = lesion.between(0.010, 0.032) * wave * np.sqrt(np.sin(np.pi * np.clip(along, 0.02, 0.98)))
    peel = canvas.shape(_inside(wall, depth, side))
    if rng.uniform() < 0.4:
        cap = chest_wall(patient, side, top=0.0, bottom=0.16)
        peel = np.maximum(peel, canvas.shape(_inside(cap, np.full(len(cap), lesion.between(0.008, 0.028)), side)))
    scene.opacify(np.minimum(peel, scene.lungs[side]), lesion.between(0.35, 0.85))


def _inside(wall: Points, depth: NDArray[np.float64], side: int) -> Points:
    """The outline between a stretch of chest wall and a line `depth` inside it."""
    inward = np.array([-1.0 if side else 1.0, 0.0]) + np.array([0.0, 1.0]) * (wall[:, 1:2] < wall[:, 1].max() - 0.5)
    direction = np.gradient(wall, axis=0)
    normal = np.stack([-direction[:, 1], direction[:, 0]], 1)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
    normal *= np.sign((normal * inward).sum(1, keepdims=True) + 1e-12)
    return np.vstack([wall + normal * depth[:, None], (wall - normal * 0.02)[::-1]])


def _hernia(scene: Scene, lesion: Lesion) -> None:
    """Stomach above the diaphragm: a round mass behind the heart that holds air over a fluid level."""
    canvas, patient, rng = scene.canvas, scene.patient, lesion.rng
    size = lesion.width * lesion.between(0.85, 1.05)
    x = patient.middle + rng.uniform(0.0, 0.07)
    y = patient.base[1] - patient.rise[1] + 0.02 - size * 0.45
    sac = lump(rng, (x, y), size * 1.15, size, 0.04)
    outer = canvas.shape(sac, soft=0.003)
    scene.add(outer, lesion.between(0.03, 0.11))
    scene.opacify(outer, 0.5)
    level = y + rng.uniform(-0.1, 0.2) * size
    hollow = canvas.shape((sac - (x, y)) * 0.84 + (x, y))
    above = canvas.shape(np.array([(-0.3, -0.3), (1.3, -0.3), (1.3, level), (-0.3, level)]))
    scene.add(np.minimum(hollow, above), -lesion.between(0.05, 0.20))


_PAINTERS: dict[str, Callable[[Scene, Lesion], Mask | None]] = {
    "Atelectasis": _atelectasis,
    "Cardiomegaly": _cardiomegaly,
    "Effusion": _effusion,
    "Infiltration": _infiltration,
    "Mass": _mass,
    "Nodule": _nodule,
    "Pneumonia": _pneumonia,
    "Pneumothorax": _pneumothorax,
    "Consolidation": _consolidation,
    "Edema": _edema,
    "Emphysema": _emphysema,
    "Fibrosis": _fibrosis,
    "Pleural_Thickening": _pleural_thickening,
    "Hernia": _hernia,
}
