"""The walk through one block of a TPACKET_V3 ring: columns, and VLAN tags put back where they were on the wire.

Source: Linux, include/uapi/linux/if_packet.h (tpacket_block_desc, tpacket3_hdr); libpcap does the same with VLAN tags.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit

# struct tpacket_block_desc
BLOCK_STATUS_AT: Final = 8
_N_PACKETS_AT: Final = 12
_FIRST_PACKET_AT: Final = 16
# struct tpacket3_hdr
_NEXT_AT: Final = 0
_SECONDS_AT: Final = 4
_NANOSECONDS_AT: Final = 8
_CAPTURED_LEN_AT: Final = 12
_WIRE_LEN_AT: Final = 16
_STATUS_AT: Final = 20
_FRAME_AT: Final = 24
_VLAN_TCI_AT: Final = 32
_VLAN_TPID_AT: Final = 36
_HEADER_BYTES: Final = 48

_VLAN_VALID: Final = 0x10
_VLAN_TPID_VALID: Final = 0x40
_DOT1Q: Final = 0x8100
_MAC_BYTES: Final = 12  # both addresses; the tag belongs behind them
_TAG_BYTES: Final = 4


@njit(cache=True, nogil=True)
def _u16(ring, at):  # type: ignore[no-untyped-def]
    return np.int64(ring[np.uint64(at)]) | np.int64(ring[np.uint64(at + 1)]) << 8


@njit(cache=True, nogil=True)
def _u32(ring, at):  # type: ignore[no-untyped-def]
    return _u16(ring, at) | _u16(ring, at + 2) << 16


@njit(cache=True, nogil=True)
def _restore_tag(ring, frame, tpid, tci):  # type: ignore[no-untyped-def]
    """Move both addresses four bytes to the front, into the room that was reserved, and write the tag behind them."""
    for i in range(_MAC_BYTES):
        ring[frame - _TAG_BYTES + i] = ring[frame + i]
    at = frame - _TAG_BYTES + _MAC_BYTES
    ring[at] = tpid >> 8
    ring[at + 1] = tpid & 0xFF
    ring[at + 2] = tci >> 8
    ring[at + 3] = tci & 0xFF


@njit(cache=True, nogil=True)
def walk_ring_block(  # type: ignore[no-untyped-def]
    ring, block_at, block_bytes, has_ethernet, ts_ns, captured_len, wire_len, offset
):
    """Write one row per packet of a block that the kernel has handed over; the packets stay where they are.

    Args:
        ring: uint8 (m,), the whole ring, little-endian as the machines that netcls runs on; written to where a VLAN
            tag is put back.
        block_at: first byte of the block.
        block_bytes: of one block.
        has_ethernet: frames begin with an Ethernet header, so that a tag has a place.
        ts_ns: int64 (rows,), written; nanoseconds since the epoch.
        captured_len: uint32 (rows,), written; bytes, with a tag that was put back.
        wire_len: uint32 (rows,), written; the same.
        offset: int64 (rows,), written; where each packet begins in ``ring``.

    Returns:
        Rows written. Fewer than the block says only if it would not be what the kernel writes.
    """
    block_end = block_at + block_bytes
    n_packets = min(_u32(ring, block_at + _N_PACKETS_AT), ts_ns.size)
    at = block_at + _u32(ring, block_at + _FIRST_PACKET_AT)
    for i in range(n_packets):
        if at < block_at or at + _HEADER_BYTES > block_end:
            return i
        captured = _u32(ring, at + _CAPTURED_LEN_AT)
        wire = _u32(ring, at + _WIRE_LEN_AT)
        status = _u32(ring, at + _STATUS_AT)
        frame = at + _u16(ring, at + _FRAME_AT)
        if frame + captured > block_end:
            return i
        if status & _VLAN_VALID and has_ethernet and captured >= _MAC_BYTES:
            tpid = _u16(ring, at + _VLAN_TPID_AT) if status & _VLAN_TPID_VALID else _DOT1Q
            _restore_tag(ring, frame, tpid, _u32(ring, at + _VLAN_TCI_AT) & 0xFFFF)
            frame -= _TAG_BYTES
            captured += _TAG_BYTES
            wire += _TAG_BYTES
        ts_ns[i] = _u32(ring, at + _SECONDS_AT) * 1_000_000_000 + _u32(ring, at + _NANOSECONDS_AT)
        captured_len[i] = captured
        wire_len[i] = wire
        offset[i] = frame
        at += _u32(ring, at + _NEXT_AT)
    return n_packets


@njit(cache=True, nogil=True)
def write_records(data, ts_ns, captured_len, wire_len, offset, out):  # type: ignore[no-untyped-def]
    """Packets as records of a little-endian nanosecond pcap, one behind the other.

    Args:
        data: uint8 (m,), where the packets lie.
        ts_ns: columns of a PacketBlock, as are the next three.
        captured_len: see ``ts_ns``.
        wire_len: see ``ts_ns``.
        offset: see ``ts_ns``.
        out: uint8 (at least 16 n + sum of captured_len,), written.

    Returns:
        Bytes written.
    """
    at = np.uint64(0)
    for i in range(ts_ns.size):
        seconds, nanoseconds = divmod(ts_ns[i], 1_000_000_000)
        n = np.int64(captured_len[i])
        for value in (seconds, nanoseconds, n, np.int64(wire_len[i])):
            for k in range(4):
                out[at] = value >> 8 * k & 0xFF
                at += np.uint64(1)
        start = np.uint64(offset[i])
        for k in range(n):
            out[at + np.uint64(k)] = data[start + np.uint64(k)]
        at += np.uint64(n)
    return np.int64(at)
