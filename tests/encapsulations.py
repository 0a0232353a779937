"""Encapsulations built by hand with struct, one function a header, each around what it is given."""

from __future__ import annotations

import struct

from tests import frames as f

GRE, ETHERIP, L2TP, MPLS = 47, 97, 115, 137


def mpls(payload: bytes, *labels: int, ttl: int = 64) -> bytes:
    """A label stack."""
    stack = b"".join(
        struct.pack(">I", label << 12 | (i == len(labels) - 1) << 8 | ttl) for i, label in enumerate(labels)
    )
    return stack + payload


def ppp(payload: bytes, protocol: int = 0x21, *, framed: bool = True, short: bool = False) -> bytes:
    """PPP; ``framed``: with address and control; ``short``: protocol in one byte."""
    head = b"\xff\x03" if framed else b""
    return head + (bytes([protocol]) if short else struct.pack(">H", protocol)) + payload


def pppoe(payload: bytes, session: int = 7, *, code: int = 0, length: int | None = None) -> bytes:
    """PPPoE; ``payload`` is PPP without address and control."""
    return struct.pack(">BBHH", 0x11, code, session, len(payload) if length is None else length) + payload


def gre(
    payload: bytes,
    protocol: int = 0x0800,
    *,
    key: int | None = None,
    sequence: int | None = None,
    checksum: bool = False,
    version: int = 0,
) -> bytes:
    """GRE (RFC 2784, 2890)."""
    flags = (0x8000 if checksum else 0) | (0 if key is None else 0x2000) | (0 if sequence is None else 0x1000)
    head = struct.pack(">HH", flags | version, protocol)
    head += bytes(4) if checksum else b""
    head += b"" if key is None else struct.pack(">I", key)
    head += b"" if sequence is None else struct.pack(">I", sequence)
    return head + payload


def pptp(payload: bytes, call: int = 5, *, ack: bool = False) -> bytes:
    """Enhanced GRE (RFC 2637) with a sequence number; ``payload`` is PPP."""
    head = struct.pack(">HHHHI", 0x3001 | (0x80 if ack else 0), 0x880B, len(payload), call, 1)
    return head + (bytes(4) if ack else b"") + payload


def erspan(payload: bytes, kind: int = 2, session: int = 9) -> bytes:
    """ERSPAN I, II or III behind its GRE header; ``payload`` is Ethernet."""
    if kind == 1:
        return gre(payload, 0x88BE)
    if kind == 2:
        return gre(struct.pack(">HHI", 0x1000 | 100, session, 0) + payload, 0x88BE, sequence=1)
    return gre(struct.pack(">HHIHH", 0x2000 | 100, session, 0, 0, 0) + payload, 0x22EB, sequence=1)


def vxlan(payload: bytes, vni: int = 77, *, flags: int = 8) -> bytes:
    """VXLAN (RFC 7348); ``payload`` is Ethernet."""
    return struct.pack(">BxxxI", flags, vni << 8) + payload


def vxlan_gpe(payload: bytes, following: int, vni: int = 77) -> bytes:
    """VXLAN-GPE: 1 IPv4, 2 IPv6, 3 Ethernet, 5 MPLS."""
    return struct.pack(">BxxBI", 0x0C, following, vni << 8) + payload


def geneve(payload: bytes, protocol: int = 0x6558, vni: int = 77, *, options: bytes = b"") -> bytes:
    """Geneve (RFC 8926)."""
    return struct.pack(">BBHI", len(options) // 4, 0, protocol, vni << 8) + options + payload


def gtpu(
    payload: bytes, teid: int = 1000, *, extensions: tuple[int, ...] = (), sequence: bool = False
) -> bytes:
    """GTP-U G-PDU; ``extensions``: the length of each extension header in words."""
    flags, options = 0x30, b""
    if extensions or sequence:
        flags |= (4 if extensions else 0) | (2 if sequence else 0)
        options = struct.pack(">HBB", 1, 0, 0x85 if extensions else 0)
        for i, words in enumerate(extensions):
            following = 0x85 if i + 1 < len(extensions) else 0
            options += bytes([words]) + bytes(max(words * 4 - 2, 0)) + bytes([following])
    return struct.pack(">BBHI", flags, 255, len(options) + len(payload), teid) + options + payload


def teredo(payload: bytes, *, origin: bool = False, authentication: bool = False) -> bytes:
    """Teredo (RFC 4380); ``payload`` is IPv6."""
    head = b"\x00\x01\x00\x00" + bytes(9) if authentication else b""
    return head + (bytes(8) if origin else b"") + payload


def l2tp(payload: bytes, tunnel: int = 3, session: int = 4, *, length: bool = True, offset: int = 0) -> bytes:
    """An L2TPv2 data message; ``payload`` is PPP."""
    flags = 2 | (0x4000 if length else 0) | (0x0200 if offset else 0)
    rest = struct.pack(">HH", tunnel, session) + (
        struct.pack(">H", offset) + bytes(offset) if offset else b""
    )
    n = 2 + (2 if length else 0) + len(rest) + len(payload)
    return struct.pack(">H", flags) + (struct.pack(">H", n) if length else b"") + rest + payload


def l2tpv3(payload: bytes, session: int = 4, *, cookie: bytes = b"", sublayer: bool = False) -> bytes:
    """An L2TPv3 data message over IP; ``payload`` is Ethernet."""
    return struct.pack(">I", session) + cookie + (bytes(4) if sublayer else b"") + payload


def wifi(
    payload: bytes,
    *,
    ether_type: int = f.ETHER_IPV4,
    subtype: int = 0,
    kind: int = 2,
    flags: int = 1,
    fragment: int = 0,
    qos: int = 0,
) -> bytes:
    """An 802.11 frame with LLC/SNAP."""
    head = struct.pack("<BBH18sH", subtype << 4 | kind << 2, flags, 0, bytes(range(18)), fragment)
    head += bytes(6) if flags & 3 == 3 else b""
    if subtype >= 8:
        head += bytes([qos, 0]) + (bytes(4) if flags & 0x80 else b"")
    return head + bytes.fromhex("aaaa03000000") + struct.pack(">H", ether_type) + payload


def radiotap(payload: bytes, *, flags: int | None = None, tsft: bool = False, more: bool = False) -> bytes:
    """Radiotap with, if given, its flags; ``more``: a second word of present bits."""
    present = (1 if tsft else 0) | (0 if flags is None else 2) | (0x80000000 if more else 0)
    fields = struct.pack("<I", present) + (bytes(4) if more else b"")
    if tsft:
        fields += bytes(-(4 + len(fields)) % 8 + 8)
    fields += b"" if flags is None else bytes([flags])
    return struct.pack("<BBH", 0, 0, 4 + len(fields)) + fields + payload


def in_udp(
    payload: bytes, port: int, *, v6: bool = False, src: str = "", dst: str = "", src_port: int = 50000
) -> bytes:
    """An IP packet of UDP to a tunnel's port."""
    ends = {name: value for name, value in (("src", src), ("dst", dst)) if value}
    datagram = f.udp(payload, src_port=src_port, dst_port=port)
    return f.ipv6(datagram, **ends) if v6 else f.ipv4(datagram, **ends)
