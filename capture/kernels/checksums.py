"""Checksums of IPv4, TCP and UDP (RFC 1071), for ``--check-checksums``: a wrong one rejects its packet."""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit

from capture.block import PACKET_FRAGMENT
from capture.kernels.decode import _u8, _u16
from capture.kernels.unwrap import has_bad_header_checksum
from capture.reject import Reject

# Of a DecodedBlock, in the order in which `check_rows` takes them apart.
CHECKED_COLUMNS: Final = (*("l3_offset", "l4_offset", "payload_offset", "payload_len", "protocol", "flags"),)
_BAD_IP_CHECKSUM: Final = int(Reject.BAD_IP_CHECKSUM)
_BAD_TCP_CHECKSUM: Final = int(Reject.BAD_TCP_CHECKSUM)
_BAD_UDP_CHECKSUM: Final = int(Reject.BAD_UDP_CHECKSUM)
_TCP: Final = 6
_UDP: Final = 17


@njit(cache=True, nogil=True)
def _sum(data, at, stop):  # type: ignore[no-untyped-def]
    """The 16-bit words from ``at`` on added up, a last odd byte as the high one of its word."""
    total = np.int64(0)
    while at + 1 < stop:
        total += _u16(data, at)
        at += 2
    if at < stop:
        total += _u8(data, at) << 8
    return total


@njit(cache=True, nogil=True)
def check_rows(packets, decoded, reject):  # type: ignore[no-untyped-def]
    """Reject, in place, decoded packets with a wrong checksum that can be checked.

    Args:
        packets: (data, offset, captured_len) of a PacketBlock that lies inside ``data``.
        decoded: ``CHECKED_COLUMNS``.
        reject: uint8 (n,), written.
    """
    data, offset, captured_len = packets
    l3_offset, l4_offset, payload_offset, payload_len, protocol, flags = decoded
    for i in range(reject.size):
        if reject[i] != 0:
            continue
        start = np.int64(offset[i])
        end = start + np.int64(captured_len[i])
        l3 = start + np.int64(l3_offset[i])
        l4 = start + np.int64(l4_offset[i])
        version = _u8(data, l3) >> 4  # of a fragment of a tunnel, not that of the flow
        plain_len = 20 if version == 4 else 40
        if version == 4 and has_bad_header_checksum(data, l3, (_u8(data, l3) & 15) << 2):
            reject[i] = _BAD_IP_CHECKSUM
            continue
        if flags[i] & PACKET_FRAGMENT or l4 - l3 != plain_len:
            continue
        if protocol[i] != _TCP and protocol[i] != _UDP:
            continue
        stop = start + np.int64(payload_offset[i]) + np.int64(payload_len[i])
        if stop > end:
            continue
        if protocol[i] == _UDP and version == 4 and _u16(data, l4 + 6) == 0:
            continue  # RFC 768: none was made
        # The pseudo-header: both addresses, length, protocol.
        total = _sum(data, l3 + 12, l3 + 20) if version == 4 else _sum(data, l3 + 8, l3 + 40)
        total += _sum(data, l4, stop) + (stop - l4) + np.int64(protocol[i])
        while total >> 16:
            total = (total >> 16) + (total & 0xFFFF)
        if total != 0xFFFF or (protocol[i] == _UDP and _u16(data, l4 + 6) == 0):
            reject[i] = _BAD_TCP_CHECKSUM if protocol[i] == _TCP else _BAD_UDP_CHECKSUM
