"""The loss that teaches maps to point: against loops, finite differences, and what it does to a map."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch

from mdconv.data.cases import Box
from mdconv.location import cover, location_loss

LABELS = ("Mass", "Nodule", "Effusion")


@pytest.mark.parametrize("cells", [1, 4, 7])
@pytest.mark.parametrize("seed", range(4))
def test_cover_is_the_share_of_a_cells_pixels(cells: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = cells * 12
    boxes = []
    painted = np.zeros((3, size, size), np.float32)
    for label in (0, 2):
        (x, y), (width, height) = rng.integers(0, size - 3, 2).tolist(), rng.integers(1, size, 2).tolist()
        boxes.append(Box(LABELS[label], x, y, width, height))  # some leave the image
        painted[label, y : y + height, x : x + width] = 1
    expected = [cv2.resize(one, (cells, cells), interpolation=cv2.INTER_AREA) for one in painted]
    np.testing.assert_allclose(cover(boxes, LABELS, size, cells), np.stack(expected), atol=1e-6)


def test_cover_of_parts_of_pixels_and_of_two_boxes() -> None:
    boxes = [Box("Nodule", 1.5, 0.0, 1.0, 2.0), Box("Nodule", 0.0, 0.0, 2.0, 1.0)]
    shares = cover(boxes, LABELS, 4, 2)
    np.testing.assert_allclose(shares[1], [[0.5, 0.25], [0, 0]])
    assert not shares[[0, 2]].any()


def test_the_loss_is_that_of_a_loop() -> None:
    rng = np.random.default_rng(0)
    cam = rng.normal(0, 3, (3, 2, 4, 5)).astype(np.float32)
    covered = (rng.random((3, 2, 4, 5)) * (rng.random((3, 2, 4, 5)) < 0.3)).astype(np.float32)
    covered[0, 1] = covered[2, 0] = 0
    losses = []
    for image in range(3):
        for label in range(2):
            if not covered[image, label].any():
                continue
            weights = [math.exp(value) for value in cam[image, label].ravel().tolist()]
            inside = sum(w * c for w, c in zip(weights, covered[image, label].ravel().tolist()))
            losses.append(-math.log(inside / sum(weights)))
    assert len(losses) == 4
    loss = location_loss(torch.from_numpy(cam), torch.from_numpy(covered))
    assert loss.item() == pytest.approx(sum(losses) / 4, rel=1e-5)


def test_its_gradient_is_that_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    cam = torch.randn((2, 2, 3, 3), generator=generator, requires_grad=True)
    covered = torch.rand((2, 2, 3, 3), generator=generator)
    (slope,) = torch.autograd.grad(location_loss(cam, covered), cam)
    step = 1e-2
    for index in np.ndindex(2, 2, 3, 3):
        moved = torch.zeros_like(cam)
        moved[index] = step
        with torch.no_grad():
            rise = location_loss(cam + moved, covered) - location_loss(cam - moved, covered)
        assert rise.item() / (2 * step) == pytest.approx(slope[index].item(), abs=2e-4)


def test_without_a_box_it_is_zero_and_moves_nothing() -> None:
    cam = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = location_loss(cam, torch.zeros(2, 3, 4, 4))
    loss.backward()
    assert loss.item() == 0 and not cam.grad.any()


def test_descent_takes_the_maximum_into_the_box() -> None:
    cam = torch.zeros(1, 1, 6, 6)
    cam[..., 5, 5] = 4.0
    covered = torch.from_numpy(cover([Box("Mass", 32, 32, 64, 32)], LABELS, 192, 6)[None, :1])
    for _ in range(200):
        cam.requires_grad_()
        (slope,) = torch.autograd.grad(location_loss(cam, covered), cam)
        cam = (cam - slope).detach()
    assert divmod(int(cam.argmax()), 6) in {(1, 1), (1, 2)}
