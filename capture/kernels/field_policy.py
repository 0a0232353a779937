"""The kernel behind :mod:`capture.field_policy`: writes zeros over hidden fields, in place.

A row is one kept packet: H header bytes from the first byte of the IP header, then P payload bytes. A field may
lie past H or past what was captured; every write is clipped to the row's part, so nothing else is touched.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from capture.kernels.server_name import hide_server_names

# In the order of capture.field_policy.FIELD_GROUPS; a test holds them equal.
ADDRESSES, PORTS, CHECKSUMS, IP_ID, SEQ_ACK, TIMESTAMPS, TTL, EMBEDDED = (1, 2, 4, 8, 16, 32, 64, 128)
SERVER_NAME = 256

TCP, UDP, ICMP, ICMPV6, SCTP, ESP = 6, 17, 1, 58, 132, 50
HOP_BY_HOP, ROUTING, FRAGMENT, AH, DESTINATION = 0, 43, 44, 51, 60
OPTION_HOME_ADDRESS = 201
TCP_SACK, TCP_TIMESTAMP, TCP_MPTCP, TCP_FAST_OPEN = 5, 8, 30, 34

# Set in the first header byte of packets to the client: no IP version has it, so it collides with nothing.
TO_CLIENT_BIT = 0x80

# VXLAN (two), VXLAN-GPE, Geneve, GTP-U, Teredo, L2TP, MPLS and GRE in UDP.
TUNNEL_PORTS = (4789, 8472, 4790, 6081, 2152, 3544, 1701, 6635, 4754)


@njit(cache=True, nogil=True)
def _zero(row: Any, start: int, stop: int, limit: int) -> None:
    if stop > limit:
        stop = limit
    for i in range(start, stop):
        row[i] = 0


@njit(cache=True, nogil=True)
def _hide_ipv4(row: Any, l4: int, limit: int, hidden: int) -> None:
    if hidden & IP_ID:
        _zero(row, 4, 6, limit)
    if hidden & TTL:
        _zero(row, 8, 9, limit)
    if hidden & CHECKSUMS:
        _zero(row, 10, 12, limit)
    if hidden & ADDRESSES:
        _zero(row, 12, 20, limit)
        at = 20
        while at + 1 < min(l4, limit):  # options: kind 0 ends, 1 is one byte, others carry their length
            kind = row[at]
            if kind == 0:
                break
            if kind == 1:
                at += 1
                continue
            size = max(np.int64(row[at + 1]), 2)
            _zero(row, at + 2, min(at + size, l4), limit)
            at += size


@njit(cache=True, nogil=True)
def _hide_home_address(row: Any, start: int, stop: int, limit: int) -> None:
    at = start
    while at + 1 < min(stop, limit):
        if row[at] == 0:  # Pad1
            at += 1
            continue
        size = np.int64(row[at + 1]) + 2
        if row[at] == OPTION_HOME_ADDRESS:
            _zero(row, at + 2, min(at + size, stop), limit)
        at += size


@njit(cache=True, nogil=True)
def _hide_ipv6(row: Any, l4: int, limit: int, hidden: int) -> None:
    if hidden & IP_ID and limit > 4:  # flow label: the low 20 bits of the first word
        row[1] = row[1] & np.uint8(0xF0)
        _zero(row, 2, 4, limit)
    if hidden & TTL:
        _zero(row, 7, 8, limit)
    if hidden & ADDRESSES:
        _zero(row, 8, 40, limit)
    kind = row[6]
    at = 40
    while at + 8 <= min(l4, limit):
        following = row[at]
        size = 8
        if kind == AH:
            size = (np.int64(row[at + 1]) + 2) * 4
            if hidden & IP_ID:
                _zero(row, at + 4, min(at + size, l4), limit)
        elif kind == FRAGMENT:
            if hidden & IP_ID:
                _zero(row, at + 4, at + 8, limit)
        else:
            size = (np.int64(row[at + 1]) + 1) * 8
            if hidden & ADDRESSES:
                if kind == ROUTING:
                    _zero(row, at + 4, min(at + size, l4), limit)
                elif kind in (DESTINATION, HOP_BY_HOP):
                    _hide_home_address(row, at + 2, min(at + size, l4), limit)
        kind = following
        at += size


@njit(cache=True, nogil=True)
def _hide_tcp(row: Any, l4: int, end: int, limit: int, hidden: int) -> None:
    if hidden & SEQ_ACK:
        _zero(row, l4 + 4, l4 + 12, limit)
    if hidden & CHECKSUMS:
        _zero(row, l4 + 16, l4 + 18, limit)
    at = l4 + 20
    while at + 1 < min(end, limit):
        kind = row[at]
        if kind == 0:
            break
        if kind == 1:
            at += 1
            continue
        size = max(np.int64(row[at + 1]), 2)
        if (
            (kind == TCP_TIMESTAMP and hidden & TIMESTAMPS)
            or (kind == TCP_SACK and hidden & SEQ_ACK)
            or (kind in (TCP_MPTCP, TCP_FAST_OPEN) and hidden & ADDRESSES)
        ):
            _zero(row, at + 2, min(at + size, end), limit)
        at += size


@njit(cache=True, nogil=True)
def _hide_transport(row: Any, protocol: int, l4: int, end: int, limit: int, hidden: int) -> None:
    if protocol in (TCP, UDP, SCTP) and hidden & PORTS:
        _zero(row, l4, l4 + 4, limit)
    if protocol == TCP:
        _hide_tcp(row, l4, end, limit, hidden)
    elif protocol == UDP:
        if hidden & CHECKSUMS:
            _zero(row, l4 + 6, l4 + 8, limit)
    elif protocol == SCTP:
        if hidden & SEQ_ACK:
            _zero(row, l4 + 4, l4 + 8, limit)
        if hidden & CHECKSUMS:
            _zero(row, l4 + 8, l4 + 12, limit)
    elif protocol in (ICMP, ICMPV6):
        if hidden & CHECKSUMS:
            _zero(row, l4 + 2, l4 + 4, limit)
        echo = _is_echo(protocol, row[l4] if l4 < limit else np.uint8(255))
        if echo and hidden & IP_ID:
            _zero(row, l4 + 4, l4 + 6, limit)
        if (
            not echo and hidden & EMBEDDED
        ):  # redirect: the gateway's address; others: pointers and MTU stay unused
            _zero(row, l4 + 4, l4 + 8, limit)


@njit(cache=True, nogil=True)
def _is_echo(protocol: int, icmp_type: int) -> bool:
    if protocol == ICMP:
        return icmp_type in (0, 8)
    return icmp_type in (128, 129)


@njit(cache=True, nogil=True)
def carries_headers(protocol: int, icmp_type: int, client_port: int, server_port: int) -> bool:
    """True for a payload that may hold another packet's headers, or addresses of the network layer."""
    if protocol in (ICMP, ICMPV6):
        return not _is_echo(protocol, icmp_type)
    if protocol == UDP:
        return client_port in TUNNEL_PORTS or server_port in TUNNEL_PORTS
    return protocol not in (TCP, SCTP, ESP)


