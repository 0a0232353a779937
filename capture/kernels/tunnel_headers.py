"""Tunnel headers: behind which IP protocol or UDP port there may be another packet, and where.

Each function returns (kind, id, layer, argument, position, wire): kind 0 where this is no such header, layer ``STOP``
where it is one that cannot be followed. ``end`` and ``wire`` as in ``link_layers``. A UDP port is only a hint: what
does not look like its header is payload.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from capture.kernels.decode import _u8, _u16, _u32
from capture.kernels.helper import helper
from capture.kernels.link_layers import (
    ETHER_TYPE,
    ETHERNET,
    IP,
    MPLS,
    PPP,
    STOP,
    looks_like_ethernet,
    looks_like_ip,
)
from capture.reject import Reject
from capture.tunnel import TunnelKind

MAX_GTP_EXTENSIONS: Final = 8

_NONE: Final = int(TunnelKind.NONE)
_IPIP: Final = int(TunnelKind.IPIP)
_SIX_IN_FOUR: Final = int(TunnelKind.SIX_IN_FOUR)
_FOUR_IN_SIX: Final = int(TunnelKind.FOUR_IN_SIX)
_SIX_IN_SIX: Final = int(TunnelKind.SIX_IN_SIX)
_GRE: Final = int(TunnelKind.GRE)
_NVGRE: Final = int(TunnelKind.NVGRE)
_PPTP: Final = int(TunnelKind.PPTP)
_ERSPAN: Final = int(TunnelKind.ERSPAN)
_ETHERIP: Final = int(TunnelKind.ETHERIP)
_MPLS_IN_IP: Final = int(TunnelKind.MPLS_IN_IP)
_MPLS_IN_UDP: Final = int(TunnelKind.MPLS_IN_UDP)
_VXLAN: Final = int(TunnelKind.VXLAN)
_VXLAN_GPE: Final = int(TunnelKind.VXLAN_GPE)
_GENEVE: Final = int(TunnelKind.GENEVE)
_GTPU: Final = int(TunnelKind.GTPU)
_TEREDO: Final = int(TunnelKind.TEREDO)
_L2TP: Final = int(TunnelKind.L2TP)
_L2TPV3: Final = int(TunnelKind.L2TPV3)

_TRUNCATED_LINK: Final = int(Reject.TRUNCATED_LINK)
_BAD_LINK_HEADER: Final = int(Reject.BAD_LINK_HEADER)
_EXTENSION_TOO_DEEP: Final = int(Reject.EXTENSION_TOO_DEEP)
_NOT_IP: Final = int(Reject.NOT_IP)

# Where a UDP port is that of a tunnel: one bit for each way of being its port.
TO_PORT: Final = 1  # as destination only: the source port is chosen per inner flow
EITHER_PORT: Final = 2
UDP_TUNNELS: Final = {
    4789: TO_PORT,  # VXLAN
    8472: TO_PORT,  # VXLAN as Linux had it before the RFC
    4790: TO_PORT,  # VXLAN-GPE
    6081: TO_PORT,  # Geneve
    2152: TO_PORT,  # GTP-U
    4754: TO_PORT,  # GRE
    6635: TO_PORT,  # MPLS
    3544: EITHER_PORT,  # Teredo
    1701: EITHER_PORT,  # L2TP
}
IP_TUNNELS: Final = (4, 41, 47, 97, 115, 137)


def port_table() -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """uint8 (65536,): for each port 0, ``TO_PORT`` or ``EITHER_PORT``."""
    table = np.zeros(1 << 16, np.uint8)
    for port, use in UDP_TUNNELS.items():
        table[port] = use
    table.setflags(write=False)
    return table


@helper
def ip_tunnel(data, at, end, wire, protocol, version):  # type: ignore[no-untyped-def]
    """Behind an IP header, by its protocol number; ``version`` is that header's."""
    if protocol == 4:
        return _IPIP if version == 4 else _FOUR_IN_SIX, 0, IP, 4, at, wire
    if protocol == 41:
        return _SIX_IN_FOUR if version == 4 else _SIX_IN_SIX, 0, IP, 6, at, wire
    if protocol == 47:
        return gre(data, at, end, wire)
    if protocol == 97:  # RFC 3378, 3: version 3, and 12 bits of 0
        if at + 2 > end:
            return _ETHERIP, 0, STOP, _TRUNCATED_LINK, at, wire
        if _u16(data, at) != 0x3000:
            return _ETHERIP, 0, STOP, _BAD_LINK_HEADER, at, wire
        return _ETHERIP, 0, ETHERNET, 0, at + 2, wire
    if protocol == 115:
        return _l2tpv3(data, at, end, wire)
    if protocol == 137:
        return _MPLS_IN_IP, 0, MPLS, 0, at, wire
    return _NONE, 0, STOP, 0, at, wire


