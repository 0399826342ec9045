"""What the DICOM server and the sender share: which bytes may name a patient in a log, and rules of names.

pynetdicom, highdicom and dicomweb-client log titles, UIDs, URLs and whole exceptions; none of that may reach our log.
"""

from __future__ import annotations

import logging
import re
from typing import Annotated

from pydantic import AfterValidator

from edge.dicom.reader import silence_pydicom

MAX_UID = 64
_UID = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+")
_TALKATIVE = ("pynetdicom", "dicomweb_client", "highdicom", "urllib3")


def silence_libraries() -> None:
    """Keep what the DICOM libraries log, which quotes data sets and peers, out of our log; for the process."""
    from pynetdicom import _config

    silence_pydicom()
    _config.LOG_HANDLER_LEVEL = "none"  # else it formats every message and every PDU for its log
    for name in _TALKATIVE:
        logger = logging.getLogger(name)
        logger.propagate = False
        logger.setLevel(logging.CRITICAL + 1)


def is_uid(text: str) -> bool:
    """Whether `text` is a well-formed UID (PS3.5 section 9.1)."""
    return len(text) <= MAX_UID and _UID.fullmatch(text) is not None


def _check_title(title: str) -> str:
    """PS3.5 table 6.2-1: 1 to 16 printable ASCII characters without a backslash; spaces at the ends do not count."""
    if not 1 <= len(title) <= 16 or title != title.strip() or not re.fullmatch(r"[ -\[\]-~]+", title):
        raise ValueError(
            f"the AE title {title!r} is not 1 to 16 printable ASCII characters without backslash and outer spaces"
        )
    return title


Title = Annotated[str, AfterValidator(_check_title)]
"""An application entity's title."""
