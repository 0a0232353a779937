"""Server names and ALPN: from TLS over TCP segments and from QUIC Initial packets, from hostile bytes too."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capture.decode import Decoder, decode
from capture.flow_table import FlowTable, FlowTableConfig
from capture.handshake import Handshake, HandshakeTracker, quic, tracker
from capture.handshake.tls import MAX_HELLO_BYTES, ByteStream, clean_name, handshake_bytes, parse_client_hello
from tests import encapsulations as e
from tests import frames as f
from tests import handshakes as h
from tests.packets import block_of, blocks_of

HELLO = Handshake("example.org", ("h2", "http/1.1"))


def seen(
    frames: Sequence[bytes], block_size: int = 1 << 30, wire_len: Sequence[int] | None = None
) -> tuple[list[Handshake | None], HandshakeTracker]:
    """What is known of each flow, in the order of their first packets."""
    look, table, decoder = HandshakeTracker(), FlowTable(FlowTableConfig(), keep_nothing()), Decoder()
    found = {}
    for block in blocks_of(block_of(frames, wire_len=wire_len), block_size):
        decoded = decoder.decode(block)
        look.see(block, decoded)
        for step in table.push(block, decoded):
            found |= dict(
                zip(step.ended.records["serial"].tolist(), look.take(step.ended.records), strict=True)
            )
    for step in table.flush():
        found |= dict(zip(step.ended.records["serial"].tolist(), look.take(step.ended.records), strict=True))
    return [found[serial] for serial in sorted(found)], look


def keep_nothing():
    from capture.flow_batch import KeepSpec

    return KeepSpec()


def segments(stream: bytes, size: int, **fields: int) -> list[bytes]:
    return [
        f.ethernet(
            f.ipv4(
                f.tcp(
                    stream[at : at + size],
                    seq=(fields.get("seq", 1000) + at) % 2**32,
                    src_port=fields.get("src_port", 50000),
                ),
                f.TCP,
            )
        )
        for at in range(0, len(stream), size)
    ]


def datagram(payload: bytes, src_port: int = 50000) -> bytes:
    return f.ethernet(f.ipv4(f.udp(payload, src_port=src_port, dst_port=443)))


# ---------------------------------------------------------------------------------------- ClientHello


def test_name_and_protocols_of_a_client_hello() -> None:
    assert parse_client_hello(h.client_hello()) == (HELLO, False)
    assert parse_client_hello(h.client_hello(None, ())) == (Handshake(), False)
    assert parse_client_hello(b"\x02" + h.client_hello()[1:]) == (None, False)


def test_a_cut_client_hello_gives_what_is_there_and_asks_for_more() -> None:
    message = h.client_hello(behind=1200)
    found = [parse_client_hello(message[:n]) for n in range(len(message))]
    assert all(wants_more for _, wants_more in found)
    assert [hello for hello, _ in found if hello][-1] == HELLO
    assert parse_client_hello(message) == (HELLO, False)


def test_the_first_name_is_bounded_lower_case_and_harmless() -> None:
    assert clean_name(b"WWW.Example.ORG.") == "www.example.org"
    assert clean_name(b'a\x1b[31m"<b>\n\x00\xff.org') == "a??31m??b????.org"
    assert clean_name(b"a" * 10_000) == "a" * 255
    assert clean_name(b"") is None
    assert clean_name(b"...") is None


def test_protocols_are_bounded_and_printable() -> None:
    names = [b"h2", b"", b"\x0a\x0a", b"x" * 200, *[b"p%d" % n for n in range(20)]]
    (hello, _) = parse_client_hello(h.client_hello(alpn=names))
    assert hello is not None
    assert hello.alpn[:3] == ("h2", "??", "x" * 32)
    assert len(hello.alpn) == 7


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_are_a_client_hello_or_not(data: bytes) -> None:
    for message in (data, b"\x01" + data, b"\x01\x00\x01\x00" + data):
        parse_client_hello(message)
    handshake_bytes(data)
    quic.crypto_pieces(data)
    quic.initials(data)
    quic.initials(b"\xc0\x00\x00\x00\x01" + data)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 200), st.binary(min_size=1, max_size=3))
def test_a_damaged_client_hello_is_still_harmless(seed: int, at: int, junk: bytes) -> None:
    rng = random.Random(seed)
    message = bytearray(
        h.client_hello(rng.randbytes(rng.randrange(1, 300)), [rng.randbytes(rng.randrange(1, 40))])
    )
    message[at : at + len(junk)] = junk
    hello, _ = parse_client_hello(bytes(message))
    if hello is not None and hello.sni is not None:
        assert len(hello.sni) <= 255
        assert set(hello.sni) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_.?")
    assert all(name.isascii() and name.isprintable() for name in (hello.alpn if hello else ()))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_a_stream_is_put_together_from_pieces_in_any_order(seed: int) -> None:
    rng = random.Random(seed)
    whole = rng.randbytes(300)
    pieces = []
    at = 0
    while at < len(whole):
        size = rng.randrange(1, 60)
        pieces.append((max(at - rng.randrange(4), 0), at + size))
        at += size
    rng.shuffle(pieces)
    stream = ByteStream()
    for start, stop in pieces:
        stream.add(start, whole[start:stop])
    assert stream.prefix == whole


def test_a_stream_is_bounded() -> None:
    stream = ByteStream()
    stream.add(MAX_HELLO_BYTES, b"x")
    for at in range(1000):
        stream.add(10 + 2 * at, b"x")
    stream.add(0, bytes(MAX_HELLO_BYTES))
    assert len(stream.prefix) == MAX_HELLO_BYTES
    assert len(stream._later) <= 64


# -------------------------------------------------------------------------------------------- TLS, TCP


@pytest.mark.parametrize("size", [9, 100, 700, 5000])
@pytest.mark.parametrize("block_size", [1, 3, 1 << 30])
@pytest.mark.parametrize("record", [60, 1 << 14])
def test_a_client_hello_over_segments_blocks_and_records(size: int, block_size: int, record: int) -> None:
    stream = h.tls_records(h.client_hello(before=40, behind=0 if size == 9 else 1100), record)
    frames = segments(stream, size, seq=2**32 - 50)
    if len(frames) > tracker.MAX_PACKETS:
        pytest.skip("more packets than are looked at")
    found, look = seen([*frames, *segments(b"more", 10, seq=9999)], block_size)
    assert found == [HELLO]
    assert look.counters.hellos == 1
    assert not look._waiting
    assert not look._ports.any()


def test_segments_out_of_order_and_twice_behind_the_first() -> None:
    parts = segments(h.tls_records(h.client_hello(before=900, behind=300)), 400)
    assert len(parts) == 4
    assert seen([parts[0], parts[2], parts[2], parts[1], parts[0], parts[3]])[0] == [HELLO]


def test_a_name_is_told_although_the_rest_of_the_hello_was_not_captured() -> None:
    stream = h.tls_records(h.client_hello(behind=1200))
    frame = segments(stream, 2000)[0]
    found, look = seen([frame[:200]], wire_len=[len(frame)])
    assert found == [Handshake("example.org", ())] or found == [HELLO]
    assert look.counters.incomplete == 1


def test_a_hello_that_never_ends_is_given_up_on() -> None:
    frames = segments(h.tls_records(h.client_hello(behind=3000)), 100)
    found, look = seen([frames[0], *frames[1:20]])
    assert found == [HELLO]
    assert look.counters.incomplete == 1
    assert not look._waiting


def test_two_dialogues_with_the_same_client_port_are_kept_apart() -> None:
    one = segments(h.tls_records(h.client_hello(b"one.example", before=500)), 300)
    two = [
        f.ethernet(f.ipv4(f.tcp(part, seq=7 + at), f.TCP, dst="10.0.0.99"))
        for at, part in [
            (at, h.tls_records(h.client_hello(b"two.example", before=500))[at : at + 300])
            for at in range(0, 700, 300)
        ]
    ]
    mixed = [packet for pair in zip(one, two, strict=False) for packet in pair]
    found, _ = seen(mixed)
    assert [hello.sni for hello in found if hello] == ["one.example", "two.example"]


def test_the_hello_inside_a_tunnel_belongs_to_the_inner_flow_of_that_tunnel() -> None:
    def packet(vni: int, name: bytes) -> bytes:
        inner = segments(h.tls_records(h.client_hello(name)), 2000)[0]
        return f.ethernet(e.in_udp(e.vxlan(inner, vni), 4789))

    found, _ = seen([packet(1, b"one.example"), packet(2, b"two.example")])
    assert [hello.sni for hello in found if hello] == ["one.example", "two.example"]


def test_a_second_connection_on_the_same_ports_has_its_own_name() -> None:
    def connection(name: bytes, seq: int) -> list[bytes]:
        syn = f.ethernet(f.ipv4(f.tcp(flags=f.SYN, seq=seq - 1), f.TCP))
        back = f.ethernet(
            f.ipv4(f.tcp(b"x", src_port=443, dst_port=50000), f.TCP, src="10.0.0.2", dst="10.0.0.1")
        )
        return [syn, back, *segments(h.tls_records(h.client_hello(name)), 2000, seq=seq)]

    found, _ = seen([*connection(b"one.example", 1000), *connection(b"two.example", 900_000)])
    assert [hello.sni for hello in found if hello] == ["one.example", "two.example"]


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker, "MAX_WAITING", 10)
    monkeypatch.setattr(tracker, "MAX_KEPT", 20)
    look = HandshakeTracker()
    stream = h.tls_records(h.client_hello(behind=800))
    frames = [
        segments(stream[: 300 if port % 2 else 2000], 2000, src_port=port)[0] for port in range(2000, 2200)
    ]
    block = block_of(frames)
    look.see(block, decode(block))
    assert len(look._waiting) == 10
    assert len(look._kept) == 20
    assert look.counters.evicted == (100 - 10) + (100 + 90 - 20)
    assert look._ports.sum() == 10


# ----------------------------------------------------------------------------------------------- QUIC


def test_keys_are_those_of_the_rfcs() -> None:
    """RFC 9001, A.1 and RFC 9369, A.1."""
    dcid = bytes.fromhex("8394c8f03e515708")
    v1, v2 = quic.client_keys(1, dcid), quic.client_keys(0x6B3343CF, dcid)
    assert (v1.key.hex(), v1.iv.hex()) == ("1f369613dd76d5467730efcbe3b1a22d", "fa044b2f42a3fd3b46fb255c")
    assert v1.header.hex() == "9f50449e04a0e810283a1e9933adedd2"
    assert (v2.key.hex(), v2.iv.hex()) == ("8b1a0bc121284290a29e0971b5cd045d", "91f73e2351d8fa91660e909f")
    assert v2.header.hex() == "45b95e15235d6f45a6b19cbcb0294ba9"


@pytest.mark.parametrize("version", [1, 0x6B3343CF, 0xFF00001D, 0xFF00001B])
def test_a_client_hello_in_one_initial(version: int) -> None:
    pytest.importorskip("cryptography")
    message = h.client_hello()
    frames = b"\x01" + h.crypto_frame(100, message[100:]) + b"\0\0" + h.crypto_frame(0, message[:100])
    found, look = seen([datagram(h.quic_initial(frames, version=version))])
    assert found == [HELLO]
    assert look.counters.not_opened == 0


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 1, 2, 0)])
def test_a_client_hello_over_several_initials_in_any_order(order: tuple[int, ...]) -> None:
    pytest.importorskip("cryptography")
    message = h.client_hello(before=1500, behind=900)
    pieces = [(at, message[at : at + 1000]) for at in range(0, len(message), 1000)]
    packets = [h.quic_initial(h.crypto_frame(*piece), number=n) for n, piece in enumerate(pieces)]
    assert len(packets) == 3
    assert seen([datagram(packets[n]) for n in order])[0] == [HELLO]


def test_the_rest_of_a_hello_under_the_servers_connection_id_has_the_first_keys() -> None:
    pytest.importorskip("cryptography")
    message, first = h.client_hello(before=1500), b"12345678"
    one = h.quic_initial(h.crypto_frame(0, message[:1000]), first)
    two = h.quic_initial(h.crypto_frame(1000, message[1000:]), b"server's", key_id=first, number=1)
    assert seen([datagram(one), datagram(two)])[0] == [HELLO]


def test_initials_of_one_datagram_are_all_read() -> None:
    pytest.importorskip("cryptography")
    message = h.client_hello()
    first = h.quic_initial(h.crypto_frame(0, message[:50]), pad_to=200)
    second = h.quic_initial(h.crypto_frame(50, message[50:]), number=1, pad_to=400, token=b"retry")
    assert seen([datagram(first + second)])[0] == [HELLO]


def test_a_cut_initial_is_read_as_far_as_it_goes() -> None:
    """Without its tag nothing vouches for it but that a ClientHello comes out."""
    pytest.importorskip("cryptography")
    whole = datagram(h.quic_initial(h.crypto_frame(0, h.client_hello())))
    assert seen([whole[:400]], wire_len=[len(whole)])[0] == [HELLO]
    noise = whole[:100] + bytes(300)
    assert seen([noise], wire_len=[len(whole)])[0] == [None]


def test_a_damaged_initial_is_counted_and_says_nothing() -> None:
    pytest.importorskip("cryptography")
    packet = bytearray(h.quic_initial(h.crypto_frame(0, h.client_hello())))
    packet[300] ^= 1
    found, look = seen([datagram(bytes(packet))])
    assert (found, look.counters.not_opened) == ([None], 1)


def test_without_cryptography_quic_is_counted_and_tls_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cryptography")
    frame = datagram(h.quic_initial(h.crypto_frame(0, h.client_hello())))
    monkeypatch.setattr(quic, "load_aes", lambda: None)
    found, look = seen([frame, *segments(h.tls_records(h.client_hello()), 2000)])
    assert found == [None, HELLO]
    assert look.counters.no_cryptography == 1
