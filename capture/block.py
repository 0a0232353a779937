"""The types that flow through the capture side: blocks of columns, one row a packet.

n is the number of packets of a block. Offsets of a ``PacketBlock`` are into its ``data``; offsets
of a ``DecodedBlock`` are from the first byte of the packet itself. Nothing here copies packet bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

# DLT / LINKTYPE numbers (https://www.tcpdump.org/linktypes.html) that `decode` understands.
LINK_NULL: Final = 0
LINK_ETHERNET: Final = 1
LINK_PPP: Final = 9
LINK_RAW_12: Final = 12  # DLT_RAW as some systems write it
LINK_RAW_14: Final = 14  # the same on OpenBSD
LINK_PPP_HDLC: Final = 50
LINK_PPPOE: Final = 51
LINK_RAW: Final = 101
LINK_CISCO_HDLC: Final = 104
LINK_IEEE802_11: Final = 105
LINK_LOOP: Final = 108
LINK_LINUX_SLL: Final = 113
LINK_RADIOTAP: Final = 127
LINK_PPP_DIRECTION: Final = 204  # one byte of direction in front
LINK_IPV4: Final = 228
LINK_IPV6: Final = 229
LINK_LINUX_SLL2: Final = 276

# Bits of `DecodedBlock.flags`.
PACKET_TRUNCATED: Final = 1  # captured_len < wire_len, or the IP length says more than the frame holds
PACKET_FRAGMENT: Final = 2  # fragment of a datagram, the packet's own or that of a tunnel around it


@dataclass(frozen=True, slots=True)
class PacketBlock:
    """Packets as a reader gives them.

    Attributes:
        ts_ns: int64 (n,), nanoseconds since the Unix epoch.
        captured_len: uint32 (n,), bytes present in ``data``.
        wire_len: uint32 (n,), bytes of the frame on the wire.
        offset: int64 (n,), where each packet begins in ``data``.
        link_type: uint16 (n,), LINKTYPE number of each packet (pcapng may mix them).
        data: uint8 (m,), one buffer that holds all packets. ``offset + captured_len <= m`` for every row.
            It may be reused by the reader for its next block: a block is valid until the next one is asked for.
    """

    ts_ns: NDArray[np.int64]
    captured_len: NDArray[np.uint32]
    wire_len: NDArray[np.uint32]
    offset: NDArray[np.int64]
    link_type: NDArray[np.uint16]
    data: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.ts_ns)


@dataclass(frozen=True, slots=True)
class DecodedBlock:
    """What the headers of a ``PacketBlock`` say, one row a packet.

    Rows with ``reject != 0`` hold zeros in every column that was not reached; believe nothing in them.

    Attributes:
        reject: uint8 (n,), a :class:`capture.reject.Reject` value.
        ip_version: uint8 (n,), 4 or 6.
        protocol: uint8 (n,), IP protocol of the transport header (behind IPv6 extension headers).
        vlan: uint16 (n, 2), VLAN ids, outermost first; 0 where there is no tag (or a priority tag, VID 0).
        src, dst: uint8 (n, 16), addresses in network order; IPv4 as ::ffff:a.b.c.d (RFC 4291, 2.5.5.2).
        src_port, dst_port: uint16 (n,). ICMP and ICMPv6: type and code as sent. 0 where there are no ports.
        l3_offset: uint32 (n,), first byte of the IP header, from the packet's first byte.
        l4_offset: uint32 (n,), first byte of the transport header.
        payload_offset: uint32 (n,), first byte behind the transport header and its options.
        ip_len: uint32 (n,), bytes of the IP packet on the wire, header included (RFC 791 total length;
            RFC 8200 payload length + 40). Where the header says 0 (segmentation offload) it is what the frame holds.
        payload_len: uint32 (n,), transport payload on the wire, bytes. May exceed what was captured.
        ttl: uint8 (n,), TTL or hop limit.
        tos: uint8 (n,), IPv4 TOS or IPv6 traffic class.
        tcp_flags: uint8 (n,), CWR ECE URG ACK PSH RST SYN FIN, FIN lowest; 0 unless TCP.
        tcp_window: uint16 (n,), as sent, unscaled; tcp_seq, tcp_ack: uint32 (n,), absolute.
        flags: uint8 (n,), ``PACKET_*`` bits.
        tunnel_kind: uint8 (n,), the innermost tunnel, a :class:`capture.tunnel.TunnelKind`; 0: none. All other columns
            but ``flags`` are then of the innermost packet (``vlan``: of all tags, the two outermost).
        tunnel_depth: uint8 (n,), tunnels around the packet.
        tunnel_id: uint32 (n,), VNI, TEID, key or session of the innermost tunnel as sent; 0 where it has none.
        tunnel_path: uint64 (n,), what tells tunnels apart (:mod:`capture.tunnel`); 0: none.
        tunnel_stop: uint8 (n,), why one tunnel more was not followed, a ``Reject``; 0: there was none. The packet then
            belongs to the flow of the tunnel's own headers.
    """

    reject: NDArray[np.uint8]
    ip_version: NDArray[np.uint8]
    protocol: NDArray[np.uint8]
    vlan: NDArray[np.uint16]
    src: NDArray[np.uint8]
    dst: NDArray[np.uint8]
    src_port: NDArray[np.uint16]
    dst_port: NDArray[np.uint16]
    l3_offset: NDArray[np.uint32]
    l4_offset: NDArray[np.uint32]
    payload_offset: NDArray[np.uint32]
    ip_len: NDArray[np.uint32]
    payload_len: NDArray[np.uint32]
    ttl: NDArray[np.uint8]
    tos: NDArray[np.uint8]
    tcp_flags: NDArray[np.uint8]
    tcp_window: NDArray[np.uint16]
    tcp_seq: NDArray[np.uint32]
    tcp_ack: NDArray[np.uint32]
    flags: NDArray[np.uint8]
    tunnel_kind: NDArray[np.uint8]
    tunnel_depth: NDArray[np.uint8]
    tunnel_id: NDArray[np.uint32]
    tunnel_path: NDArray[np.uint64]
    tunnel_stop: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.reject)
