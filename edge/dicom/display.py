"""The grayscale pipeline of DICOM as one table: modality, VOI, polarity (PS3.3 C.11.1, C.11.2, C.7.6.3)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge.dicom.reader import DataSet
from edge.errors import InputRefusedError
from edge.grayscale import Stored, full_range, patterns_present, scale_to_byte, to_byte

MODALITY_LUT_SEQUENCE = 0x0028_3000
VOI_LUT_SEQUENCE = 0x0028_3010
_LUT_DESCRIPTOR, _LUT_DATA = 0x0028_3002, 0x0028_3006
WINDOW_CENTER, WINDOW_WIDTH, VOI_LUT_FUNCTION = 0x0028_1050, 0x0028_1051, 0x0028_1056
RESCALE_INTERCEPT, RESCALE_SLOPE = 0x0028_1052, 0x0028_1053
PIXEL_PADDING_VALUE, PIXEL_PADDING_RANGE_LIMIT = 0x0028_0120, 0x0028_0121

WANTED = (
    *(MODALITY_LUT_SEQUENCE, VOI_LUT_SEQUENCE, WINDOW_CENTER, WINDOW_WIDTH, VOI_LUT_FUNCTION),
    *(RESCALE_INTERCEPT, RESCALE_SLOPE, PIXEL_PADDING_VALUE, PIXEL_PADDING_RANGE_LIMIT),
)

Values = NDArray[np.float64]


def display_table(data_set: DataSet, stored: Stored, bits: int, signed: bool, inverted: bool) -> NDArray[np.uint8]:
    """(256,) or (65536,) uint8: the gray of each bit pattern that a pixel of `stored` can have.

    `bits` is Bits Stored, `signed` the Pixel Representation, `inverted` tells MONOCHROME1. Bits above `bits` (overlays
    of old files) are ignored. Padding is black. Raises `InputRefusedError` for a declaration that cannot be followed.
    """
    patterns = np.arange(1 << 8 * stored.itemsize) & ((1 << bits) - 1)
    values = np.where(patterns >> (bits - 1) == 1, patterns - (1 << bits), patterns) if signed else patterns
    padding = _is_padding(data_set, values, signed)
    modality = _apply_modality(data_set, values.astype(np.float64), signed)
    gray = _apply_voi(data_set, modality, stored, bits, padding)
    if inverted:
        gray = 255 - gray
    gray[padding] = 0
    return gray


def _is_padding(data_set: DataSet, values: NDArray[np.int64], signed: bool) -> NDArray[np.bool_]:
    """Which values pad the image to a rectangle (PS3.3 C.7.5.1.1.2): one, or a range with both its ends."""
    value = data_set.short(PIXEL_PADDING_VALUE, "Pixel Padding Value", signed)
    if value is None:
        return np.zeros(values.shape, np.bool_)
    limit = data_set.short(PIXEL_PADDING_RANGE_LIMIT, "Pixel Padding Range Limit", signed)
    low, high = sorted((value, value if limit is None else limit))
    return (low <= values) & (values <= high)


def _apply_modality(data_set: DataSet, values: Values, signed: bool) -> Values:
    """Modality LUT if there is one, else rescale (C.11.1)."""
    if items := data_set.items(MODALITY_LUT_SEQUENCE):
        output, _ = _apply_lut(items[0], "Modality LUT", values)
        return output
    slope = data_set.number(RESCALE_SLOPE, "Rescale Slope")
    intercept = data_set.number(RESCALE_INTERCEPT, "Rescale Intercept")
    if slope == 0:
        raise InputRefusedError("the DICOM's Rescale Slope is 0, which leaves no image: correct it, or export it again")
    return values * (1.0 if slope is None else slope) + (intercept or 0.0)


def _apply_voi(
    data_set: DataSet, values: Values, stored: Stored, bits: int, padding: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """First VOI LUT, else first window, else the full range (C.11.2)."""
    if items := data_set.items(VOI_LUT_SEQUENCE):
        output, depth = _apply_lut(items[0], "VOI LUT", values)
        return scale_to_byte(output, 0, (1 << depth) - 1)
    center = data_set.number(WINDOW_CENTER, "Window Center")
    width = data_set.number(WINDOW_WIDTH, "Window Width")
    if center is not None and width is not None:
        return _apply_window(values, center, width, data_set.text(VOI_LUT_FUNCTION) or "LINEAR")
    if center is not None or width is not None:
        raise InputRefusedError(
            "the DICOM has only one of Window Center and Window Width: add the other, or remove both"
        )
    if bits <= 8:
        return scale_to_byte(values, float(values.min()), float(values.max()))
    return scale_to_byte(values, *full_range(values[patterns_present(stored) & ~padding]))


def _apply_window(values: Values, center: float, width: float, function: str) -> NDArray[np.uint8]:
    """C.11.2.1.2 (LINEAR), C.11.2.1.3 (SIGMOID, LINEAR_EXACT)."""
    if width < 1 if function == "LINEAR" else width <= 0:
        raise InputRefusedError(
            f"the DICOM's Window Width is {width:g}, too small for {function}: correct the window, or remove it"
        )
    if function == "LINEAR":
        offset = values - (center - 0.5)
        if width == 1:  # a step: the quotient would be 0/0
            return to_byte((offset > 0).astype(np.float64))
        return to_byte(offset / (width - 1) + 0.5)
    if function == "LINEAR_EXACT":
        return to_byte((values - center) / width + 0.5)
    if function == "SIGMOID":
        return to_byte(1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700))))
    raise InputRefusedError("the DICOM's VOI LUT Function is none of LINEAR, LINEAR_EXACT, SIGMOID: correct it")


def _apply_lut(item: DataSet, name: str, values: Values) -> tuple[Values, int]:
    """`values` through the table of `item`, and its entries' bits. Values outside take the first or last entry."""
    descriptor = item.shorts(_LUT_DESCRIPTOR, f"{name} Descriptor")
    if len(descriptor) != 3 or _LUT_DATA not in item:
        raise InputRefusedError(f"the DICOM's {name} lacks its descriptor or its data: export the image again")
    count, first, bits = descriptor[0] or 65536, descriptor[1], descriptor[2]
    if not 8 <= bits <= 16:
        raise InputRefusedError(
            f"the DICOM's {name} has entries of {bits} bits, expected 8 to 16: export the image again"
        )
    # The sign of the first value follows from the values mapped; where the VR is lost or wrong, they tell it.
    if first >= 0x8000 and (item.vr(_LUT_DESCRIPTOR) == "SS" or values.max() < first):
        first -= 0x10000
    data = item.value(_LUT_DATA)
    if len(data) % 2:
        raise InputRefusedError(f"the DICOM's {name} has an odd number of bytes: the file is damaged; send it again")
    words = np.frombuffer(data, f"{item.order(_LUT_DATA)}u2")
    if bits == 8 and words.size == (count + 1) // 2:  # two entries a word, the first in its low byte
        entries = words.astype("<u2").view(np.uint8)[:count].astype(np.float64)
    else:
        entries = words.astype(np.float64)
    if entries.size != count:
        raise InputRefusedError(f"the DICOM's {name} declares {count} entries and has {entries.size}: export it again")
    index = np.clip(np.rint(values) - first, 0, count - 1).astype(np.int64)
    return entries[index], bits
