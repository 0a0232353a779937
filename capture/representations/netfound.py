"""netFound's representation: bursts of header fields, one 16-bit token a field, with four numbers of each burst.

F is the number of flows, K the packets looked at (``n_packets``), B the bursts of a flow, P the packets of a burst, T
the tokens of a burst. What stands where: :mod:`capture.representations.netfound_layout`.

A burst is what one side sent with no silence of it longer than 10 ms; bursts of the two sides overlap. Shown are the
first B bursts in the order of their first packets, and of each the first P packets.

``strict_v2`` is the published tokeniser to the bit, for its weights. Without it, where the published code loses
something that a packet says:

- the sides are those of the connection, and not "who sent first": a SYN-ACK is an answer;
- an IPv6 flow has two sides even if both addresses begin with the same 32 bits, and IPv4 loopback has two;
- IPv6: all eight bits of the traffic class, and the header's length with its extension headers;
- ICMPv6 has type and code like ICMP and a protocol row of its own; other protocols have the IP fields, row 0;
- later fragments of a datagram count as packets (their transport fields are 0);
- a total length of 0 (segmentation offload) is what the frame holds;
- a burst's inter-arrival time is not rounded to whole milliseconds.

Only the first K packets are looked at, the same with ``strict_v2``: a flow table can hold no more of a flow than it has
memory for. docs/decisions/0019-netfound-tokens.md says when that differs from reading the whole flow, and how often.

Source: netFound (arXiv 2310.17025), version 2 of its code (MIT), SNL-UCSB/netFound at 66ebbba.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from capture.errors import TokenizeError
from capture.field_policy import FieldPolicy
from capture.flow_batch import FlowBatch, KeepSpec
from capture.representations.base import TokenBatch
from capture.representations.netfound_layout import (
    BURST_PACKETS,
    MAX_BURSTS,
    METADATA,
    PACKET_FIELDS,
    NetFoundLayout,
)
from capture.representations.places import NOWHERE, TokenPlaces, field_number

HEADER_BYTES: Final = 80  # IPv4 and TCP with all their options
MOST_PACKETS: Final = 1024
_V4_PREFIX: Final = bytes(10) + b"\xff\xff"
_CLIENT: Final = 0
_FIRST_SENDER: Final = -1

# What the tokens and numbers are called in an explanation.
_FIELD_OF_TOKEN: Final = {
    "ip_header_len": "ip_options",
    "tos": "tos",
    "ip_len": "ip_len",
    "ip_flags": "fragment",
    "ttl": "ttl",
    "tcp_flags": "tcp_flags",
    "tcp_window": "tcp_window",
    "seq_high": "seq_ack",
    "seq_low": "seq_ack",
    "ack_high": "seq_ack",
    "ack_low": "seq_ack",
    "tcp_urgent": "tcp_urgent",
    "udp_len": "udp_len",
    "icmp_type": "icmp_type",
    "icmp_code": "icmp_type",
}
_FIELD_OF_NUMBER: Final = {"direction": "direction", "bytes": "size", "packets": "size", "iat": "iat"}


class NetFoundRepresentation:
    """Flows to the arrays of :mod:`capture.representations.netfound_layout`.

    Args:
        n_packets: K, first packets of a flow that are looked at; a flow is ready when it has so many.
        n_bursts: B.
        burst_packets: P.
        field_policy: a name, or the groups to hide; see :mod:`capture.field_policy`. Addresses, ports, checksums, IP
            ids, time stamps and payload are never in these tokens. ``ttl`` makes its token the value 0. ``seq_ack``
            counts each side's numbers from where they were first seen, so that nothing of the absolute ones is
            left; shown, they are counted as published, which lets them through where a SYN was sent twice, or where
            a packet without ACK has a number in that field.
        internal_networks: CIDR networks whose side has direction +1; none: the client.
        strict_v2: as the published code; see the module.
    """

    name: Final = "netfound"
    version: Final = 1

    def __init__(
        self,
        n_packets: int = MAX_BURSTS * BURST_PACKETS,
        n_bursts: int = MAX_BURSTS,
        burst_packets: int = BURST_PACKETS,
        field_policy: str | Iterable[str] = "leak_free",
        internal_networks: Iterable[str] = (),
        strict_v2: bool = False,
    ) -> None:
        for setting, value, most in (
            ("n_packets", n_packets, MOST_PACKETS),
            ("n_bursts", n_bursts, 64),
            ("burst_packets", burst_packets, 64),
        ):
            if type(value) is not int or not 1 <= value <= most:
                raise TokenizeError(f"{setting} is {value!r}, expected a whole number from 1 to {most}")
        if type(strict_v2) is not bool:
            raise TokenizeError(f"strict_v2 is {strict_v2!r}, expected true or false")
        self.n_packets = n_packets
        self.layout = NetFoundLayout(n_bursts, burst_packets)
        self.field_policy = FieldPolicy.parse(field_policy)
        self.internal_networks = _networks(internal_networks)
        self.strict_v2 = strict_v2

    @property
    def keep(self) -> KeepSpec:
        """Fields and headers of K packets."""
        return KeepSpec(self.n_packets, self.n_packets, HEADER_BYTES, 0)

    def settings(self) -> dict[str, Any]:
        """All constructor arguments, as JSON values."""
        return {
            "n_packets": self.n_packets,
            "n_bursts": self.layout.n_bursts,
            "burst_packets": self.layout.burst_packets,
            "field_policy": self.field_policy.setting(),
            "internal_networks": [str(network) for network in self.internal_networks],
            "strict_v2": self.strict_v2,
        }

    def tokenize(self, flows: FlowBatch) -> TokenBatch:
        """Tokens of *ready* flows.

        Args:
            flows: kept with at least this representation's ``keep`` (more packets are not looked at).

        Returns:
            The arrays of :mod:`capture.representations.netfound_layout`. ``packets_used`` counts the packets that were
            looked at, shown or not.

        Raises:
            TokenizeError: if the batch holds fewer packets, or fewer bytes of each, than needed.
        """
        ids, metadata, protocol, _ = self._run(flows)
        numbers = {name: metadata[:, :, place] for place, name in enumerate(METADATA)}
        arrays: dict[str, NDArray[Any]] = {
            "ids": ids,
            "direction": numbers["direction"].astype(np.int8),
            "bytes": numbers["bytes"].astype(np.float32),
            "packets": numbers["packets"].astype(np.float32),
            "iat": numbers["iat"].astype(np.float32),
            "protocol": protocol,
        }
        used = np.minimum(flows.records["n_kept"], self.n_packets).astype(np.uint16)
        return TokenBatch(arrays, used)

    def token_places(self, flows: FlowBatch) -> dict[str, TokenPlaces]:
        """Packet and field of each token; a burst's numbers stand at its first packet. Class tokens have no place."""
        ids, metadata, protocol, shown = self._run(flows)
        packet, field = np.full(ids.shape, NOWHERE, np.int16), np.full(ids.shape, NOWHERE, np.int16)
        for f in range(len(flows)):
            names = PACKET_FIELDS[int(protocol[f])]
            numbers = [self._token_field(name) for name in names]
            for b, place in zip(*np.nonzero(shown[f] >= 0), strict=True):
                at = 1 + int(place) * len(names)
                packet[f, b, at : at + len(names)] = shown[f, b, place]
                field[f, b, at : at + len(names)] = numbers
        packet[field == NOWHERE] = NOWHERE
        places = {"ids": TokenPlaces(packet, field)}
        there = metadata[:, :, 0] != 0
        for name, called in _FIELD_OF_NUMBER.items():
            number = np.where(there, field_number(called), NOWHERE).astype(np.int16)
            places[name] = TokenPlaces(shown[:, :, 0].copy(), number)
        return places

    def _token_field(self, name: str) -> int:
        called = _FIELD_OF_TOKEN[name]
        return NOWHERE if called == "ttl" and "ttl" in self.field_policy.hidden else field_number(called)

    def _run(
        self, flows: FlowBatch
    ) -> tuple[NDArray[np.int32], NDArray[np.float64], NDArray[np.int16], NDArray[np.int16]]:
        """Token ids, the four numbers of each burst, protocol rows, and which packet stands where."""
        from capture.kernels import netfound_tokens as kernel

        n_flows, n_byte_packets, row_bytes = flows.data.shape
        n_kept = flows.packets.shape[1]
        if min(n_kept, n_byte_packets) < self.n_packets or row_bytes < HEADER_BYTES:
            raise TokenizeError(
                f"flows hold {n_kept} packets, and {row_bytes} bytes of {n_byte_packets}, expected at least "
                f"{self.n_packets}, and {HEADER_BYTES} bytes of each; build the flow table with this "
                "representation's keep"
            )
        layout = self.layout
        ids = np.zeros((n_flows, layout.n_bursts, layout.burst_tokens), np.int32)
        metadata = np.zeros((n_flows, layout.n_bursts, len(METADATA)))
        protocol = np.zeros(n_flows, np.int16)
        shown = np.full((n_flows, layout.n_bursts, layout.burst_packets), NOWHERE, np.int16)
        hidden = self.field_policy.hidden
        options = (
            kernel.STRICT * self.strict_v2
            | kernel.HIDE_TTL * ("ttl" in hidden)
            | kernel.HIDE_SEQ_ACK * ("seq_ack" in hidden)
        )
        kernel.netfound_tokens(
            flows.records,
            flows.packets,
            flows.data,
            self.n_packets,
            HEADER_BYTES,
            self._forward(flows.records),
            options,
            ids,
            metadata,
            protocol,
            shown,
        )
        return ids, metadata, protocol, shown

    def _forward(self, records: NDArray[Any]) -> NDArray[np.int8]:
        """The side with direction +1, int8 (F,): the internal one if it is one of them, else as by default."""
        forward = np.full(len(records), _FIRST_SENDER if self.strict_v2 else _CLIENT, np.int8)
        if self.internal_networks:
            client, server = (
                _is_inside(records[end], self.internal_networks) for end in ("client", "server")
            )
            forward[client & ~server] = 0
            forward[server & ~client] = 1
        return forward


def _networks(values: Iterable[str]) -> tuple[IPv4Network | IPv6Network, ...]:
    if isinstance(values, str):
        raise TokenizeError(f"internal_networks is {values!r}, expected a list of networks")
    networks = []
    for value in values:
        try:
            networks.append(ip_network(value))
        except (ValueError, TypeError):
            raise TokenizeError(
                f"internal network {value!r} is none; give networks such as 10.0.0.0/8"
            ) from None
    return tuple(networks)


def _is_inside(
    addresses: NDArray[np.uint8], networks: tuple[IPv4Network | IPv6Network, ...]
) -> NDArray[np.bool_]:
    """Which addresses, uint8 (F, 16), lie in one of the networks."""
    inside = np.zeros(len(addresses), np.bool_)
    for network in networks:
        prefix = _V4_PREFIX if network.version == 4 else b""
        mask = np.frombuffer(b"\xff" * len(prefix) + network.netmask.packed, np.uint8)
        wanted = np.frombuffer(prefix + network.network_address.packed, np.uint8)
        inside |= ((addresses & mask) == wanted).all(axis=1)
    return inside
