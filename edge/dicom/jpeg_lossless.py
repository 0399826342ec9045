"""JPEG lossless, Huffman coded, of one component (ITU-T T.81, process 14: annexes F.1.2.1, F.2.2.3, H).

Written here because the decoder at hand, GDCM's, ends the process on some damaged streams and returns pixels for
others. Huffman codes follow each other at unknown places, which a plain loop finds bit by bit. Here the length of the
code that would start is looked up for every bit of the scan at once; one short loop then hops from code to code, and
the rest (additional bits, prediction) is again done on whole arrays.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge.codestream import Frame, jpeg_segments
from edge.errors import InputRefusedError

_DHT, _DRI, _SOS = 0xC4, 0xDD, 0xDA
_CHUNK_BYTES = 1 << 17
"""Scan bytes worked on at once: 8 bits each, with some 8 bytes of intermediate arrays a bit."""
_NO_CODE = 255
"""Advance at bits that begin no code: longer than any true one (16 bits of code, 15 additional)."""


class _Table(NamedTuple):
    """For each 16 bits that may follow: what the code at their beginning says. (65536,) uint8 each."""

    length: NDArray[np.uint8]
    category: NDArray[np.uint8]
    advance: NDArray[np.uint8]
    """Bits of the code and of what belongs to it."""


def decode_jpeg_lossless(data: bytes, frame: Frame) -> NDArray[np.uint16]:
    """(H, W) uint16 samples of a stream whose header is `frame`. Raises `InputRefusedError` if it is damaged."""
    tables: dict[int, _Table] = {}
    header, interval, start = b"", 0, 0
    for marker, body, end in jpeg_segments(data):
        if marker == _DHT:
            tables.update(_read_tables(body))
        elif marker == _DRI and len(body) == 2:
            interval = int.from_bytes(body, "big")
        elif marker == _SOS:
            header, start = body, end
    if len(header) != 6 or header[0] != 1 or header[2] >> 4 not in tables or not 1 <= header[3] <= 7:
        raise _damaged()
    table, predictor, shift = tables[header[2] >> 4], header[3], header[5] & 15
    precision = frame.precision - shift
    if interval % frame.columns or precision < 1:
        raise _damaged()
    band_rows = interval // frame.columns or frame.rows
    scans = _split_scan(data[start:])
    if len(scans) != -(-frame.rows // band_rows):
        raise _damaged()
    samples = np.empty((frame.rows, frame.columns), np.uint16)
    for index, scan in enumerate(scans):
        band = samples[index * band_rows : (index + 1) * band_rows]
        band[:] = _read_differences(scan, band.size, table).reshape(band.shape)
        band[0, :1] += np.uint16(1 << (precision - 1))  # what the first sample is predicted from (H.1.1)
        _undo_prediction(band, predictor)
    if int(samples.max()) >> precision:
        raise _damaged()
    samples <<= np.uint16(shift)
    return samples


def _read_tables(body: bytes) -> dict[int, _Table]:
    """The Huffman tables of one DHT segment by their number (B.2.4.2, C.2)."""
    tables: dict[int, _Table] = {}
    at = 0
    while at < len(body):
        counts = body[at + 1 : at + 17]
        categories = body[at + 17 : at + 17 + sum(counts)]
        if body[at] > 3 or len(counts) != 16 or len(categories) != sum(counts) or max(categories, default=17) > 16:
            raise _damaged()
        lengths = [length for length, count in enumerate(counts, 1) for _ in range(count)]
        spans = [1 << (16 - length) for length in lengths]
        if sum(spans) > 1 << 16:
            raise _damaged()
        # Codes are consecutive numbers: laid side by side, their spans fill the table from 0.
        length_of, category_of = np.zeros(1 << 16, np.uint8), np.zeros(1 << 16, np.uint8)
        length_of[: sum(spans)] = np.repeat(np.array(lengths, np.uint8), spans)
        category_of[: sum(spans)] = np.repeat(np.frombuffer(categories, np.uint8), spans)
        advance = np.where(length_of == 0, _NO_CODE, length_of + category_of % 16)  # category 16 has no additional bits
        tables[body[at]] = _Table(length_of, category_of, advance.astype(np.uint8))
        at += 17 + len(categories)
    return tables


def _split_scan(scan: bytes) -> list[bytes]:
    """The entropy-coded bytes of each restart interval, up to the end marker, without stuffing (B.1.1.5)."""
    bands: list[bytes] = []
    start = 0
    for found in re.finditer(rb"\xff+([^\x00\xff])", scan):
        bands.append(scan[start : found.start()].replace(b"\xff\x00", b"\xff"))
        start = found.end()
        if found[1] == b"\xd9":
            return bands
        if found[1][0] != 0xD0 + (len(bands) - 1) % 8:
            break
    raise _damaged()


def _read_differences(scan: bytes, count: int, table: _Table) -> NDArray[np.uint16]:
    """`count` differences, modulo 2**16. The scan must hold them all, and no more than the padding of its last byte."""
    padded = np.frombuffer(scan + b"\xff" * 8, np.uint8)
    differences = np.empty(count, np.uint16)
    done = position = 0  # differences read, bits consumed
    for start in range(0, len(scan), _CHUNK_BYTES):
        end = min(start + _CHUNK_BYTES, len(scan))
        advance = table.advance[_windows(padded, start, end)].tobytes()
        places: list[int] = []
        place, limit = position - 8 * start, 8 * (end - start)
        while place < limit:
            places.append(place)
            place += advance[place]
        found = np.array(places[: count - done], np.int64)
        if found.size:
            steps = np.frombuffer(advance, np.uint8)[found]
            if steps.max() == _NO_CODE:
                raise _damaged()
            position = 8 * start + int(found[-1]) + int(steps[-1])
            differences[done : done + found.size] = _differences_at(padded, found + 8 * start, table)
            done += found.size
    if done < count or not 0 <= 8 * len(scan) - position < 8:
        raise _damaged()
    return differences


def _windows(padded: NDArray[np.uint8], start: int, end: int) -> NDArray[np.uint16]:
    """(8 * (end - start),) uint16: the 16 bits that begin at each bit of the bytes from `start` to `end`."""
    part = padded[start : end + 2].astype(np.uint32)
    three = part[:-2] << 16 | part[1:-1] << 8 | part[2:]
    return (three[:, None] >> np.arange(8, 0, -1, dtype=np.uint32)).astype(np.uint16).reshape(-1)


def _differences_at(padded: NDArray[np.uint8], bits: NDArray[np.int64], table: _Table) -> NDArray[np.uint16]:
    """The difference whose code begins at each of `bits` (table H.2: category, then additional bits)."""
    byte, used = bits >> 3, bits & 7
    forty: NDArray[np.int64] = np.zeros(bits.shape, np.int64)  # at most 7 bits before the code, 16 of it, 15 after it
    for offset in range(5):
        forty = forty << 8 | padded[byte + offset]
    window = forty >> (24 - used) & 0xFFFF
    category = table.category[window].astype(np.int64)
    span = 1 << category
    additional = forty >> (40 - used - table.length[window] - category) & (span - 1)
    difference: NDArray[np.int64] = np.where(additional >= span >> 1, additional, additional - span + 1)
    difference[category == 16] = 1 << 15
    return difference.astype(np.uint16)


def _undo_prediction(band: NDArray[np.uint16], predictor: int) -> None:
    """Differences to samples, in place, modulo 2**16 (table H.1; the first row and column are predicted apart)."""
    band[0] = np.cumsum(band[0], dtype=np.uint16)
    for above, row in pairwise(band):
        row[:1] += above[:1]
        if predictor == 2:
            row[1:] += above[1:]
        elif predictor == 3:
            row[1:] += above[:-1]
        elif predictor >= 6:
            _undo_mixed_prediction(above, row, predictor)
        else:  # the difference to the left neighbour is known without it: sums along the row
            if predictor == 4:
                row[1:] += above[1:] - above[:-1]
            elif predictor == 5:
                row[1:] += (np.diff(above.astype(np.int32)) >> 1).astype(np.uint16)
            row[:] = np.cumsum(row, dtype=np.uint16)


def _undo_mixed_prediction(above: NDArray[np.uint16], row: NDArray[np.uint16], predictor: int) -> None:
    """Predictors 6 and 7 halve what depends on the left neighbour, so that each sample has to wait for it."""
    values, upper = row.tolist(), above.tolist()
    left = values[0]
    for column in range(1, len(values)):
        up = upper[column]
        predicted = up + ((left - upper[column - 1]) >> 1) if predictor == 6 else (left + up) >> 1
        values[column] = left = (values[column] + predicted) & 0xFFFF
    row[:] = values


def _damaged() -> InputRefusedError:
    return InputRefusedError("the DICOM's JPEG lossless data is damaged or cut short: send or export it again")
