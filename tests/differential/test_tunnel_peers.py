"""Every encapsulation that is followed: the innermost packet is the one that scapy or dpkt sees, or it says why not."""

from __future__ import annotations

from typing import Final

import pytest

from capture.decode import decode
from capture.tunnel import TunnelKind as Kind
from tests import encapsulations as e
from tests import frames as f
from tests.differential.test_decode_peers import differences, our_view
from tests.differential.tunnel_peers import PEERS
from tests.packets import block_of
from tests.reference.decode import assert_same_columns, naive_decode

INNER4 = f.ipv4(f.tcp(b"hello", flags=f.PSH | f.ACK), f.TCP, src="192.168.7.1", dst="192.168.7.2", ttl=9)
INNER6 = f.ipv6(f.udp(b"query"), src="2001:db8:7::1", dst="2001:db8:7::2", hop_limit=9)
FRAME4 = f.ethernet(INNER4)
FRAME6 = f.ethernet(INNER6, f.ETHER_IPV6)
TAGGED = f.ethernet(INNER4, vlans=[200])
PPP4 = e.ppp(INNER4, framed=False)

# name -> (frame, link type, kind, id, depth)
CASES: Final[dict[str, tuple[bytes, int, Kind, int, int]]] = {
    "ip in ip": (f.ethernet(f.ipv4(INNER4, 4)), 1, Kind.IPIP, 0, 1),
    "6in4": (f.ethernet(f.ipv4(INNER6, 41)), 1, Kind.SIX_IN_FOUR, 0, 1),
    "4in6": (f.ethernet(f.ipv6(INNER4, 4), f.ETHER_IPV6), 1, Kind.FOUR_IN_SIX, 0, 1),
    "6in6": (f.ethernet(f.ipv6(INNER6, 41), f.ETHER_IPV6), 1, Kind.SIX_IN_SIX, 0, 1),
    "gre": (f.ethernet(f.ipv4(e.gre(INNER4), 47)), 1, Kind.GRE, 0, 1),
    "gre ipv6": (f.ethernet(f.ipv4(e.gre(INNER6, 0x86DD), 47)), 1, Kind.GRE, 0, 1),
    "gre key, checksum, sequence": (
        f.ethernet(f.ipv6(e.gre(INNER4, key=7, sequence=3, checksum=True), 47), f.ETHER_IPV6),
        1,
        Kind.GRE,
        7,
        1,
    ),
    "gretap": (f.ethernet(f.ipv4(e.gre(FRAME4, 0x6558), 47)), 1, Kind.GRE, 0, 1),
    "nvgre": (f.ethernet(f.ipv4(e.gre(FRAME4, 0x6558, key=0x123456AB), 47)), 1, Kind.NVGRE, 0x123456, 1),
    "erspan i": (f.ethernet(f.ipv4(e.erspan(FRAME4, 1), 47)), 1, Kind.ERSPAN, 0, 1),
    "erspan ii": (f.ethernet(f.ipv4(e.erspan(FRAME4, 2, 9), 47)), 1, Kind.ERSPAN, 9, 1),
    "erspan iii": (f.ethernet(f.ipv4(e.erspan(FRAME4, 3, 9), 47)), 1, Kind.ERSPAN, 9, 1),
    "pptp": (f.ethernet(f.ipv4(e.pptp(e.ppp(INNER4), 5), 47)), 1, Kind.PPTP, 5, 1),
    "etherip": (f.ethernet(f.ipv4(b"\x30\x00" + FRAME4, 97)), 1, Kind.ETHERIP, 0, 1),
    "mpls": (f.ethernet(e.mpls(INNER4, 16, 17, 18), 0x8847), 1, Kind.NONE, 0, 0),
    "mpls ipv6": (f.ethernet(e.mpls(INNER6, 16), 0x8847), 1, Kind.NONE, 0, 0),
    "ethernet over mpls": (f.ethernet(e.mpls(bytes(4) + FRAME4, 16), 0x8847), 1, Kind.NONE, 0, 0),
    "mpls in ip": (f.ethernet(f.ipv4(e.mpls(INNER4, 16), 137)), 1, Kind.MPLS_IN_IP, 0, 1),
    "mpls in udp": (f.ethernet(e.in_udp(e.mpls(INNER4, 16), 6635)), 1, Kind.MPLS_IN_UDP, 0, 1),
    "mpls in gre": (f.ethernet(f.ipv4(e.gre(e.mpls(INNER4, 16), 0x8847), 47)), 1, Kind.GRE, 0, 1),
    "gre in udp": (f.ethernet(e.in_udp(e.gre(INNER4), 4754)), 1, Kind.GRE, 0, 1),
    "vxlan": (f.ethernet(e.in_udp(e.vxlan(FRAME4, 77), 4789)), 1, Kind.VXLAN, 77, 1),
    "vxlan, tagged inside": (f.ethernet(e.in_udp(e.vxlan(TAGGED, 77), 4789)), 1, Kind.VXLAN, 77, 1),
    "vxlan on linux's old port": (f.ethernet(e.in_udp(e.vxlan(FRAME6, 77), 8472)), 1, Kind.VXLAN, 77, 1),
    "vxlan over ipv6": (
        f.ethernet(e.in_udp(e.vxlan(FRAME4, 1), 4789, v6=True), f.ETHER_IPV6),
        1,
        Kind.VXLAN,
        1,
        1,
    ),
    "vxlan-gpe ethernet": (f.ethernet(e.in_udp(e.vxlan_gpe(FRAME4, 3), 4790)), 1, Kind.VXLAN_GPE, 77, 1),
    "vxlan-gpe ipv4": (f.ethernet(e.in_udp(e.vxlan_gpe(INNER4, 1), 4790)), 1, Kind.VXLAN_GPE, 77, 1),
    "geneve": (f.ethernet(e.in_udp(e.geneve(FRAME4), 6081)), 1, Kind.GENEVE, 77, 1),
    "geneve, options, ip": (
        f.ethernet(e.in_udp(e.geneve(INNER4, 0x0800, options=bytes(8)), 6081)),
        1,
        Kind.GENEVE,
        77,
        1,
    ),
    "gtp-u": (f.ethernet(e.in_udp(e.gtpu(INNER4, 1000), 2152)), 1, Kind.GTPU, 1000, 1),
    "gtp-u, sequence": (
        f.ethernet(e.in_udp(e.gtpu(INNER6, 1000, sequence=True), 2152)),
        1,
        Kind.GTPU,
        1000,
        1,
    ),
    "gtp-u, extension": (
        f.ethernet(e.in_udp(e.gtpu(INNER4, 1000, extensions=(1,)), 2152)),
        1,
        Kind.GTPU,
        1000,
        1,
    ),
    "gtp-u, two extensions": (
        f.ethernet(e.in_udp(e.gtpu(INNER4, 1000, extensions=(1, 2)), 2152)),
        1,
        Kind.GTPU,
        1000,
        1,
    ),
    "teredo": (f.ethernet(e.in_udp(e.teredo(INNER6), 3544)), 1, Kind.TEREDO, 0, 1),
    "teredo, authentication, origin": (
        f.ethernet(e.in_udp(e.teredo(INNER6, origin=True, authentication=True), 3544)),
        1,
        Kind.TEREDO,
        0,
        1,
    ),
    "l2tp": (f.ethernet(e.in_udp(e.l2tp(e.ppp(INNER4), 3, 4), 1701)), 1, Kind.L2TP, 3 << 16 | 4, 1),
    "l2tpv3": (f.ethernet(f.ipv4(e.l2tpv3(FRAME4, 4), 115)), 1, Kind.L2TPV3, 4, 1),
    "l2tpv3, cookie and sublayer": (
        f.ethernet(f.ipv4(e.l2tpv3(FRAME4, 4, cookie=bytes(8), sublayer=True), 115)),
        1,
        Kind.L2TPV3,
        4,
        1,
    ),
    "pppoe": (f.ethernet(e.pppoe(PPP4, 7), 0x8864), 1, Kind.PPPOE, 7, 1),
    "pppoe ipv6, tagged": (
        f.ethernet(e.pppoe(e.ppp(INNER6, 0x57, framed=False), 7), 0x8864, vlans=[100]),
        1,
        Kind.PPPOE,
        7,
        1,
    ),
    "pppoe as a link type": (e.pppoe(PPP4, 7), 51, Kind.PPPOE, 7, 1),
    "ppp": (e.ppp(INNER4), 9, Kind.NONE, 0, 0),
    "ppp, protocol in one byte": (e.ppp(INNER4, short=True), 9, Kind.NONE, 0, 0),
    "ppp in hdlc": (e.ppp(INNER6, 0x57), 50, Kind.NONE, 0, 0),
    "802.11": (e.wifi(INNER4), 105, Kind.NONE, 0, 0),
    "802.11 qos, four addresses": (
        e.wifi(INNER6, ether_type=0x86DD, subtype=8, flags=3),
        105,
        Kind.NONE,
        0,
        0,
    ),
    "radiotap": (e.radiotap(e.wifi(INNER4), flags=0, tsft=True), 127, Kind.NONE, 0, 0),
    "vxlan in gre": (
        f.ethernet(f.ipv4(e.gre(e.in_udp(e.vxlan(FRAME4, 5), 4789), key=3), 47)),
        1,
        Kind.VXLAN,
        5,
        2,
    ),
    "gtp-u in vxlan in pppoe": (
        f.ethernet(
            e.pppoe(
                e.ppp(e.in_udp(e.vxlan(f.ethernet(e.in_udp(e.gtpu(INNER4, 9), 2152))), 4789), framed=False)
            ),
            0x8864,
        ),
        1,
        Kind.GTPU,
        9,
        3,
    ),
    "four deep": (f.ethernet(f.ipv4(f.ipv4(f.ipv4(f.ipv4(INNER4, 4), 4), 4), 4)), 1, Kind.IPIP, 0, 4),
}

