"""The guard: refuses what the network was not made for, and says why.

Three fences, in the order in which an image meets them: what its DICOM tags say (`edge.dicom.scope`), what its gray
levels are (`ImageLimits`), and how far it is, as the network sees it, from the images that the bundle was calibrated on
(`Guard`). The first two need no network. The distance is fitted when a bundle is built (`build_engine.guard_fit`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.bundle import GUARD, Bundle
from edge.errors import BundleError, InputRefusedError
from edge.guard_features import Vector, feature_groups

GUARD_VERSION = 1
"""Raised when the features or the score change: a bundle's figures belong to the version that they were fitted with."""
SCORE = "Mahalanobis distance"
NO_GUARD_HELP = "answer on images that the network was not made for, too; every result says so"
BLACK, WHITE = 2, 253
"""Gray levels up to, and from which, a pixel is at an end of the range; JPEG leaves them a little off the very end."""
_ENDS = np.isin(np.arange(256), (*range(BLACK + 1), *range(WHITE, 256))).astype(np.uint8)
_EDGE_SHARE = 0.95
"""A row or column with more of its pixels at an end is outside the picture: collimation, or a border."""
_SAMPLE_SIDE = 512
"""Pixels along the shorter side that the gray levels are judged by, about."""


@dataclass(frozen=True)
class ImageLimits:
    """What a gray image may be like. The bundle's manifest holds them; these are the values of one that does not."""

    max_aspect: float = 2.0
    """Longer side by the shorter one. The image is stretched to a square: beyond this no chest keeps its shape."""
    min_gray_range: int = 16
    """Gray levels from the 1st to the 99th percentile, of 255."""
    min_entropy: float = 2.0
    """Bits a pixel, of 8: below it an image is a page, a drawing, or all but empty."""
    max_saturated: float = 0.6
    """Share of pixels that are black or white, inside what is left when border rows and columns are taken off."""

    @classmethod
    def from_manifest(cls, entry: Mapping[str, Any]) -> ImageLimits:
        """The limits of the manifest's ``guard.image``. Raises `BundleError` for an entry that is none."""
        names = {field.name for field in fields(cls)}
        if set(entry) != names or not all(type(value) in (int, float) for value in entry.values()):
            raise BundleError(
                f"the manifest's guard has image limits {sorted(entry)}, expected numbers for {sorted(names)}: "
                "build the bundle with this version of mdconv-edge, or install the version that built it"
            )
        return cls(**entry)


