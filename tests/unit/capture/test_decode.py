"""What each header becomes, by hand-built frames with the answer written beside them."""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from capture.block import PACKET_FRAGMENT, PACKET_TRUNCATED
from capture.decode import count_rejects, decode
from capture.kernels.decode import MAX_EXTENSIONS, MAX_VLAN_TAGS, decode_block
from capture.reject import Reject
from tests import frames as f
from tests.packets import block_of

ETHERNET, NULL, LOOP, RAW, SLL, SLL2, IPV4, IPV6 = 1, 0, 108, 101, 113, 276, 228, 229
UDP4 = f.ipv4(f.udp(b"query"))
UDP6 = f.ipv6(f.udp(b"query"))


def row(frame: bytes, link_type: int = ETHERNET, *, wire_len: int | None = None) -> dict[str, Any]:
    """The one row of a block of one packet, as plain Python values."""
    decoded = decode(block_of([frame], link_type, wire_len=None if wire_len is None else [wire_len], gap=3))
    return {name: getattr(decoded, name)[0].tolist() for name in decoded.__slots__}


def reason(frame: bytes, link_type: int = ETHERNET, *, wire_len: int | None = None) -> Reject:
    return Reject(row(frame, link_type, wire_len=wire_len)["reject"])


def packed(address: str) -> list[int]:
    return list(ipaddress.IPv6Address(address).packed)


def test_every_column_of_a_tcp_packet() -> None:
    segment = f.tcp(
        b"hello", flags=f.SYN | f.ACK | 0x80, seq=2**32 - 1, ack=7, window=65535, options=bytes(12)
    )
    assert row(f.ethernet(f.ipv4(segment, f.TCP, ttl=63, tos=0xB8), vlans=[0xE00A])) == {
        "reject": 0,
        "ip_version": 4,
        "protocol": 6,
        "vlan": [10, 0],
        "src": packed("::ffff:10.0.0.1"),
        "dst": packed("::ffff:10.0.0.2"),
        "src_port": 50000,
        "dst_port": 443,
        "l3_offset": 18,
        "l4_offset": 38,
        "payload_offset": 70,
        "ip_len": 57,
        "payload_len": 5,
        "ttl": 63,
        "tos": 0xB8,
        "tcp_flags": 0x92,
        "tcp_window": 65535,
        "tcp_seq": 2**32 - 1,
        "tcp_ack": 7,
        "flags": 0,
        **dict.fromkeys(("tunnel_kind", "tunnel_depth", "tunnel_id", "tunnel_path", "tunnel_stop"), 0),
    }


def test_every_column_of_a_udp_packet_over_ipv6() -> None:
    assert row(f.ethernet(f.ipv6(f.udp(b"abc"), hop_limit=3, traffic_class=0xB9), f.ETHER_IPV6)) == {
        "reject": 0,
        "ip_version": 6,
        "protocol": 17,
        "vlan": [0, 0],
        "src": packed("2001:db8::1"),
        "dst": packed("2001:db8::2"),
        "src_port": 50000,
        "dst_port": 53,
        "l3_offset": 14,
        "l4_offset": 54,
        "payload_offset": 62,
        "ip_len": 51,
        "payload_len": 3,
        "ttl": 3,
        "tos": 0xB9,
        "tcp_flags": 0,
        "tcp_window": 0,
        "tcp_seq": 0,
        "tcp_ack": 0,
        "flags": 0,
        **dict.fromkeys(("tunnel_kind", "tunnel_depth", "tunnel_id", "tunnel_path", "tunnel_stop"), 0),
    }


