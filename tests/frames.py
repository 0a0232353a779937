"""Frames built by hand with struct, one function a header, so that a test can be wrong on purpose.

Every field has a sensible value and can be set to a senseless one. Checksums are 0: nothing here checks them.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Sequence

ETHER_IPV4, ETHER_IPV6, ETHER_ARP = 0x0800, 0x86DD, 0x0806
ICMP, TCP, UDP, ESP, ICMPV6, SCTP = 1, 6, 17, 50, 58, 132
HOP_BY_HOP, ROUTING, FRAGMENT, AH, NO_NEXT_HEADER, DESTINATION = 0, 43, 44, 51, 59, 60
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16


def ethernet(
    payload: bytes, ether_type: int = ETHER_IPV4, *, vlans: Sequence[int] = (), tpid: int = 0x8100
) -> bytes:
    """Ethernet II; ``vlans`` are tags (TCI), outermost first."""
    tags = b"".join(struct.pack(">HH", tpid, tag) for tag in vlans)
    return bytes.fromhex("020000000002020000000001") + tags + struct.pack(">H", ether_type) + payload


def snap(
    payload: bytes, ether_type: int = ETHER_IPV4, *, llc: bytes = bytes.fromhex("aaaa03000000")
) -> bytes:
    """802.3 with LLC/SNAP (RFC 1042)."""
    return ethernet(llc + struct.pack(">H", ether_type) + payload, min(1500, len(llc) + 2 + len(payload)))


def sll(payload: bytes, ether_type: int = ETHER_IPV4) -> bytes:
    """LINKTYPE_LINUX_SLL."""
    return struct.pack(">HHH8sH", 0, 1, 6, bytes(8), ether_type) + payload


def sll2(payload: bytes, ether_type: int = ETHER_IPV4) -> bytes:
    """LINKTYPE_LINUX_SLL2."""
    return struct.pack(">HHIHBB8s", ether_type, 0, 3, 1, 0, 6, bytes(8)) + payload


def ipv4(
    payload: bytes,
    protocol: int = UDP,
    *,
    src: str = "10.0.0.1",
    dst: str = "10.0.0.2",
    options: bytes = b"",
    total_len: int | None = None,
    fragment: int = 0,
    ident: int = 1,
    ttl: int = 64,
    tos: int = 0,
    version: int = 4,
    ihl: int | None = None,
) -> bytes:
    """IPv4; ``fragment`` is the word of flags and offset (0x2000: more fragments)."""
    header_len = 20 + len(options)
    return (
        struct.pack(
            ">BBHHHBBH4s4s",
            version << 4 | (header_len // 4 if ihl is None else ihl),
            tos,
            header_len + len(payload) if total_len is None else total_len,
            ident,
            fragment,
            ttl,
            protocol,
            0,
            ipaddress.IPv4Address(src).packed,
            ipaddress.IPv4Address(dst).packed,
        )
        + options
        + payload
    )


def ipv6(
    payload: bytes,
    next_header: int = UDP,
    *,
    src: str = "2001:db8::1",
    dst: str = "2001:db8::2",
    payload_len: int | None = None,
    hop_limit: int = 64,
    traffic_class: int = 0,
    version: int = 6,
) -> bytes:
    """IPv6; extension headers are part of ``payload``."""
    return (
        struct.pack(
            ">IHBB16s16s",
            version << 28 | traffic_class << 20 | 0xABCDE,
            len(payload) if payload_len is None else payload_len,
            next_header,
            hop_limit,
            ipaddress.IPv6Address(src).packed,
            ipaddress.IPv6Address(dst).packed,
        )
        + payload
    )


def extension(next_header: int, *, n_bytes: int = 8) -> bytes:
    """An IPv6 extension header in the common form (hop-by-hop, routing, destination options, ...)."""
    return struct.pack(">BB", next_header, n_bytes // 8 - 1) + bytes(n_bytes - 2)


def authentication(next_header: int, *, n_bytes: int = 24) -> bytes:
    """An authentication header (RFC 4302)."""
    return struct.pack(">BB", next_header, n_bytes // 4 - 2) + bytes(n_bytes - 2)


def fragment_header(next_header: int, *, offset: int = 0, more: bool = False, ident: int = 0x1234) -> bytes:
    """An IPv6 fragment header; ``offset`` in units of 8 bytes."""
    return struct.pack(">BBHI", next_header, 0, offset << 3 | more, ident)


def tcp(
    payload: bytes = b"",
    *,
    src_port: int = 50000,
    dst_port: int = 443,
    flags: int = ACK,
    seq: int = 1000,
    ack: int = 2000,
    window: int = 512,
    options: bytes = b"",
    data_offset: int | None = None,
) -> bytes:
    """TCP; ``options`` a multiple of 4 bytes."""
    words = 5 + len(options) // 4 if data_offset is None else data_offset
    return (
        struct.pack(">HHIIBBHHH", src_port, dst_port, seq, ack, words << 4, flags, window, 0, 0)
        + options
        + payload
    )


def udp(
    payload: bytes = b"", *, src_port: int = 50000, dst_port: int = 53, length: int | None = None
) -> bytes:
    """UDP."""
    return (
        struct.pack(">HHHH", src_port, dst_port, 8 + len(payload) if length is None else length, 0) + payload
    )


def icmp(payload: bytes = b"", *, kind: int = 8, code: int = 0) -> bytes:
    """ICMP or ICMPv6: type, code, checksum and four more bytes."""
    return struct.pack(">BBHI", kind, code, 0, 0x00010001) + payload


def sctp(payload: bytes = b"", *, src_port: int = 2905, dst_port: int = 2906) -> bytes:
    """SCTP common header."""
    return struct.pack(">HHII", src_port, dst_port, 1, 0) + payload
