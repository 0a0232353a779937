"""Headers to columns, compiled: one pass over a block, one entry (:func:`decode_block`).

Each layer checks its lengths once, up front, against three ends that are all positions in ``data``:

* ``end``: behind the last captured byte of the packet. No byte at or past it is ever read, whatever the
  headers claim: every load below stands behind a comparison of its header's last byte with ``end``.
* ``frame_end``: behind the last byte the frame had on the wire.
* ``at + ip_len``: behind the IP packet, as its header says. Transport headers end before it, so Ethernet
  padding is never read as one.

What the checks buy: the functions that fill in the columns need none, and read each field in one line.

Helpers are pasted into the entry by numba (``inline="always"``) where LLVM would call them: a call that hands
over an array counts its references, twice for each packet (36 instead of 17 ns). One function writes all
columns for the same reason (in helpers, 152 ns). Small loads are left to LLVM, which inlines them.

All helpers live in this file, because numba's cache looks only at the time stamp of the file of the
entry: a helper changed in another file would leave the old machine code in use.
Integers are int64 throughout (uint64 mixed with int64 would be float64).
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit

from capture import block as blocks
from capture.reject import Reject

MAX_VLAN_TAGS: Final = 3  # the bound of Suricata; the first two are kept
MAX_EXTENSIONS: Final = 8  # one more than RFC 8200, 4.1 has use for

# Plain integers: a kernel takes them as constants, and an IntEnum member would be boxed.
_DECODED: Final = int(Reject.DECODED)
_EMPTY: Final = int(Reject.EMPTY)
_UNKNOWN_LINK_TYPE: Final = int(Reject.UNKNOWN_LINK_TYPE)
_TRUNCATED_LINK: Final = int(Reject.TRUNCATED_LINK)
_TRUNCATED_VLAN: Final = int(Reject.TRUNCATED_VLAN)
_VLAN_TOO_DEEP: Final = int(Reject.VLAN_TOO_DEEP)
_TRUNCATED_IP: Final = int(Reject.TRUNCATED_IP)
_BAD_IP_VERSION: Final = int(Reject.BAD_IP_VERSION)
_BAD_IP_HEADER_LENGTH: Final = int(Reject.BAD_IP_HEADER_LENGTH)
_BAD_IP_TOTAL_LENGTH: Final = int(Reject.BAD_IP_TOTAL_LENGTH)
_TRUNCATED_EXTENSION: Final = int(Reject.TRUNCATED_EXTENSION)
_EXTENSION_TOO_DEEP: Final = int(Reject.EXTENSION_TOO_DEEP)
_TRUNCATED_TRANSPORT: Final = int(Reject.TRUNCATED_TRANSPORT)
_BAD_TCP_OFFSET: Final = int(Reject.BAD_TCP_OFFSET)
_BAD_UDP_LENGTH: Final = int(Reject.BAD_UDP_LENGTH)
_ARP: Final = int(Reject.ARP)
_NOT_IP: Final = int(Reject.NOT_IP)
_LATER_FRAGMENT: Final = int(Reject.LATER_FRAGMENT)
_NO_NEXT_HEADER: Final = int(Reject.NO_NEXT_HEADER)

_ETHERNET: Final = blocks.LINK_ETHERNET
_NULL: Final = blocks.LINK_NULL
_RAW_12: Final = blocks.LINK_RAW_12
_RAW_14: Final = blocks.LINK_RAW_14
_RAW: Final = blocks.LINK_RAW
_LOOP: Final = blocks.LINK_LOOP
_SLL: Final = blocks.LINK_LINUX_SLL
_IPV4: Final = blocks.LINK_IPV4
_IPV6: Final = blocks.LINK_IPV6
_SLL2: Final = blocks.LINK_LINUX_SLL2
_TRUNCATED: Final = blocks.PACKET_TRUNCATED
_FRAGMENT: Final = blocks.PACKET_FRAGMENT

_ETHERNET_HEADER: Final = 14
_SLL_HEADER: Final = 16
_SLL2_HEADER: Final = 20
_FAMILY_HEADER: Final = 4  # NULL and LOOP: the address family
_SNAP_HEADER: Final = 8
_IPV4_HEADER: Final = 20
_IPV6_HEADER: Final = 40
_TCP_HEADER: Final = 20
_UDP_HEADER: Final = 8
_SCTP_HEADER: Final = 12
_ICMP_HEADER: Final = 8
_ICMP_NEEDED: Final = 4  # type, code, checksum; the other four bytes depend on the type

_PROTOCOL_ICMP: Final = 1
_PROTOCOL_TCP: Final = 6
_PROTOCOL_UDP: Final = 17
_PROTOCOL_FRAGMENT: Final = 44
_PROTOCOL_AH: Final = 51
_PROTOCOL_ICMPV6: Final = 58
_PROTOCOL_NO_NEXT: Final = 59
_PROTOCOL_SCTP: Final = 132


# ---------------------------------------------------------------------------------------------- loads
# An unsigned index spares numba's test for a negative one. LLVM joins the byte loads to one.


@njit(cache=True, nogil=True)
def _u8(data, at):  # type: ignore[no-untyped-def]
    return np.int64(data[np.uint64(at)])


@njit(cache=True, nogil=True)
def _u16(data, at):  # type: ignore[no-untyped-def]
    return _u8(data, at) << 8 | _u8(data, at + 1)


@njit(cache=True, nogil=True)
def _u32(data, at):  # type: ignore[no-untyped-def]
    return _u8(data, at) << 24 | _u8(data, at + 1) << 16 | _u8(data, at + 2) << 8 | _u8(data, at + 3)


# ----------------------------------------------------------------------------------------- link layer
# Each function returns (reason, position of the IP header, IP version or 0 for either, VLAN ids).


@njit(inline="always")
def _ether_type(data, at, end, ether_type):  # type: ignore[no-untyped-def]
    """Behind an EtherType: VLAN tags, LLC/SNAP, then the network layer. ``at`` is the byte behind the type."""
    outer = np.int64(0)
    inner = np.int64(0)
    depth = 0
    while ether_type == 0x8100 or ether_type == 0x88A8 or ether_type == 0x9100:
        if depth == MAX_VLAN_TAGS:
            return _VLAN_TOO_DEEP, at, 0, outer, inner
        if at + 4 > end:
            return _TRUNCATED_VLAN, at, 0, outer, inner
        if depth == 0:
            outer = _u16(data, at) & 0xFFF
        elif depth == 1:
            inner = _u16(data, at) & 0xFFF
        ether_type = _u16(data, at + 2)
        at += 4
        depth += 1
    if _SNAP_HEADER <= ether_type <= 1500:  # an 802.3 length; a shorter frame has no room for SNAP
        if at + _SNAP_HEADER > end:
            return _TRUNCATED_LINK, at, 0, outer, inner
        # RFC 1042: DSAP, SSAP AA, control 03, OUI 0; then it is an EtherType after all
        if _u32(data, at) == 0xAAAA0300 and _u16(data, at + 4) == 0:
            ether_type = _u16(data, at + 6)
            at += _SNAP_HEADER
    if ether_type == 0x0800:
        return _DECODED, at, 4, outer, inner
    if ether_type == 0x86DD:
        return _DECODED, at, 6, outer, inner
    if ether_type == 0x0806:
        return _ARP, at, 0, outer, inner
    return _NOT_IP, at, 0, outer, inner


@njit(inline="always")
def _address_family(data, at, end, link):  # type: ignore[no-untyped-def]
    """NULL and LOOP: four bytes of address family, IPv6 by the numbers of NetBSD/OpenBSD, FreeBSD, macOS."""
    if at + _FAMILY_HEADER > end:
        return _TRUNCATED_LINK, at, 0, 0, 0
    family = _u32(data, at)
    if link == _NULL and family & 0xFFFF == 0:  # written in the byte order of the other kind of machine
        family = family >> 24 | family >> 8 & 0xFF00
    at += _FAMILY_HEADER
    if family == 2:
        return _DECODED, at, 4, 0, 0
    if family == 24 or family == 28 or family == 30:
        return _DECODED, at, 6, 0, 0
    return _NOT_IP, at, 0, 0, 0


@njit(inline="always")
def _link_layer(data, at, end, link):  # type: ignore[no-untyped-def]
    """Behind the first byte of the packet; which link types there are stands in ``capture.block``."""
    header_len = 0
    type_at = 0
    if link == _ETHERNET:
        header_len = _ETHERNET_HEADER
        type_at = 12
    elif link == _SLL:
        header_len = _SLL_HEADER
        type_at = 14
    elif link == _SLL2:
        header_len = _SLL2_HEADER
    if header_len != 0:
        if at + header_len > end:
            return _TRUNCATED_LINK, at, 0, 0, 0
        return _ether_type(data, at + header_len, end, _u16(data, at + type_at))
    if link in (_RAW, _RAW_12, _RAW_14):
        return _DECODED, at, 0, 0, 0
    if link in (_NULL, _LOOP):
        return _address_family(data, at, end, link)
    if link == _IPV4:
        return _DECODED, at, 4, 0, 0
    if link == _IPV6:
        return _DECODED, at, 6, 0, 0
    return _UNKNOWN_LINK_TYPE, at, 0, 0, 0


# ------------------------------------------------------------------------------------------- IP layer


@njit(cache=True, nogil=True)
def _ip_lengths(data, at, end, frame_end, wanted):  # type: ignore[no-untyped-def]
    """(reason, version, header length, IP length) of the fixed IP header; 0 stands for what is not known.

    A length of 0 is what segmentation offload leaves (and RFC 2675 jumbograms say): what the frame holds.
    A length beyond the frame is believed: some tools that slice packets write the new length as the frame's.
    """
    if at >= end:
        return _TRUNCATED_IP, 0, 0, 0
    first = _u8(data, at)
    version = first >> 4
    if (version != 4 and version != 6) or (wanted != 0 and version != wanted):
        return _BAD_IP_VERSION, 0, 0, 0
    if version == 6:
        if at + _IPV6_HEADER > end:
            return _TRUNCATED_IP, 0, 0, 0
        length = _u16(data, at + 4)
        return _DECODED, 6, _IPV6_HEADER, frame_end - at if length == 0 else length + _IPV6_HEADER
    if at + _IPV4_HEADER > end:
        return _TRUNCATED_IP, 0, 0, 0
    header_len = (first & 15) << 2
    if header_len < _IPV4_HEADER or at + header_len > frame_end:
        return _BAD_IP_HEADER_LENGTH, 0, 0, 0
    length = _u16(data, at + 2)
    if length == 0:
        length = frame_end - at
    if length < header_len:
        return _BAD_IP_TOTAL_LENGTH, 0, 0, 0
    return _DECODED, 4, header_len, length


@njit(cache=True, nogil=True)
def _ipv4_next(data, at, end, header_len):  # type: ignore[no-untyped-def]
    """(reason, protocol, position of the transport header, fragment flag), as RFC 791 says."""
    if at + header_len > end:
        return _TRUNCATED_EXTENSION, 0, at, 0
    protocol = _u8(data, at + 9)
    fragment = _u16(data, at + 6)
    if fragment & 0x1FFF != 0:
        return _LATER_FRAGMENT, protocol, at, 0
    return _DECODED, protocol, at + header_len, _FRAGMENT if fragment & 0x2000 else 0


@njit(cache=True, nogil=True)
def _is_extension(protocol):  # type: ignore[no-untyped-def]
    """Hop-by-hop, routing, fragment, AH, destination options, mobility, HIP, shim6 (IANA's list but ESP)."""
    if protocol == 0 or protocol == 60 or protocol == 43:
        return True
    if protocol in (_PROTOCOL_FRAGMENT, _PROTOCOL_AH):
        return True
    return protocol == 135 or protocol == 139 or protocol == 140


@njit(inline="always")
def _ipv6_next(data, at, limit):  # type: ignore[no-untyped-def]
    """Follow the extension headers (RFC 8200, 4); returns as :func:`_ipv4_next`.

    Args:
        data: the bytes.
        at: position of the IPv6 header, which lies before ``limit``.
        limit: end of the captured bytes or of the IP packet, whichever is first.
    """
    protocol = _u8(data, at + 6)
    at += _IPV6_HEADER
    flag = 0
    depth = 0
    while _is_extension(protocol):
        if depth == MAX_EXTENSIONS:
            return _EXTENSION_TOO_DEEP, 0, at, flag
        if at + 8 > limit:  # none is shorter
            return _TRUNCATED_EXTENSION, 0, at, flag
        length = (_u8(data, at + 1) + 1) << 3
        if protocol == _PROTOCOL_AH:
            length = (_u8(data, at + 1) + 2) << 2  # RFC 4302, 2.2: in words of 4 bytes, minus 2
        elif protocol == _PROTOCOL_FRAGMENT:
            length = 8
            fragment = _u16(data, at + 2)
            if fragment >> 3 != 0:
                return _LATER_FRAGMENT, _u8(data, at), at, 0
            if fragment & 1 != 0:  # else "atomic" (RFC 6946), a whole packet
                flag = _FRAGMENT
        if at + length > limit:
            return _TRUNCATED_EXTENSION, 0, at, flag
        protocol = _u8(data, at)
        at += length
        depth += 1
    if protocol == _PROTOCOL_NO_NEXT:
        return _NO_NEXT_HEADER, protocol, at, flag
    return _DECODED, protocol, at, flag


# ------------------------------------------------------------------------------------ transport layer


@njit(cache=True, nogil=True)
def _transport_lengths(data, at, end, room, protocol, flag):  # type: ignore[no-untyped-def]
    """(reason, header length, payload length) of a transport header.

    Only the fixed header must be captured; options may lie behind the snaplen.

    Args:
        data: the bytes.
        at: position of the transport header.
        end: end of the captured bytes.
        room: bytes of the IP packet from ``at`` on, on the wire.
        protocol: IP protocol number.
        flag: ``PACKET_FRAGMENT`` for a first fragment, else 0.
    """
    held = min(end - at, room)
    if protocol == _PROTOCOL_TCP:
        if held < _TCP_HEADER:
            return _TRUNCATED_TRANSPORT, 0, 0
        header_len = _u8(data, at + 12) >> 4 << 2
        if header_len < _TCP_HEADER or header_len > room:
            return _BAD_TCP_OFFSET, 0, 0
        return _DECODED, header_len, room - header_len
    if protocol == _PROTOCOL_UDP:
        if held < _UDP_HEADER:
            return _TRUNCATED_TRANSPORT, 0, 0
        length = _u16(data, at + 4)
        if length == 0 and room > 0xFFFF:  # RFC 2675, 4: a jumbogram
            length = room
        # The first fragment carries the length of the whole datagram.
        if length < _UDP_HEADER or (length > room and flag == 0):
            return _BAD_UDP_LENGTH, 0, 0
        return _DECODED, _UDP_HEADER, min(length, room) - _UDP_HEADER
    if protocol in (_PROTOCOL_ICMP, _PROTOCOL_ICMPV6):
        if held < _ICMP_NEEDED:
            return _TRUNCATED_TRANSPORT, 0, 0
        header_len = min(_ICMP_HEADER, room)  # a message of 4 to 7 bytes is all header
        return _DECODED, header_len, room - header_len
    if protocol == _PROTOCOL_SCTP:
        if held < _SCTP_HEADER:
            return _TRUNCATED_TRANSPORT, 0, 0
        return _DECODED, _SCTP_HEADER, room - _SCTP_HEADER
    return _DECODED, 0, room


# ---------------------------------------------------------------------------------------------- entry


@njit(cache=True, nogil=True)
def decode_block(  # type: ignore[no-untyped-def]
    data,
    offset,
    captured_len,
    wire_len,
    link_type,
    reject,
    ip_version,
    protocols,
    vlan,
    src,
    dst,
    src_port,
    dst_port,
    l3_offset,
    l4_offset,
    payload_offset,
    ip_len,
    payload_len,
    ttl,
    tos,
    tcp_flags,
    tcp_window,
    tcp_seq,
    tcp_ack,
    flags,
):
    """Fill in the columns of a ``DecodedBlock``, given as zeros in its order, from those of a ``PacketBlock``.

    Returns:
        -1, or the first row that does not lie inside ``data``; rows before it are done.
    """
    for i in range(len(offset)):
        start = np.int64(offset[i])
        captured = np.int64(captured_len[i])
        end = start + captured
        if start < 0 or end > len(data):
            return i
        frame_end = start + max(captured, np.int64(wire_len[i]))
        flag = _TRUNCATED if end < frame_end else 0
        flags[i] = flag
        if captured == 0:
            reject[i] = _EMPTY
            continue

        reason, l3, wanted, outer, inner = _link_layer(data, start, end, np.int64(link_type[i]))
        vlan[i, 0] = outer
        vlan[i, 1] = inner
        if reason != _DECODED:
            reject[i] = reason
            continue
        l3_offset[i] = l3 - start

        reason, version, header_len, length = _ip_lengths(data, l3, end, frame_end, wanted)
        if reason != _DECODED:
            reject[i] = reason
            continue
        ip_version[i] = version
        ip_len[i] = length
        if l3 + length > frame_end:
            flag = _TRUNCATED
        if version == 4:
            tos[i] = _u8(data, l3 + 1)
            ttl[i] = _u8(data, l3 + 8)
            src[i, 10] = 0xFF
            src[i, 11] = 0xFF
            dst[i, 10] = 0xFF
            dst[i, 11] = 0xFF
            for k in range(4):
                src[i, 12 + k] = _u8(data, l3 + 12 + k)
                dst[i, 12 + k] = _u8(data, l3 + 16 + k)
            reason, protocol, l4, fragment = _ipv4_next(data, l3, end, header_len)
        else:
            tos[i] = _u16(data, l3) >> 4 & 0xFF
            ttl[i] = _u8(data, l3 + 7)
            for k in range(16):
                src[i, k] = _u8(data, l3 + 8 + k)
                dst[i, k] = _u8(data, l3 + 24 + k)
            reason, protocol, l4, fragment = _ipv6_next(data, l3, min(end, l3 + length))
        protocols[i] = protocol
        flags[i] = flag | fragment
        if reason != _DECODED:
            reject[i] = reason
            continue
        l4_offset[i] = l4 - start

        room = l3 + length - l4
        reason, header_len, length = _transport_lengths(data, l4, end, room, protocol, fragment)
        if reason != _DECODED:
            reject[i] = reason
            continue
        payload_offset[i] = l4 + header_len - start
        payload_len[i] = length
        if protocol in (_PROTOCOL_TCP, _PROTOCOL_UDP, _PROTOCOL_SCTP):
            src_port[i] = _u16(data, l4)
            dst_port[i] = _u16(data, l4 + 2)
        elif protocol in (_PROTOCOL_ICMP, _PROTOCOL_ICMPV6):
            src_port[i] = _u8(data, l4)
            dst_port[i] = _u8(data, l4 + 1)
        if protocol == _PROTOCOL_TCP:
            tcp_seq[i] = _u32(data, l4 + 4)
            tcp_ack[i] = _u32(data, l4 + 8)
            tcp_flags[i] = _u8(data, l4 + 13)
            tcp_window[i] = _u16(data, l4 + 14)
    return -1
