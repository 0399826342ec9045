"""One compressed DICOM frame to samples, by the decoders that pydicom maintains or adopts.

Kept apart from the rest of the DICOM code, so that the process that holds GDCM loads nothing but pydicom.
"""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder

PLUGINS: dict[str, tuple[str, str]] = {
    "1.2.840.10008.1.2.4.57": ("gdcm", "'mdconv-edge[gdcm]'"),  # JPEG lossless
    "1.2.840.10008.1.2.4.70": ("gdcm", "'mdconv-edge[gdcm]'"),  # JPEG lossless, first-order prediction
    "1.2.840.10008.1.2.4.80": ("pyjpegls", "pyjpegls"),  # JPEG-LS lossless
    "1.2.840.10008.1.2.4.81": ("pyjpegls", "pyjpegls"),  # JPEG-LS near-lossless
    "1.2.840.10008.1.2.4.90": ("pylibjpeg", "pylibjpeg pylibjpeg-openjpeg"),  # JPEG 2000 lossless
    "1.2.840.10008.1.2.4.91": ("pylibjpeg", "pylibjpeg pylibjpeg-openjpeg"),  # JPEG 2000
    "1.2.840.10008.1.2.5": ("pydicom", "pydicom"),  # RLE
}
"""By transfer syntax: pydicom's name of the one decoder that is used, and what pip installs to bring it."""


class EncodedFrame(NamedTuple):
    """One frame of one sample a pixel, and what its stream says of itself (not what the data set says)."""

    transfer_syntax: str
    data: bytes
    rows: int
    columns: int
    precision: int
    """Bits a sample, 1 to 16; 8 or fewer take one byte, more take two."""


def missing_packages(transfer_syntax: str) -> str:
    """What pip must install before a frame of `transfer_syntax` can be decoded; empty if it can."""
    plugin, packages = PLUGINS[transfer_syntax]
    there = _gdcm_loads() if plugin == "gdcm" else plugin in get_decoder(transfer_syntax).available_plugins
    return "" if there else packages


@functools.cache
def _gdcm_loads() -> bool:
    """Whether GDCM can be loaded; tried in a process of its own, as it is used in one."""
    done = subprocess.run(
        [sys.executable, "-c", "import gdcm"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        cwd=Path(__file__).resolve().parents[1],  # where -c looks first, and so does the process that decodes
    )
    return done.returncode != 1  # an ImportError; a signal to the daemon's whole group is no answer


def decode_frame(frame: EncodedFrame) -> bytes:
    """The samples, little-endian, row by row. Raises whatever pydicom or the decoder raises if the data is damaged."""
    buffer, _ = get_decoder(frame.transfer_syntax).as_buffer(
        encapsulate([frame.data], has_bot=False),
        index=0,
        decoding_plugin=PLUGINS[frame.transfer_syntax][0],
        rows=frame.rows,
        columns=frame.columns,
        number_of_frames=1,
        samples_per_pixel=1,
        photometric_interpretation="MONOCHROME2",
        bits_allocated=8 if frame.precision <= 8 else 16,
        bits_stored=frame.precision,
        pixel_representation=0,
    )
    return bytes(buffer)
