"""The record walk of classic pcap: from a piece of the file to columns, in place.

Source: draft-ietf-opsawg-pcap, sections 4 (file header) and 5 (packet record).
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import int64, njit
from numpy.typing import NDArray

RECORD_HEADER_BYTES: Final = 16

# Which of the two lengths of a record comes first; writers before version 2.4 disagreed (libpcap, sf-pcap.c).
CAPTURED_LEN_FIRST: Final = 0
WIRE_LEN_FIRST: Final = 1
SMALLER_IS_CAPTURED: Final = 2

# Why a walk stopped.
NEEDS_BYTES: Final = 0  # the record at the returned position is not complete
COLUMNS_FULL: Final = 1  # no row left; walk on from the returned position
BAD_LENGTH: Final = 2  # the record claims more captured bytes than are possible
OTHER_FILE: Final = 3  # a pcap file header stands where a record should be: files joined with cat

_FILE_MAGICS: Final = (0xA1B2C3D4, 0xD4C3B2A1, 0xA1B23C4D, 0x4D3CB2A1)


@njit(cache=True, nogil=True)
def u32(data: NDArray[np.uint8], p: int, big_endian: bool) -> int:
    """Four bytes at ``p`` as an int64, 0 to 2**32 - 1."""
    a, b, c, d = int64(data[p]), int64(data[p + 1]), int64(data[p + 2]), int64(data[p + 3])
    if big_endian:
        return a << 24 | b << 16 | c << 8 | d
    return d << 24 | c << 16 | b << 8 | a


@njit(cache=True, nogil=True)
def walk_pcap(
    data: NDArray[np.uint8],
    begin: int,
    end: int,
    big_endian: bool,
    length_order: int,
    ns_per_fraction: int,
    max_captured_len: int,
    ts_ns: NDArray[np.int64],
    captured_len: NDArray[np.uint32],
    wire_len: NDArray[np.uint32],
    offset: NDArray[np.int64],
) -> tuple[int, int, int]:
    """Write one row per complete record of ``data[begin:end]``.

    The seconds are unsigned 32 bits (until 2106). A fraction of a second or more is added as it stands,
    because some writers do not carry it over; the sum stays below 2**63.

    Args:
        data: uint8 (m,), ``end <= m``.
        begin: first byte of a record header.
        end: behind the last valid byte.
        big_endian: byte order of the record headers.
        length_order: CAPTURED_LEN_FIRST or one of its kind.
        ns_per_fraction: 1000 for microsecond files, 1 for nanosecond files.
        max_captured_len: bytes; a record that claims more stops the walk.
        ts_ns: int64 (rows,), written; nanoseconds since the epoch.
        captured_len: uint32 (rows,), written; bytes.
        wire_len: uint32 (rows,), written; bytes.
        offset: int64 (rows,), written; where each packet begins in ``data``.

    Returns:
        Rows written, the position of the first record not written, and why the walk stopped.
    """
    n = 0
    p = begin
    while n < len(ts_ns):
        if end - p < RECORD_HEADER_BYTES:
            return n, p, NEEDS_BYTES
        seconds = u32(data, p, big_endian)
        fraction = u32(data, p + 4, big_endian)
        captured = u32(data, p + 8, big_endian)
        wire = u32(data, p + 12, big_endian)
        if length_order == WIRE_LEN_FIRST or (length_order == SMALLER_IS_CAPTURED and captured > wire):
            captured, wire = wire, captured
        if captured > max_captured_len:
            return n, p, BAD_LENGTH
        if captured == 0 and wire == 0 and seconds in _FILE_MAGICS:
            return n, p, OTHER_FILE  # a file header has zeros here (time zone, accuracy)
        if end - p - RECORD_HEADER_BYTES < captured:
            return n, p, NEEDS_BYTES
        ts_ns[n] = seconds * 1_000_000_000 + fraction * ns_per_fraction
        captured_len[n] = captured
        wire_len[n] = wire
        offset[n] = p + RECORD_HEADER_BYTES
        n += 1
        p += RECORD_HEADER_BYTES + captured
    return n, p, COLUMNS_FULL