IN_UDP = "dpkt looks into no UDP payload of its own accord: it stays with the outer packet, we go on"
NO_LAYER = "the peer has no such layer: the twin alone vouches"
# (peer, case) -> why the peer does not reach the innermost packet.
NOT_FOLLOWED: Final[dict[tuple[str, str], str]] = {
    **{
        ("dpkt", case): IN_UDP
        for case, (frame, *_) in CASES.items()
        if case.startswith(("vxlan", "geneve", "gtp-u", "teredo", "l2tp", "gre in udp", "mpls in udp"))
    },
    **{
        ("dpkt", case): NO_LAYER
        for case in ("erspan i", "erspan ii", "erspan iii", "etherip", "mpls in ip", "mpls in gre")
    },
    ("dpkt", "ppp in hdlc"): "dpkt has no such link type",
    ("dpkt", "802.11"): "dpkt looks behind no 802.11 header",
    ("dpkt", "802.11 qos, four addresses"): "dpkt looks behind no 802.11 header",
    ("dpkt", "radiotap"): "dpkt looks behind no 802.11 header",
    ("scapy", "teredo"): NO_LAYER,
    ("scapy", "teredo, authentication, origin"): NO_LAYER,
    ("scapy", "l2tpv3"): NO_LAYER,
    ("scapy", "l2tpv3, cookie and sublayer"): NO_LAYER,
    (
        "scapy",
        "gtp-u, two extensions",
    ): "scapy ends at the second extension header of one kind (TS 29.281, 5.2.1)",
}
# (peer, case) -> columns that differ, and who is right.
KNOWN: Final[dict[tuple[str, str], set[str]]] = {
    ("scapy", "nvgre"): {
        "tunnel_id"
    },  # scapy shows the GRE key; RFC 7637, 3.2: its upper 24 bits are the VSID
}