@pytest.mark.parametrize(
    ("frame", "link_type", "l3_offset"),
    [
        (f.ethernet(UDP4), ETHERNET, 14),
        (f.ethernet(UDP6, f.ETHER_IPV6), ETHERNET, 14),
        (f.snap(UDP4), ETHERNET, 22),
        (f.snap(UDP6, f.ETHER_IPV6), ETHERNET, 22),
        (f.ethernet(f.snap(UDP4)[14:], 1500, vlans=[7]), ETHERNET, 26),
        (UDP4, RAW, 0),
        (UDP6, RAW, 0),
        (UDP4, 12, 0),
        (UDP6, 14, 0),
        (UDP4, IPV4, 0),
        (UDP6, IPV6, 0),
        (f.sll(UDP4), SLL, 16),
        (f.sll(UDP6, f.ETHER_IPV6), SLL, 16),
        (f.sll(b"\x00\x07\x08\x00" + UDP4, 0x8100), SLL, 20),
        (f.sll2(UDP4), SLL2, 20),
        (f.sll2(UDP6, f.ETHER_IPV6), SLL2, 20),
        *((struct.pack(order, 2) + UDP4, NULL, 4) for order in ("<I", ">I")),
        *((struct.pack(order, af) + UDP6, NULL, 4) for order in ("<I", ">I") for af in (24, 28, 30)),
        (struct.pack(">I", 2) + UDP4, LOOP, 4),
        (struct.pack(">I", 24) + UDP6, LOOP, 4),
    ],
)
def test_the_ip_header_is_found_behind_every_link_type(frame: bytes, link_type: int, l3_offset: int) -> None:
    got = row(frame, link_type)
    assert (got["reject"], got["l3_offset"], got["dst_port"], got["payload_len"]) == (0, l3_offset, 53, 5)


@pytest.mark.parametrize("tpid", [0x8100, 0x88A8, 0x9100])
@pytest.mark.parametrize(
    ("tags", "vlan"),
    [([], [0, 0]), ([5], [5, 0]), ([0xF005, 0x1006], [5, 6]), ([0, 6], [0, 6]), ([1, 2, 3], [1, 2])],
)
def test_the_two_outermost_vlan_ids_are_kept(tags: list[int], vlan: list[int], tpid: int) -> None:
    got = row(f.ethernet(UDP4, vlans=tags, tpid=tpid))
    assert (got["reject"], got["vlan"], got["l3_offset"]) == (0, vlan, 14 + 4 * len(tags))


