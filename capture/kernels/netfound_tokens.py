"""The kernel behind :mod:`capture.representations.netfound`: kept packets to bursts of field tokens.

F flows, K packets looked at, B bursts, P packets of a burst, T tokens of a burst, H header bytes kept of a packet.
Sides: 0 the client, 1 the server, as in ``PACKET_DTYPE``; a burst is of one side.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from capture.representations.netfound_layout import (
    BURST_GAP_NS,
    CLS,
    FIRST_VALUE,
    ICMP_ROW,
    ICMPV6_ROW,
    OTHER_ROW,
    TCP_ROW,
    UDP_ROW,
)

TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58
SYN, ACK = 2, 16
TCP_HEADER, UDP_HEADER, ICMP_HEADER = 20, 8, 4  # bytes behind l4_offset that a packet with a header has

# Bits of `options`.
STRICT, HIDE_TTL, HIDE_SEQ_ACK = 1, 2, 4


@njit(cache=True, nogil=True)
def _u16(row: Any, at: int) -> Any:
    """Two bytes in network order; 0 where they were not kept."""
    if at + 1 >= row.size:
        return 0
    return np.int64(row[at]) << 8 | np.int64(row[at + 1])


@njit(cache=True, nogil=True)
def row_of(protocol: int) -> int:
    """`netfound_layout.protocol_row`, compiled."""
    if protocol == TCP:
        return TCP_ROW
    if protocol == UDP:
        return UDP_ROW
    if protocol == ICMP:
        return ICMP_ROW
    return ICMPV6_ROW if protocol == ICMPV6 else OTHER_ROW


@njit(cache=True, nogil=True)
def _header_bytes(protocol_row: int) -> int:
    if protocol_row == TCP_ROW:
        return TCP_HEADER
    if protocol_row == UDP_ROW:
        return UDP_HEADER
    return 0 if protocol_row == OTHER_ROW else ICMP_HEADER


@njit(cache=True, nogil=True)
def _relative_published(packets: Any, order: Any, side: Any, n: int, relative: Any) -> None:
    """Sequence and acknowledgement numbers as the published field extraction counts them.

    It takes the number that the second packet of the flow begins with for the server's start, whoever sent it.
    """
    base = np.int64(packets[order[0]]["tcp_seq"])
    answer = np.int64(packets[order[0]]["tcp_ack"])
    if answer == 0 and n > 1:
        answer = np.int64(packets[order[1]]["tcp_seq"])
    for i in range(n):
        k = order[i]
        seq, ack = np.int64(packets[k]["tcp_seq"]), np.int64(packets[k]["tcp_ack"])
        if side[k] == side[order[0]]:
            relative[k, 0] = (seq - base) & 0xFFFFFFFF
            is_known = answer != 0 and not (i == 0 and ack == 0)
            relative[k, 1] = (ack - answer) & 0xFFFFFFFF if is_known else 0
        else:
            relative[k, 0] = (seq - answer) & 0xFFFFFFFF
            relative[k, 1] = (ack - base) & 0xFFFFFFFF


@njit(cache=True, nogil=True)
def _relative_to_sender(packets: Any, order: Any, side: Any, n: int, relative: Any) -> None:
    """The same from where each side's numbers were first seen; nothing of the absolute numbers is left."""
    base = [-1, -1]
    for i in range(n):
        k = order[i]
        own = np.int64(side[k])
        seq, ack = np.int64(packets[k]["tcp_seq"]), np.int64(packets[k]["tcp_ack"])
        if base[own] < 0:
            base[own] = seq
        relative[k, 0] = (seq - base[own]) & 0xFFFFFFFF
        relative[k, 1] = 0
        if np.int64(packets[k]["tcp_flags"]) & ACK:
            if base[1 - own] < 0:
                base[1 - own] = ack
            relative[k, 1] = (ack - base[1 - own]) & 0xFFFFFFFF


@njit(cache=True, nogil=True)
def _sort_by_time(packets: Any, order: Any, n: int) -> None:
    """Stable; packets are nearly always in order, so insertion it is."""
    for i in range(1, n):
        moved = order[i]
        ts_ns = packets[moved]["ts_ns"]
        j = i
        while j > 0 and packets[order[j - 1]]["ts_ns"] > ts_ns:
            order[j] = order[j - 1]
            j -= 1
        order[j] = moved