@pytest.mark.parametrize("case", CASES)
def test_the_innermost_packet_and_its_tunnel_are_found(case: str) -> None:
    frame, link_type, kind, number, depth = CASES[case]
    block = block_of([frame], link_type)
    got = decode(block)
    assert_same_columns(got, naive_decode(block), block)
    assert (got.reject[0], got.tunnel_stop[0], got.ttl[0]) == (0, 0, 9)
    assert (got.tunnel_kind[0], got.tunnel_id[0], got.tunnel_depth[0]) == (kind, number, depth)
    assert (got.tunnel_path[0] != 0) == (depth > 0)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("peer", PEERS)
def test_the_innermost_packet_is_what_the_peer_says(peer: str, case: str) -> None:
    frame, link_type, *_ = CASES[case]
    ours = our_view(decode(block_of([frame], link_type)), 0, frame)
    theirs = PEERS[peer](frame, link_type)
    reaches = theirs.get("src") == ours["src"]
    assert reaches != ((peer, case) in NOT_FOLLOWED), theirs
    if reaches:
        assert differences(ours, theirs) == KNOWN.get((peer, case), set())


def test_at_least_one_peer_vouches_for_every_kind_but_two() -> None:
    vouched = {CASES[case][2] for case in CASES for peer in PEERS if (peer, case) not in NOT_FOLLOWED}
    assert set(Kind) - vouched == {Kind.TEREDO, Kind.L2TPV3}