@pytest.mark.parametrize(
    ("frame", "link_type", "expected"),
    [
        (b"", ETHERNET, Reject.EMPTY),
        (b"", 9999, Reject.EMPTY),
        (UDP4, 9999, Reject.UNKNOWN_LINK_TYPE),
        (f.ethernet(UDP4)[:13], ETHERNET, Reject.TRUNCATED_LINK),
        (f.snap(UDP4)[:21], ETHERNET, Reject.TRUNCATED_LINK),
        (f.sll(UDP4)[:15], SLL, Reject.TRUNCATED_LINK),
        (f.sll2(UDP4)[:19], SLL2, Reject.TRUNCATED_LINK),
        (b"\x02\x00\x00", NULL, Reject.TRUNCATED_LINK),
        (f.ethernet(UDP4, vlans=[1, 2])[:21], ETHERNET, Reject.TRUNCATED_VLAN),
        (f.ethernet(UDP4, vlans=[1] * (MAX_VLAN_TAGS + 1)), ETHERNET, Reject.VLAN_TOO_DEEP),
        (f.ethernet(b""), ETHERNET, Reject.TRUNCATED_IP),
        (f.ethernet(UDP4)[:33], ETHERNET, Reject.TRUNCATED_IP),
        (f.ethernet(UDP6, f.ETHER_IPV6)[:53], ETHERNET, Reject.TRUNCATED_IP),
        (f.ethernet(UDP6), ETHERNET, Reject.BAD_IP_VERSION),
        (f.ethernet(UDP4, f.ETHER_IPV6), ETHERNET, Reject.BAD_IP_VERSION),
        (UDP4, IPV6, Reject.BAD_IP_VERSION),
        (UDP6, IPV4, Reject.BAD_IP_VERSION),
        (b"\x50" + bytes(40), RAW, Reject.BAD_IP_VERSION),
        (f.ethernet(f.ipv4(f.udp(), ihl=4)), ETHERNET, Reject.BAD_IP_HEADER_LENGTH),
        (f.ethernet(f.ipv4(f.udp(), ihl=8)), ETHERNET, Reject.BAD_IP_HEADER_LENGTH),
        (f.ethernet(f.ipv4(f.udp(), total_len=19)), ETHERNET, Reject.BAD_IP_TOTAL_LENGTH),
        (f.ethernet(f.ipv4(f.udp(), options=bytes(4), total_len=20)), ETHERNET, Reject.BAD_IP_TOTAL_LENGTH),
        (f.ethernet(f.ipv4(f.tcp()[:19], f.TCP)), ETHERNET, Reject.TRUNCATED_TRANSPORT),
        (f.ethernet(f.ipv4(f.udp()[:7])), ETHERNET, Reject.TRUNCATED_TRANSPORT),
        (f.ethernet(f.ipv4(f.icmp()[:3], f.ICMP)), ETHERNET, Reject.TRUNCATED_TRANSPORT),
        (f.ethernet(f.ipv4(f.sctp()[:11], f.SCTP)), ETHERNET, Reject.TRUNCATED_TRANSPORT),
        (f.ethernet(f.ipv4(f.tcp(data_offset=4), f.TCP)), ETHERNET, Reject.BAD_TCP_OFFSET),
        (f.ethernet(f.ipv4(f.tcp(data_offset=6), f.TCP)), ETHERNET, Reject.BAD_TCP_OFFSET),
        (f.ethernet(f.ipv4(f.udp(length=7))), ETHERNET, Reject.BAD_UDP_LENGTH),
        (f.ethernet(f.ipv4(f.udp(length=0))), ETHERNET, Reject.BAD_UDP_LENGTH),
        (f.ethernet(f.ipv4(f.udp(length=9))), ETHERNET, Reject.BAD_UDP_LENGTH),
        (f.ethernet(f.ipv6(b"", f.NO_NEXT_HEADER), f.ETHER_IPV6), ETHERNET, Reject.NO_NEXT_HEADER),
        (f.ethernet(bytes(28), f.ETHER_ARP), ETHERNET, Reject.ARP),
        (f.ethernet(bytes(28), f.ETHER_ARP, vlans=[3]), ETHERNET, Reject.ARP),
        (f.ethernet(bytes(46), 0x88CC), ETHERNET, Reject.NOT_IP),
        (f.ethernet(f.snap(UDP4)[14:], 1501), ETHERNET, Reject.NOT_IP),  # neither a length nor a type
        (f.ethernet(b"\x42\x42\x03" + bytes(43), 38), ETHERNET, Reject.NOT_IP),  # spanning tree
        (f.ethernet(b"\x00\x01\xaf\x81", 3), ETHERNET, Reject.NOT_IP),  # LLC too short for SNAP, cut
        (f.snap(UDP4, llc=bytes.fromhex("aaaa0300000c")), ETHERNET, Reject.NOT_IP),  # a Cisco OUI
        (struct.pack("<I", 7) + UDP4, NULL, Reject.NOT_IP),
        (struct.pack("<I", 2) + UDP4, LOOP, Reject.NOT_IP),  # LOOP is in network order only
    ],
)
def test_every_way_to_be_undecodable_has_its_name(frame: bytes, link_type: int, expected: Reject) -> None:
    assert reason(frame, link_type) is expected


# ------------------------------------------------------------------------------------------- lengths


def test_ethernet_padding_is_no_payload() -> None:
    frame = f.ethernet(f.ipv4(f.tcp(), f.TCP))
    got = row(frame.ljust(60, b"\xaa"))
    assert (got["payload_len"], got["ip_len"], got["payload_offset"]) == (0, 40, 54)


def test_padding_is_never_read_as_a_transport_header() -> None:
    assert (
        reason(f.ethernet(f.ipv4(f.tcp(), f.TCP, total_len=30)).ljust(60, b"\0"))
        is Reject.TRUNCATED_TRANSPORT
    )


