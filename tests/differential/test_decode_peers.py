"""Every packet of the test captures, and hand-built frames for what they lack: our columns equal dpkt's and scapy's.

Where they do not, ``KNOWN`` says why and who is right; an entry that no longer happens fails too.
"""

from __future__ import annotations

import struct
from typing import Any, Final

import pytest

from capture.block import DecodedBlock
from capture.decode import DecodeOptions, decode
from capture.reject import Reject
from tests import frames as f
from tests.differential.decode_peers import PEERS, View
from tests.packets import DATA, block_from_capture, block_of, frames_of
from tests.reference.decode import assert_same_columns, naive_decode

OUTER: Final = DecodeOptions(decap="outer")
PROTOCOLS_WITH_PORTS: Final = (f.ICMP, f.TCP, f.UDP, f.ICMPV6, f.SCTP)
CAPTURES: Final = sorted(path.name for path in (DATA / "captures").iterdir())

UDP4 = f.ipv4(f.udp(b"query"))
UDP6 = f.ipv6(f.udp(b"query"))
TOO_BIG = f.icmp(f.ipv6(f.tcp(bytes(20)), f.TCP), kind=2)

HAND_BUILT: Final[dict[str, tuple[bytes, int]]] = {
    "qinq": (f.ethernet(UDP4, vlans=[100, 200]), 1),
    "qinq 802.1ad": (f.ethernet(b"\x00\x64\x81\x00\x00\xc8\x08\x00" + UDP4, 0x88A8), 1),
    "priority tag": (f.ethernet(UDP4, vlans=[0xE000, 200]), 1),
    "llc/snap": (f.snap(UDP4), 1),
    "spanning tree": (f.ethernet(b"\x42\x42\x03" + bytes(43), 38), 1),
    "sll with a tag": (f.sll(b"\x00\x07\x08\x00" + UDP4, 0x8100), 113),
    "sll2 over ipv6": (f.sll2(UDP6, f.ETHER_IPV6), 276),
    "null little-endian": (struct.pack("<I", 2) + UDP4, 0),
    "null big-endian": (struct.pack(">I", 2) + UDP4, 0),
    "null ipv6": (struct.pack("<I", 30) + UDP6, 0),
    "loop": (struct.pack(">I", 2) + UDP4, 108),
    "tcp options": (f.ethernet(f.ipv4(f.tcp(b"x", options=b"\x02\x04\x05\xb4\x01\x03\x03\x07"), f.TCP)), 1),
    "padding": (f.ethernet(f.ipv4(f.tcp(), f.TCP)).ljust(60, b"\0"), 1),
    "sctp": (f.ethernet(f.ipv4(f.sctp(b"\x00\x03\x00\x10" + bytes(12)), f.SCTP)), 1),
    "sctp over ipv6": (f.ipv6(f.sctp(b"\x00\x03\x00\x10" + bytes(12)), f.SCTP), 229),
    "icmpv6 packet too big": (f.ethernet(f.ipv6(TOO_BIG, f.ICMPV6), f.ETHER_IPV6), 1),
    "icmp unreachable": (f.ethernet(f.ipv4(f.icmp(UDP4, kind=3, code=3), f.ICMP)), 1),
    "icmp of four bytes": (f.ethernet(f.ipv4(f.icmp()[:4], f.ICMP)), 1),
    "esp": (f.ethernet(f.ipv4(bytes(range(1, 33)), f.ESP)), 1),
    "hop-by-hop, routing, destination": (
        f.ipv6(f.extension(43) + f.extension(60) + f.extension(f.UDP) + f.udp(b"query"), f.HOP_BY_HOP),
        229,
    ),
    "authentication header": (f.ipv6(f.authentication(f.TCP) + f.tcp(b"x"), f.AH), 229),
    "mobility": (f.ipv6(f.extension(f.UDP) + f.udp(b"query"), 135), 229),
    "first fragment": (f.ethernet(f.ipv4(f.udp(bytes(24), length=2008), fragment=0x2000)), 1),
    "later fragment": (f.ethernet(f.ipv4(bytes(24), fragment=0x2003)), 1),
    "first fragment ipv6": (f.ipv6(f.fragment_header(f.TCP, more=True) + f.tcp(bytes(20)), f.FRAGMENT), 229),
    "later fragment ipv6": (f.ipv6(f.fragment_header(f.UDP, offset=3) + bytes(24), f.FRAGMENT), 229),
    "atomic fragment": (f.ipv6(f.fragment_header(f.UDP) + f.udp(b"query"), f.FRAGMENT), 229),
    "no next header": (f.ethernet(f.ipv6(b"", f.NO_NEXT_HEADER), f.ETHER_IPV6), 1),
    "segmentation offload": (f.ethernet(f.ipv4(f.tcp(bytes(2000)), f.TCP, total_len=0)), 1),
    "udp longer than its packet": (f.ethernet(f.ipv4(f.udp(b"query", length=14))), 1),
    "udp shorter than its packet": (f.ethernet(f.ipv4(f.udp(b"query", length=10))), 1),
    "tcp offset of four": (f.ethernet(f.ipv4(f.tcp(b"x", data_offset=4), f.TCP)), 1),
}

DPKT_UDP_REST = "dpkt gives all that IP holds; the UDP length says less (RFC 768): we are right"
BAD_LENGTH = "the peer reads ports from a datagram whose length is impossible: we are right not to believe it"
NULL_IPV6 = "scapy knows only this machine's own AF_INET6; 24, 28 and 30 are in tcpdump's list: we are right"