@njit(cache=True, nogil=True)
def _split(
    packets: Any, order: Any, side: Any, n: int, forward: int, burst: Any, start_ns: Any, burst_side: Any
) -> int:
    """Number the bursts in the order of their first packets; at the same time the forward one is first.

    Args:
        packets: ``PACKET_DTYPE`` (>= n,), of one flow.
        order: numbers of its packets in the order of time.
        side: of each packet.
        n: packets.
        forward: the side that comes first.
        burst: number of each packet's burst, out.
        start_ns: of each burst, out.
        burst_side: of each burst, out.

    Returns:
        How many bursts there are.
    """
    n_bursts = 0
    current = [-1, -1]
    newest_ns = [packets[order[0]]["ts_ns"], packets[order[0]]["ts_ns"]]
    for i in range(n):
        k = order[i]
        own = np.int64(side[k])
        ts_ns = packets[k]["ts_ns"]
        # Unsigned: the times of a hostile capture may be further apart than int64 can tell.
        if current[own] < 0 or np.uint64(ts_ns) - np.uint64(newest_ns[own]) > np.uint64(BURST_GAP_NS):
            number = n_bursts
            n_bursts += 1
            if own == forward and number > 0 and start_ns[number - 1] == ts_ns:
                number -= 1
                for j in range(i):
                    if burst[order[j]] == number:
                        burst[order[j]] = number + 1
                start_ns[number + 1], burst_side[number + 1] = ts_ns, 1 - own
                current[1 - own] = number + 1
            current[own] = number
            start_ns[number], burst_side[number] = ts_ns, own
        newest_ns[own] = ts_ns
        burst[k] = current[own]
    return n_bursts


@njit(cache=True, nogil=True)
def _iat_ms(start_ns: int, before_ns: int, is_strict: bool) -> float:
    """As published: nanoseconds, rounded to microseconds, cut to whole milliseconds. Ours: not rounded."""
    apart = float(np.uint64(start_ns) - np.uint64(before_ns))
    if is_strict:
        return float(np.int64(np.rint(apart / 1000.0) * 1e-3))
    return apart / 1e6


@njit(cache=True, nogil=True)
def _put(ids: Any, at: int, value: int) -> int:
    ids[at] = FIRST_VALUE + value
    return at + 1


@njit(cache=True, nogil=True)
def _packet_tokens(
    ids: Any, at: int, row: Any, packet: Any, relative: Any, protocol_row: int, options: int
) -> Any:
    """Write one packet's tokens from ``ids[at]`` on; returns its IP total length."""
    is_strict = options & STRICT != 0
    l4 = np.int64(packet["l4_offset"])
    is_v4 = row[0] >> 4 == 4
    ip_header_len = (np.int64(row[0]) & 15) * 4 if is_v4 else (40 if is_strict else l4)
    tos = np.int64(packet["tos"])
    ip_len = min(np.int64(packet["ip_len"]), 0xFFFF)
    if is_strict:
        tos = tos if is_v4 else tos >> 4
        ip_len = _u16(row, 2) if is_v4 else (_u16(row, 4) + 40) & 0xFFFF
    at = _put(ids, at, ip_header_len)
    at = _put(ids, at, tos)
    at = _put(ids, at, ip_len)
    at = _put(ids, at, np.int64(row[6]) >> 5 if is_v4 else 0)
    at = _put(ids, at, 0 if options & HIDE_TTL else np.int64(packet["ttl"]))
    has_header = np.int64(packet["header_len"]) - l4 >= _header_bytes(protocol_row)
    if protocol_row == TCP_ROW:
        at = _put(ids, at, np.int64(packet["tcp_flags"]))
        at = _put(ids, at, np.int64(packet["tcp_window"]))
        for number in range(2):
            at = _put(ids, at, relative[number] >> 16)
            at = _put(ids, at, relative[number] & 0xFFFF)
        _put(ids, at, _u16(row, l4 + 18) if has_header else 0)
    elif protocol_row == UDP_ROW:
        _put(ids, at, _u16(row, l4 + 4) if has_header else 0)
    elif protocol_row != OTHER_ROW:
        kind_and_code = _u16(row, l4) if has_header else 0
        at = _put(ids, at, kind_and_code >> 8)
        _put(ids, at, kind_and_code & 0xFF)
    return ip_len