def test_an_ip_length_of_zero_is_what_the_frame_holds() -> None:
    for ip, ether_type in (
        (f.ipv4(f.tcp(bytes(3000)), f.TCP, total_len=0), f.ETHER_IPV4),
        (f.ipv6(f.tcp(bytes(3000)), f.TCP, payload_len=0), f.ETHER_IPV6),
    ):
        got = row(f.ethernet(ip, ether_type)[:100], wire_len=14 + len(ip))
        assert (got["reject"], got["payload_len"], got["ip_len"]) == (0, 3000, len(ip))


def test_a_packet_cut_by_the_snaplen_keeps_its_lengths_on_the_wire() -> None:
    frame = f.ethernet(f.ipv4(f.tcp(bytes(1000), options=bytes(20)), f.TCP))
    for captured in (
        54,
        60,
        73,
        74,
        75,
    ):  # the fixed header, part of the options, all of them, one byte of payload
        got = row(frame[:captured], wire_len=len(frame))
        assert (got["reject"], got["payload_offset"], got["payload_len"]) == (0, 74, 1000)
        assert got["flags"] == PACKET_TRUNCATED
    assert reason(frame[:53], wire_len=len(frame)) is Reject.TRUNCATED_TRANSPORT


def test_an_ip_length_beyond_the_frame_is_believed_and_marked_truncated() -> None:
    frame = f.ethernet(f.ipv4(f.udp(bytes(200))))
    got = row(frame[:60])  # sliced by a tool that also rewrote the length on the wire
    assert (got["reject"], got["ip_len"], got["payload_len"], got["flags"]) == (0, 228, 200, PACKET_TRUNCATED)


def test_ipv4_options_are_skipped_and_known_to_be_cut() -> None:
    frame = f.ethernet(f.ipv4(f.udp(b"abc"), options=bytes(40)))
    got = row(frame)
    assert (got["reject"], got["l4_offset"], got["payload_len"]) == (0, 74, 3)
    assert reason(frame[:73], wire_len=len(frame)) is Reject.TRUNCATED_EXTENSION


def test_bytes_behind_a_udp_datagram_are_no_payload() -> None:
    got = row(f.ethernet(f.ipv4(f.udp(b"abcd", length=10))))
    assert (got["reject"], got["payload_len"], got["ip_len"]) == (0, 2, 32)


def test_a_udp_length_of_zero_is_right_only_in_a_jumbogram() -> None:
    jumbo = f.ipv6(f.extension(f.UDP) + f.udp(bytes(70_000), length=0), f.HOP_BY_HOP, payload_len=0)
    got = row(jumbo[:200], RAW, wire_len=len(jumbo))
    assert (got["reject"], got["payload_len"], got["ip_len"]) == (0, 70_000, len(jumbo))
    assert reason(f.ipv6(f.udp(length=0)), RAW) is Reject.BAD_UDP_LENGTH


@pytest.mark.parametrize(("n_bytes", "header_len"), [(4, 4), (7, 7), (8, 8), (20, 8)])
@pytest.mark.parametrize("version", [4, 6])
def test_an_icmp_header_is_eight_bytes_or_all_there_is(n_bytes: int, header_len: int, version: int) -> None:
    message = f.icmp(bytes(12), kind=3, code=1)[:n_bytes]
    packet = f.ipv4(message, f.ICMP) if version == 4 else f.ipv6(message, f.ICMPV6)
    got = row(packet, RAW)
    assert (got["reject"], got["src_port"], got["dst_port"]) == (0, 3, 1)
    assert (got["payload_offset"] - got["l4_offset"], got["payload_len"]) == (
        header_len,
        n_bytes - header_len,
    )


# ------------------------------------------------------------------------ protocols, extensions, fragments


def test_sctp_has_ports_and_a_header_of_twelve_bytes() -> None:
    got = row(f.ethernet(f.ipv4(f.sctp(b"chunk", src_port=1, dst_port=65535), f.SCTP)))
    assert (got["src_port"], got["dst_port"], got["payload_len"], got["payload_offset"]) == (1, 65535, 5, 46)


