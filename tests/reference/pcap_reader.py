"""The slow twin of ``capture.readers``: a whole file in memory, one struct at a time.

Both functions return the packets up to the first byte that is missing or cannot be believed, and whether
the file ended cleanly. A file header that is no header raises ValueError.
"""

from __future__ import annotations

import math
import struct
from fractions import Fraction

from tests.captures import Packet

MAX_RECORD_BYTES = 128 * 1024 * 1024
INT64_NS = range(-9_223_372_036 * 10**9, 9_223_372_036 * 10**9)


def read_capture(data: bytes) -> tuple[list[Packet], bool]:
    return read_pcapng(data) if data[:4] == b"\n\r\r\n" else read_pcap(data)


def read_pcap(data: bytes) -> tuple[list[Packet], bool]:
    for order in "<>":
        magic = struct.unpack(order + "I", data[:4])[0] if len(data) >= 24 else 0
        if magic in (0xA1B2C3D4, 0xA1B23C4D):
            break
    else:
        raise ValueError
    major, minor, _, _, snaplen, network = struct.unpack(order + "HHiIII", data[4:24])
    link_type = network & 0x03FFFFFF
    if major != 2 or minor > 4 or link_type > 65535:
        raise ValueError
    most = min(max(snaplen, 262144), MAX_RECORD_BYTES)
    packets: list[Packet] = []
    position = 24
    while position < len(data):
        if position + 16 > len(data):
            return packets, False
        seconds, fraction, captured, wire = struct.unpack(order + "IIII", data[position : position + 16])
        if minor < 3 or (minor == 3 and captured > wire):
            captured, wire = wire, captured
        magics = (b"\xa1\xb2\xc3\xd4", b"\xd4\xc3\xb2\xa1", b"\xa1\xb2\x3c\x4d", b"\x4d\x3c\xb2\xa1")
        joined = captured == wire == 0 and data[position : position + 4] in magics
        end = position + 16 + captured
        if captured > most or joined or end > len(data):
            return packets, False
        ns = fraction if magic == 0xA1B23C4D else fraction * 1000
        packets.append(Packet(seconds * 10**9 + ns, link_type, wire, data[position + 16 : end]))
        position = end
    return packets, True


def read_pcapng(data: bytes) -> tuple[list[Packet], bool]:
    packets: list[Packet] = []
    interfaces: list[tuple[int, int, int, int]] = []
    order, position = "<", 0
    while position < len(data):
        try:
            if data[position : position + 4] == b"\n\r\r\n":
                order, interfaces = _order(data[position : position + 28]), []
            kind, body = _block(data[position:], order)
            packet = None
            if kind == 1:
                interfaces.append(_interface(body, order))
            elif kind in (2, 6):
                packet = _packet(kind, body, order, interfaces)
            elif kind == 3:
                packet = _simple_packet(body, order, interfaces, packets)
        except (ValueError, struct.error, IndexError):
            if position == 0:
                raise ValueError from None
            return packets, False
        if packet is not None:
            packets.append(packet)
        position += 12 + len(body)
    return packets, True


def _order(head: bytes) -> str:
    for order in "<>":
        magic, major, minor = struct.unpack(order + "IHH", head[8:16])
        if magic == 0x1A2B3C4D and (major, minor) in ((1, 0), (1, 2)):
            return order
    raise ValueError


def _block(rest: bytes, order: str) -> tuple[int, bytes]:
    kind, length = struct.unpack(order + "II", rest[:8])
    least = {0x0A0D0D0A: 28, 1: 20, 2: 32, 3: 16, 6: 32}.get(kind, 12)
    if length < least or length > MAX_RECORD_BYTES or length % 4 or length > len(rest):
        raise ValueError
    if struct.unpack(order + "I", rest[length - 4 : length])[0] != length:
        raise ValueError
    return kind, rest[8 : length - 4]


def _interface(body: bytes, order: str) -> tuple[int, int, int, int]:
    link_type, _, snaplen = struct.unpack(order + "HHI", body[:8])
    units_per_s, offset_s = 10**6, 0
    rest = body[8:]
    while len(rest) >= 4:
        code, length = struct.unpack(order + "HH", rest[:4])
        if code == 0:
            break
        value = rest[4 : 4 + length]
        if code == 9:
            units_per_s = 2 ** (value[0] - 128) if value[0] >= 128 else 10 ** value[0]
        if code == 14:
            offset_s = struct.unpack(order + "q", value[:8])[0]
        rest = rest[4 + length + -length % 4 :]
    if units_per_s > (2**63 - 1) // 10:
        raise ValueError
    return link_type, snaplen, units_per_s, offset_s


def _packet(kind: int, body: bytes, order: str, interfaces: list[tuple[int, int, int, int]]) -> Packet:
    number, high, low, captured, wire = struct.unpack(order + "IIIII", body[:20])
    if kind == 2:
        number = struct.unpack(order + "H", body[:2])[0]
    link_type, _, units_per_s, offset_s = interfaces[number]
    if captured > len(body) - 20:
        raise ValueError
    units = min(high * 2**32 + low, 2**63 - 1)
    ns = math.floor((Fraction(units, units_per_s) + offset_s) * 10**9)
    ns = min(max(ns, INT64_NS[0]), INT64_NS[-1])
    return Packet(ns, link_type, wire, body[20 : 20 + captured])


def _simple_packet(
    body: bytes, order: str, interfaces: list[tuple[int, int, int, int]], before: list[Packet]
) -> Packet:
    wire = struct.unpack(order + "I", body[:4])[0]
    link_type, snaplen, _, _ = interfaces[0]
    captured = min(wire, snaplen) if snaplen else wire
    if captured > len(body) - 4:
        raise ValueError
    return Packet(before[-1].ts_ns if before else 0, link_type, wire, body[4 : 4 + captured])
