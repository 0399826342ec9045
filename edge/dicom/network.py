"""What the DICOM server and the sender share: nothing of a patient in the log, and what a UID is.

pynetdicom, highdicom and dicomweb-client log titles, UIDs, URLs and whole exceptions; none of that may reach our log.
"""

from __future__ import annotations

import logging
import re

from edge.dicom.reader import silence_pydicom

MAX_UID = 64
_UID = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+")
_TALKATIVE = ("pynetdicom", "dicomweb_client", "highdicom", "retrying", "urllib3")


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
