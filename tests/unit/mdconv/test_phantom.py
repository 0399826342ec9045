"""Phantoms: the same case from a seed everywhere, at every size, and signs that change the picture where they are."""

from __future__ import annotations

import numpy as np
import pytest

from edge.labels import CHESTXRAY14
from mdconv.data.phantom import TEST_SEEDS, Phantom, boxes_of, render
from mdconv.data.phantom.cases import NORMAL_SHARE, draw_findings, draw_size
from mdconv.data.phantom.lesion import BOXED


def smoothed(image: np.ndarray, cell: int) -> np.ndarray:
    """Mean of each cell x cell block."""
    side = image.shape[0] // cell
    return image[: side * cell, : side * cell].astype(np.float64).reshape(side, cell, side, cell).mean((1, 3))


def test_a_seed_gives_the_same_case_again() -> None:
    first, second = render(17), render(17)
    assert np.array_equal(first.image, second.image)
    assert (first.labels, first.boxes) == (second.labels, second.boxes)
    assert first.image.shape == (448, 448) and first.image.dtype == np.uint8
    assert not np.array_equal(first.image, render(18).image)


def test_cases_are_pinned_across_versions() -> None:
    """The streams of PCG64 and the labels that come of them: another numpy must not change the data set silently."""
    drawn = {seed: render(seed, 64).findings for seed in range(6)}
    assert drawn == PINNED


PINNED: dict[int, tuple[str, ...]] = {
    0: ("Atelectasis",),
    1: ("Effusion", "Infiltration", "Mass", "Hernia"),
    2: (),
    3: (),
    4: ("Atelectasis", "Hernia"),
    5: ("Atelectasis", "Mass", "Pneumothorax"),
}


@pytest.mark.parametrize("seed", [1, 2, 3, 2_000_000])
def test_the_same_anatomy_at_every_size(seed: int) -> None:
    """Shapes agree to within a pixel of the smaller image, and so do boxes; at 448 and above also the finest ones."""
    reference = render(seed, 448)
    for size, mean, most in ((224, 4.5, 30), (896, 1.6, 12)):
        other = render(seed, size)
        assert other.labels == reference.labels
        difference = np.abs(smoothed(other.image, size // 56) - smoothed(reference.image, 8))
        assert difference.mean() < mean and np.quantile(difference, 0.99) < most
        for (name, *corner), (expected, *pixels) in zip(other.boxes, reference.boxes, strict=True):
            assert name == expected
            assert np.allclose(np.array(corner) * 448 / size, pixels, atol=4.5)


def test_odd_sizes_render() -> None:
    for size in (32, 97, 225, 333):
        assert render(5, size).image.shape == (size, size)


def test_labels_are_as_prevalent_as_promised() -> None:
    labels = np.array([draw_findings(np.random.default_rng((seed, 9))) for seed in range(6000)])
    assert np.all((labels.mean(0) > 0.085) & (labels.mean(0) < 0.15))
    assert abs((labels.sum(1) == 0).mean() - NORMAL_SHARE) < 0.02
    effusion, edema = (labels[:, CHESTXRAY14.index(name)] for name in ("Effusion", "Edema"))
    assert effusion[edema].mean() > 1.15 * effusion.mean()  # companions


@pytest.mark.parametrize("finding", BOXED)
def test_sizes_follow_the_real_boxes(finding: str) -> None:
    """Medians over many draws, against those of the published file (computed from it apart, pixels of 1024)."""
    published = {
        "Atelectasis": (171, 118),
        "Cardiomegaly": (478, 382),
        "Effusion": (208, 277),
        "Infiltration": (228, 265),
        "Mass": (120, 141),
        "Nodule": (70, 68),
        "Pneumonia": (229, 275),
        "Pneumothorax": (201, 206),
    }
    rng = np.random.default_rng(3)
    drawn = np.array([draw_size(rng, finding) for _ in range(3000)]) * 1024
    assert np.allclose(np.median(drawn, 0), published[finding], rtol=0.12)


@pytest.mark.parametrize("finding", CHESTXRAY14)
def test_each_finding_changes_the_picture_and_more_so_when_strong(finding: str) -> None:
    """The same patients without it, with it faint and with it plain; noise is the same in all three."""
    faint, plain = [], []
    for seed in range(40, 46):
        without = smoothed(render(seed, 224, findings=[]).image, 2)
        faint.append(np.abs(smoothed(render(seed, 224, findings=[finding], strength=0.0).image, 2) - without).mean())
        plain.append(np.abs(smoothed(render(seed, 224, findings=[finding], strength=1.0).image, 2) - without).mean())
    assert np.mean(plain) > 0.15
    assert finding == "Cardiomegaly" or np.mean(plain) > 1.15 * np.mean(faint)  # a heart's size is drawn, not graded


def lung_brightness(phantom: Phantom, box: tuple[str, float, float, float, float]) -> float:
    _, x, y, width, height = box
    inner = phantom.image[
        int(y + 0.3 * height) : int(y + 0.7 * height) + 1, int(x + 0.3 * width) : int(x + 0.7 * width) + 1
    ]
    return float(inner.mean())


@pytest.mark.parametrize("finding", ["Mass", "Nodule", "Pneumonia", "Effusion", "Infiltration"])
def test_the_box_lies_on_the_opacity(finding: str) -> None:
    gains = []
    for seed in range(60, 67):
        with_it = render(seed, 448, findings=[finding], strength=1.0)
        (box,) = with_it.boxes
        assert box[0] == finding and box[3] > 0 and box[4] > 0
        assert min(box[1:]) >= 0 and box[1] + box[3] <= 448 and box[2] + box[4] <= 448
        gains.append(lung_brightness(with_it, box) - lung_brightness(render(seed, 448, findings=[]), box))
    assert np.median(gains) > 6


def test_a_pneumothorax_darkens_its_rim() -> None:
    changes = []
    for seed in range(80, 87):
        with_it, without = (render(seed, 448, findings=names, strength=1.0) for names in (["Pneumothorax"], []))
        _, x, y, width, height = with_it.boxes[0]
        area = slice(int(y), int(y + height)), slice(int(x), int(x + width))
        changed = with_it.image[area].astype(int) - without.image[area]
        changes.append((changed < -6).mean() - 0.02)
    assert np.median(changes) > 0.08


def test_a_large_heart_is_as_wide_as_its_box() -> None:
    for seed in (7, 8, 9):
        _, _, _, width, _ = render(seed, findings=["Cardiomegaly"]).boxes[0]
        assert width / 448 > 0.3


def test_only_the_eight_findings_with_real_boxes_have_one() -> None:
    phantom = render(11, findings=CHESTXRAY14)
    assert all(phantom.labels) and {box[0] for box in phantom.boxes} == set(BOXED)
    assert render(11, findings=[]).findings == ()


def test_pictures_use_the_gray_scale() -> None:
    for seed in TEST_SEEDS[:10]:
        image = render(seed, 224).image
        assert 20 < image.mean() < 200 and image.std() > 30
        assert (image == 255).mean() < 0.35


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [({"seed": -1}, "seed"), ({"seed": 1, "size": 8}, "size"), ({"seed": 1, "findings": ["Cold"]}, "Cold")],
)
def test_wrong_use_is_named(arguments: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        render(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [97, 448])
def test_the_boxes_alone_are_those_of_the_picture(size: int) -> None:
    assert [boxes_of(seed, size) for seed in range(30)] == [render(seed, size).boxes for seed in range(30)]