@helper
def gre(data, at, end, wire):  # type: ignore[no-untyped-def]
    """GRE (RFC 2784, 2890), enhanced GRE (RFC 2637), and by its protocol type NVGRE and ERSPAN."""
    if at + 4 > end:
        return _GRE, 0, STOP, _TRUNCATED_LINK, at, wire
    flags = _u16(data, at)
    protocol = _u16(data, at + 2)
    version = flags & 7
    at += 4
    if version == 1:
        return _pptp(data, at, end, wire, flags, protocol)
    if version != 0 or flags & 0x4000:  # routing, which RFC 2784 took out
        return _GRE, 0, STOP, _BAD_LINK_HEADER, at, wire
    has_key = flags & 0x2000 != 0
    has_sequence = flags & 0x1000 != 0
    if flags & 0x8000:
        at += 4
    key = np.int64(0)
    key_at = at
    if has_key:
        at += 4
    if has_sequence:
        at += 4
    if at > end:
        return _GRE, 0, STOP, _TRUNCATED_LINK, at, wire
    if has_key:
        key = _u32(data, key_at)
    if protocol == 0x88BE or protocol == 0x22EB:
        return _erspan(data, at, end, wire, protocol, has_sequence)
    kind = _GRE
    # RFC 7637, 3.2-3.3: VSIDs begin at 0x1000; the lowest byte is the sender's choice. Smaller keys are plain GRE's.
    if protocol == 0x6558 and flags & 0xF000 == 0x2000 and key >> 8 >= 0x1000:
        kind = _NVGRE
        key >>= 8
    if protocol == 0x0800 or protocol == 0x86DD or protocol == 0x6558 or protocol == 0x880B:
        return kind, key, ETHER_TYPE, protocol, at, wire
    if protocol == 0x8847 or protocol == 0x8848:
        return kind, key, MPLS, 0, at, wire
    return kind, key, STOP, _NOT_IP, at, wire


@helper
def _pptp(data, at, end, wire, flags, protocol):  # type: ignore[no-untyped-def]
    """``at`` is behind the protocol type: payload length and call id, then what the flags say."""
    if protocol != 0x880B or flags & 0x2000 == 0:
        return _PPTP, 0, STOP, _BAD_LINK_HEADER, at, wire
    if at + 4 > end:
        return _PPTP, 0, STOP, _TRUNCATED_LINK, at, wire
    length = _u16(data, at)
    call = _u16(data, at + 2)
    at += 4
    if flags & 0x1000 == 0:  # only an acknowledgment
        return _NONE, 0, STOP, 0, at, wire
    at += 4
    if flags & 0x80:
        at += 4
    return _PPTP, call, PPP, 0, at, min(wire, at + length)


@helper
def _erspan(data, at, end, wire, protocol, has_sequence):  # type: ignore[no-untyped-def]
    """draft-foschiano-erspan-03: type I has no header (and GRE no sequence number), II has 8 bytes, III 12 or 20."""
    if protocol == 0x88BE and not has_sequence:
        return _ERSPAN, 0, ETHERNET, 0, at, wire
    version = 1 if protocol == 0x88BE else 2
    length = 8 if version == 1 else 12
    if at + length > end:
        return _ERSPAN, 0, STOP, _TRUNCATED_LINK, at, wire
    if _u8(data, at) >> 4 != version:
        return _ERSPAN, 0, STOP, _BAD_LINK_HEADER, at, wire
    session = _u16(data, at + 2) & 0x3FF
    if version == 2 and _u8(data, at + 11) & 1:  # platform-specific subheader
        length = 20
    return _ERSPAN, session, ETHERNET, 0, at + length, wire