def check_image(gray: NDArray[np.uint8], limits: ImageLimits) -> None:
    """Refuse a gray image (H, W) that no radiograph looks like. Raises `InputRefusedError`."""
    import cv2  # loads with the decoders, while the backend is being opened

    rows, columns = gray.shape
    if max(rows, columns) > limits.max_aspect * min(rows, columns):
        raise InputRefusedError(
            f"the image has {columns} x {rows} pixels, one side more than {limits.max_aspect:g} times the other, and "
            "would be stretched to a square: send the chest alone, cut to its own shape"
        )
    step = max(1, min(rows, columns) // _SAMPLE_SIDE)
    sample = np.ascontiguousarray(gray[::step, ::step])
    shares = cv2.calcHist([sample], [0], None, [256], [0, 256]).ravel().astype(np.float64) / sample.size
    low, high = np.searchsorted(np.cumsum(shares), (0.01, 0.99))
    present = shares[shares > 0]
    entropy = float(-(present * np.log2(present)).sum())
    if high - low < limits.min_gray_range or entropy < limits.min_entropy:
        raise InputRefusedError(
            f"the image is all but empty: it has {high - low} gray levels of contrast and {entropy:.1f} bits a pixel, "
            f"expected at least {limits.min_gray_range} and {limits.min_entropy:g}: export it with its window, or send "
            "the radiograph itself"
        )
    saturated = _saturated(sample)
    if saturated > limits.max_saturated:
        raise InputRefusedError(
            f"{saturated:.0%} of the image's pixels, borders apart, are black or white, expected at most "
            f"{limits.max_saturated:.0%}: the window has cut off what the image shows; export it with the right one"
        )


def _saturated(gray: NDArray[np.uint8]) -> float:
    """Share of pixels at an end of the range, in the rectangle from the first to the last row and column that is not.

    So a radiograph in a black or white frame is judged by what is in the frame.
    """
    import cv2

    ends = cv2.LUT(gray, _ENDS)
    by_row, by_column = (
        cv2.reduce(ends, axis, cv2.REDUCE_SUM, dtype=cv2.CV_32S).ravel() / ends.shape[axis] for axis in (1, 0)
    )
    rows, columns = np.flatnonzero(by_row <= _EDGE_SHARE), np.flatnonzero(by_column <= _EDGE_SHARE)
    if not rows.size or not columns.size:
        return 1.0
    picture = ends[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return np.count_nonzero(picture) / picture.size


@dataclass(frozen=True)
class Distance:
    """The fitted part: how far a vector of features is from those of the images that it was fitted on.

    The distance is ``|W (x - mean) / scale|``, divided by the root of the number of features: about 1 for an image of
    the same kind. `whitening` W (P, P) is a factor of the inverse covariance of the scaled features.
    """

    mean: Vector
    scale: Vector
    whitening: NDArray[np.float64]

    def __call__(self, features: Vector) -> float:
        """Of one vector (P,)."""
        deviation = (features - self.mean) / self.scale
        return float(np.linalg.norm(self.whitening @ deviation) / np.sqrt(self.mean.size))


@dataclass(frozen=True)
class Guard:
    """The guard of one bundle. Made by `from_bundle`; its calls may come from any thread."""

    limits: ImageLimits
    distance: Distance | None
    """None where the bundle has no fitted score, or the guard is off."""
    threshold: float | None
    """Largest distance that is accepted; None where it could not be measured: then nothing is refused by it."""
    off: bool = False

    @classmethod
    def from_bundle(cls, bundle: Bundle, *, off: bool = False) -> Guard:
        """The guard that `bundle` was built with, or only the image limits if it has none; with `off`, nothing.

        Raises `BundleError` for a guard that this version cannot run: none at all would be worse than a refusal.
        """
        entry = bundle.manifest.get("guard")
        if off or entry is None:
            return cls(ImageLimits(), None, None, off)
        again = "build the bundle with this version of mdconv-edge, or install the version that built it"
        if entry.get("version") != GUARD_VERSION:
            raise BundleError(
                f"the manifest's guard has version {entry.get('version')!r}, expected {GUARD_VERSION}: {again}"
            )
        limits = ImageLimits.from_manifest(entry.get("image") or {})
        threshold = entry.get("threshold")
        if threshold is not None and type(threshold) not in (int, float):
            raise BundleError(f"the manifest's guard has threshold {threshold!r}, expected a number or null: {again}")
        distance = _read_distance(bundle) if entry.get("file") is not None else None
        if distance is None and threshold is not None:
            raise BundleError(f"the manifest's guard has a threshold and no {GUARD}: {again}")
        return cls(limits, distance, threshold)

    def check_image(self, gray: NDArray[np.uint8]) -> None:
        """Refuse a gray image (H, W), as decoded, that no radiograph looks like. Raises `InputRefusedError`."""
        if not self.off:
            check_image(gray, self.limits)

    def check(
        self, pixels: NDArray[np.uint8], logits: NDArray[np.float32], cam: NDArray[np.float32] | None
    ) -> dict[str, Any] | None:
        """The result's ``guard`` of one image: `pixels` (S, S) as the network saw them, its `logits` (L,) and `cam`.

        ``{"score", "threshold", "refused", "off"}``; None where the bundle was built without a score. Raises
        `BundleError` where the network gives other outputs than it gave when the guard was fitted.
        """
        if self.off:
            return self.unscored()
        if self.distance is None:
            return None
        features = np.concatenate(list(feature_groups(pixels, logits, cam).values()))
        if features.size != self.distance.mean.size:
            raise BundleError(
                f"the guard was fitted on {self.distance.mean.size} features, this network gives {features.size}: "
                "copy the bundle again from where it was made"
            )
        score = self.distance(features)
        # Written so that a score that is no number is refused.
        refused = self.threshold is not None and not score <= self.threshold
        return {"score": round(score, 4), "threshold": self.threshold, "refused": refused, "off": False}

    def unscored(self) -> dict[str, Any] | None:
        """The ``guard`` of an image that never reached the network: None, unless the guard is off, which is said."""
        return {"score": None, "threshold": None, "refused": False, "off": True} if self.off else None


def refusal(verdict: Mapping[str, Any] | None) -> str | None:
    """The reason why a `Guard.check` refused an image; None if it did not, or did not look."""
    if verdict is None or not verdict["refused"]:
        return None
    return (
        f"the image is unlike those that the guard was fitted on: its distance is {verdict['score']:.2f}, "
        f"expected at most {verdict['threshold']:.2f}: send an upright frontal chest radiograph of the same kind"
    )


def _read_distance(bundle: Bundle) -> Distance:
    path = bundle.path(GUARD)
    if path is None:
        raise BundleError(f"{bundle.directory}: the guard's {GUARD} is not in files: copy the bundle again")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            mean, scale, whitening = (arrays[name].astype(np.float64) for name in ("mean", "scale", "whitening"))
    except (KeyError, OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read ({error}): build the bundle anew") from None
    if mean.ndim != 1 or scale.shape != mean.shape or whitening.shape != mean.shape * 2 or not (scale > 0).all():
        raise BundleError(
            f"{path} holds arrays of shapes {mean.shape}, {scale.shape}, {whitening.shape}, expected (P,), (P,) above "
            "0, and (P, P): build the bundle anew"
        )
    return Distance(mean, scale, whitening)
