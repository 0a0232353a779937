"""The slow twin of ``capture.decode``: one packet at a time, plain Python over bytes, written to be seen to be right.

Each layer takes what the layer above left (``bytes`` that begin with its header) and either goes on or raises
:class:`Stop` with the reason. What a layer believed stays in the row.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass, field, fields

import numpy as np

from capture.block import PACKET_FRAGMENT, PACKET_TRUNCATED, DecodedBlock, PacketBlock
from capture.reject import Reject

VLAN_TAGS = {0x8100, 0x88A8, 0x9100}
NULL_FAMILIES = {2: 4, 24: 6, 28: 6, 30: 6}
IPV6_EXTENSIONS = {
    0: "hop-by-hop",
    43: "routing",
    44: "fragment",
    51: "authentication",
    60: "destination options",
    135: "mobility",
    139: "HIP",
    140: "shim6",
}
DTYPES = {
    **dict.fromkeys(("vlan", "src_port", "dst_port", "tcp_window"), np.uint16),
    **dict.fromkeys(("l3_offset", "l4_offset", "payload_offset", "ip_len", "payload_len"), np.uint32),
    **dict.fromkeys(("tcp_seq", "tcp_ack"), np.uint32),
}


class Stop(Exception):  # noqa: N818 - not an error: the packet ends here
    """The packet cannot be followed further."""

    def __init__(self, reason: Reject) -> None:
        super().__init__(reason.name)
        self.reason = reason


@dataclass
class Row:
    """One row of a ``DecodedBlock``."""

    reject: int = 0
    ip_version: int = 0
    protocol: int = 0
    vlan: list[int] = field(default_factory=lambda: [0, 0])
    src: bytes = bytes(16)
    dst: bytes = bytes(16)
    src_port: int = 0
    dst_port: int = 0
    l3_offset: int = 0
    l4_offset: int = 0
    payload_offset: int = 0
    ip_len: int = 0
    payload_len: int = 0
    ttl: int = 0
    tos: int = 0
    tcp_flags: int = 0
    tcp_window: int = 0
    tcp_seq: int = 0
    tcp_ack: int = 0
    flags: int = 0


def naive_decode(block: PacketBlock) -> DecodedBlock:
    """As ``capture.decode.decode``."""
    data = block.data.tobytes()
    rows = [
        decode_packet(data[offset : offset + captured], wire, link_type)
        for offset, captured, wire, link_type in zip(
            block.offset.tolist(),
            block.captured_len.tolist(),
            block.wire_len.tolist(),
            block.link_type.tolist(),
            strict=True,
        )
    ]
    columns = {}
    for column in (f.name for f in fields(DecodedBlock)):
        values = [list(v) if isinstance(v := getattr(row, column), bytes) else v for row in rows]
        width = {"src": (16,), "dst": (16,), "vlan": (2,)}.get(column, ())
        columns[column] = np.array(values, DTYPES.get(column, np.uint8)).reshape(len(rows), *width)
    return DecodedBlock(**columns)


def decode_packet(frame: bytes, wire_len: int, link_type: int) -> Row:
    """One captured packet to one row."""
    row = Row()
    wire_len = max(wire_len, len(frame))
    if len(frame) < wire_len:
        row.flags |= PACKET_TRUNCATED
    try:
        if not frame:
            raise Stop(Reject.EMPTY)
        version = link_layer(row, frame, link_type)
        ip = frame[row.l3_offset :]
        transport = ip_layer(row, ip, wire_len - row.l3_offset, version)
        transport_layer(row, transport)
    except Stop as stop:
        row.reject = int(stop.reason)
    return row


def need(data: bytes, n_bytes: int, otherwise: Reject) -> None:
    """Stop unless the first ``n_bytes`` are there."""
    if len(data) < n_bytes:
        raise Stop(otherwise)


# ----------------------------------------------------------------------------------------- link layer


def link_layer(row: Row, frame: bytes, link_type: int) -> int | None:
    """Set ``l3_offset`` and ``vlan``; the IP version that the link layer promises, None for either."""
    match link_type:
        case 1:
            need(frame, 14, Reject.TRUNCATED_LINK)
            return ether_type_chain(row, frame, 14, *struct.unpack_from(">H", frame, 12))
        case 113:
            need(frame, 16, Reject.TRUNCATED_LINK)
            return ether_type_chain(row, frame, 16, *struct.unpack_from(">H", frame, 14))
        case 276:
            need(frame, 20, Reject.TRUNCATED_LINK)
            return ether_type_chain(row, frame, 20, *struct.unpack_from(">H", frame, 0))
        case 0 | 108:
            need(frame, 4, Reject.TRUNCATED_LINK)
            families = struct.unpack_from(">I", frame) + (
                struct.unpack_from("<I", frame) if link_type == 0 else ()
            )
            for family in families:
                if family in NULL_FAMILIES:
                    row.l3_offset = 4
                    return NULL_FAMILIES[family]
            raise Stop(Reject.NOT_IP)
        case 12 | 14 | 101:
            return None
        case 228:
            return 4
        case 229:
            return 6
    raise Stop(Reject.UNKNOWN_LINK_TYPE)


def ether_type_chain(row: Row, frame: bytes, position: int, ether_type: int) -> int:
    """Tags and LLC/SNAP; ``position`` is the first byte behind the EtherType."""
    n_tags = 0
    while ether_type in VLAN_TAGS:
        n_tags += 1
        if n_tags > 3:
            raise Stop(Reject.VLAN_TOO_DEEP)
        need(frame[position:], 4, Reject.TRUNCATED_VLAN)
        tag, ether_type = struct.unpack_from(">HH", frame, position)
        if n_tags <= 2:
            row.vlan[n_tags - 1] = tag & 0xFFF
        position += 4
    is_802_3_length = ether_type <= 1500
    if is_802_3_length and ether_type >= 8:
        need(frame[position:], 8, Reject.TRUNCATED_LINK)
        if frame[position : position + 6] == bytes.fromhex("aaaa03000000"):
            (ether_type,) = struct.unpack_from(">H", frame, position + 6)
            position += 8
    version = {0x0800: 4, 0x86DD: 6}.get(ether_type)
    if version is None:
        raise Stop(Reject.ARP if ether_type == 0x0806 else Reject.NOT_IP)
    row.l3_offset = position
    return version


# ------------------------------------------------------------------------------------------- IP layer


def ip_layer(row: Row, ip: bytes, wire_bytes: int, promised_version: int | None) -> bytes:
    """Set the columns of the IP header; the captured bytes of the packet from the transport header on."""
    need(ip, 1, Reject.TRUNCATED_IP)
    version = ip[0] >> 4
    if version not in (4, 6) or promised_version not in (None, version):
        raise Stop(Reject.BAD_IP_VERSION)
    return ipv4(row, ip, wire_bytes) if version == 4 else ipv6(row, ip, wire_bytes)


def ipv4(row: Row, ip: bytes, wire_bytes: int) -> bytes:
    need(ip, 20, Reject.TRUNCATED_IP)
    first, tos, total_len, _, fragment, ttl, protocol, _, src, dst = struct.unpack_from(">BBHHHBBH4s4s", ip)
    header_len = (first & 0xF) * 4
    if header_len < 20 or header_len > wire_bytes:
        raise Stop(Reject.BAD_IP_HEADER_LENGTH)
    total_len = total_len or wire_bytes
    if total_len < header_len:
        raise Stop(Reject.BAD_IP_TOTAL_LENGTH)
    row.ip_version, row.tos, row.ttl, row.ip_len = 4, tos, ttl, total_len
    row.src, row.dst = mapped(src), mapped(dst)
    if total_len > wire_bytes:
        row.flags |= PACKET_TRUNCATED
    need(ip, header_len, Reject.TRUNCATED_EXTENSION)
    row.protocol = protocol
    if fragment & 0x1FFF:
        raise Stop(Reject.LATER_FRAGMENT)
    if fragment & 0x2000:
        row.flags |= PACKET_FRAGMENT
    row.l4_offset = row.l3_offset + header_len
    return ip[header_len:total_len]


def mapped(address: bytes) -> bytes:
    return ipaddress.IPv6Address(f"::ffff:{ipaddress.IPv4Address(address)}").packed


def ipv6(row: Row, ip: bytes, wire_bytes: int) -> bytes:
    need(ip, 40, Reject.TRUNCATED_IP)
    word, payload_len, following, hop_limit, src, dst = struct.unpack_from(">IHBB16s16s", ip)
    ip_len = 40 + payload_len if payload_len else wire_bytes
    row.ip_version, row.tos, row.ttl, row.ip_len = 6, word >> 20 & 0xFF, hop_limit, ip_len
    row.src, row.dst = src, dst
    if ip_len > wire_bytes:
        row.flags |= PACKET_TRUNCATED
    return ipv6_extensions(row, ip[40:ip_len], following)


def ipv6_extensions(row: Row, rest: bytes, following: int) -> bytes:
    n_bytes = 40
    n_headers = 0
    while following in IPV6_EXTENSIONS:
        n_headers += 1
        if n_headers > 8:
            raise Stop(Reject.EXTENSION_TOO_DEEP)
        need(rest, 8, Reject.TRUNCATED_EXTENSION)
        if following == 44:
            length = 8
            (fragment,) = struct.unpack_from(">H", rest, 2)
            if fragment >> 3:
                row.protocol = rest[0]
                row.flags &= ~PACKET_FRAGMENT
                raise Stop(Reject.LATER_FRAGMENT)
            if fragment & 1:
                row.flags |= PACKET_FRAGMENT
        elif following == 51:
            length = (rest[1] + 2) * 4
        else:
            length = (rest[1] + 1) * 8
        need(rest, length, Reject.TRUNCATED_EXTENSION)
        following = rest[0]
        rest = rest[length:]
        n_bytes += length
    row.protocol = following
    if following == 59:
        raise Stop(Reject.NO_NEXT_HEADER)
    row.l4_offset = row.l3_offset + n_bytes
    return rest


# ------------------------------------------------------------------------------------ transport layer


def transport_layer(row: Row, transport: bytes) -> None:
    """Set ports, lengths and TCP columns. ``transport``: captured bytes, at most to the end of the IP packet."""
    room = row.ip_len - (row.l4_offset - row.l3_offset)
    match row.protocol:
        case 6:
            header_len = tcp(row, transport, room)
            payload_len = room - header_len
        case 17:
            header_len = 8
            payload_len = udp(row, transport, room) - 8
        case 1 | 58:
            need(transport, 4, Reject.TRUNCATED_TRANSPORT)
            header_len = min(room, 8)
            payload_len = room - header_len
            row.src_port, row.dst_port = transport[0], transport[1]
        case 132:
            need(transport, 12, Reject.TRUNCATED_TRANSPORT)
            header_len = 12
            payload_len = room - header_len
            row.src_port, row.dst_port = struct.unpack_from(">HH", transport)
        case _:
            header_len = 0
            payload_len = room
    row.payload_offset = row.l4_offset + header_len
    row.payload_len = payload_len


def tcp(row: Row, transport: bytes, room: int) -> int:
    """Set the TCP columns; length of the header."""
    need(transport, 20, Reject.TRUNCATED_TRANSPORT)
    src_port, dst_port, seq, ack, offset, flags, window = struct.unpack_from(">HHIIBBH", transport)
    header_len = (offset >> 4) * 4
    if header_len < 20 or header_len > room:
        raise Stop(Reject.BAD_TCP_OFFSET)
    row.src_port, row.dst_port = src_port, dst_port
    row.tcp_seq, row.tcp_ack, row.tcp_flags, row.tcp_window = seq, ack, flags, window
    return header_len


def udp(row: Row, transport: bytes, room: int) -> int:
    """Set the ports; bytes of the datagram in this packet, header included."""
    need(transport, 8, Reject.TRUNCATED_TRANSPORT)
    src_port, dst_port, length = struct.unpack_from(">HHH", transport)
    is_first_fragment = row.flags & PACKET_FRAGMENT
    is_jumbogram = length == 0 and room > 65535
    if is_jumbogram:
        length = room
    if length < 8:
        raise Stop(Reject.BAD_UDP_LENGTH)
    if length > room and not is_first_fragment:
        raise Stop(Reject.BAD_UDP_LENGTH)
    row.src_port, row.dst_port = src_port, dst_port
    return min(length, room)


def assert_same_columns(got: DecodedBlock, expected: DecodedBlock, block: PacketBlock) -> None:
    """Every column equal, dtype and shape too; the message shows the first packet that differs."""
    data = block.data.tobytes()
    for column in (f.name for f in fields(DecodedBlock)):
        ours, theirs = getattr(got, column), getattr(expected, column)
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), column
        different = np.flatnonzero((ours != theirs).any(axis=tuple(range(1, ours.ndim))))
        if different.size:
            i = int(different[0])
            start, length = int(block.offset[i]), int(block.captured_len[i])
            raise AssertionError(
                f"{column} of {different.size} packets, first {i}: {ours[i]} but the twin says {theirs[i]} "
                f"(link type {block.link_type[i]}, wire length {block.wire_len[i]}, "
                f"bytes {data[start : start + length].hex()})"
            )