@njit(cache=True, nogil=True)
def _take_packets(
    packets: Any, n: int, protocol_row: int, options: int, one_side: bool, order: Any, side: Any
) -> int:
    """The packets that are looked at, in the order in which they came; how many."""
    taken = 0
    for k in range(n):
        packet = packets[k]
        # The published filter drops what has no transport header, that is, later fragments.
        if options & STRICT and np.int64(packet["header_len"]) - np.int64(
            packet["l4_offset"]
        ) < _header_bytes(protocol_row):
            continue
        order[taken] = k
        side[k] = 0 if one_side else packet["direction"]
        taken += 1
    return taken


@njit(cache=True, nogil=True)
def _write_flow(
    packets: Any,
    data: Any,
    protocol_row: int,
    n: int,
    forward: int,
    one_side: bool,
    options: int,
    scratch: Any,
    relative: Any,
    ids: Any,
    metadata: Any,
    shown: Any,
) -> None:
    """One flow of n packets. ``forward`` -1: the side of its first packet. Out as in :func:`netfound_tokens`."""
    order, side, burst, start_ns, burst_side = scratch[0], scratch[1], scratch[2], scratch[3], scratch[4]
    n = _take_packets(packets, n, protocol_row, options, one_side, order, side)
    if n == 0:
        return
    if protocol_row == TCP_ROW:
        if options & HIDE_SEQ_ACK:
            _relative_to_sender(packets, order, side, n, relative)
        else:
            _relative_published(packets, order, side, n, relative)
    _sort_by_time(packets, order, n)
    if forward < 0:
        forward = side[order[0]]
    n_bursts = min(_split(packets, order, side, n, forward, burst, start_ns, burst_side), ids.shape[0])
    before = [-1, -1]
    for b in range(n_bursts):
        own = burst_side[b]
        ids[b, 0] = CLS
        metadata[b, 0] = 1 if own == forward else -1
        if before[own] >= 0:
            metadata[b, 3] = _iat_ms(start_ns[b], start_ns[before[own]], options & STRICT != 0)
        before[own] = b
    n_tokens = (ids.shape[1] - 1) // shown.shape[1]
    if protocol_row != TCP_ROW:
        n_tokens = 7 if protocol_row in (ICMP_ROW, ICMPV6_ROW) else 6 if protocol_row == UDP_ROW else 5
    for i in range(n):
        k = order[i]
        b = burst[k]
        if b >= n_bursts or metadata[b, 2] >= shown.shape[1]:
            continue
        count = np.int64(metadata[b, 2])
        at = 1 + count * n_tokens
        metadata[b, 1] += _packet_tokens(ids[b], at, data[k], packets[k], relative[k], protocol_row, options)
        metadata[b, 2] += 1
        shown[b, count] = k


@njit(cache=True, nogil=True)
def netfound_tokens(
    records: Any,
    packets: Any,
    data: Any,
    n_packets: int,
    header_bytes: int,
    forward: Any,
    options: int,
    ids: Any,
    metadata: Any,
    protocol: Any,
    shown: Any,
) -> None:
    """Fill the input of F flows.

    Args:
        records: ``FLOW_DTYPE`` (F,).
        packets: ``PACKET_DTYPE`` (F, >= K).
        data: uint8 (F, >= K, >= H), each packet's header from its IP header on.
        n_packets: K.
        header_bytes: H.
        forward: int8 (F,), the side whose bursts have direction +1; -1: that of the first packet.
        options: bits ``STRICT`` (as published), ``HIDE_TTL``, ``HIDE_SEQ_ACK``.
        ids: int32 (F, B, T), zeros; out.
        metadata: float64 (F, B, 4), zeros; out: direction, bytes, packets, IAT in ms.
        protocol: int16 (F,), out.
        shown: int16 (F, B, P), -1; out: number of the packet that each place of a burst shows.
    """
    scratch = np.empty((5, max(n_packets, 1)), np.int64)
    relative = np.zeros((max(n_packets, 1), 2), np.int64)
    for f in range(len(records)):
        record = records[f]
        protocol[f] = row_of(np.int64(record["protocol"]))
        one_side = False
        if options & STRICT:
            # It tells the sides apart by 32 bits of their addresses, of IPv6 the first ones.
            at = 12 if record["ip_version"] == 4 else 0
            one_side = True
            for i in range(at, at + 4):
                one_side &= record["client"][i] == record["server"][i]
        _write_flow(
            packets[f],
            data[f, :, :header_bytes],
            np.int64(protocol[f]),
            min(np.int64(record["n_kept"]), n_packets),
            np.int64(forward[f]),
            one_side,
            options,
            scratch,
            relative,
            ids[f],
            metadata[f],
            shown[f],
        )
