"""packet-mamba's representation: one token a packet, made of what the packet was and when it came.

Of each of the first K packets of a flow: sizes, gaps, TCP window (physical numbers; the network takes logarithms),
direction, protocol, flags, option kinds, and the first P payload bytes of the first M packets. Every prefix of a
flow is a valid input: a packet's token depends on the packets before it alone, never on those behind it.

P = 12 shows what kind of message it is (a TLS record and handshake header, a DNS or RTP header, a method of HTTP), but
not the name that follows in a ClientHello or a DNS question.

Tokens hold raw quantities and not buckets, so that training can change a link's delay, loss or MTU in the tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np

from capture.errors import TokenizeError
from capture.field_policy import FieldPolicy
from capture.flow_batch import FlowBatch, KeepSpec
from capture.representations.base import TokenBatch
from capture.representations.places import TokenPlaces, column_places

NUMBERS: Final = ("ip_len", "payload_len", "gap_us", "gap_same_us", "tcp_window")
FLAGS: Final = (
    "direction",
    "protocol",
    "tcp_flags",
    "tos",
    "tcp_options",
    "tcp_order",
    "icmp_type",
    "ttl_class",
    "port_class",
    "n_shown",
)
# What each column of NUMBERS and FLAGS is called in an explanation.
_NUMBER_FIELDS: Final = ("ip_len", "payload_len", "iat", "iat", "tcp_window")
_FLAG_FIELDS: Final = (
    "direction",
    "protocol",
    "tcp_flags",
    "tos",
    "tcp_options",
    "tcp_order",
    "icmp_type",
    "ttl",
    "ports",
    "payload",
)
HEADER_BYTES: Final = 80  # IPv6 and TCP with all its options


class PacketsRepresentation:
    """Flows to three arrays, K packets each; a row without a packet is zero, and its direction 0 says so.

    Args:
        n_packets: K.
        n_byte_packets: M <= K, packets whose payload and options are looked at.
        payload_bytes: P, shown of each of those.
        field_policy: a name, or the groups to hide; see :mod:`capture.field_policy`. What it hides is 0: TTL class,
            port class, payloads that carry other packets' headers. Addresses, checksums, identifiers, absolute
            sequence numbers and time stamps are never in these tokens.
    """

    name: Final = "packets"
    version: Final = 1

    def __init__(
        self,
        n_packets: int = 32,
        n_byte_packets: int = 12,
        payload_bytes: int = 12,
        field_policy: str | Iterable[str] = "leak_free",
    ) -> None:
        for setting, value, least, most in (
            ("n_packets", n_packets, 1, 1024),
            ("n_byte_packets", n_byte_packets, 0, n_packets if type(n_packets) is int else 0),
            ("payload_bytes", payload_bytes, 0, 255),
        ):
            if type(value) is not int or not least <= value <= most:
                raise TokenizeError(f"{setting} is {value!r}, expected a whole number from {least} to {most}")
        self.n_packets = n_packets
        self.n_byte_packets = n_byte_packets
        self.payload_bytes = payload_bytes
        self.field_policy = FieldPolicy.parse(field_policy)

    @property
    def keep(self) -> KeepSpec:
        """Fields of K packets; headers and payload of M."""
        header_bytes = HEADER_BYTES if self.n_byte_packets else 0
        payload_bytes = self.payload_bytes if self.n_byte_packets else 0
        return KeepSpec(self.n_packets, self.n_byte_packets, header_bytes, payload_bytes)

    def settings(self) -> dict[str, Any]:
        """All constructor arguments, as JSON values."""
        return {
            "n_packets": self.n_packets,
            "n_byte_packets": self.n_byte_packets,
            "payload_bytes": self.payload_bytes,
            "field_policy": self.field_policy.setting(),
        }

    def tokenize(self, flows: FlowBatch) -> TokenBatch:
        """Tokens of *ready* flows.

        Args:
            flows: kept with at least this representation's ``keep`` (more packets are not looked at).

        Returns:
            ``numbers``: int32 (F, K, 5), columns `NUMBERS`: bytes, bytes, microseconds since the packet before of
            the flow and of its direction (both capped at 2^31 - 1), TCP window as sent.
            ``flags``: uint8 (F, K, 10), columns `FLAGS`: 1 to the server, 2 to the client, 0 no packet; IP
            protocol; TCP flags; TOS; option kinds; 0 in order, 1 sent again, 2 ahead; ICMP type + 1; 1 to 4 the TTL
            it began with; 1 + server port modulo 255; payload bytes shown.
            ``payload``: uint8 (F, K, P); only the first ``n_shown`` of a row mean anything.

        Raises:
            TokenizeError: if the batch holds fewer packets, or another number of bytes of each, than needed.
        """
        from capture.kernels import packet_tokens as kernel
        from capture.kernels.field_policy import tokens_with_policy

        keep = self.keep
        n_flows, n_byte_packets, row_bytes = flows.data.shape
        n_kept = flows.packets.shape[1]
        if n_kept < self.n_packets or n_byte_packets < self.n_byte_packets or row_bytes != keep.row_bytes:
            raise TokenizeError(
                f"flows hold {n_kept} packets, and {row_bytes} bytes of {n_byte_packets}, expected at least "
                f"{self.n_packets}, and {keep.row_bytes} bytes of {self.n_byte_packets}; build the flow table with "
                "this representation's keep"
            )
        clean = np.zeros((n_flows, self.n_byte_packets * row_bytes), np.uint8)
        if self.n_byte_packets:
            tokens_with_policy(
                flows.data,
                flows.records,
                flows.packets,
                self.n_byte_packets,
                keep.header_bytes,
                self.field_policy.bits(),
                False,
                clean,
            )
        numbers = np.zeros((n_flows, self.n_packets, kernel.N_NUMBERS), np.int32)
        flags = np.zeros((n_flows, self.n_packets, kernel.N_FLAGS), np.uint8)
        payload = np.zeros((n_flows, self.n_packets, self.payload_bytes), np.uint8)
        kernel.packet_columns(
            flows.records,
            flows.packets,
            clean.reshape(n_flows, self.n_byte_packets, row_bytes),
            keep.header_bytes,
            "ttl" not in self.field_policy.hidden,
            "ports" not in self.field_policy.hidden,
            "embedded" in self.field_policy.hidden,
            numbers,
            flags,
            payload,
        )
        used = np.minimum(flows.records["n_kept"], self.n_packets).astype(np.uint16)
        return TokenBatch({"numbers": numbers, "flags": flags, "payload": payload}, used)

    def token_places(self, flows: FlowBatch) -> dict[str, TokenPlaces]:
        """Packet and field of each number, flag and payload byte."""
        fields = {
            "numbers": _NUMBER_FIELDS,
            "flags": _FLAG_FIELDS,
            "payload": ("payload",) * self.payload_bytes,
        }
        return {name: column_places(flows, self.n_packets, names) for name, names in fields.items()}
