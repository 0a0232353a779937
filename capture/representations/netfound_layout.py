"""The token layout of netFound, in one place: what stands where in its model input. Constants only, no torch.

B is the number of bursts of a flow, T the tokens of a burst: its class token, then the fields of its packets.

========== ====================  ==============================================================================
array      dtype and shape       what it holds
========== ====================  ==============================================================================
ids        int32 (F, B, T)       `PAD` where there is nothing, `CLS` in front of each burst, else value + 1
direction  int8 (F, B)           +1 sent by the client (or the internal side), -1 to it, 0 no burst
bytes      float32 (F, B)        sum of the IP total lengths of the burst's shown packets, bytes
packets    float32 (F, B)        packets of the burst that are shown
iat        float32 (F, B)        milliseconds from the first packet of the burst before of the same direction
protocol   int16 (F,)            row of the protocol embedding, see `protocol_row`
========== ====================  ==============================================================================

The order above is the order in which a network takes them. A burst that is not there is `PAD` and 0 throughout, so
``ids != PAD`` is the attention mask of tokens and ``direction != 0`` that of bursts. Tokens of a burst stand one packet
behind the other without gaps: every packet of a flow has the same fields.

The published data also carries the duration of the flow, which no published network reads; we leave it out.

Source: netFound (arXiv 2310.17025), published version 2 (SNL-UCSB/netFound at 66ebbba).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

ARRAYS: Final = ("ids", "direction", "bytes", "packets", "iat", "protocol")
METADATA: Final = ("direction", "bytes", "packets", "iat")
"""The four numbers of a burst in the order of the published metadata layer."""
BYTES_SCALE: Final = 1000.0
"""The published network divides ``bytes`` by this; the others go in as they are."""

PAD: Final = 0
FIRST_VALUE: Final = 1  # id of the value 0; a value of 16 bits is `value + 1`
N_VALUES: Final = 65536
CLS: Final = 65537
MASK: Final = 65538
END: Final = 65540  # never written by the published tokeniser
VOCABULARY: Final = 65600  # rows of the published token table

MAX_BURSTS: Final = 12
BURST_PACKETS: Final = 6
BURST_GAP_NS: Final = 10_000_000  # a longer silence of one direction begins a new burst of it
MOST_PACKET_TOKENS: Final = 12  # TCP

IP_FIELDS: Final = ("ip_header_len", "tos", "ip_len", "ip_flags", "ttl")
TCP_FIELDS: Final = ("tcp_flags", "tcp_window", "seq_high", "seq_low", "ack_high", "ack_low", "tcp_urgent")
UDP_FIELDS: Final = ("udp_len",)
ICMP_FIELDS: Final = ("icmp_type", "icmp_code")

# Rows of the protocol embedding. Published: the IP protocol numbers 1, 6 and 17 of a table of 18 rows.
N_PROTOCOL_ROWS: Final = 18
OTHER_ROW: Final = 0  # ours; five tokens a packet
ICMP_ROW: Final = 1
ICMPV6_ROW: Final = 2  # ours; the types of ICMPv6 are others than those of ICMP
TCP_ROW: Final = 6
UDP_ROW: Final = 17

PACKET_FIELDS: Final = {
    OTHER_ROW: IP_FIELDS,
    ICMP_ROW: IP_FIELDS + ICMP_FIELDS,
    ICMPV6_ROW: IP_FIELDS + ICMP_FIELDS,
    TCP_ROW: IP_FIELDS + TCP_FIELDS,
    UDP_ROW: IP_FIELDS + UDP_FIELDS,
}
"""Tokens of one packet in their order, by row of the protocol embedding."""


def protocol_row(ip_protocol: int) -> int:
    """Row of the protocol embedding for an IP protocol number."""
    return {1: ICMP_ROW, 58: ICMPV6_ROW, 6: TCP_ROW, 17: UDP_ROW}.get(ip_protocol, OTHER_ROW)


@dataclass(frozen=True, slots=True)
class NetFoundLayout:
    """How large one flow's input is.

    Attributes:
        n_bursts: B, first bursts of a flow.
        burst_packets: first packets of a burst.
    """

    n_bursts: int = MAX_BURSTS
    burst_packets: int = BURST_PACKETS

    @property
    def burst_tokens(self) -> int:
        """T: the class token and the most that the packets may need; 73 as published."""
        return 1 + self.burst_packets * MOST_PACKET_TOKENS

    @property
    def flow_tokens(self) -> int:
        """B * T; 876 as published."""
        return self.n_bursts * self.burst_tokens
