"""NetMamba's representation: the first bytes of the first packets, in strides.

Of each of the first 5 packets of a flow 80 header bytes (from the IP header on: IP header, extension headers, transport
header with options) and 240 payload bytes, each cut or zero-padded on the right: 5 x 320 = 1600 bytes, 400 strides of
4. Missing packets are zero. The model scales bytes to [-1, 1], so padding becomes -1.

Departures from the published code, each with a reason:

- a flow is bidirectional (RFC 5103); the paper takes each direction of a five-tuple as a flow of its own;
- IPv6 is treated like IPv4 (the published code gives zeros);
- the header ends where the transport header ends: a DNS or NTP message is payload;
- a *field policy* says what is hidden (:mod:`capture.field_policy`); ``paper`` is the published choice.

Source: NetMamba (arXiv 2405.11449), section III-B.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np

from capture.errors import TokenizeError
from capture.field_policy import FieldPolicy
from capture.flow_batch import FlowBatch, KeepSpec
from capture.representations.base import TokenBatch
from capture.representations.places import TokenPlaces, byte_places


class NetMambaRepresentation:
    """Flows to uint8 (F, n_packets * (header_bytes + payload_bytes)), array name ``bytes``.

    Args:
        n_packets: first packets of a flow that are shown.
        header_bytes: shown of each, from the first byte of the IP header.
        payload_bytes: shown of each; 0 is the paper's header-only setting (100 strides).
        stride: bytes of one token. Must divide ``header_bytes + payload_bytes``, so that no stride mixes packets.
        field_policy: a name, or the groups to hide; see :mod:`capture.field_policy`.
        mark_direction: set the top bit of the first header byte of packets to the client. Where addresses and ports
            are hidden nothing else tells the two directions of a bidirectional flow apart. Not in the paper.
    """

    name: Final = "netmamba"
    version: Final = 1

    def __init__(
        self,
        n_packets: int = 5,
        header_bytes: int = 80,
        payload_bytes: int = 240,
        stride: int = 4,
        field_policy: str | Iterable[str] = "leak_free",
        mark_direction: bool = False,
    ) -> None:
        for setting, value, least in (
            ("n_packets", n_packets, 1),
            ("header_bytes", header_bytes, 0),
            ("payload_bytes", payload_bytes, 0),
            ("stride", stride, 1),
        ):
            if type(value) is not int or not least <= value <= 4096:
                raise TokenizeError(f"{setting} is {value!r}, expected a whole number from {least} to 4096")
        row_bytes = header_bytes + payload_bytes
        if row_bytes == 0 or row_bytes % stride:
            raise TokenizeError(
                f"stride {stride} does not divide the {row_bytes} bytes kept of a packet; choose a divisor such as 4"
            )
        self.n_packets = n_packets
        self.header_bytes = header_bytes
        self.payload_bytes = payload_bytes
        self.stride = stride
        self.field_policy = FieldPolicy.parse(field_policy)
        if type(mark_direction) is not bool:
            raise TokenizeError(f"mark_direction is {mark_direction!r}, expected true or false")
        self.mark_direction = mark_direction

    @property
    def keep(self) -> KeepSpec:
        """The first ``n_packets`` packets, fields and bytes."""
        return KeepSpec(self.n_packets, self.n_packets, self.header_bytes, self.payload_bytes)

    @property
    def n_bytes(self) -> int:
        """Bytes of one flow's input."""
        return self.n_packets * (self.header_bytes + self.payload_bytes)

    def settings(self) -> dict[str, Any]:
        """All constructor arguments, as JSON values."""
        return {
            "n_packets": self.n_packets,
            "header_bytes": self.header_bytes,
            "payload_bytes": self.payload_bytes,
            "stride": self.stride,
            "field_policy": self.field_policy.setting(),
            "mark_direction": self.mark_direction,
        }

    def tokenize(self, flows: FlowBatch) -> TokenBatch:
        """Bytes of *ready* flows with the policy's fields hidden.

        Args:
            flows: kept with at least this representation's ``keep`` (more packets are not looked at).

        Returns:
            ``arrays["bytes"]``: uint8 (F, n_bytes).

        Raises:
            TokenizeError: if the batch holds fewer packets, or another number of bytes of each, than needed.
        """
        from capture.kernels.field_policy import tokens_with_policy

        n_flows, n_packets, row_bytes = flows.data.shape
        if n_packets < self.n_packets or row_bytes != self.header_bytes + self.payload_bytes:
            raise TokenizeError(
                f"flows hold {n_packets} packets of {row_bytes} bytes, expected at least {self.n_packets} of "
                f"{self.header_bytes + self.payload_bytes}; build the flow table with this representation's keep"
            )
        out = np.zeros((n_flows, self.n_bytes), np.uint8)
        tokens_with_policy(
            flows.data,
            flows.records,
            flows.packets,
            self.n_packets,
            self.header_bytes,
            self.field_policy.bits(),
            self.mark_direction,
            out,
        )
        used = np.minimum(flows.records["n_kept"], self.n_packets).astype(np.uint16)
        return TokenBatch({"bytes": out}, used)

    def token_places(self, flows: FlowBatch) -> dict[str, TokenPlaces]:
        """Packet and header field of each byte."""
        hidden = self.field_policy.hidden
        return {"bytes": byte_places(flows, self.n_packets, self.header_bytes, self.payload_bytes, hidden)}