@pytest.mark.parametrize("protocol", [0, 2, 4, 33, 41, 47, f.ESP, f.AH, 59, 136, 255])
def test_any_other_protocol_has_no_ports_and_its_payload_behind_the_ip_header(protocol: int) -> None:
    got = row(f.ethernet(f.ipv4(bytes(range(1, 12)), protocol)))
    assert (got["reject"], got["protocol"], got["src_port"], got["dst_port"]) == (0, protocol, 0, 0)
    assert (got["l4_offset"], got["payload_offset"], got["payload_len"]) == (34, 34, 11)


@pytest.mark.parametrize("kind", [0, 43, 60, 135, 139, 140])
def test_extension_headers_are_followed(kind: int) -> None:
    chain = f.extension(f.DESTINATION) + f.extension(f.AH, n_bytes=24) + f.authentication(f.UDP, n_bytes=28)
    got = row(f.ipv6(chain + f.udp(b"abc"), kind), RAW)
    assert (got["reject"], got["protocol"], got["l4_offset"], got["payload_len"]) == (
        0,
        17,
        40 + 8 + 24 + 28,
        3,
    )


def test_esp_ends_the_chain() -> None:
    got = row(f.ipv6(f.extension(f.ESP) + bytes(20), f.HOP_BY_HOP), RAW)
    assert (got["reject"], got["protocol"], got["payload_offset"], got["payload_len"]) == (0, 50, 48, 20)


def test_extension_headers_are_followed_to_a_bound() -> None:
    for n, expected in ((MAX_EXTENSIONS, Reject.DECODED), (MAX_EXTENSIONS + 1, Reject.EXTENSION_TOO_DEEP)):
        chain = f.extension(f.DESTINATION) * (n - 1) + f.extension(f.UDP)
        assert reason(f.ipv6(chain + f.udp(), f.DESTINATION), RAW) is expected


def test_an_extension_header_must_lie_in_the_capture_and_in_the_packet() -> None:
    packet = f.ipv6(f.extension(f.UDP, n_bytes=16) + f.udp(b"abc"), f.ROUTING)
    assert reason(packet[:55], RAW, wire_len=len(packet)) is Reject.TRUNCATED_EXTENSION
    assert reason(packet[:47], RAW, wire_len=len(packet)) is Reject.TRUNCATED_EXTENSION
    lying = f.ipv6(f.extension(f.UDP, n_bytes=16) + f.udp(b"abc"), f.ROUTING, payload_len=15)
    assert reason(lying, RAW) is Reject.TRUNCATED_EXTENSION


def test_the_first_fragment_has_ports_and_only_its_own_payload() -> None:
    datagram = f.udp(bytes(24), length=4000)
    for packet in (
        f.ipv4(datagram, fragment=0x2000),
        f.ipv6(f.fragment_header(f.UDP, more=True) + datagram, f.FRAGMENT),
    ):
        got = row(packet, RAW)
        assert (got["reject"], got["flags"], got["dst_port"], got["payload_len"]) == (
            0,
            PACKET_FRAGMENT,
            53,
            24,
        )


def test_a_first_fragment_too_small_for_its_header_has_ports_and_no_more() -> None:
    got = row(f.ipv4(f.tcp(flags=f.SYN)[:8], f.TCP, fragment=0x2000), RAW)
    assert (got["reject"], got["flags"], got["src_port"]) == (0, PACKET_FRAGMENT, 50000)
    assert (got["tcp_seq"], got["tcp_flags"], got["payload_offset"], got["payload_len"]) == (0, 0, 28, 0)


def test_a_header_that_is_short_for_another_reason_is_rejected() -> None:
    cut = row(f.ipv4(f.tcp(), f.TCP, fragment=0x2000)[:-12], RAW)
    assert (cut["reject"], cut["src_port"]) == (Reject.TRUNCATED_TRANSPORT, 0)
    whole = row(f.ipv4(f.tcp()[:8], f.TCP), RAW)
    assert whole["reject"] == Reject.TRUNCATED_TRANSPORT


