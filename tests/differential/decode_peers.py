"""dpkt and scapy as independent decoders: what each says of a packet, in the words of ``DecodedBlock``.

A view holds only the columns that the peer speaks of, so nothing is compared that it did not decode itself.
``payload`` stands for ``payload_offset`` and ``payload_len``: the captured bytes of the transport payload.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Callable
from typing import Any, Final

import dpkt

logging.getLogger("scapy").setLevel(logging.CRITICAL)  # its warnings about the deliberately malformed

from scapy.layers.inet import ICMP, IP, TCP, UDP  # noqa: E402
from scapy.layers.inet6 import IPv6, _ICMPv6  # noqa: E402
from scapy.layers.l2 import CookedLinux, CookedLinuxV2, Dot1AD, Dot1Q, Ether, Loopback  # noqa: E402
from scapy.layers.sctp import SCTP  # noqa: E402
from scapy.packet import NoPayload, Packet, Padding  # noqa: E402

View = dict[str, Any]

RAW_LINK_TYPES: Final = {12, 14, 101, 228, 229}


def address(packed: bytes) -> list[int]:
    """16 bytes, IPv4 mapped into IPv6."""
    if len(packed) == 4:
        packed = bytes(10) + b"\xff\xff" + packed
    return list(packed)


def two_tags(vlan_ids: list[int]) -> list[int]:
    return [*vlan_ids, 0, 0][:2]


def length(field: int, header_len: int) -> View:
    """The IP length, of which a field of 0 says nothing."""
    return {"ip_len": field + header_len} if field else {}


# ----------------------------------------------------------------------------------------------- dpkt


def dpkt_view(frame: bytes, link_type: int) -> View:
    """What dpkt says; empty where it sees no IP header."""
    try:
        vlans, ip = _dpkt_link(frame, link_type)
    except (dpkt.UnpackError, KeyError, IndexError):
        return {}
    view: View = {"vlan": two_tags(vlans)}
    if isinstance(ip, dpkt.ip.IP):
        view |= {"ip_version": 4, "tos": ip.tos, "ttl": ip.ttl} | length(ip.len, 0)
    elif isinstance(ip, dpkt.ip6.IP6):
        view |= {"ip_version": 6, "tos": ip.fc, "ttl": ip.hlim} | length(ip.plen, 40)
    else:
        return {}
    view |= {"src": address(ip.src), "dst": address(ip.dst), "protocol": ip.p}
    return view | _dpkt_transport(ip.data)


def _dpkt_link(frame: bytes, link_type: int) -> tuple[list[int], Any]:
    if link_type in RAW_LINK_TYPES:
        return [], dpkt.ip.IP(frame) if frame[0] >> 4 == 4 else dpkt.ip6.IP6(frame)
    if link_type == 1:
        ethernet = dpkt.ethernet.Ethernet(frame)
        inner = ethernet.data.data if isinstance(ethernet.data, dpkt.llc.LLC) else ethernet.data
        return [tag.id for tag in getattr(ethernet, "vlan_tags", [])], inner
    kinds = {113: dpkt.sll.SLL, 276: dpkt.sll2.SLL2, 0: dpkt.loopback.Loopback, 108: dpkt.loopback.Loopback}
    return [], kinds[link_type](frame).data


def _dpkt_transport(transport: Any) -> View:
    if isinstance(transport, dpkt.tcp.TCP):
        return {
            "src_port": transport.sport,
            "dst_port": transport.dport,
            "tcp_seq": transport.seq,
            "tcp_ack": transport.ack,
            "tcp_flags": transport.flags & 0xFF,  # with the AE bit of RFC 9768 above
            "tcp_window": transport.win,
            "payload": bytes(transport.data),
        }
    if isinstance(transport, dpkt.udp.UDP):
        return {"src_port": transport.sport, "dst_port": transport.dport, "payload": bytes(transport.data)}
    if isinstance(transport, dpkt.sctp.SCTP):
        return {"src_port": transport.sport, "dst_port": transport.dport}
    if isinstance(transport, dpkt.icmp.ICMP | dpkt.icmp6.ICMP6):
        return {"src_port": transport.type, "dst_port": transport.code}
    return (
        {"payload": transport} if isinstance(transport, bytes) else {}
    )  # bytes(layer) would be its own making


# ---------------------------------------------------------------------------------------------- scapy


def scapy_view(frame: bytes, link_type: int) -> View:
    """What scapy says; empty where it sees no IP header."""
    kinds = {1: Ether, 113: CookedLinux, 276: CookedLinuxV2, 0: Loopback, 108: Loopback}
    if link_type in RAW_LINK_TYPES:
        kind = IP if frame[0] >> 4 == 4 else IPv6
    elif link_type in kinds:
        kind = kinds[link_type]
    else:
        return {}
    packet = kind(frame)
    vlans = []
    while not isinstance(packet, IP | IPv6 | NoPayload):
        if isinstance(packet, Dot1Q | Dot1AD):
            vlans.append(packet.vlan)
        packet = packet.payload
    if isinstance(packet, NoPayload):
        return {}
    view: View = {"vlan": two_tags(vlans), "ip_version": packet.version}
    if isinstance(packet, IP):
        view |= {"tos": packet.tos, "ttl": packet.ttl, "protocol": packet.proto} | length(packet.len, 0)
    else:
        view |= {"tos": packet.tc, "ttl": packet.hlim} | length(packet.plen, 40)
    view |= {key: address(ipaddress.ip_address(getattr(packet, key)).packed) for key in ("src", "dst")}
    transport = packet.payload
    while isinstance(packet, IPv6) and _is_ipv6_extension(transport):
        transport = transport.payload
    return view | _scapy_transport(transport)


def _is_ipv6_extension(layer: Packet) -> bool:
    name = type(layer).__name__
    return name.startswith("IPv6ExtHdr") or name in ("AH", "MIP6MH_Generic")


def _scapy_transport(transport: Packet) -> View:
    payload = b"" if isinstance(transport.payload, Padding) else bytes(transport.payload.original)
    if isinstance(transport, TCP):
        return {
            "protocol": 6,
            "src_port": transport.sport,
            "dst_port": transport.dport,
            "tcp_seq": transport.seq,
            "tcp_ack": transport.ack,
            "tcp_flags": int(transport.flags) & 0xFF,
            "tcp_window": transport.window,
            "payload": payload,
        }
    if isinstance(transport, UDP):
        return {"protocol": 17, "src_port": transport.sport, "dst_port": transport.dport, "payload": payload}
    if isinstance(transport, SCTP):
        return {"protocol": 132, "src_port": transport.sport, "dst_port": transport.dport, "payload": payload}
    if isinstance(transport, ICMP | _ICMPv6):
        return {"src_port": transport.type, "dst_port": getattr(transport, "code", 0)}
    return {}


PEERS: Final[dict[str, Callable[[bytes, int], View]]] = {"dpkt": dpkt_view, "scapy": scapy_view}
