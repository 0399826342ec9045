"""The identity of a DICOM file, by which an image is known again that comes in another coding."""

from __future__ import annotations

import re

from edge.dicom.reader import read_file
from edge.errors import InputRefusedError

_SOP_INSTANCE_UID = 0x0008_0018
_LONGEST_UID = 64


def sop_instance(content: bytes) -> str | None:
    """The SOP Instance UID of a DICOM file's content; None if it has no valid one (PS3.5 section 9.1)."""
    try:
        value = read_file(content, [_SOP_INSTANCE_UID], max_bytes=4 * len(content)).data_set.text(_SOP_INSTANCE_UID)
    except (InputRefusedError, MemoryError):
        return None  # it will be refused with its reason when it is decoded
    return value if len(value) <= _LONGEST_UID and re.fullmatch(r"[0-9]+(\.[0-9]+)+", value) else None
