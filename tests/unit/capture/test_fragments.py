"""Later fragments, tunnels and checksums, one rule of docs/decode.md a test."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import pytest

from capture.decode import DecodeOptions, Decoder, decode
from capture.errors import UsageError
from capture.fragment_table import FragmentCounters
from capture.kernels.fragments import MAX_PIECES, N_SETS, N_WAYS
from capture.reject import Reject
from tests import encapsulations as e
from tests import frames as f
from tests.packets import block_of

S = 1_000_000_000
RAW = 101


def piece(
    offset: int, size: int, *, more: bool = True, ident: int = 1, port: int = 50000, **ends: str
) -> bytes:
    """A fragment of a UDP datagram; the first one has the header."""
    payload = f.udp(bytes(size - 8), src_port=port, length=4000) if offset == 0 else bytes(size)
    return f.ipv4(payload, fragment=offset // 8 | (0x2000 if more else 0), ident=ident, **ends)


def rows(frames: Sequence[bytes], ts_ns: Sequence[int] | None = None) -> tuple[Any, FragmentCounters]:
    decoder = Decoder()
    return decoder.decode(block_of(frames, RAW, ts_ns=ts_ns)), decoder.fragments


def reasons(frames: Sequence[bytes], ts_ns: Sequence[int] | None = None) -> list[Reject]:
    return [Reject(reason) for reason in rows(frames, ts_ns)[0].reject.tolist()]


def test_a_later_fragment_has_the_ports_of_its_first_and_all_of_it_is_payload() -> None:
    got, counters = rows([piece(0, 24), piece(24, 16), piece(40, 8, more=False)])
    assert got.reject.tolist() == [0, 0, 0]
    assert got.src_port.tolist() == [50000] * 3
    assert got.payload_offset.tolist() == [28, 20, 20]
    assert got.payload_len.tolist() == [16, 16, 8]
    assert counters == FragmentCounters(datagrams=1, joined=2, complete=1)


def test_a_later_fragment_before_its_first_is_ignored() -> None:
    assert reasons([piece(24, 16), piece(0, 24)]) == [Reject.LATER_FRAGMENT, Reject.DECODED]


@pytest.mark.parametrize(
    "other", [{"ident": 2}, {"src": "10.0.0.9"}, {"dst": "10.0.0.9"}], ids=lambda other: next(iter(other))
)
def test_another_datagram_is_not_joined(other: dict[str, Any]) -> None:
    assert reasons([piece(0, 24), piece(24, 16, **other)])[1] == Reject.LATER_FRAGMENT


def test_a_fragment_on_another_vlan_or_in_another_tunnel_is_not_joined() -> None:
    plain = [f.ethernet(piece(0, 24)), f.ethernet(piece(24, 16), vlans=[7])]
    assert Decoder().decode(block_of(plain)).reject.tolist() == [0, Reject.LATER_FRAGMENT]
    tunnels = [f.ipv4(e.gre(piece(at, 24), key=key), e.GRE) for at, key in ((0, 1), (24, 2), (24, 1))]
    got = Decoder().decode(block_of(tunnels, RAW))
    assert got.tunnel_stop.tolist() == [0, Reject.LATER_FRAGMENT, 0]
    assert got.src_port.tolist() == [50000, 0, 50000]


def test_overlaps_are_rejected_and_repeats_are_not() -> None:
    got = reasons([piece(0, 24), piece(16, 16), piece(24, 16), piece(24, 16), piece(24, 24), piece(0, 24)])
    assert got == [0, Reject.FRAGMENT_OVERLAP, 0, 0, Reject.FRAGMENT_OVERLAP, 0]


def test_a_second_first_fragment_with_other_ports_is_an_overlap() -> None:
    assert reasons([piece(0, 24), piece(0, 24, port=666)]) == [0, Reject.FRAGMENT_OVERLAP]


def test_a_fragment_past_the_end_of_a_datagram_is_rejected() -> None:
    assert reasons([piece(0, 24), piece(65528, 16)]) == [0, Reject.FRAGMENT_TOO_LONG]


def test_a_datagram_in_too_many_pieces_is_rejected_from_there_on() -> None:
    got = reasons([piece(8 * at, 8) for at in range(MAX_PIECES + 2)])
    assert got == [0] * MAX_PIECES + [Reject.TOO_MANY_FRAGMENTS] * 2


def test_an_old_datagram_is_forgotten() -> None:
    frames = [piece(0, 24), piece(24, 16), piece(40, 8)]
    got, counters = rows(frames, [0, 30 * S, 30 * S + 1])
    assert got.reject.tolist() == [0, 0, Reject.LATER_FRAGMENT]
    assert counters.expired == 1


def test_the_oldest_makes_room_and_is_counted() -> None:
    n = 3 * N_SETS * N_WAYS
    frames = [piece(0, 24, ident=at % 65536, src=f"10.{at >> 16}.0.1") for at in range(n)]
    _, counters = rows(frames, list(range(n)))
    assert counters.datagrams == n
    assert counters.evicted >= n - N_SETS * N_WAYS


def test_fragments_of_a_tunnel_belong_to_the_flow_inside() -> None:
    inner = f.ethernet(f.ipv4(f.tcp(bytes(40)), f.TCP, src="192.168.0.1", dst="192.168.0.2"))
    outer = f.udp(e.vxlan(inner, 5), dst_port=4789)
    frames = [
        f.ipv4(outer[:104], fragment=0x2000),
        f.ipv6(b"", f.NO_NEXT_HEADER),
        f.ipv4(outer[104:], fragment=13),
    ]
    got, _ = rows(frames)
    assert got.reject.tolist() == [0, Reject.NO_NEXT_HEADER, 0]
    assert got.protocol[[0, 2]].tolist() == [f.TCP] * 2
    assert got.tunnel_id[[0, 2]].tolist() == [5, 5]
    assert got.tunnel_path[0] == got.tunnel_path[2] != 0
    assert got.src[2].tolist()[-4:] == [192, 168, 0, 1]


def nested(depth: int) -> bytes:
    packet = f.ipv4(f.udp(b"inside"), src="192.168.0.1", dst="192.168.0.2", ttl=9)
    for level in range(depth):
        packet = f.ipv4(packet, 4, src=f"10.0.{level}.1", dst=f"10.0.{level}.2", ttl=100 + level)
    return packet


def test_four_tunnels_in_each_other_are_followed_and_no_more() -> None:
    got = decode(block_of([nested(n) for n in (3, 4, 5, 9)], RAW))
    assert got.tunnel_depth.tolist() == [3, 4, 4, 4]
    assert got.ttl.tolist() == [9, 9, 100, 104]
    assert got.tunnel_stop.tolist() == [0, 0, Reject.TUNNEL_TOO_DEEP, Reject.TUNNEL_TOO_DEEP]


def test_a_tunnel_that_cannot_be_followed_is_a_flow_of_its_own_headers() -> None:
    bad = f.ipv4(f.udp(b"x"), src="192.168.0.1", total_len=400)
    frames = [f.ipv4(e.gre(bad), e.GRE), f.ipv4(e.gre(b"lldp", 0x88CC), e.GRE), e.in_udp(b"\0no vxlan", 4789)]
    decoder = Decoder()
    got = decoder.decode(block_of(frames, RAW))
    assert got.reject.tolist() == [0, 0, 0]
    assert got.protocol.tolist() == [e.GRE, e.GRE, f.UDP]
    assert not got.tunnel_kind.any()
    assert got.tunnel_stop.tolist() == [Reject.BAD_IP_TOTAL_LENGTH, Reject.NOT_IP, 0]
    assert decoder.n_unfollowed.sum() == 2


def test_outer_leaves_tunnels_alone_but_not_link_layers() -> None:
    outer = DecodeOptions(decap="outer")
    got = decode(block_of([nested(1), f.ipv4(e.gre(nested(0)), e.GRE)], RAW), outer)
    assert got.protocol.tolist() == [4, e.GRE]
    assert got.ttl.tolist() == [100, 64]
    link = f.ethernet(e.mpls(nested(0), 16), 0x8847)
    assert decode(block_of([link]), outer).ttl.tolist() == [9]


def test_tags_are_those_of_all_ethernet_headers_the_two_outermost() -> None:
    inner = f.ethernet(nested(0), vlans=[200, 300])
    frames = [f.ethernet(e.in_udp(e.vxlan(inner), 4789), vlans=tags) for tags in ([100], [])]
    assert decode(block_of(frames)).vlan.tolist() == [[100, 200], [200, 300]]


def test_what_names_a_tunnel_makes_another_path() -> None:
    """Each entry differs from the first in one thing; the last two are the first again, from the other end too."""
    inner = f.ethernet(nested(0))
    back = {"src": "10.0.0.2", "dst": "10.0.0.1"}
    vxlan = [
        f.ethernet(e.in_udp(e.vxlan(inner, 1), 4789)),
        f.ethernet(e.in_udp(e.vxlan(inner, 2), 4789)),
        f.ethernet(e.in_udp(e.vxlan(inner, 1), 4789), vlans=[9]),
        f.ethernet(f.ipv4(e.in_udp(e.vxlan(inner, 1), 4789), 4)),
        f.ethernet(e.in_udp(e.vxlan(inner, 1), 4789, src_port=1, **back)),
        f.ethernet(e.in_udp(e.vxlan(inner, 1), 4789, src="10.9.9.9")),
    ]
    path = decode(block_of(vxlan)).tunnel_path.tolist()
    assert len(set(path[:4])) == 4
    assert path[0] == path[4] == path[5]
    ipip = [
        f.ipv4(nested(0), 4),
        f.ipv4(nested(0), 4, src="10.9.9.9"),
        f.ipv4(nested(0), 4, **back),
    ]
    path = decode(block_of(ipip, RAW)).tunnel_path.tolist()
    assert path[0] == path[2] != path[1]


def with_checksums(packet: bytes) -> bytes:
    """An IPv4 packet of 20 header bytes, or IPv6 without extensions, with right checksums."""
    version = packet[0] >> 4
    head_len = 20 if version == 4 else 40
    if version == 4:
        packet = packet[:10] + struct.pack(">H", ones(packet[:20])) + packet[12:]
    protocol = packet[9] if version == 4 else packet[6]
    at = head_len + {f.TCP: 16, f.UDP: 6}[protocol]
    ends = packet[12:20] if version == 4 else packet[8:40]
    pseudo = ends + struct.pack(">II", len(packet) - head_len, protocol)
    return packet[:at] + struct.pack(">H", ones(pseudo + packet[head_len:])) + packet[at + 2 :]


def ones(data: bytes) -> int:
    total = sum(struct.unpack(f">{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - total


GOOD = {
    "tcp": with_checksums(f.ipv4(f.tcp(b"odd"), f.TCP)),
    "udp": with_checksums(f.ipv4(f.udp(b"even"))),
    "tcp over ipv6": with_checksums(f.ipv6(f.tcp(b"odd"), f.TCP)),
    "udp over ipv6": with_checksums(f.ipv6(f.udp(b"even"))),
}


def checked(frame: bytes, wire_len: int | None = None) -> Reject:
    block = block_of([frame], RAW, wire_len=None if wire_len is None else [wire_len])
    assert decode(block).reject[0] == 0, "without the option every packet is decoded"
    return Reject(decode(block, DecodeOptions(check_checksums=True)).reject[0])


@pytest.mark.parametrize("name", GOOD)
def test_a_right_checksum_is_accepted_and_one_changed_byte_is_not(name: str) -> None:
    packet = GOOD[name]
    assert checked(packet) == Reject.DECODED
    wrong = Reject.BAD_TCP_CHECKSUM if "tcp" in name else Reject.BAD_UDP_CHECKSUM
    assert checked(packet[:-1] + bytes([packet[-1] ^ 1])) == wrong
    if "ipv6" not in name:
        assert checked(packet[:8] + b"\x07" + packet[9:]) == Reject.BAD_IP_CHECKSUM


def test_what_cannot_be_checked_is_accepted() -> None:
    packet = GOOD["tcp"]
    assert checked(packet[:-1], len(packet)) == Reject.DECODED  # cut
    no_udp_checksum = GOOD["udp"][:26] + bytes(2) + GOOD["udp"][28:]
    assert checked(no_udp_checksum) == Reject.DECODED  # RFC 768
    assert (
        checked(GOOD["udp over ipv6"][:46] + bytes(2) + GOOD["udp over ipv6"][48:]) == Reject.BAD_UDP_CHECKSUM
    )


def test_checksums_are_those_of_the_inner_packet_and_of_outer_ipv4_headers() -> None:
    def outer(inner: bytes) -> bytes:
        packet = f.ipv4(inner, 4)
        return packet[:10] + struct.pack(">H", ones(packet[:20])) + packet[12:]

    assert checked(outer(GOOD["tcp"])) == Reject.DECODED
    assert checked(outer(GOOD["tcp"][:-1] + b"!")) == Reject.BAD_TCP_CHECKSUM
    assert checked(f.ipv4(GOOD["tcp"], 4)) == Reject.BAD_IP_CHECKSUM


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(UsageError, match="decap is 'both'; choose one of inner, outer"):
        DecodeOptions(decap="both")
