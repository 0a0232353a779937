"""Link layers and tunnels in plain Python, for the slow twin of the decoder. One function a protocol."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from capture.reject import Reject
from capture.tunnel import TunnelKind as Kind

VLAN_TAGS = {0x8100, 0x88A8, 0x9100}
MPLS_TYPES = {0x8847, 0x8848}
NULL_FAMILIES = {2: 4, 24: 6, 28: 6, 30: 6}


class Stop(Exception):  # noqa: N818 - not an error: the packet ends here
    """The packet cannot be followed further."""

    def __init__(self, reason: Reject) -> None:
        super().__init__(reason.name)
        self.reason = reason


@dataclass
class Part:
    """A part of a frame: the bytes that are there, where they begin in it, and how many there were on the wire."""

    data: bytes
    at: int
    wire: int

    def behind(self, n_bytes: int) -> Part:
        """What follows the first bytes."""
        return Part(self.data[n_bytes:], self.at + n_bytes, self.wire - n_bytes)

    def first(self, n_bytes: int) -> Part:
        """Only the first bytes, of which some may not be there."""
        return Part(self.data[: max(n_bytes, 0)], self.at, n_bytes)

    def u8(self, at: int) -> int:
        return self.data[at]

    def u16(self, at: int) -> int:
        return int.from_bytes(self.data[at : at + 2], "big")

    def u32(self, at: int) -> int:
        return int.from_bytes(self.data[at : at + 4], "big")


@dataclass
class Way:
    """What comes next: a layer, what the layer before said about it, and the bytes that begin with its header."""

    layer: str
    part: Part
    argument: int = 0
    tag: int | None = None  # VLAN id of the tag in front
    session: int | None = None  # PPPoE session in front
    n_tags: int = 0


Tunnel = tuple[Kind, int, Way] | None


def need(part: Part, n_bytes: int, otherwise: Reject) -> None:
    """Stop unless the first ``n_bytes`` are there."""
    if len(part.data) < n_bytes:
        raise Stop(otherwise)


def first_layer(frame: Part, link_type: int) -> Way:
    """By the LINKTYPE of the capture."""
    match link_type:
        case 1:
            return Way("ethernet", frame)
        case 113:
            need(frame, 16, Reject.TRUNCATED_LINK)
            return Way("ether type", frame.behind(16), frame.u16(14))
        case 276:
            need(frame, 20, Reject.TRUNCATED_LINK)
            return Way("ether type", frame.behind(20), frame.u16(0))
        case 0 | 108:
            need(frame, 4, Reject.TRUNCATED_LINK)
            families = [frame.u32(0)]
            if link_type == 0:
                families.append(int.from_bytes(frame.data[:4], "little"))
            for family in families:
                if family in NULL_FAMILIES:
                    return Way("ip", frame.behind(4), NULL_FAMILIES[family])
            raise Stop(Reject.NOT_IP)
        case 12 | 14 | 101:
            return Way("ip", frame, 0)
        case 228:
            return Way("ip", frame, 4)
        case 229:
            return Way("ip", frame, 6)
        case 9:
            return Way("ppp", frame)
        case 204:
            return Way("ppp", frame.behind(1))
        case 51:
            return Way("pppoe", frame)
        case 50 | 104:
            need(frame, 4, Reject.TRUNCATED_LINK)
            if link_type == 104 or frame.data[:2] in (b"\x0f\x00", b"\x8f\x00"):
                return Way("ether type", frame.behind(4), frame.u16(2))
            return Way("ppp", frame)
        case 105:
            return wifi(frame)
        case 127:
            return radiotap(frame)
    raise Stop(Reject.UNKNOWN_LINK_TYPE)


def next_layer(way: Way) -> Way:
    """The layer behind one link layer."""
    part = way.part
    if way.layer == "ethernet":
        need(part, 14, Reject.TRUNCATED_LINK)
        return Way("ether type", part.behind(14), part.u16(12))
    if way.layer == "ether type":
        return ether_type(way)
    return {"llc": llc, "ppp": ppp, "pppoe": pppoe, "mpls": mpls}[way.layer](part)


def ether_type(way: Way) -> Way:
    part, kind = way.part, way.argument
    if kind in VLAN_TAGS:
        if way.n_tags == 3:
            raise Stop(Reject.VLAN_TOO_DEEP)
        need(part, 4, Reject.TRUNCATED_VLAN)
        return Way("ether type", part.behind(4), part.u16(2), tag=part.u16(0) & 0xFFF)
    if kind in MPLS_TYPES:
        return Way("mpls", part)
    if 8 <= kind <= 1500:
        return Way("llc", part)
    match kind:
        case 0x0800:
            return Way("ip", part, 4)
        case 0x86DD:
            return Way("ip", part, 6)
        case 0x8864:
            return Way("pppoe", part)
        case 0x8863:
            raise Stop(Reject.PPP_CONTROL)
        case 0x880B:
            return Way("ppp", part)
        case 0x6558:
            return Way("ethernet", part)
        case 0x0806:
            raise Stop(Reject.ARP)
    raise Stop(Reject.NOT_IP)


def llc(part: Part) -> Way:
    need(part, 8, Reject.TRUNCATED_LINK)
    if part.data[:6] != bytes.fromhex("aaaa03000000") or part.u16(6) <= 1500:
        raise Stop(Reject.NOT_IP)
    return Way("ether type", part.behind(8), part.u16(6))


def ppp(part: Part) -> Way:
    if part.data[:2] == b"\xff\x03":
        part = part.behind(2)
    need(part, 1, Reject.TRUNCATED_LINK)
    if part.u8(0) % 2:
        protocol, part = part.u8(0), part.behind(1)
    else:
        need(part, 2, Reject.TRUNCATED_LINK)
        protocol, part = part.u16(0), part.behind(2)
    if protocol in (0x21, 0x57):
        return Way("ip", part, 4 if protocol == 0x21 else 6)
    if protocol in (0x281, 0x283):
        return Way("mpls", part)
    raise Stop(Reject.PPP_CONTROL if protocol >= 0x8000 else Reject.NOT_IP)


def pppoe(part: Part) -> Way:
    need(part, 6, Reject.TRUNCATED_LINK)
    version_type, code, session, length = struct.unpack_from(">BBHH", part.data)
    if version_type != 0x11:
        raise Stop(Reject.BAD_LINK_HEADER)
    if code:
        raise Stop(Reject.PPP_CONTROL)
    inner = part.behind(6)
    return Way("ppp", inner.first(min(length, inner.wire)), session=session)


def mpls(part: Part) -> Way:
    n_labels = 0
    while True:
        if n_labels == 8:
            raise Stop(Reject.LINK_TOO_DEEP)
        need(part, 4, Reject.TRUNCATED_LINK)
        is_bottom = part.u32(0) >> 8 & 1
        part = part.behind(4)
        n_labels += 1
        if is_bottom:
            break
    need(part, 1, Reject.TRUNCATED_LINK)
    if is_whole_ip(part):
        return Way("ip", part, 0)
    if part.u8(0) >> 4 == 0 and is_ethernet(part.behind(4)):
        return Way("ethernet", part.behind(4))
    if is_ethernet(part):
        return Way("ethernet", part)
    if part.u8(0) >> 4 in (4, 6):
        return Way("ip", part, 0)
    raise Stop(Reject.NOT_IP)


def is_whole_ip(part: Part) -> bool:
    if len(part.data) < 20:
        return False
    if part.u8(0) >> 4 == 4:
        return 20 <= (part.u8(0) & 15) * 4 <= part.u16(2) <= part.wire
    return part.u8(0) >> 4 == 6 and len(part.data) >= 40 and part.u16(4) + 40 <= part.wire


def is_ethernet(part: Part) -> bool:
    known = {0x0800, 0x86DD, 0x0806, 0x8847, 0x8864} | VLAN_TAGS
    return len(part.data) >= 14 and part.u16(12) in known


def radiotap(part: Part) -> Way:
    need(part, 8, Reject.TRUNCATED_LINK)
    version, _, length, present = struct.unpack_from("<BBHI", part.data)
    if version or length < 8:
        raise Stop(Reject.BAD_LINK_HEADER)
    need(part, length, Reject.TRUNCATED_LINK)
    fields_at = 4
    while int.from_bytes(part.data[fields_at : fields_at + 4], "little") >> 31:
        fields_at += 4
        if fields_at + 4 > length:
            raise Stop(Reject.BAD_LINK_HEADER)
    fields_at += 4
    flags = 0
    if present & 2:
        if present & 1:
            fields_at = (fields_at + 7) // 8 * 8 + 8
        if fields_at >= length:
            raise Stop(Reject.BAD_LINK_HEADER)
        flags = part.u8(fields_at)
    if flags & 0x40:
        raise Stop(Reject.BAD_FCS)
    return wifi(part.behind(length), is_padded=bool(flags & 0x20))


def wifi(part: Part, *, is_padded: bool = False) -> Way:
    need(part, 2, Reject.TRUNCATED_LINK)
    control, flags = part.data[:2]
    version, kind, subtype = control & 3, control >> 2 & 3, control >> 4
    to_ds, from_ds, is_protected, is_ordered = flags & 1, flags >> 1 & 1, flags >> 6 & 1, flags >> 7
    if version:
        raise Stop(Reject.BAD_LINK_HEADER)
    if kind != 2 or subtype & 4:
        raise Stop(Reject.WIFI_NO_DATA)
    if is_protected:
        raise Stop(Reject.PROTECTED_FRAME)
    is_qos = subtype >= 8
    length = 24 + (6 if to_ds and from_ds else 0)
    qos_at = length
    if is_qos:
        length += 6 if is_ordered else 2
    need(part, length, Reject.TRUNCATED_LINK)
    if part.u8(22) & 15:
        raise Stop(Reject.WIFI_FRAGMENT)
    if is_qos and part.u8(qos_at) & 0x80:
        raise Stop(Reject.WIFI_AGGREGATE)
    return Way("llc", part.behind((length + 3) // 4 * 4 if is_padded else length))


# ------------------------------------------------------------------------------------------- tunnels


def tunnel_behind(row: Any, part: Part) -> Tunnel:
    """The tunnel whose header ``part``, the payload of the packet ``row``, begins with."""
    part = part.first(part.wire)
    if row.protocol == 17:
        by_destination = {
            4789: vxlan,
            8472: vxlan,
            4790: vxlan_gpe,
            6081: geneve,
            2152: gtpu,
            4754: gre,
            6635: lambda inner: (Kind.MPLS_IN_UDP, 0, Way("mpls", inner)),
        }
        if row.dst_port in by_destination:
            return by_destination[row.dst_port](part)
        if 3544 in (row.src_port, row.dst_port):
            return teredo(part)
        if 1701 in (row.src_port, row.dst_port):
            return l2tp(part)
        return None
    match row.protocol:
        case 4:
            return (Kind.IPIP if row.ip_version == 4 else Kind.FOUR_IN_SIX, 0, Way("ip", part, 4))
        case 41:
            return (Kind.SIX_IN_FOUR if row.ip_version == 4 else Kind.SIX_IN_SIX, 0, Way("ip", part, 6))
        case 47:
            return gre(part)
        case 97:
            need(part, 2, Reject.TRUNCATED_LINK)
            if part.u16(0) != 0x3000:
                raise Stop(Reject.BAD_LINK_HEADER)
            return Kind.ETHERIP, 0, Way("ethernet", part.behind(2))
        case 115:
            return l2tpv3(part)
        case 137:
            return Kind.MPLS_IN_IP, 0, Way("mpls", part)
    return None


def gre(part: Part) -> Tunnel:
    need(part, 4, Reject.TRUNCATED_LINK)
    flags, protocol = part.u16(0), part.u16(2)
    has = {
        name: bool(flags & bit) for name, bit in (("C", 0x8000), ("R", 0x4000), ("K", 0x2000), ("S", 0x1000))
    }
    version = flags & 7
    rest = part.behind(4)
    if version == 1:
        return pptp(rest, flags, protocol)
    if version or has["R"]:
        raise Stop(Reject.BAD_LINK_HEADER)
    need(rest, 4 * (has["C"] + has["K"] + has["S"]), Reject.TRUNCATED_LINK)
    if has["C"]:
        rest = rest.behind(4)
    key = rest.u32(0) if has["K"] else 0
    rest = rest.behind(4 * (has["K"] + has["S"]))
    if protocol in (0x88BE, 0x22EB):
        return erspan(rest, protocol, has["S"])
    kind = Kind.GRE
    only_key = has["K"] and not has["C"] and not has["S"]
    if protocol == 0x6558 and only_key and key >> 8 >= 0x1000:
        kind, key = Kind.NVGRE, key >> 8
    if protocol in (0x0800, 0x86DD, 0x6558, 0x880B):
        return kind, key, Way("ether type", rest, protocol)
    if protocol in MPLS_TYPES:
        return kind, key, Way("mpls", rest)
    raise Stop(Reject.NOT_IP)


def pptp(rest: Part, flags: int, protocol: int) -> Tunnel:
    if protocol != 0x880B or not flags & 0x2000:
        raise Stop(Reject.BAD_LINK_HEADER)
    need(rest, 4, Reject.TRUNCATED_LINK)
    length, call = rest.u16(0), rest.u16(2)
    if not flags & 0x1000:
        return None
    rest = rest.behind(12 if flags & 0x80 else 8)
    return Kind.PPTP, call, Way("ppp", rest.first(min(length, rest.wire)))


def erspan(rest: Part, protocol: int, has_sequence: bool) -> Tunnel:
    if protocol == 0x88BE and not has_sequence:
        return Kind.ERSPAN, 0, Way("ethernet", rest)
    version, length = (1, 8) if protocol == 0x88BE else (2, 12)
    need(rest, length, Reject.TRUNCATED_LINK)
    if rest.u8(0) >> 4 != version:
        raise Stop(Reject.BAD_LINK_HEADER)
    has_subheader = version == 2 and rest.u8(11) & 1
    return Kind.ERSPAN, rest.u16(2) & 0x3FF, Way("ethernet", rest.behind(20 if has_subheader else length))


def l2tpv3(part: Part) -> Tunnel:
    if len(part.data) < 4 or part.u32(0) == 0:
        return None
    for skip in (4, 8, 12, 16):
        inner = part.behind(skip)
        if is_ethernet(inner) and (inner.u16(12) not in (0x0800, 0x86DD) or is_whole_ip(inner.behind(14))):
            return Kind.L2TPV3, part.u32(0), Way("ethernet", inner)
    return None


def vxlan(part: Part) -> Tunnel:
    if len(part.data) < 8 or not part.u8(0) & 8:
        return None
    return Kind.VXLAN, part.u32(4) >> 8, Way("ethernet", part.behind(8))


def vxlan_gpe(part: Part) -> Tunnel:
    if len(part.data) < 8 or part.u8(0) & 0x38 != 8:
        return None
    vni, inner = part.u32(4) >> 8, part.behind(8)
    following = part.u8(3) if part.u8(0) & 4 else 3
    ways = {1: Way("ip", inner, 4), 2: Way("ip", inner, 6), 3: Way("ethernet", inner), 5: Way("mpls", inner)}
    if following not in ways:
        raise Stop(Reject.NOT_IP)
    return Kind.VXLAN_GPE, vni, ways[following]


def geneve(part: Part) -> Tunnel:
    if len(part.data) < 8 or part.u8(0) >> 6:
        return None
    length = 8 + (part.u8(0) & 63) * 4
    need(part, length, Reject.TRUNCATED_LINK)
    vni, protocol, is_control = part.u32(4) >> 8, part.u16(2), part.u8(1) >> 7
    if protocol in (0x6558, 0x0800, 0x86DD) and not is_control:
        return Kind.GENEVE, vni, Way("ether type", part.behind(length), protocol)
    if protocol in MPLS_TYPES and not is_control:
        return Kind.GENEVE, vni, Way("mpls", part.behind(length))
    raise Stop(Reject.NOT_IP)


def gtpu(part: Part) -> Tunnel:
    if len(part.data) < 8 or part.u8(0) >> 4 != 3 or part.u8(1) != 255:
        return None
    flags, length, teid = part.u8(0), part.u16(2), part.u32(4)
    rest = part.first(min(part.wire, 8 + length)).behind(8)
    # As the kernel: header bytes may be read up to the end of the datagram; only the inner packet ends with the length.
    options = part.behind(8)
    n_bytes = 0
    if flags & 7:
        need(options, 4, Reject.TRUNCATED_LINK)
        following = options.u8(3)
        n_bytes = 4
        n_extensions = 0
        while flags & 4 and following:
            if n_extensions == 8:
                raise Stop(Reject.EXTENSION_TOO_DEEP)
            header = options.behind(n_bytes)
            need(header, 1, Reject.TRUNCATED_LINK)
            size = header.u8(0) * 4
            if size == 0:
                raise Stop(Reject.BAD_LINK_HEADER)
            need(header, size, Reject.TRUNCATED_LINK)
            following = header.u8(size - 1)
            n_bytes += size
            n_extensions += 1
    return Kind.GTPU, teid, Way("ip", rest.behind(n_bytes), 0)


def teredo(part: Part) -> Tunnel:
    if len(part.data) >= 13 and part.u16(0) == 1:
        part = part.behind(13 + part.u8(2) + part.u8(3))
    if len(part.data) >= 8 and part.u16(0) == 0:
        part = part.behind(8)
    if not is_whole_ip(part) or part.u8(0) >> 4 != 6:
        return None
    return Kind.TEREDO, 0, Way("ip", part, 6)


def l2tp(part: Part) -> Tunnel:
    if len(part.data) < 6:
        return None
    flags = part.u16(0)
    if flags & 0x8000:
        return None
    if flags & 0xF == 3 and not flags & 0x7FF0:
        return l2tpv3(part.behind(4))
    if flags & 0xF != 2 or flags & 0x34F0:
        return None
    at = 2
    if flags & 0x4000:
        if len(part.data) < 8:
            return None
        part = Part(part.data, part.at, min(part.wire, part.u16(2)))
        at = 4
    session = part.u32(at)
    at += 4
    if flags & 0x0800:
        at += 4
    if flags & 0x0200:
        if len(part.data) < at + 2:
            return None
        at += 2 + part.u16(at)
    if len(part.data) <= at:
        return None
    return Kind.L2TP, session, Way("ppp", part.first(part.wire).behind(at))
