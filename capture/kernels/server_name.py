"""Zeros over the server name of TLS ClientHellos in the kept bytes of a flow.

A ClientHello may lie in several segments, of which only the first bytes are kept: it is followed as far as these join
up, and where that does not reach the name, all that is left of it is hidden. What is hidden is a range of sequence
numbers, so that retransmissions and segments out of order are covered. Where less than 6 of its bytes join up (as few
are kept of a payload) it is not recognised, and as few bytes of a name could show.

Source: RFC 8446, 4.1.2 and 4.2; RFC 6066, 3.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit

MAX_HELLO_BYTES: Final = 1 << 15
_STREAM_BYTES: Final = 4096
_SEQUENCE: Final = 1 << 32


@njit(cache=True, nogil=True)
def _u16(row, at):  # type: ignore[no-untyped-def]
    return np.int64(row[at]) << 8 | np.int64(row[at + 1])


@njit(cache=True, nogil=True)
def name_range(row, held):  # type: ignore[no-untyped-def]
    """Bytes [from, to) of a stream that may hold a server name; (0, 0): none.

    Args:
        row: the first bytes of the stream.
        held: how many of them.
    """
    if held < 6 or row[0] != 22 or row[1] != 3 or row[5] != 1:
        return 0, 0
    record_len = 5 + _u16(row, 3)
    total = _stream_bytes(row, held, record_len)
    # Behind the first record stands the header of the next: there the fields are not where they seem.
    seen = min(held, record_len)
    at = 9 + 2 + 32
    for length_bytes in (1, 2, 1):  # session id, cipher suites, compression
        if at + length_bytes > seen:
            return min(at, held), total
        if length_bytes == 1:
            at += 1 + np.int64(row[at])
        else:
            at += 2 + _u16(row, at)
    at += 2  # length of all extensions
    while at + 4 <= seen:
        size = _u16(row, at + 2)
        if _u16(row, at) == 0:
            stop = at + 4 + size
            return at + 2, stop if stop <= record_len else total
        at += 4 + size
        if at >= total:
            return 0, 0
    # Not reached: it lies in bytes of this packet that are not kept, or in the next segments.
    return min(at, held), total


@njit(cache=True, nogil=True)
def _stream_bytes(row, held, record_len):  # type: ignore[no-untyped-def]
    """How far a ClientHello reaches in its stream, record headers included; at least that."""
    if held < 8:
        return record_len
    last = np.int64(row[8]) if held > 8 else 255
    message_len = 4 + (np.int64(row[6]) << 16 | np.int64(row[7]) << 8 | last)
    message_len = min(message_len, MAX_HELLO_BYTES)
    room = max(record_len - 5, 1)
    n_records = (message_len + room - 1) // room
    return max(record_len, min(message_len + 5 * n_records, MAX_HELLO_BYTES))


@njit(cache=True, nogil=True)
def _gather(packets, n_packets, k, header_bytes, width, out, stream):  # type: ignore[no-untyped-def]
    """Write the stream from packet ``k`` on, as far as kept bytes join up, to ``stream``; how many bytes."""
    filled = np.int64(0)
    is_growing = True
    while is_growing:
        is_growing = False
        for j in range(k, n_packets):
            if packets[j]["direction"] != packets[k]["direction"]:
                continue
            ahead = _ahead(packets, j, k)
            held = min(width - header_bytes, np.int64(packets[j]["payload_len"]))
            if ahead < 0 or ahead > filled or ahead + held <= filled:
                continue
            last = min(ahead + held, stream.size)
            for i in range(filled, last):
                stream[i] = out[j * width + header_bytes + i - ahead]
            is_growing = last > filled
            filled = max(filled, last)
    return filled


@njit(cache=True, nogil=True)
def _ahead(packets, j, k):  # type: ignore[no-untyped-def]
    """Where packet ``j`` begins in the stream, seen from the first byte of packet ``k``."""
    ahead = np.int64(packets[j]["tcp_seq"]) - np.int64(packets[k]["tcp_seq"])
    return (ahead + _SEQUENCE // 2) % _SEQUENCE - _SEQUENCE // 2


@njit(cache=True, nogil=True)
def hide_server_names(packets, n_packets, header_bytes, width, out):  # type: ignore[no-untyped-def]
    """Hide server names in a TCP flow's kept payloads, in place.

    Args:
        packets: ``PACKET_DTYPE`` (K,), the flow's packets.
        n_packets: how many of them.
        header_bytes: H, bytes of a packet's row in front of its payload.
        width: H + P.
        out: uint8 (n_packets * width,), their rows.
    """
    for k in range(n_packets):
        if packets[k]["payload_len"] == 0 or out[k * width + header_bytes] != 22:
            continue
        stream = np.empty(_STREAM_BYTES, np.uint8)
        held = _gather(packets, n_packets, k, header_bytes, width, out, stream)
        begin, stop = name_range(stream, held)
        if begin >= stop:
            continue
        for j in range(n_packets):
            if packets[j]["direction"] != packets[k]["direction"]:
                continue
            ahead = _ahead(packets, j, k)
            at = j * width + header_bytes
            for i in range(max(begin - ahead, 0), min(stop - ahead, width - header_bytes)):
                out[at + i] = 0
