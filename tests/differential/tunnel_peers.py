"""The innermost packet of a frame as dpkt and scapy see it, with what names the tunnel around it.

A view has the columns of ``decode_peers`` and, where the peer tells, ``tunnel_id``. Empty: the peer sees no IP header.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

import dpkt

from tests.differential.decode_peers import View, _dpkt_transport, _scapy_transport, address, length

logging.getLogger("scapy").setLevel(logging.CRITICAL)

from scapy.contrib.erspan import ERSPAN_II, ERSPAN_III  # noqa: E402
from scapy.contrib.etherip import EtherIP  # noqa: E402
from scapy.contrib.geneve import GENEVE  # noqa: E402
from scapy.contrib.gtp import GTP_U_Header  # noqa: E402
from scapy.contrib.mpls import MPLS  # noqa: E402
from scapy.layers.dot11 import Dot11, RadioTap  # noqa: E402
from scapy.layers.inet import IP, UDP, IPerror  # noqa: E402
from scapy.layers.inet6 import IPerror6, IPv6  # noqa: E402
from scapy.layers.l2 import GRE, GRE_PPTP, Ether  # noqa: E402
from scapy.layers.l2tp import L2TP  # noqa: E402
from scapy.layers.ppp import HDLC, PPP, PPPoE  # noqa: E402
from scapy.layers.vxlan import VXLAN  # noqa: E402
from scapy.packet import Packet, bind_layers  # noqa: E402

# scapy has these layers but does not look for them there.
bind_layers(UDP, VXLAN, dport=4790)
bind_layers(UDP, GRE, dport=4754)
bind_layers(UDP, MPLS, dport=6635)
bind_layers(IP, MPLS, proto=137)
bind_layers(IPv6, MPLS, nh=137)
bind_layers(IP, EtherIP, proto=97)
bind_layers(GRE, MPLS, proto=0x8847)

_ID_FIELDS: Final[dict[type[Packet], str]] = {
    VXLAN: "vni",
    GENEVE: "vni",
    GTP_U_Header: "teid",
    ERSPAN_II: "session_id",
    ERSPAN_III: "session_id",
    PPPoE: "sessionid",
    GRE_PPTP: "call_id",
}
_SCAPY_LINKS: Final[dict[int, type[Packet]]] = {1: Ether, 9: PPP, 50: HDLC, 105: Dot11, 127: RadioTap}


def scapy_inner(frame: bytes, link_type: int) -> View:
    """What scapy says of the innermost IP packet."""
    if link_type == 51:
        packet: Any = PPPoE(frame)
    elif link_type in _SCAPY_LINKS:
        packet = _SCAPY_LINKS[link_type](frame)
    else:
        packet = IP(frame) if frame[0] >> 4 == 4 else IPv6(frame)
    best = None
    number = 0
    view: View = {}
    while packet:
        kind = type(packet)
        if kind in _ID_FIELDS:
            number = getattr(packet, _ID_FIELDS[kind])
        elif kind is GRE and packet.key_present:
            number = packet.key
        elif kind is L2TP:
            number = packet.tunnel_id << 16 | packet.session_id
        if isinstance(packet, IP | IPv6) and not isinstance(packet, IPerror | IPerror6):
            best, view = packet, {"tunnel_id": number}
            number = 0
        packet = packet.payload
    if best is None:
        return {}
    return view | _scapy_ip(best)


def _scapy_ip(packet: Packet) -> View:
    view: View = {"ip_version": packet.version, "src": _packed(packet.src), "dst": _packed(packet.dst)}
    if isinstance(packet, IP):
        view |= {"tos": packet.tos, "ttl": packet.ttl} | length(packet.len, 0)
    else:
        view |= {"tos": packet.tc, "ttl": packet.hlim} | length(packet.plen, 40)
    return view | _scapy_transport(packet.payload)


def _packed(text: str) -> list[int]:
    import ipaddress

    return address(ipaddress.ip_address(text).packed)


def dpkt_inner(frame: bytes, link_type: int) -> View:
    """What dpkt says of the innermost IP packet; it follows less than scapy, and gives few ids."""
    try:
        if link_type == 1:
            layer: Any = dpkt.ethernet.Ethernet(frame)
        elif link_type == 9:
            layer = dpkt.ppp.PPP(frame)
        elif link_type == 51:
            layer = dpkt.pppoe.PPPoE(frame)
        elif link_type == 127:
            layer = dpkt.radiotap.Radiotap(frame)
        elif link_type == 105:
            layer = dpkt.ieee80211.IEEE80211(frame)
        else:
            layer = dpkt.ip.IP(frame) if frame[0] >> 4 == 4 else dpkt.ip6.IP6(frame)
    except (dpkt.UnpackError, KeyError, IndexError):
        return {}
    view: View = {}
    while True:
        if isinstance(layer, dpkt.ip.IP):
            view = {"ip_version": 4, "tos": layer.tos, "ttl": layer.ttl} | length(layer.len, 0)
        elif isinstance(layer, dpkt.ip6.IP6):
            view = {"ip_version": 6, "tos": layer.fc, "ttl": layer.hlim} | length(layer.plen, 40)
        if isinstance(layer, dpkt.ip.IP | dpkt.ip6.IP6):
            view |= {"src": address(layer.src), "dst": address(layer.dst), "protocol": layer.p}
            view |= _dpkt_transport(layer.data)
        layer = getattr(layer, "data_frame", None) or layer.data
        if not isinstance(layer, dpkt.Packet):
            return view


PEERS: Final[dict[str, Callable[[bytes, int], View]]] = {"dpkt": dpkt_inner, "scapy": scapy_inner}
