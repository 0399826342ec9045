"""JPEG lossless (ITU-T T.81 annex H) by GDCM."""

from __future__ import annotations

from edge.codestream import Frame
from edge.errors import InputRefusedError


def decode_lossless(data: bytes, frame: Frame) -> bytes:
    """Little-endian samples, 1 or 2 bytes each, of a JPEG lossless stream whose header was read as `frame`."""
    import gdcm

    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(data)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((frame.columns, frame.rows, 1))
    image.SetDataElement(element)
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.MONOCHROME2))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14))
    allocated = 8 if frame.precision <= 8 else 16
    image.SetPixelFormat(gdcm.PixelFormat(1, allocated, frame.precision, frame.precision - 1, 0))
    try:
        samples: str = image.GetBuffer()
    except Exception:  # GDCM raises bare C++ errors
        raise InputRefusedError("the DICOM's JPEG lossless data is damaged: send or export it again") from None
    return samples.encode("utf-8", "surrogateescape")  # GDCM hands out bytes as text
