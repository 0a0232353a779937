"""What may lie between the start of a frame, or of a tunnel's payload, and an IP header: one function a protocol.

Each takes the position of its header and returns the layer behind it, so that any of them may follow any other.
``end`` is behind the last byte that is there (captured, and part of what encloses the header), ``wire`` behind the
last one that was sent; nothing at or past ``end`` is read. The plain ways (Ethernet, cooked, raw) are decoded a second
time here, because a packet that needs this module is rare.

Sources: RFC 1661, 1662 (PPP), 2516 (PPPoE), 3032 (MPLS), 4385 (pseudowires); IEEE 802.11-2020, 9.2-9.3;
https://www.radiotap.org.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from capture import block as blocks
from capture.kernels.decode import MAX_VLAN_TAGS, _address_family, _u8, _u16, _u32
from capture.kernels.helper import helper
from capture.reject import Reject

MAX_MPLS_LABELS: Final = 8

# Layers: what the next header is.
FRAME: Final = 0  # of the capture's link type
ETHERNET: Final = 1
ETHER_TYPE: Final = 2  # its argument: the type, just read
LLC: Final = 3
PPP: Final = 4
PPPOE: Final = 5
MPLS: Final = 6
IP: Final = 7  # its argument: the version, 0 for either
STOP: Final = 8  # its argument: why

_TRUNCATED_LINK: Final = int(Reject.TRUNCATED_LINK)
_BAD_LINK_HEADER: Final = int(Reject.BAD_LINK_HEADER)
_LINK_TOO_DEEP: Final = int(Reject.LINK_TOO_DEEP)
_NOT_IP: Final = int(Reject.NOT_IP)
_ARP: Final = int(Reject.ARP)
_PPP_CONTROL: Final = int(Reject.PPP_CONTROL)
_DECODED: Final = int(Reject.DECODED)
_UNKNOWN_LINK_TYPE: Final = int(Reject.UNKNOWN_LINK_TYPE)
_PROTECTED_FRAME: Final = int(Reject.PROTECTED_FRAME)
_WIFI_NO_DATA: Final = int(Reject.WIFI_NO_DATA)
_WIFI_FRAGMENT: Final = int(Reject.WIFI_FRAGMENT)
_WIFI_AGGREGATE: Final = int(Reject.WIFI_AGGREGATE)
_BAD_FCS: Final = int(Reject.BAD_FCS)

_NULL: Final = blocks.LINK_NULL
_LINK_ETHERNET: Final = blocks.LINK_ETHERNET
_LINK_PPP: Final = blocks.LINK_PPP
_RAW_12: Final = blocks.LINK_RAW_12
_RAW_14: Final = blocks.LINK_RAW_14
_PPP_HDLC: Final = blocks.LINK_PPP_HDLC
_LINK_PPPOE: Final = blocks.LINK_PPPOE
_RAW: Final = blocks.LINK_RAW
_CISCO_HDLC: Final = blocks.LINK_CISCO_HDLC
_IEEE802_11: Final = blocks.LINK_IEEE802_11
_LOOP: Final = blocks.LINK_LOOP
_SLL: Final = blocks.LINK_LINUX_SLL
_RADIOTAP: Final = blocks.LINK_RADIOTAP
_PPP_DIRECTION: Final = blocks.LINK_PPP_DIRECTION
_IPV4: Final = blocks.LINK_IPV4
_IPV6: Final = blocks.LINK_IPV6
_SLL2: Final = blocks.LINK_LINUX_SLL2

_RADIOTAP_TSFT: Final = 1
_RADIOTAP_FLAGS: Final = 2
_RADIOTAP_MORE: Final = 0x80000000
_RADIOTAP_PADDED: Final = 0x20  # the 802.11 header is padded to four bytes
_RADIOTAP_BAD_FCS: Final = 0x40


@helper
def _le32(data, at):  # type: ignore[no-untyped-def]
    return _u8(data, at) | _u8(data, at + 1) << 8 | _u8(data, at + 2) << 16 | _u8(data, at + 3) << 24


@helper
def frame_layer(data, at, end, link):  # type: ignore[no-untyped-def]
    """(layer, argument, position) behind the link-layer header of a captured frame."""
    if link == _LINK_ETHERNET:
        return ETHERNET, 0, at
    if link == _SLL:
        if at + 16 > end:
            return STOP, _TRUNCATED_LINK, at
        return ETHER_TYPE, _u16(data, at + 14), at + 16
    if link == _SLL2:
        if at + 20 > end:
            return STOP, _TRUNCATED_LINK, at
        return ETHER_TYPE, _u16(data, at), at + 20
    if link in (_RAW, _RAW_12, _RAW_14):
        return IP, 0, at
    if link == _IPV4:
        return IP, 4, at
    if link == _IPV6:
        return IP, 6, at
    if link in (_NULL, _LOOP):
        reason, at, version, _, _ = _address_family(data, at, end, link)
        if reason != _DECODED:
            return STOP, reason, at
        return IP, version, at
    if link == _LINK_PPP:
        return PPP, 0, at
    if link == _PPP_DIRECTION:
        return PPP, 0, at + 1
    if link == _LINK_PPPOE:
        return PPPOE, 0, at
    if link in (_PPP_HDLC, _CISCO_HDLC):
        if at + 4 > end:
            return STOP, _TRUNCATED_LINK, at
        # Unicast or broadcast, then 0: Cisco's HDLC, which carries an EtherType.
        is_cisco = (_u8(data, at) == 0x0F or _u8(data, at) == 0x8F) and _u8(data, at + 1) == 0
        if link == _CISCO_HDLC or is_cisco:
            return ETHER_TYPE, _u16(data, at + 2), at + 4
        return PPP, 0, at
    if link == _IEEE802_11:
        return _wifi_layer(data, at, end, False)
    if link == _RADIOTAP:
        return _radiotap_layer(data, at, end)
    return STOP, _UNKNOWN_LINK_TYPE, at


@helper
def ethernet_layer(data, at, end):  # type: ignore[no-untyped-def]
    """(layer, argument, position) behind two addresses and a type."""
    if at + 14 > end:
        return STOP, _TRUNCATED_LINK, at
    return ETHER_TYPE, _u16(data, at + 12), at + 14


@helper
def ether_type_layer(at, ether_type):  # type: ignore[no-untyped-def]
    """(layer, argument, position) that an EtherType means; VLAN tags are the caller's."""
    if ether_type == 0x0800:
        return IP, 4, at
    if ether_type == 0x86DD:
        return IP, 6, at
    if ether_type == 0x8847 or ether_type == 0x8848:
        return MPLS, 0, at
    if ether_type == 0x8864:
        return PPPOE, 0, at
    if ether_type == 0x8863:  # PPPoE discovery
        return STOP, _PPP_CONTROL, at
    if ether_type == 0x880B:
        return PPP, 0, at
    if ether_type == 0x6558:  # transparent Ethernet bridging
        return ETHERNET, 0, at
    if ether_type == 0x0806:
        return STOP, _ARP, at
    if 8 <= ether_type <= 1500:  # an 802.3 length; a shorter frame has no room for SNAP
        return LLC, 0, at
    return STOP, _NOT_IP, at


