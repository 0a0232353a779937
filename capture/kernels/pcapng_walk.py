"""The block walk of pcapng: packet blocks become rows, other blocks are skipped, headers are left to Python.

Source: draft-ietf-opsawg-pcapng, section 3.1 (general block) and section 4 (the blocks).
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import int64, njit
from numpy.typing import NDArray

from capture.kernels.pcap_walk import u32  # numba's cache does not notice a change there: touch this file too

# Block types.
SECTION_HEADER: Final = 0x0A0D0D0A  # a palindrome: the same in both byte orders
INTERFACE_DESCRIPTION: Final = 1
OBSOLETE_PACKET: Final = 2
SIMPLE_PACKET: Final = 3
ENHANCED_PACKET: Final = 6

# Columns of the interface table, int64 (n_interfaces, 4).
IF_LINK_TYPE: Final = 0
IF_SNAPLEN: Final = 1  # bytes, 0 for none
IF_UNITS_PER_S: Final = 2  # 1 to MAX_UNITS_PER_S
IF_OFFSET_S: Final = 3
IF_COLUMNS: Final = 4
MAX_UNITS_PER_S: Final = (2**63 - 1) // 10

# Why a walk stopped.
NEEDS_BYTES: Final = 0  # the block at the returned position is not complete
COLUMNS_FULL: Final = 1
AT_SECTION: Final = 2  # a section header, perhaps not complete: its byte order is not known here
AT_INTERFACE: Final = 3  # a complete interface description
BAD_LENGTH: Final = 4  # a block length that is too small, too large or no multiple of 4
BAD_TRAILER: Final = 5  # the length behind the block is not the one before it
BAD_CAPTURED_LEN: Final = 6  # more captured bytes than the block has room for
BAD_INTERFACE: Final = 7  # an interface that no block has described

_SIMPLE_HEADER_BYTES: Final = 12  # type, length, wire length
_ENHANCED_HEADER_BYTES: Final = 28
_TRAILER_BYTES: Final = 4
_MAX_S: Final = 9_223_372_035  # whole seconds that fit int64 nanoseconds, a fraction added
_MIN_S: Final = -9_223_372_036


@njit(cache=True, nogil=True)
def units_to_ns(high: int, low: int, units_per_s: int, offset_s: int) -> int:
    """A 64-bit time in units of an interface, rounded down to nanoseconds since the epoch.

    Exact for every resolution. Times outside of int64 nanoseconds (1677 to 2262) become its ends.

    Args:
        high: upper half of the time, 0 to 2**32 - 1.
        low: lower half, the same.
        units_per_s: if_tsresol, 1 to MAX_UNITS_PER_S.
        offset_s: if_tsoffset, seconds.
    """
    units = high << 32 | low
    if high >= 0x80000000:
        units = int64(0x7FFFFFFFFFFFFFFF)
    seconds = units // units_per_s
    rest = units - seconds * units_per_s
    if units_per_s <= 1_000_000_000 and 1_000_000_000 % units_per_s == 0:
        ns = rest * (1_000_000_000 // units_per_s)
    else:
        ns = int64(0)
        for _ in range(9):  # long division, a decimal digit a turn; rest * 10 stays below 2**63
            rest *= 10
            digit = rest // units_per_s
            rest -= digit * units_per_s
            ns = ns * 10 + digit
    if offset_s > 0:  # the sum of two large numbers would wrap
        seconds = min(seconds, _MAX_S + 1) + min(offset_s, _MAX_S + 1)
    else:
        seconds += offset_s
    if seconds > _MAX_S:
        return int64(_MAX_S) * 1_000_000_000 + 999_999_999
    if seconds < _MIN_S:
        return int64(_MIN_S) * 1_000_000_000
    return seconds * 1_000_000_000 + ns


@njit(cache=True, nogil=True)
def least_block_bytes(kind: int) -> int:
    """The length of the shortest block of a kind, so that its fixed fields may be read."""
    if kind in (ENHANCED_PACKET, OBSOLETE_PACKET):
        return int64(_ENHANCED_HEADER_BYTES + _TRAILER_BYTES)
    if kind == SIMPLE_PACKET:
        return int64(_SIMPLE_HEADER_BYTES + _TRAILER_BYTES)
    if kind == INTERFACE_DESCRIPTION:
        return int64(20)
    return int64(12)


@njit(cache=True, nogil=True)
def walk_pcapng(
    data: NDArray[np.uint8],
    begin: int,
    end: int,
    big_endian: bool,
    max_block_bytes: int,
    interfaces: NDArray[np.int64],
    last_ts_ns: int,
    ts_ns: NDArray[np.int64],
    captured_len: NDArray[np.uint32],
    wire_len: NDArray[np.uint32],
    offset: NDArray[np.int64],
    link_type: NDArray[np.uint16],
) -> tuple[int, int, int, int]:
    """Write one row per complete packet block of ``data[begin:end]``; skip blocks of other kinds.

    Args:
        data: uint8 (m,), ``end <= m``.
        begin: first byte of a block.
        end: behind the last valid byte.
        big_endian: byte order of the section.
        max_block_bytes: a block that claims more stops the walk.
        interfaces: int64 (k, IF_COLUMNS), the interfaces of the section so far.
        last_ts_ns: time of the packet before, for simple packet blocks, which have none.
        ts_ns: int64 (rows,), written; nanoseconds since the epoch.
        captured_len: uint32 (rows,), written; bytes.
        wire_len: uint32 (rows,), written; bytes.
        offset: int64 (rows,), written; where each packet begins in ``data``.
        link_type: uint16 (rows,), written; LINKTYPE number.

    Returns:
        Rows written, the position of the first block not used, why the walk stopped, and how many rows had no time.
    """
    n = 0
    n_without_time = 0
    p = begin
    while n < len(ts_ns):
        if end - p < 8:
            return n, p, NEEDS_BYTES, n_without_time
        kind = u32(data, p, big_endian)
        if kind == SECTION_HEADER:
            return n, p, AT_SECTION, n_without_time
        length = u32(data, p + 4, big_endian)
        if length < least_block_bytes(kind) or length > max_block_bytes or length % 4 != 0:
            return n, p, BAD_LENGTH, n_without_time
        if end - p < length:
            return n, p, NEEDS_BYTES, n_without_time
        if u32(data, p + length - _TRAILER_BYTES, big_endian) != length:
            return n, p, BAD_TRAILER, n_without_time
        if kind == INTERFACE_DESCRIPTION:
            return n, p, AT_INTERFACE, n_without_time

        if kind in (ENHANCED_PACKET, OBSOLETE_PACKET):
            interface = u32(data, p + 8, big_endian)
            if kind == OBSOLETE_PACKET:  # uint16 interface, uint16 drop count
                interface = interface >> 16 if big_endian else interface & 0xFFFF
            captured = u32(data, p + 20, big_endian)
            if interface >= len(interfaces):
                return n, p, BAD_INTERFACE, n_without_time
            if captured > length - _ENHANCED_HEADER_BYTES - _TRAILER_BYTES:
                return n, p, BAD_CAPTURED_LEN, n_without_time
            last_ts_ns = units_to_ns(
                u32(data, p + 12, big_endian),
                u32(data, p + 16, big_endian),
                interfaces[interface, IF_UNITS_PER_S],
                interfaces[interface, IF_OFFSET_S],
            )
            wire_len[n] = u32(data, p + 24, big_endian)
            offset[n] = p + _ENHANCED_HEADER_BYTES
        elif kind == SIMPLE_PACKET:
            interface = int64(0)
            if len(interfaces) == 0:
                return n, p, BAD_INTERFACE, n_without_time
            wire = u32(data, p + 8, big_endian)
            captured = wire
            if interfaces[0, IF_SNAPLEN] != 0:
                captured = min(captured, interfaces[0, IF_SNAPLEN])
            if captured > length - _SIMPLE_HEADER_BYTES - _TRAILER_BYTES:
                return n, p, BAD_CAPTURED_LEN, n_without_time
            n_without_time += 1
            wire_len[n] = wire
            offset[n] = p + _SIMPLE_HEADER_BYTES
        else:
            p += length
            continue
        ts_ns[n] = last_ts_ns
        captured_len[n] = captured
        link_type[n] = interfaces[interface, IF_LINK_TYPE]
        n += 1
        p += length
    return n, p, COLUMNS_FULL, n_without_time
