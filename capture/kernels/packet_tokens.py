"""The kernel behind :mod:`capture.representations.packets`: kept packets to columns of numbers, flags and bytes.

F flows, K packets, M packets whose bytes are kept (as their field policy left them), P payload bytes of each.
"""

from __future__ import annotations

from typing import Any, Final

from numba import njit

from capture.kernels.field_policy import ICMP, ICMPV6, TCP, carries_headers

# Columns of `numbers`, int32.
IP_LEN, PAYLOAD_LEN, GAP_US, GAP_SAME_US, WINDOW, N_NUMBERS = 0, 1, 2, 3, 4, 5
# Columns of `flags`, uint8.
DIRECTION, PROTOCOL, TCP_FLAGS, TOS, OPTIONS, ORDER, ICMP_TYPE, TTL, PORT, N_SHOWN = (
    0,
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    9,
)
N_FLAGS: Final = 10

IN_ORDER, AGAIN, AHEAD = 0, 1, 2  # of ORDER
FIN, SYN = 1, 2

LARGEST = 2**31 - 1
OPTION_BIT = (
    0,
    0,
    1,
    2,
    4,
    8,
    0,
    0,
    16,
)  # by kind: 2 MSS, 3 window scale, 4 SACK permitted, 5 SACK, 8 time stamp
OTHER_OPTION, OPTIONS_SEEN = 32, 128


@njit(cache=True, nogil=True)
def _options(row: Any, start: int, stop: int) -> int:
    """Bits of the TCP options in row[start:stop]."""
    bits = OPTIONS_SEEN
    at = start
    while at < stop:
        kind = row[at]
        if kind == 0:
            break
        if kind == 1:
            at += 1
            continue
        bits |= OPTION_BIT[kind] if kind in (2, 3, 4, 5, 8) else OTHER_OPTION
        if at + 1 >= stop:
            break
        at += max(int(row[at + 1]), 2)
    return bits


@njit(cache=True, nogil=True)
def _ttl_class(ttl: int) -> int:
    """The value that a stack begins with: 1 to 32, 2 to 64, 3 to 128, 4 above."""
    if ttl <= 32:
        return 1
    if ttl <= 64:
        return 2
    return 3 if ttl <= 128 else 4


@njit(cache=True, nogil=True)
def _order(expected: Any, direction: int, seq: int, flags: int, payload_len: int) -> int:
    """Where a TCP segment lies; ``expected`` int64 (2,), the next sequence number or -1, is moved on."""
    span = payload_len + ((flags & SYN) >> 1) + (flags & FIN)
    end = (seq + span) & 0xFFFFFFFF
    if expected[direction] < 0:
        expected[direction] = end
        return IN_ORDER
    ahead = (seq - expected[direction]) & 0xFFFFFFFF
    if ahead == 0:
        expected[direction] = end
        return IN_ORDER
    if ahead < 0x80000000:
        expected[direction] = end
        return AHEAD
    if 0 < ((end - expected[direction]) & 0xFFFFFFFF) < 0x80000000:
        expected[direction] = end
    return AGAIN


@njit(cache=True, nogil=True)
def packet_columns(
    records: Any,
    packets: Any,
    clean: Any,
    header_bytes: int,
    show_ttl: bool,
    show_port: bool,
    hide_embedded: bool,
    numbers: Any,
    flags: Any,
    shown: Any,
) -> None:
    """Fill the columns of F flows; rows without a packet stay as they are (zero).

    Args:
        records: ``FLOW_DTYPE`` (F,).
        packets: ``PACKET_DTYPE`` (F, >= K).
        clean: uint8 (F, M, header_bytes + P), with hidden fields zero.
        header_bytes: of a row of ``clean``.
        show_ttl: whether TTL may be seen.
        show_port: whether ports may be seen.
        hide_embedded: whether payloads that hold other packets' headers are not shown.
        numbers: int32 (F, K, N_NUMBERS), out.
        flags: uint8 (F, K, N_FLAGS), out.
        shown: uint8 (F, K, P), out.
    """
    n_packets = numbers.shape[1]
    n_payload = shown.shape[2]
    for f in range(len(records)):
        record = records[f]
        n = min(int(record["n_kept"]), n_packets)
        newest = records[f]["first_ts_ns"]
        newest_same = [newest, newest]
        expected = [-1, -1]
        for k in range(n):
            packet = packets[f, k]
            direction = int(packet["direction"])
            ts_ns = packet["ts_ns"]
            if k == 0:
                newest = ts_ns
                newest_same[0] = ts_ns
                newest_same[1] = ts_ns
            # Time that runs backwards is no gap; the newest time stays.
            gap_us = max(ts_ns - newest, 0) // 1000
            gap_same_us = max(ts_ns - newest_same[direction], 0) // 1000
            newest = max(newest, ts_ns)
            newest_same[direction] = max(newest_same[direction], ts_ns)
            numbers[f, k, IP_LEN] = min(packet["ip_len"], LARGEST)
            numbers[f, k, PAYLOAD_LEN] = min(packet["payload_len"], LARGEST)
            numbers[f, k, GAP_US] = min(gap_us, LARGEST)
            numbers[f, k, GAP_SAME_US] = min(gap_same_us, LARGEST)
            numbers[f, k, WINDOW] = packet["tcp_window"]
            flags[f, k, DIRECTION] = 1 + direction
            flags[f, k, PROTOCOL] = record["protocol"]
            flags[f, k, TCP_FLAGS] = packet["tcp_flags"]
            flags[f, k, TOS] = packet["tos"]
            if record["protocol"] == TCP:
                flags[f, k, ORDER] = _order(
                    expected,
                    direction,
                    int(packet["tcp_seq"]),
                    int(packet["tcp_flags"]),
                    int(packet["payload_len"]),
                )
            if show_ttl:
                flags[f, k, TTL] = _ttl_class(int(packet["ttl"]))
            if show_port:
                port = int(record["server_port"])
                flags[f, k, PORT] = 1 + port % 255 if port < 32768 else 0
            if k >= clean.shape[1]:
                continue
            if record["protocol"] == TCP:
                start = int(packet["l4_offset"]) + 20
                flags[f, k, OPTIONS] = _options(
                    clean[f, k], min(start, header_bytes), min(int(packet["header_len"]), header_bytes)
                )
            icmp_type = 255
            if record["protocol"] == ICMP or record["protocol"] == ICMPV6:
                if int(packet["l4_offset"]) < header_bytes:
                    icmp_type = int(clean[f, k, int(packet["l4_offset"])])
                flags[f, k, ICMP_TYPE] = min(icmp_type + 1, 255)
            if hide_embedded and carries_headers(
                record["protocol"], icmp_type, record["client_port"], record["server_port"]
            ):
                continue
            n_shown = min(int(packet["payload_len"]), n_payload)
            flags[f, k, N_SHOWN] = n_shown
            for i in range(n_shown):
                shown[f, k, i] = clean[f, k, header_bytes + i]