# (peer, case, difference) -> why, and who is right.
KNOWN: Final[dict[tuple[str, str, str], str]] = {
    ("dpkt", "malformed_quic.pcap", "payload"): DPKT_UDP_REST,
    ("dpkt", "udp shorter than its packet", "payload"): DPKT_UDP_REST,
    **{
        (peer, case, "only we reject: BAD_UDP_LENGTH"): BAD_LENGTH
        for peer in PEERS
        for case in ("malformed_quic.pcap", "udp longer than its packet")
    },
    **{
        (peer, "malformed_quic.pcap", "only we reject: BAD_IP_VERSION"): (
            "the peer believes the EtherType and reads an IPv4 header whose version nibble is not 4: we are right"
        )
        for peer in PEERS
    },
    ("scapy", "null_redis.pcap", "only we see IP"): NULL_IPV6,
    ("scapy", "null ipv6", "only we see IP"): NULL_IPV6,
    ("scapy", "tcp offset of four", "only we reject: BAD_TCP_OFFSET"): (
        "scapy reads ports from a header that claims to be shorter than its fixed part (RFC 9293, 3.1): we are right"
    ),
    ("scapy", "icmp of four bytes", "only we see a transport header"): (
        "scapy wants eight bytes; type and code are there, and more is not asked of the key: a matter of taste"
    ),
    ("scapy", "authentication header", "only we see a transport header"): (
        "scapy has AH in its ipsec layer, which must be loaded by hand: we are right"
    ),
    ("scapy", "mobility", "only we see a transport header"): (
        "scapy ends at a mobility header; RFC 6275, 6.1.1 gives it a next-header field, which we follow: both may"
    ),
    **{
        ("dpkt", "mobility", difference): "dpkt does not know mobility as an extension header: we are right"
        for difference in ("protocol", "only we see a transport header", "payload")
    },
    (
        "dpkt",
        "sll with a tag",
        "only we see IP",
    ): "dpkt does not look behind a tag in cooked captures: we are right",
}


def our_view(decoded: DecodedBlock, row: int, frame: bytes) -> dict[str, Any]:
    """A row, and its captured payload as consumers cut it out."""
    view = {name: getattr(decoded, name)[row].tolist() for name in DecodedBlock.__slots__}
    begin, end_of_ip = view["payload_offset"], view["l3_offset"] + view["ip_len"]
    return view | {"payload": frame[begin : min(begin + view["payload_len"], end_of_ip)]}


def differences(ours: dict[str, Any], peer: View) -> set[str]:
    """Names of the columns that differ, and sentences for what only one of the two decodes."""
    reason = Reject(ours["reject"])
    if not peer:
        return set() if ours["ip_version"] == 0 else {"only we see IP"}
    if ours["ip_version"] == 0:
        return {f"only we reject: {reason.name}"}
    reached = {"ip_version", "vlan", "src", "dst", "ttl", "tos", "ip_len"}
    if reason in (Reject.DECODED, Reject.LATER_FRAGMENT, Reject.NO_NEXT_HEADER):
        reached.add("protocol")
    if reason is Reject.DECODED:
        reached |= peer.keys()
    found = {column for column in reached & peer.keys() if ours[column] != peer[column]}
    has_ports = "src_port" in peer
    if has_ports and reason is not Reject.DECODED:
        found.add(f"only we reject: {reason.name}")
    if not has_ports and reason is Reject.DECODED and ours["protocol"] in PROTOCOLS_WITH_PORTS:
        found.add("only we see a transport header")
    return found


def found_in(peer: str, frames: list[bytes], link_types: list[int], decoded: DecodedBlock) -> set[str]:
    found = set()
    for row, (frame, link_type) in enumerate(zip(frames, link_types, strict=True)):
        found |= differences(our_view(decoded, row, frame), PEERS[peer](frame, link_type))
    return found


def known(peer: str, case: str) -> set[str]:
    return {difference for who, where, difference in KNOWN if (who, where) == (peer, case)}


@pytest.mark.parametrize("case", CAPTURES)
@pytest.mark.parametrize("peer", PEERS)
def test_every_packet_of_the_captures_decodes_as_the_peer_says(peer: str, case: str) -> None:
    block = block_from_capture(DATA / "captures" / case)
    assert len(block) > 0
    found = found_in(peer, frames_of(block), block.link_type.tolist(), decode(block, OUTER))
    assert found == known(peer, case)


@pytest.mark.parametrize("case", HAND_BUILT)
@pytest.mark.parametrize("peer", PEERS)
def test_hand_built_frames_decode_as_the_peer_says(peer: str, case: str) -> None:
    frame, link_type = HAND_BUILT[case]
    found = found_in(peer, [frame], [link_type], decode(block_of([frame], link_type), OUTER))
    assert found == known(peer, case)


def test_known_disagreements_are_about_cases_that_exist() -> None:
    assert {case for _, case, _ in KNOWN} <= {*CAPTURES, *HAND_BUILT}


@pytest.mark.parametrize("case", CAPTURES)
def test_every_packet_of_the_captures_decodes_as_the_twin_says(case: str) -> None:
    block = block_from_capture(DATA / "captures" / case)
    assert_same_columns(decode(block), naive_decode(block), block)