@njit(cache=True, nogil=True)
def tokens_with_policy(
    data: NDArray[np.uint8],
    flows: Any,
    packets: Any,
    n_packets: int,
    header_bytes: int,
    hidden: int,
    mark_direction: bool,
    out: NDArray[np.uint8],
) -> None:
    """Copy the first packets' bytes of each flow and hide what the policy names.

    Args:
        data: uint8 (F, M, H + P), ``FlowBatch.data``.
        flows: ``FLOW_DTYPE`` (F,).
        packets: ``PACKET_DTYPE`` (F, K).
        n_packets: packets of each flow to copy, <= M.
        header_bytes: H.
        hidden: ``FieldPolicy.bits()``.
        mark_direction: set ``TO_CLIENT_BIT`` in the first byte of packets to the client.
        out: uint8 (F, n_packets * (H + P)), zeros; written.
    """
    width = data.shape[2]
    for f in range(data.shape[0]):
        flow = flows[f]
        protocol = np.int64(flow["protocol"])
        for k in range(min(np.int64(flow["n_kept"]), n_packets)):
            source = data[f, k]
            row = out[f, k * width : (k + 1) * width]
            for i in range(width):
                row[i] = source[i]
            packet = packets[f, k]
            l4 = np.int64(packet["l4_offset"])
            end = np.int64(packet["header_len"])
            icmp_type = row[l4] if l4 < header_bytes else np.uint8(255)
            # The header's own version: a fragment of a tunnel's packet may be of another than the flow inside.
            if header_bytes > 0 and row[0] >> 4 == 4:
                _hide_ipv4(row, l4, header_bytes, hidden)
            else:
                _hide_ipv6(row, l4, header_bytes, hidden)
            _hide_transport(row, protocol, l4, end, header_bytes, hidden)
            if hidden & EMBEDDED and carries_headers(
                protocol, icmp_type, flow["client_port"], flow["server_port"]
            ):
                for i in range(header_bytes, width):
                    row[i] = 0
            if mark_direction and header_bytes > 0 and packet["direction"] == 1:
                row[0] = row[0] | np.uint8(TO_CLIENT_BIT)
        if hidden & SERVER_NAME and protocol == TCP and width > header_bytes:
            n_kept = min(np.int64(flow["n_kept"]), n_packets)
            hide_server_names(packets[f], n_kept, header_bytes, width, out[f])
