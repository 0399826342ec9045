"""Which findings a case has, and how large they are."""

from __future__ import annotations

import csv
from functools import cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from edge.labels import CHESTXRAY14

BOX_SIDE = 1024
"""Side of the images on which the shipped box sizes were measured, pixels."""

NORMAL_SHARE = 0.30
"""Share of cases without findings."""

_COMPANIONS: dict[str, tuple[str, ...]] = {
    # What tends to come together (Wang et al. 2017, Fig. 2 shows the same pairs on real labels).
    "Atelectasis": ("Effusion", "Infiltration"),
    "Cardiomegaly": ("Effusion", "Edema"),
    "Effusion": ("Atelectasis", "Cardiomegaly", "Consolidation"),
    "Infiltration": ("Atelectasis", "Effusion"),
    "Mass": ("Nodule", "Effusion"),
    "Nodule": ("Mass",),
    "Pneumonia": ("Effusion", "Infiltration"),
    "Pneumothorax": ("Emphysema", "Effusion"),
    "Consolidation": ("Effusion", "Pneumonia"),
    "Edema": ("Cardiomegaly", "Effusion"),
    "Emphysema": ("Pneumothorax", "Nodule"),
    "Fibrosis": ("Pleural_Thickening",),
    "Pleural_Thickening": ("Fibrosis", "Effusion"),
    "Hernia": ("Atelectasis",),
}


def draw_findings(rng: np.random.Generator) -> tuple[bool, ...]:
    """14 labels in the order of CHESTXRAY14: none in 30 % of cases, otherwise one to four, companions more often.

    Companions favour some findings (Effusion most), first draws balance that, so that each has a prevalence of about
    11 %.
    """
    chosen: set[int] = set()
    if rng.uniform() >= NORMAL_SHARE:
        count = int(rng.choice((1, 2, 3, 4), p=(0.28, 0.36, 0.24, 0.12)))
        weights = _FIRST.copy()
        while len(chosen) < count:
            finding = int(rng.choice(len(weights), p=weights / weights.sum()))
            chosen.add(finding)
            weights[finding] = 0
            for companion in _COMPANIONS[CHESTXRAY14[finding]]:
                weights[CHESTXRAY14.index(companion)] *= 1.8
    return tuple(index in chosen for index in range(len(CHESTXRAY14)))


_FIRST: NDArray[np.float64] = np.array([0.85, 0.9, 0.65, 0.9, 1.0, 0.95, 0.95, 1.0, 0.95, 0.9, 1.0, 1.0, 1.0, 1.1])


def draw_size(rng: np.random.Generator, finding: str) -> tuple[float, float]:
    """Width and height of a box of one of the eight findings that ChestX-ray14 has boxes for, as fractions of the side.

    One of the real boxes is drawn, and varied by up to 5 %.
    """
    sizes = _box_sizes()[finding]
    width, height = sizes[rng.integers(len(sizes))] * rng.uniform(0.95, 1.05, 2)
    return float(width), float(height)


@cache
def _box_sizes() -> dict[str, NDArray[np.float64]]:
    text = resources.files("mdconv.data").joinpath("nih_box_sizes.csv").read_text("utf-8")
    sizes: dict[str, list[tuple[float, float]]] = {}
    for row in csv.DictReader(line for line in text.splitlines() if not line.startswith("#")):
        sizes.setdefault(row["finding"], []).append((float(row["width"]), float(row["height"])))
    return {finding: np.array(pairs) / BOX_SIDE for finding, pairs in sizes.items()}
