"""The slow twin of ``capture.decode``: one packet at a time, plain Python over bytes, written to be seen to be right.

Each layer takes the :class:`Part` of the frame that the layer before it left, and either goes on or raises
:class:`Stop` with the reason. What a layer believed stays in the row. Link layers and tunnels: ``encapsulation.py``.
"""

from __future__ import annotations

import copy
import ipaddress
import struct
from dataclasses import dataclass, field, fields

import numpy as np

from capture.block import PACKET_FRAGMENT, PACKET_TRUNCATED, DecodedBlock, PacketBlock
from capture.reject import Reject
from capture.tunnel import TunnelKind
from tests.reference.encapsulation import Part, Stop, Way, first_layer, need, next_layer, tunnel_behind

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
    **dict.fromkeys(("tcp_seq", "tcp_ack", "tunnel_id"), np.uint32),
    "tunnel_path": np.uint64,
}
MAX_TUNNELS = 4
ID_IN_PATH = {TunnelKind.VXLAN, TunnelKind.VXLAN_GPE, TunnelKind.GENEVE, TunnelKind.PPPOE}
ID_IN_PATH_IF_ANY = {TunnelKind.GRE, TunnelKind.NVGRE, TunnelKind.ERSPAN}
ID_OF_RECEIVER = {TunnelKind.GTPU, TunnelKind.L2TP, TunnelKind.L2TPV3, TunnelKind.PPTP}


@dataclass
class Row:
    """One row of a ``DecodedBlock``."""

    reject: int = 0
    ip_version: int = 0
    protocol: int = 0
    vlan: None = None  # see `tags`
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
    tunnel_kind: int = 0
    tunnel_depth: int = 0
    tunnel_id: int = 0
    tunnel_path: int = 0
    tunnel_stop: int = 0
    tags: list[int] = field(default_factory=list)


@dataclass
class Datagram:
    """What is remembered of a fragmented datagram: the row of its first fragment, and which bytes were seen."""

    row: Row
    head: bytes
    first_ns: int
    pieces: list[tuple[int, int]]


@dataclass
class Context:
    """What decoding a packet depends on besides the packet.

    Attributes:
        decap: whether tunnels are followed.
        check: whether IPv4 header checksums must be right.
        datagrams: first fragments by what names them; None: nothing is remembered.
    """

    decap: bool = True
    check: bool = False
    datagrams: dict[tuple[object, ...], Datagram] | None = None
    limit_ns: int = 30_000_000_000