@helper
def llc_layer(data, at, end):  # type: ignore[no-untyped-def]
    """(layer, argument, position) behind LLC; only SNAP of OUI 0 (RFC 1042) goes on."""
    if at + 8 > end:
        return STOP, _TRUNCATED_LINK, at
    if _u32(data, at) == 0xAAAA0300 and _u16(data, at + 4) == 0:
        ether_type = _u16(data, at + 6)
        if ether_type <= 1500:  # a length again
            return STOP, _NOT_IP, at
        return ETHER_TYPE, ether_type, at + 8
    return STOP, _NOT_IP, at


@helper
def ppp_layer(data, at, end):  # type: ignore[no-untyped-def]
    """(layer, argument, position) behind PPP: address and control may be missing, the protocol may be one byte."""
    if at + 2 <= end and _u16(data, at) == 0xFF03:
        at += 2
    if at + 1 > end:
        return STOP, _TRUNCATED_LINK, at
    protocol = _u8(data, at)
    if protocol & 1:  # RFC 1661, 6.5: the last byte is odd, all others even
        at += 1
    else:
        if at + 2 > end:
            return STOP, _TRUNCATED_LINK, at
        protocol = _u16(data, at)
        at += 2
    if protocol == 0x0021:
        return IP, 4, at
    if protocol == 0x0057:
        return IP, 6, at
    if protocol == 0x0281 or protocol == 0x0283:
        return MPLS, 0, at
    if protocol >= 0x8000:
        return STOP, _PPP_CONTROL, at
    return STOP, _NOT_IP, at


@helper
def pppoe_layer(data, at, end):  # type: ignore[no-untyped-def]
    """(layer, argument, position, session, length of its payload) behind a PPPoE session header."""
    if at + 6 > end:
        return STOP, _TRUNCATED_LINK, at, 0, 0
    if _u8(data, at) != 0x11:  # version 1, type 1
        return STOP, _BAD_LINK_HEADER, at, 0, 0
    if _u8(data, at + 1) != 0:  # discovery
        return STOP, _PPP_CONTROL, at, 0, 0
    return PPP, 0, at + 6, _u16(data, at + 2), _u16(data, at + 4)


@helper
def looks_like_ip(data, at, end, wire):  # type: ignore[no-untyped-def]
    """True if an IP header begins here whose packet ends inside of what encloses it."""
    if at + 20 > end:
        return False
    version = _u8(data, at) >> 4
    if version == 4:
        header_len = (_u8(data, at) & 15) << 2
        return header_len >= 20 and header_len <= _u16(data, at + 2) <= wire - at
    return version == 6 and at + 40 <= end and _u16(data, at + 4) + 40 <= wire - at