def test_a_later_fragment_is_ignored_but_has_its_addresses() -> None:
    for packet in (
        f.ipv4(bytes(24), fragment=0x2001),
        f.ipv4(bytes(24), fragment=0x0001),
        f.ipv6(f.fragment_header(f.UDP, offset=1) + bytes(24), f.FRAGMENT),
    ):
        got = row(packet, RAW)
        assert (got["reject"], got["protocol"], got["l4_offset"]) == (Reject.LATER_FRAGMENT, f.UDP, 0)
        assert (any(got["src"]), any(got["dst"]), got["flags"]) == (True, True, PACKET_FRAGMENT)


def test_an_atomic_fragment_is_a_whole_packet() -> None:
    got = row(f.ipv6(f.fragment_header(f.UDP) + f.udp(b"abc"), f.FRAGMENT), RAW)
    assert (got["reject"], got["flags"], got["dst_port"]) == (0, 0, 53)


def test_dont_fragment_is_no_fragment() -> None:
    got = row(f.ipv4(f.udp(), fragment=0x4000), RAW)
    assert (got["reject"], got["flags"]) == (0, 0)


# ---------------------------------------------------------------------------------------------- blocks


def test_what_was_believed_before_a_reject_stays_and_nothing_after_it() -> None:
    got = row(f.ethernet(f.ipv4(f.tcp(data_offset=4), f.TCP), vlans=[9]))
    assert (got["vlan"], got["ip_version"], got["protocol"], got["l4_offset"]) == ([9, 0], 4, 6, 38)
    assert [got[name] for name in ("src_port", "dst_port", "payload_offset", "tcp_seq", "tcp_flags")] == [
        0
    ] * 5


def test_a_block_may_mix_link_types() -> None:
    decoded = decode(block_of([f.ethernet(UDP4), UDP6, f.sll(UDP4)], [ETHERNET, RAW, SLL]))
    assert decoded.l3_offset.tolist() == [14, 0, 16]
    assert decoded.dst_port.tolist() == [53, 53, 53]


def test_an_empty_block_gives_an_empty_block() -> None:
    decoded = decode(block_of([]))
    assert len(decoded) == 0
    assert decoded.src.shape == (0, 16)


def test_a_decoded_block_outlives_the_readers_buffer() -> None:
    block = block_of([f.ethernet(UDP4)])
    buffer = block.data.copy()
    decoded = decode(replace(block, data=buffer))
    buffer[:] = 0
    assert decoded.dst_port.tolist() == [53]
    assert buffer.flags.writeable


def test_a_record_that_lies_below_its_captured_length_is_as_long_as_captured() -> None:
    got = row(f.ethernet(UDP4), wire_len=3)
    assert (got["reject"], got["flags"]) == (0, 0)


def test_the_books_balance() -> None:
    good, short, arp = f.ethernet(UDP4), b"x", f.ethernet(bytes(28), f.ETHER_ARP)
    counts = count_rejects(decode(block_of([good, short, arp, good, arp, short, good])))
    assert counts.n_decoded == 3
    assert dict(counts.rejected) == {"truncated_link": 2}
    assert dict(counts.ignored) == {"arp": 2}
    assert count_rejects(decode(block_of([]))).n_decoded == 0


@pytest.mark.parametrize(("offset", "captured"), [(-1, 10), (10, 2**32 - 1), (2**62, 1)])
def test_a_packet_outside_the_buffer_is_the_readers_fault_and_never_read(offset: int, captured: int) -> None:
    block = block_of([f.ethernet(UDP4)] * 2)
    bad = replace(
        block,
        offset=np.array([0, offset], np.int64),
        captured_len=np.array([47, captured], np.uint32),
    )
    with pytest.raises(
        ValueError, match=rf"packet 1 of the block claims {captured} bytes from offset {offset}, but data"
    ):
        decode(bad)


def test_writable_and_read_only_buffers_share_one_compiled_kernel() -> None:
    block = block_of([f.ethernet(UDP4)])
    assert not block.data.flags.writeable
    decode(block)
    n_kernels = len(decode_block.signatures)
    decode(replace(block, data=block.data.copy()))
    assert len(decode_block.signatures) == n_kernels