def naive_decode(block: PacketBlock, context: Context | None = None) -> DecodedBlock:
    """As ``capture.decode.decode``; with ``datagrams`` in the context as ``Decoder.decode``."""
    context = context or Context()
    data = block.data.tobytes()
    rows = [
        decode_packet(data[offset : offset + captured], wire, link_type, ts_ns, context)
        for ts_ns, offset, captured, wire, link_type in zip(
            block.ts_ns.tolist(),
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
        if column == "vlan":
            values = [[*row.tags, 0, 0][:2] for row in rows]
        width = {"src": (16,), "dst": (16,), "vlan": (2,)}.get(column, ())
        columns[column] = np.array(values, DTYPES.get(column, np.uint8)).reshape(len(rows), *width)
    return DecodedBlock(**columns)


def decode_packet(
    frame: bytes, wire_len: int, link_type: int, ts_ns: int = 0, context: Context | None = None
) -> Row:
    """One captured packet to one row."""
    context = context or Context()
    row = Row()
    wire_len = max(wire_len, len(frame))
    if len(frame) < wire_len:
        row.flags |= PACKET_TRUNCATED
    firsts: list[tuple[tuple[object, ...], bytes, tuple[int, int]]] = []
    best = None
    try:
        if not frame:
            raise Stop(Reject.EMPTY)
        way = first_layer(Part(frame, 0, wire_len), link_type)
        while True:
            part, joined = one_packet(row, way, best is not None, wire_len, ts_ns, context, firsts)
            best = copy.deepcopy(row)
            if joined or not context.decap:
                break
            found = tunnel_behind(row, part)
            if found is None:
                break
            if row.tunnel_depth == MAX_TUNNELS:
                raise Stop(Reject.TUNNEL_TOO_DEEP)
            kind, number, way = found
            enter(row, kind, number)
            row.src_port = row.dst_port = row.tcp_seq = row.tcp_ack = row.tcp_flags = row.tcp_window = 0
    except Stop as stop:
        if best is None:
            row.reject = int(stop.reason)
            return row
        best.tunnel_stop = int(stop.reason)
    assert best is not None
    if context.datagrams is not None:
        for name, head, piece in firsts:
            context.datagrams[name] = Datagram(best, head, ts_ns, [piece])
    return best


def one_packet(
    row: Row,
    way: Way,
    is_inside: bool,
    frame_bytes: int,
    ts_ns: int,
    context: Context,
    firsts: list[tuple[tuple[object, ...], bytes, tuple[int, int]]],
) -> tuple[Part, bool]:
    """Set all columns from the layers in front of one IP header to its transport header.

    Returns:
        What follows the transport header; and whether this is a later fragment that found its flow.
    """
    n_tags = 0
    for _ in range(16):
        if way.layer == "ip":
            break
        way = next_layer(way)
        if way.tag is not None:
            n_tags += 1
            if len(row.tags) < 2:
                row.tags.append(way.tag)
        elif way.layer == "ethernet":
            n_tags = 0
        if way.session is not None:
            enter(row, TunnelKind.PPPOE, way.session)
        way.n_tags = n_tags
    else:
        raise Stop(Reject.LINK_TOO_DEEP)
    row.l3_offset = way.part.at
    transport, fragment = ip_layer(row, way.part, way.argument, is_inside, frame_bytes, context.check)
    if fragment is None:
        return transport_layer(row, transport, is_fragment=False), False
    name, start, stop, part = fragment
    is_new = True
    if context.datagrams is None:
        if start:
            raise Stop(Reject.LATER_FRAGMENT)
    else:
        datagram = find_datagram(context, name, ts_ns)
        if stop > 65535:
            raise Stop(Reject.FRAGMENT_TOO_LONG)
        if datagram is None:
            if start:
                raise Stop(Reject.LATER_FRAGMENT)
        else:
            is_new = False
            is_repeated = (start, stop) in datagram.pieces
            if not is_repeated and any(start < b and a < stop for a, b in datagram.pieces):
                raise Stop(Reject.FRAGMENT_OVERLAP)
            if not is_repeated and len(datagram.pieces) == 128:
                raise Stop(Reject.TOO_MANY_FRAGMENTS)
            if start == 0 and (not is_repeated or len(part.data) < 8 or part.data[:8] != datagram.head):
                raise Stop(Reject.FRAGMENT_OVERLAP)
            if start:
                if not is_repeated:
                    datagram.pieces.append((start, stop))
                for column in ("src", "dst", "src_port", "dst_port", "protocol", "ip_version", "tags"):
                    setattr(row, column, getattr(datagram.row, column))
                for column in ("tunnel_kind", "tunnel_depth", "tunnel_id", "tunnel_path"):
                    setattr(row, column, getattr(datagram.row, column))
    if start:
        row.l4_offset = row.payload_offset = part.at
        row.payload_len = stop - start
        return part, True
    rest = transport_layer(row, transport, is_fragment=True)
    if is_new:
        firsts.append((name, part.data[:8] if len(part.data) >= 8 else bytes(8), (start, stop)))
    return rest, False


def find_datagram(context: Context, name: tuple[object, ...], ts_ns: int) -> Datagram | None:
    assert context.datagrams is not None
    datagram = context.datagrams.get(name)
    if datagram is not None and abs(ts_ns - datagram.first_ns) > context.limit_ns:
        del context.datagrams[name]
        return None
    return datagram


# ------------------------------------------------------------------------------------------- tunnels


def mixed(path: int, word: int) -> int:
    z = (path ^ word) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 32) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 29


def enter(row: Row, kind: TunnelKind, number: int) -> None:
    """As ``capture.tunnel`` says what names a tunnel."""
    outer, inner = [*row.tags, 0, 0][:2]
    word = kind | outer << 8 | inner << 20
    if kind not in ID_OF_RECEIVER:
        word |= number << 32
    path = mixed(row.tunnel_path, word)
    has_id = kind in ID_IN_PATH or (kind in ID_IN_PATH_IF_ANY and number != 0)
    if not has_id and kind is not TunnelKind.TEREDO:
        ends = [struct.unpack("<QQ", address) for address in (row.src, row.dst)]
        path = mixed(path, sum(mixed(mixed(0, a), b) for a, b in ends) % 2**64)
    row.tunnel_path, row.tunnel_kind, row.tunnel_id = max(path, 1), int(kind), number
    row.tunnel_depth += 1


# ------------------------------------------------------------------------------------------- IP layer

Fragment = tuple[tuple[object, ...], int, int, Part]  # name of the datagram, start, stop, what it holds


def ip_layer(
    row: Row, ip: Part, promised_version: int, is_inside: bool, frame_bytes: int, check: bool
) -> tuple[Part, Fragment | None]:
    """Set the columns of the IP header; what follows it (of a later fragment: nothing to be believed)."""
    need(ip, 1, Reject.TRUNCATED_IP)
    version = ip.data[0] >> 4
    if version not in (4, 6) or promised_version not in (0, version):
        raise Stop(Reject.BAD_IP_VERSION)
    return (ipv4 if version == 4 else ipv6)(row, ip, is_inside, frame_bytes, check)


def ip_columns(
    row: Row, ip: Part, is_inside: bool, frame_bytes: int, columns: dict[str, object], ip_len: int
) -> None:
    """Set columns that both versions have."""
    row.ip_len = ip_len
    for name, value in columns.items():
        setattr(row, name, value)
    if ip.at + ip_len > frame_bytes:
        row.flags |= PACKET_TRUNCATED


def ipv4(row: Row, ip: Part, is_inside: bool, frame_bytes: int, check: bool) -> tuple[Part, Fragment | None]:
    need(ip, 20, Reject.TRUNCATED_IP)
    first, tos, total_len, ident, word, ttl, protocol, _, src, dst = struct.unpack_from(
        ">BBHHHBBH4s4s", ip.data
    )
    header_len = (first & 0xF) * 4
    if header_len < 20 or header_len > ip.wire:
        raise Stop(Reject.BAD_IP_HEADER_LENGTH)
    total_len = total_len or ip.wire
    if total_len < header_len:
        raise Stop(Reject.BAD_IP_TOTAL_LENGTH)
    columns = {"ip_version": 4, "tos": tos, "ttl": ttl, "src": mapped(src), "dst": mapped(dst)}
    ip_columns(row, ip, is_inside, frame_bytes, columns, total_len)
    need(ip, header_len, Reject.TRUNCATED_EXTENSION)
    row.protocol = protocol
    words = struct.unpack(f">{header_len // 2}H", ip.data[:header_len])
    if check and sum(words) % 0xFFFF:  # a sum of 0 cannot be: the first word is not 0
        raise Stop(Reject.BAD_IP_CHECKSUM)
    transport = ip.first(total_len).behind(header_len)
    offset, more = (word & 0x1FFF) * 8, bool(word & 0x2000)
    fragment = None
    if offset or more:
        row.flags |= PACKET_FRAGMENT
        name = (row.src, row.dst, row.tunnel_path, tuple(row.tags), 4, protocol, ident)
        fragment = (name, offset, offset + total_len - header_len, transport)
    if is_inside and total_len > ip.wire:
        raise Stop(Reject.BAD_IP_TOTAL_LENGTH)
    return transport, fragment


def mapped(address: bytes) -> bytes:
    return ipaddress.IPv6Address(f"::ffff:{ipaddress.IPv4Address(address)}").packed


def ipv6(row: Row, ip: Part, is_inside: bool, frame_bytes: int, check: bool) -> tuple[Part, Fragment | None]:
    need(ip, 40, Reject.TRUNCATED_IP)
    word, payload_len, following, hop_limit, src, dst = struct.unpack_from(">IHBB16s16s", ip.data)
    ip_len = 40 + payload_len if payload_len else ip.wire
    columns = {"ip_version": 6, "tos": word >> 20 & 0xFF, "ttl": hop_limit, "src": src, "dst": dst}
    ip_columns(row, ip, is_inside, frame_bytes, columns, ip_len)
    transport, fragment = ipv6_extensions(row, ip.first(ip_len).behind(40), following)
    if is_inside and ip_len > ip.wire:
        raise Stop(Reject.BAD_IP_TOTAL_LENGTH)
    return transport, fragment


def ipv6_extensions(row: Row, rest: Part, following: int) -> tuple[Part, Fragment | None]:
    fragment = None
    n_headers = 0
    while following in IPV6_EXTENSIONS:
        n_headers += 1
        if n_headers > 8:
            raise Stop(Reject.EXTENSION_TOO_DEEP)
        need(rest, 8, Reject.TRUNCATED_EXTENSION)
        if following == 44:
            length = 8
            word, ident = struct.unpack_from(">HI", rest.data, 2)
            offset, more = word & 0xFFF8, bool(word & 1)
            if offset or more:
                row.flags |= PACKET_FRAGMENT
                name = (row.src, row.dst, row.tunnel_path, tuple(row.tags), 6, 0, ident)
                part = rest.behind(8)
                fragment = (name, offset, offset + part.wire, part)
            if offset:
                row.protocol = rest.data[0]
                return rest, fragment
        elif following == 51:
            length = (rest.data[1] + 2) * 4
        else:
            length = (rest.data[1] + 1) * 8
        need(rest, length, Reject.TRUNCATED_EXTENSION)
        following = rest.data[0]
        rest = rest.behind(length)
    row.protocol = following
    if following == 59:
        raise Stop(Reject.NO_NEXT_HEADER)
    return rest, fragment


# ------------------------------------------------------------------------------------ transport layer


def transport_layer(row: Row, transport: Part, *, is_fragment: bool) -> Part:
    """Set ports, lengths and TCP columns; what follows the header."""
    row.l4_offset = transport.at
    data, room = transport.data, transport.wire
    payload_len = None
    match row.protocol:
        case 6:
            header_len = tcp(row, data, room, is_fragment)
        case 17:
            header_len = 8
            payload_len = udp(row, data, room, is_fragment) - 8
        case 1 | 58:
            need(transport, 4, Reject.TRUNCATED_TRANSPORT)
            header_len = min(room, 8)
            row.src_port, row.dst_port = data[0], data[1]
        case 132:
            header_len = 12
            if is_fragment and 8 <= room < 12 and len(data) >= room:
                header_len = room
            need(transport, header_len, Reject.TRUNCATED_TRANSPORT)
            row.src_port, row.dst_port = struct.unpack_from(">HH", data)
        case _:
            header_len = 0
    row.payload_offset = transport.at + header_len
    row.payload_len = room - header_len if payload_len is None else payload_len
    if row.protocol == 17:
        told = struct.unpack_from(">H", data, 4)[0] - 8 if is_fragment else row.payload_len
        return Part(data[8:], row.payload_offset, told)
    return Part(
        data[header_len:], row.payload_offset, 65535 - header_len if is_fragment else room - header_len
    )


def tcp(row: Row, data: bytes, room: int, is_fragment: bool) -> int:
    """Set the TCP columns; length of the header."""
    if is_fragment and 8 <= room < 20 and len(data) >= room:  # cut by fragmentation, after the ports
        row.src_port, row.dst_port = struct.unpack_from(">HH", data)
        return room
    if len(data) < 20:
        raise Stop(Reject.TRUNCATED_TRANSPORT)
    src_port, dst_port, seq, ack, offset, flags, window = struct.unpack_from(">HHIIBBH", data)
    header_len = (offset >> 4) * 4
    if is_fragment and header_len > room:
        header_len = room
    if header_len < 20 or header_len > room:
        raise Stop(Reject.BAD_TCP_OFFSET)
    row.src_port, row.dst_port = src_port, dst_port
    row.tcp_seq, row.tcp_ack, row.tcp_flags, row.tcp_window = seq, ack, flags, window
    return header_len


def udp(row: Row, data: bytes, room: int, is_fragment: bool) -> int:
    """Set the ports; bytes of the datagram in this packet, header included."""
    if len(data) < 8:
        raise Stop(Reject.TRUNCATED_TRANSPORT)
    src_port, dst_port, length = struct.unpack_from(">HHH", data)
    if length == 0 and room > 65535:  # a jumbogram
        length = room
    if length < 8:
        raise Stop(Reject.BAD_UDP_LENGTH)
    if length > room and not is_fragment:
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