@helper
def looks_like_ethernet(data, at, end):  # type: ignore[no-untyped-def]
    """True if an Ethernet header with a type that is followed begins here."""
    if at + 14 > end:
        return False
    ether_type = _u16(data, at + 12)
    if ether_type == 0x0800 or ether_type == 0x86DD or ether_type == 0x0806:
        return True
    if ether_type == 0x8100 or ether_type == 0x88A8 or ether_type == 0x9100:
        return True
    return ether_type == 0x8847 or ether_type == 0x8864


@helper
def mpls_layer(data, at, end, wire):  # type: ignore[no-untyped-def]
    """(layer, argument, position) behind the label stack, which does not say what it carries.

    IP begins with its version, a pseudowire's control word with 0 (RFC 4385, 3); without that word, an Ethernet
    address may begin with anything. So: what looks like a whole IP packet is one, then what looks like Ethernet.
    """
    n_labels = 0
    while True:
        if n_labels == MAX_MPLS_LABELS:
            return STOP, _LINK_TOO_DEEP, at
        if at + 4 > end:
            return STOP, _TRUNCATED_LINK, at
        entry = _u32(data, at)
        at += 4
        n_labels += 1
        if entry & 0x100:
            break
    if at >= end:
        return STOP, _TRUNCATED_LINK, at
    if looks_like_ip(data, at, end, wire):
        return IP, 0, at
    nibble = _u8(data, at) >> 4
    if nibble == 0 and looks_like_ethernet(data, at + 4, end):
        return ETHERNET, 0, at + 4
    if looks_like_ethernet(data, at, end):
        return ETHERNET, 0, at
    if nibble == 4 or nibble == 6:
        return IP, 0, at
    return STOP, _NOT_IP, at


@helper
def _radiotap_layer(data, at, end):  # type: ignore[no-untyped-def]
    """(layer, argument, position) behind radiotap and the 802.11 header."""
    if at + 8 > end:
        return STOP, _TRUNCATED_LINK, at
    length = _u8(data, at + 2) | _u8(data, at + 3) << 8
    if _u8(data, at) != 0 or length < 8:
        return STOP, _BAD_LINK_HEADER, at
    if at + length > end:
        return STOP, _TRUNCATED_LINK, at
    field_at = at + 4
    present = _le32(data, field_at)
    while _le32(data, field_at) & _RADIOTAP_MORE:
        field_at += 4
        if field_at + 4 > at + length:
            return STOP, _BAD_LINK_HEADER, at
    field_at += 4
    flags = np.int64(0)
    if present & _RADIOTAP_FLAGS:
        if present & _RADIOTAP_TSFT:  # eight bytes, aligned from the start of the radiotap header
            field_at += (at - field_at) & 7
            field_at += 8
        if field_at + 1 > at + length:
            return STOP, _BAD_LINK_HEADER, at
        flags = _u8(data, field_at)
    if flags & _RADIOTAP_BAD_FCS:
        return STOP, _BAD_FCS, at
    return _wifi_layer(data, at + length, end, flags & _RADIOTAP_PADDED != 0)


@helper
def _wifi_layer(data, at, end, is_padded):  # type: ignore[no-untyped-def]
    """(layer, argument, position) behind an 802.11 data header."""
    if at + 2 > end:
        return STOP, _TRUNCATED_LINK, at
    control = _u8(data, at)
    flags = _u8(data, at + 1)
    if control & 3 != 0:  # protocol version
        return STOP, _BAD_LINK_HEADER, at
    if control & 0x0C != 0x08 or control & 0x40 != 0:  # not data, or data without any
        return STOP, _WIFI_NO_DATA, at
    if flags & 0x40:
        return STOP, _PROTECTED_FRAME, at
    length = 24
    if flags & 3 == 3:  # between two access points: a fourth address
        length = 30
    qos_at = at + length
    if control & 0x80:
        length += 2
        if flags & 0x80:  # HT control
            length += 4
    if at + length > end:
        return STOP, _TRUNCATED_LINK, at
    if _u8(data, at + 22) & 15 != 0:
        return STOP, _WIFI_FRAGMENT, at
    if control & 0x80 and _u8(data, qos_at) & 0x80:
        return STOP, _WIFI_AGGREGATE, at
    if is_padded:
        length = (length + 3) & ~3
    return LLC, 0, at + length


@helper
def is_vlan_type(ether_type):  # type: ignore[no-untyped-def]
    """True for the EtherTypes of a VLAN tag."""
    return ether_type == 0x8100 or ether_type == 0x88A8 or ether_type == 0x9100


MAX_TAGS: Final = MAX_VLAN_TAGS
MAX_LINK_LAYERS: Final = 16  # of any kind, in front of one IP header
