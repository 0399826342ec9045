"""Images that a network for frontal chest radiographs was not made for, by kind, as gray pictures."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.data import get_testdata_file
from pydicom.dataset import FileDataset
from pydicom.pixels.processing import apply_color_lut

from edge.errors import InputRefusedError
from edge.preprocess import Preprocess, decode

Gray = NDArray[np.uint8]

OTHER_MODALITIES: Mapping[str, Sequence[str]] = {
    "CT": ("693_UNCR.dcm", "eCT_Supplemental.dcm", "explicit_VR-UN.dcm", "CT_small.dcm", "J2K_pixelrep_mismatch.dcm"),
    "MR": ("MR2_UNCR.dcm", "MR-SIEMENS-DICOM-WithOverlays.dcm", "emri_small.dcm", "MR_small.dcm"),
    "ultrasound": ("US1_UNCR.dcm", "OBXXXX1A.dcm", "color-pl.dcm", "gdcm-US-ALOKA-16.dcm", "examples_rgb_color.dcm"),
    "scintigraphy": ("JPEG2000_UNC.dcm",),
    "test patterns, other captures": ("image_dfl.dcm", "mlut_18.dcm", "vlut_04.dcm", "SC_rgb.dcm", "liver_1frame.dcm"),
}
"""Files of pydicom and pydicom-data, taken as if somebody had saved them as gray pictures."""


def strange_phantoms(phantoms: Sequence[Gray]) -> Iterator[tuple[str, list[Gray]]]:
    """Kinds of what may become of a chest radiograph, each made of all `phantoms` (S, S)."""
    rng = np.random.default_rng(0)
    changes: Mapping[str, Callable[[Gray], NDArray[Any]]] = {
        "negative": lambda image: 255 - image,
        "turned by 90 degrees": lambda image: np.rot90(image),
        "upside down": lambda image: np.rot90(image, 2),
        "mirrored": lambda image: image[:, ::-1],
        "a quarter of it": lambda image: image[: len(image) // 2, : len(image) // 2],
        "in 16 pieces, shuffled": lambda image: _shuffled(image, rng),
        "contrast 0.3": lambda image: 128 + 0.3 * (image.astype(float) - 128),
        "gamma 2.5": lambda image: 255 * (image / 255) ** 2.5,
        "blurred (sigma 4 pixels)": lambda image: cv2.GaussianBlur(image, (0, 0), 4),
        "noise (deviation 25)": lambda image: image + rng.normal(0, 25, image.shape),
    }
    for kind, change in changes.items():
        yield f"phantoms, {kind}", [_to_gray(change(image)) for image in phantoms]


def no_radiographs(size: int, count: int = 20) -> Iterator[tuple[str, list[Gray]]]:
    """`count` pictures of each kind that needs no file."""
    rng = np.random.default_rng(1)
    yield "white noise", [_to_gray(rng.integers(0, 256, (size, size))) for _ in range(count)]
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size)))
    frequency[0, 0] = 1
    clouds = [np.fft.ifft2(np.fft.fft2(rng.normal(size=(size, size))) / frequency).real for _ in range(count)]
    yield "clouds (1/f noise)", [_stretched(cloud, 0) for cloud in clouds]
    pages = []
    for number in range(count):
        page = np.full((size * 4 // 3, size), 255, np.uint8)
        for row in range(30, len(page) - 10, 28):
            words = "".join(rng.choice(list("abcdefghij klmno"), size // 14))
            cv2.putText(page, words, (10, row), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0,), 1)
        pages.append(page if number % 2 else 255 - page)
    yield "pages of text", pages


def real_radiographs() -> Iterator[tuple[str, list[Gray]]]:
    """The two of pydicom-data, less what their tags say of body part and orientation; the hand also turned and cut."""
    chest = [_without_tags(name) for name in ("RG1_UNCR.dcm", "RG1_J2KI.dcm")]
    hand = _without_tags("RG3_UNCR.dcm")
    yield "a real chest (RG1), raw and lossy JPEG 2000", chest
    side = len(hand)
    fifth = side // 5
    cut = [hand[a:b, a:b] for a, b in ((fifth, side - fifth), (0, side - fifth), (fifth, side))]
    turned = [np.rot90(hand, quarters) for quarters in range(4)]
    pictures = [*turned, *cut, hand[:, ::-1], 255 - hand]
    yield "a real extremity (RG3), also turned, cut, mirrored, negative", [np.ascontiguousarray(p) for p in pictures]


def other_modalities() -> Iterator[tuple[str, list[Gray]]]:
    """Those of pydicom's own files and of pydicom-data."""
    for kind, names in OTHER_MODALITIES.items():
        yield kind, [_as_picture(pydicom.dcmread(_path(name), force=True)) for name in names]


def of_folder(folder: Path) -> tuple[str, list[Gray]]:
    """Every picture below `folder` that OpenCV reads, or this package does, as gray; named by the folder."""
    pictures = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        gray = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        if gray is None:
            try:
                gray = decode(path, Preprocess(1))
            except InputRefusedError:
                continue
        pictures.append(np.asarray(gray, np.uint8))
    return folder.name, pictures


def _path(name: str) -> Path:
    path = get_testdata_file(name)
    if not isinstance(path, str):
        raise FileNotFoundError(f"{name}: pip install pydicom-data")
    return Path(path)


def _without_tags(name: str) -> Gray:
    dataset = pydicom.dcmread(_path(name))
    for keyword in ("BodyPartExamined", "ViewPosition", "PatientOrientation"):
        del dataset[keyword]
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return decode(buffer.getvalue(), Preprocess(1))


def _as_picture(dataset: FileDataset) -> Gray:
    """The middle frame, colours averaged, from the 0.5th to the 99.5th percentile."""
    pixels = dataset.pixel_array
    if dataset.get("NumberOfFrames", 1) not in (None, 1):
        pixels = pixels[len(pixels) // 2]
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)
    return _stretched(pixels.astype(float).mean(axis=-1) if pixels.ndim == 3 else pixels.astype(float), 0.5)


def _stretched(values: NDArray[np.float64], percent: float) -> Gray:
    low, high = np.percentile(values, (percent, 100 - percent))
    if low == high:
        low, high = values.min(), values.max()
    return _to_gray((values - low) / (high - low) * 255)


def _shuffled(image: Gray, rng: np.random.Generator) -> Gray:
    side = len(image) // 4
    pieces = [image[y * side : (y + 1) * side, x * side : (x + 1) * side] for y in range(4) for x in range(4)]
    order = rng.permutation(16)
    return np.block([[pieces[order[4 * y + x]] for x in range(4)] for y in range(4)])


def _to_gray(values: NDArray[Any]) -> Gray:
    return np.ascontiguousarray(np.rint(np.clip(values, 0, 255)).astype(np.uint8))
