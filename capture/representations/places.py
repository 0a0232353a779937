"""Where each element of a model's input comes from: which packet, which field. For explanations, not for the hot path.

F is the number of flows, H the header bytes and P the payload bytes kept of a packet.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from capture.flow_batch import FlowBatch

NOWHERE: Final = -1
"""Packet and field of an element that no packet of the flow gave."""

FIELDS: Final = (
    "version_and_direction",  # first byte of the IP header; representations may mark the direction there
    "tos",
    "ip_len",
    "ip_id",  # IPv6: flow label
    "fragment",
    "ttl",
    "protocol",
    "checksums",
    "addresses",
    "ip_options",  # IPv6: extension headers
    "ports",
    "seq_ack",
    "tcp_header_len",
    "tcp_flags",
    "tcp_window",
    "tcp_urgent",
    "tcp_options",
    "udp_len",
    "icmp_type",
    "icmp_rest",
    "transport_header",  # of any other protocol
    "payload",
    "padding",  # zeros behind a header or payload that is shorter than its share
    "payload_len",
    "size",  # of sequences of packet sizes
    "iat",  # times since the packet before
    "direction",
    "tcp_order",  # in order, sent again, ahead
)

_NUMBER: Final = {name: number for number, name in enumerate(FIELDS)}

# (first byte, byte behind the last, field), from the first byte of the IP header.
_IPV4: Final = (
    (0, 1, "version_and_direction"),
    (1, 2, "tos"),
    (2, 4, "ip_len"),
    (4, 6, "ip_id"),
    (6, 8, "fragment"),
    (8, 9, "ttl"),
    (9, 10, "protocol"),
    (10, 12, "checksums"),
    (12, 20, "addresses"),
)
_IPV6: Final = (
    (0, 1, "version_and_direction"),
    (1, 2, "tos"),
    (2, 4, "ip_id"),
    (4, 6, "ip_len"),
    (6, 7, "protocol"),
    (7, 8, "ttl"),
    (8, 40, "addresses"),
)
# From the first byte of the transport header; to its end where no byte is given.
_TRANSPORT: Final[dict[int, tuple[tuple[int, int | None, str], ...]]] = {
    6: (
        (0, 4, "ports"),
        (4, 12, "seq_ack"),
        (12, 13, "tcp_header_len"),
        (13, 14, "tcp_flags"),
        (14, 16, "tcp_window"),
        (16, 18, "checksums"),
        (18, 20, "tcp_urgent"),
        (20, None, "tcp_options"),
    ),
    17: ((0, 4, "ports"), (4, 6, "udp_len"), (6, 8, "checksums")),
    1: ((0, 2, "icmp_type"), (2, 4, "checksums"), (4, None, "icmp_rest")),
    58: ((0, 2, "icmp_type"), (2, 4, "checksums"), (4, None, "icmp_rest")),
}
_OTHER: Final[tuple[tuple[int, int | None, str], ...]] = ((0, None, "transport_header"),)


@dataclass(frozen=True, slots=True)
class TokenPlaces:
    """Origin of every element of one token array.

    Attributes:
        packet: int16, the array's shape: number of the packet in its flow, from 0; -1 where there is none.
        field: int16, the array's shape: index into ``FIELDS``; -1 where there is none.
    """

    packet: NDArray[np.int16]
    field: NDArray[np.int16]


def field_number(name: str) -> int:
    """Index of a field in ``FIELDS``."""
    return _NUMBER[name]


def byte_places(
    flows: FlowBatch, n_packets: int, header_bytes: int, payload_bytes: int, hidden: Collection[str] = ()
) -> TokenPlaces:
    """Places of the first packets' bytes, packet after packet, H header bytes and then P payload bytes of each.

    Args:
        flows: *ready* flows.
        n_packets: packets that are shown.
        header_bytes: H.
        payload_bytes: P.
        hidden: field groups of the policy; a field of the same name has no place, because a model never sees it.

    Returns:
        Arrays (F, n_packets * (H + P)).
    """
    width = header_bytes + payload_bytes
    shape = (len(flows), n_packets, width)
    packet, field = np.full(shape, NOWHERE, np.int16), np.full(shape, NOWHERE, np.int16)
    for row, record in enumerate(flows.records):
        for number in range(min(int(record["n_kept"]), n_packets)):
            packet[row, number] = number
            of_packet = flows.packets[row, number]
            field[row, number, :header_bytes] = _header_fields(record, of_packet, header_bytes)
            shown = min(int(of_packet["payload_len"]), payload_bytes)
            field[row, number, header_bytes:] = _NUMBER["padding"]
            field[row, number, header_bytes : header_bytes + shown] = _NUMBER["payload"]
    field[np.isin(field, [_NUMBER[name] for name in hidden if name in _NUMBER])] = NOWHERE
    return TokenPlaces(packet.reshape(len(flows), -1), field.reshape(len(flows), -1))


def column_places(flows: FlowBatch, n_packets: int, fields: Sequence[str]) -> TokenPlaces:
    """Places of an array with one row a packet and one column a field.

    Args:
        flows: *ready* flows.
        n_packets: K, rows of a flow.
        fields: name of each column.

    Returns:
        Arrays (F, K, columns).
    """
    there = np.arange(n_packets) < flows.records["n_kept"][:, None]
    shape = (len(flows), n_packets, len(fields))
    rows = np.where(there, np.arange(n_packets), NOWHERE).astype(np.int16)
    numbers = np.array([_NUMBER[name] for name in fields], np.int16)
    return TokenPlaces(
        np.broadcast_to(rows[:, :, None], shape).copy(),
        np.where(there[:, :, None], numbers, NOWHERE).astype(np.int16),
    )


def _header_fields(record: Any, packet: Any, header_bytes: int) -> NDArray[np.int16]:
    """Field of each header byte of one packet, int16 (H,)."""
    l4, end = int(packet["l4_offset"]), int(packet["header_len"])
    fields = np.full(max(end, header_bytes), _NUMBER["padding"], np.int16)
    fields[:l4] = _NUMBER["ip_options"]
    for start, stop, name in _IPV4 if record["ip_version"] == 4 else _IPV6:
        fields[start : min(stop, l4)] = _NUMBER[name]
    for start, limit, name in _TRANSPORT.get(int(record["protocol"]), _OTHER):
        fields[l4 + start : end if limit is None else min(l4 + limit, end)] = _NUMBER[name]
    return fields[:header_bytes]
