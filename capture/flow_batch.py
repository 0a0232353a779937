"""What the flow table gives: flow records, and the first packets of each flow.

F is the number of flows of a batch, K the packets whose fields are kept (``KeepSpec.n_packets``),
M the packets whose bytes are kept (``KeepSpec.n_byte_packets``).
Direction 0 is to the server (sent by the client), 1 is to the client.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray


class EndReason(IntEnum):
    """Why a flow ended: IPFIX flowEndReason (RFC 5102, 5.11.3); 0 while it is open."""

    OPEN = 0
    IDLE = 1
    ACTIVE = 2
    END_DETECTED = 3
    FORCED = 4
    LACK_OF_RESOURCES = 5


# Bits of a record's `quality`.
QUALITY_MIDSTREAM: Final = 1  # TCP whose opening (SYN or SYN-ACK) was not seen
QUALITY_TRUNCATED: Final = 2  # at least one packet was cut by the snaplen
QUALITY_ONE_WAY: Final = 4  # set at the end: packets in one direction only
QUALITY_FRAGMENTS: Final = 8  # at least one packet was a fragment
QUALITY_DIRECTION_GUESSED: Final = 16  # TCP without SYN: the client is only who was seen first
QUALITY_TIME_BACKWARDS: Final = 32  # a packet was older than the flow's newest one

# One row a flow. Bytes: `frame_bytes` are whole frames on the wire, `ip_bytes` IP total lengths,
# `payload_bytes` transport payload on the wire.
FLOW_DTYPE: Final = np.dtype(
    [
        ("serial", "<u8"),  # order of creation in this table, from 0; joins `ready` and `ended` rows
        ("flow_id", "<u8"),  # 51 bits, from the key and the first time; the same on every run
        ("first_ts_ns", "<i8"),
        ("last_ts_ns", "<i8"),
        ("packets", "<u8", (2,)),  # per direction
        ("frame_bytes", "<u8", (2,)),
        ("ip_bytes", "<u8", (2,)),
        ("payload_bytes", "<u8", (2,)),
        ("client", "u1", (16,)),
        ("server", "u1", (16,)),
        ("client_port", "<u2"),  # ICMP: type of the first packet
        ("server_port", "<u2"),  # ICMP: code of the first packet
        ("vlan", "<u2", (2,)),
        ("protocol", "u1"),
        ("ip_version", "u1"),
        ("tcp_flags", "u1", (2,)),  # all flags seen, or-ed
        ("end_reason", "u1"),
        ("quality", "u1"),
        ("n_kept", "<u2"),  # rows of `packets` that hold a packet
        ("tunnel_id", "<u4", (2,)),  # per direction, 0: not seen or none
        ("tunnel_kind", "<u4"),  # capture.tunnel.TunnelKind of the innermost tunnel
        ("tunnel_depth", "<u4"),
    ]
)

# One row a kept packet.
PACKET_DTYPE: Final = np.dtype(
    [
        ("ts_ns", "<i8"),
        ("wire_len", "<u4"),  # bytes of the frame
        ("ip_len", "<u4"),  # bytes of the IP packet on the wire
        ("payload_len", "<u4"),  # transport payload on the wire
        ("tcp_seq", "<u4"),
        ("tcp_ack", "<u4"),
        ("tcp_window", "<u2"),
        ("header_len", "<u2"),  # IP header to end of transport header, on the wire
        ("l4_offset", "<u2"),  # transport header, from the first byte of the IP header
        ("direction", "u1"),
        ("tcp_flags", "u1"),
        ("ttl", "u1"),
        ("tos", "u1"),
    ]
)


@dataclass(frozen=True, slots=True)
class KeepSpec:
    """How much of the beginning of each flow a representation needs.

    Attributes:
        n_packets: K, packets whose fields are kept; a flow is ready when it has K. 0: keep nothing.
        n_byte_packets: M <= K, packets whose bytes are kept.
        header_bytes: kept of each, from the first byte of the IP header to the end of the transport header.
        payload_bytes: kept of each, from the first byte behind the transport header.
    """

    n_packets: int = 0
    n_byte_packets: int = 0
    header_bytes: int = 0
    payload_bytes: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.n_byte_packets <= self.n_packets <= 4096:
            raise ValueError(f"need 0 <= n_byte_packets <= n_packets <= 4096, got {self}")
        if self.header_bytes < 0 or self.payload_bytes < 0:
            raise ValueError(f"kept bytes cannot be negative, got {self}")

    @property
    def row_bytes(self) -> int:
        """Bytes kept of one packet."""
        return self.header_bytes + self.payload_bytes


@dataclass(frozen=True, slots=True)
class FlowBatch:
    """Flows, either *ready* (with their first packets) or *ended* (records only; ``packets`` and ``data`` empty).

    Attributes:
        records: ``FLOW_DTYPE`` (F,).
        packets: ``PACKET_DTYPE`` (F, K); rows from ``records["n_kept"]`` on are zero.
        data: uint8 (F, M, header_bytes + payload_bytes); header first, each part cut or zero-padded on the right.
            Bytes past what the packet really holds (Ethernet padding, snaplen) are zero.
    """

    records: NDArray[Any]
    packets: NDArray[Any]
    data: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.records)

    def take(self, rows: NDArray[np.bool_]) -> FlowBatch:
        """The flows whose row is True; ``packets`` and ``data`` stay empty where they are."""
        if not len(self.packets):
            return FlowBatch(self.records[rows], self.packets, self.data)
        return FlowBatch(self.records[rows], self.packets[rows], self.data[rows])


@dataclass(frozen=True, slots=True)
class FlowStep:
    """What one step of the flow table brought forth.

    Every flow is ready exactly once (never, if the table keeps no packets) and in ``ended`` exactly once, ``ready`` in
    the same or an earlier step. Both are in the order in which it happened. With a ready timeout, a flow may be
    in ``ready`` once more, before: see :meth:`is_early`.
    """

    ready: FlowBatch
    ended: FlowBatch

    def is_early(self) -> NDArray[np.bool_]:
        """Rows of ``ready`` that come again, bool (F,): still open, and not all packets are there."""
        records, n_packets = self.ready.records, self.ready.packets.shape[1]
        early: NDArray[np.bool_] = (records["n_kept"] < n_packets) & (records["end_reason"] == EndReason.OPEN)
        return early