@helper
def _l2tpv3(data, at, end, wire):  # type: ignore[no-untyped-def]
    """``at`` is at the session id (RFC 3931, 4.1).

    Nothing in the packet says how long the cookie is (0, 4, 8 bytes), nor whether a sublayer of 4 follows: the first
    place at which an Ethernet header with a whole IP packet begins is taken.
    """
    if at + 4 > end:
        return _NONE, 0, STOP, 0, at, wire
    session = _u32(data, at)
    if session == 0:  # control
        return _NONE, 0, STOP, 0, at, wire
    for skip in range(4, 20, 4):
        inner = at + skip
        if looks_like_ethernet(data, inner, end):
            ether_type = _u16(data, inner + 12)
            is_ip = ether_type == 0x0800 or ether_type == 0x86DD
            if not is_ip or looks_like_ip(data, inner + 14, end, wire):
                return _L2TPV3, session, ETHERNET, 0, inner, wire
    return _NONE, 0, STOP, 0, at, wire


@helper
def udp_tunnel(data, at, end, wire, src_port, dst_port):  # type: ignore[no-untyped-def]
    """Behind a UDP header, by its ports."""
    if dst_port == 4789 or dst_port == 8472:
        return _vxlan(data, at, end, wire)
    if dst_port == 4790:
        return _vxlan_gpe(data, at, end, wire)
    if dst_port == 6081:
        return _geneve(data, at, end, wire)
    if dst_port == 2152:
        return _gtpu(data, at, end, wire)
    if dst_port == 4754:
        return gre(data, at, end, wire)
    if dst_port == 6635:
        return _MPLS_IN_UDP, 0, MPLS, 0, at, wire
    if dst_port == 3544 or src_port == 3544:
        return _teredo(data, at, end, wire)
    if dst_port == 1701 or src_port == 1701:
        return _l2tp(data, at, end, wire)
    return _NONE, 0, STOP, 0, at, wire


@helper
def _vxlan(data, at, end, wire):  # type: ignore[no-untyped-def]
    if at + 8 > end or _u8(data, at) & 0x08 == 0:
        return _NONE, 0, STOP, 0, at, wire
    return _VXLAN, _u32(data, at + 4) >> 8, ETHERNET, 0, at + 8, wire


@helper
def _vxlan_gpe(data, at, end, wire):  # type: ignore[no-untyped-def]
    if at + 8 > end or _u8(data, at) & 0x38 != 0x08:  # version 0, VNI valid
        return _NONE, 0, STOP, 0, at, wire
    vni = _u32(data, at + 4) >> 8
    following = _u8(data, at + 3)
    if _u8(data, at) & 4 == 0 or following == 3:
        return _VXLAN_GPE, vni, ETHERNET, 0, at + 8, wire
    if following == 1:
        return _VXLAN_GPE, vni, IP, 4, at + 8, wire
    if following == 2:
        return _VXLAN_GPE, vni, IP, 6, at + 8, wire
    if following == 5:
        return _VXLAN_GPE, vni, MPLS, 0, at + 8, wire
    return _VXLAN_GPE, vni, STOP, _NOT_IP, at, wire


@helper
def _geneve(data, at, end, wire):  # type: ignore[no-untyped-def]
    if at + 8 > end or _u8(data, at) >> 6 != 0:
        return _NONE, 0, STOP, 0, at, wire
    vni = _u32(data, at + 4) >> 8
    inner = at + 8 + ((_u8(data, at) & 63) << 2)
    if inner > end:
        return _GENEVE, vni, STOP, _TRUNCATED_LINK, at, wire
    protocol = _u16(data, at + 2)
    if _u8(data, at + 1) & 0x80:  # control
        return _GENEVE, vni, STOP, _NOT_IP, at, wire
    if protocol == 0x6558 or protocol == 0x0800 or protocol == 0x86DD:
        return _GENEVE, vni, ETHER_TYPE, protocol, inner, wire
    if protocol == 0x8847 or protocol == 0x8848:
        return _GENEVE, vni, MPLS, 0, inner, wire
    return _GENEVE, vni, STOP, _NOT_IP, at, wire


@helper
def _gtpu(data, at, end, wire):  # type: ignore[no-untyped-def]
    """3GPP TS 29.281, 5: version 1, protocol type GTP, message 255 (G-PDU); others carry no packet."""
    if at + 8 > end or _u8(data, at) & 0xF0 != 0x30 or _u8(data, at + 1) != 255:
        return _NONE, 0, STOP, 0, at, wire
    teid = _u32(data, at + 4)
    wire = min(wire, at + 8 + _u16(data, at + 2))
    flags = _u8(data, at)
    at += 8
    if flags & 7:  # sequence number, N-PDU number or extension: then all three fields are there
        if at + 4 > end:
            return _GTPU, teid, STOP, _TRUNCATED_LINK, at, wire
        following = _u8(data, at + 3)
        at += 4
        n_extensions = 0
        while flags & 4 and following != 0:
            if n_extensions == MAX_GTP_EXTENSIONS:
                return _GTPU, teid, STOP, _EXTENSION_TOO_DEEP, at, wire
            if at + 1 > end:
                return _GTPU, teid, STOP, _TRUNCATED_LINK, at, wire
            length = _u8(data, at) << 2
            if length == 0:
                return _GTPU, teid, STOP, _BAD_LINK_HEADER, at, wire
            if at + length > end:
                return _GTPU, teid, STOP, _TRUNCATED_LINK, at, wire
            following = _u8(data, at + length - 1)
            at += length
            n_extensions += 1
    return _GTPU, teid, IP, 0, at, wire


@helper
def _teredo(data, at, end, wire):  # type: ignore[no-untyped-def]
    """RFC 4380, 5.1.1: authentication, origin, then IPv6. Only a whole IPv6 packet is believed to be one."""
    if at + 13 <= end and _u16(data, at) == 1:
        at += 13 + _u8(data, at + 2) + _u8(data, at + 3)
    if at + 8 <= end and _u16(data, at) == 0:
        at += 8
    if at >= end or _u8(data, at) >> 4 != 6 or not looks_like_ip(data, at, end, wire):
        return _NONE, 0, STOP, 0, at, wire
    return _TEREDO, 0, IP, 6, at, wire


@helper
def _l2tp(data, at, end, wire):  # type: ignore[no-untyped-def]
    """L2TPv2 (RFC 2661, 3.1) and v3 over UDP (RFC 3931, 4.1.2) data messages."""
    if at + 6 > end:
        return _NONE, 0, STOP, 0, at, wire
    flags = _u16(data, at)
    if flags & 0x8000:  # control
        return _NONE, 0, STOP, 0, at, wire
    if flags & 15 == 3 and flags & 0x7FF0 == 0:
        return _l2tpv3(data, at + 4, end, wire)
    if flags & 15 != 2 or flags & 0x34F0:  # reserved bits
        return _NONE, 0, STOP, 0, at, wire
    start = at
    at += 2
    if flags & 0x4000:
        if at + 6 > end:
            return _NONE, 0, STOP, 0, at, wire
        wire = min(wire, start + _u16(data, at))
        at += 2
    session = _u32(data, at)  # tunnel and session
    at += 4
    if flags & 0x0800:
        at += 4
    if flags & 0x0200:
        if at + 2 > end:
            return _NONE, 0, STOP, 0, at, wire
        at += 2 + _u16(data, at)
    if at >= end:
        return _NONE, 0, STOP, 0, at, wire
    return _L2TP, session, PPP, 0, at, wire
