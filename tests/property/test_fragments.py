"""Fragments of many datagrams, in and around tunnels, in bad order: the same as the twin, which has a dict of them."""

from __future__ import annotations

import random

import pytest

from capture.block import PacketBlock
from capture.decode import DecodeOptions, Decoder
from capture.reject import Reject
from tests import encapsulations as e
from tests import frames as f
from tests.packets import block_of, blocks_of
from tests.reference.decode import Context, assert_same_columns, naive_decode

HOSTS = ("10.0.0.1", "10.0.0.2", "10.0.0.3")


def pieces(payload: bytes, protocol: int, size: int, src: str, dst: str, ident: int, v6: bool) -> list[bytes]:
    """An IP packet's payload in fragments of ``size`` bytes, a multiple of 8."""
    parts = []
    for at in range(0, len(payload), size):
        part, more = payload[at : at + size], at + size < len(payload)
        if v6:
            head = f.fragment_header(protocol, offset=at // 8, more=more, ident=ident)
            parts.append(f.ipv6(head + part, f.FRAGMENT, src=f"::{src}", dst=f"::{dst}"))
        else:
            word = at // 8 | (0x2000 if more else 0)
            parts.append(f.ipv4(part, protocol, src=src, dst=dst, fragment=word, ident=ident))
    return parts


def datagram(rng: random.Random) -> list[bytes]:
    """The frames of one fragmented datagram, sometimes around or inside of a tunnel."""
    port = rng.randrange(1000, 1004)
    body = rng.randbytes(rng.choice([20, 60, 200]))
    content, protocol = rng.choice([(f.udp(body, src_port=port), f.UDP), (f.tcp(body, src_port=port), f.TCP)])
    src, dst = rng.sample(HOSTS, 2)
    where = rng.randrange(4)
    if where == 1:  # an unfragmented packet in a fragmented tunnel
        inner = f.ethernet(f.ipv4(content, protocol, src="192.168.0.1", dst="192.168.0.2"))
        content, protocol = f.udp(e.vxlan(inner, rng.randrange(2)), dst_port=4789), f.UDP
    v6 = rng.random() < 0.3
    size = rng.choice([8, 16, 24, 48, 104])
    parts = pieces(content, protocol, size, src, dst, rng.randrange(6), v6)
    ether_type = f.ETHER_IPV6 if v6 else f.ETHER_IPV4
    if where == 2:  # fragments in an unfragmented tunnel
        parts = [f.ipv4(e.gre(part, ether_type, key=rng.randrange(2)), e.GRE) for part in parts]
        ether_type = f.ETHER_IPV4
    return [f.ethernet(part, ether_type, vlans=[rng.choice([7, 8])] if where == 3 else []) for part in parts]


def shuffled(seed: int, n_datagrams: int) -> PacketBlock:
    """Frames of many datagrams, a few out of order, twice, cut or missing; time goes on and sometimes jumps."""
    rng = random.Random(seed)
    frames: list[bytes] = []
    for _ in range(n_datagrams):
        parts = datagram(rng)
        if rng.random() < 0.2:
            rng.shuffle(parts)
        for part in parts:
            kept = part[: rng.randrange(len(part))] if rng.random() < 0.03 else part
            frames += [kept] * rng.choice([1, 1, 1, 1, 1, 2, 0])
    for _ in range(len(frames) // 10):
        a = rng.randrange(len(frames) - 3)
        frames[a], frames[a + 2] = frames[a + 2], frames[a]
    ts_ns, times = 10**18, []
    for _ in frames:
        ts_ns += rng.choice([0, 10**6, 10**8]) + (40 * 10**9 if rng.random() < 0.01 else 0)
        times.append(ts_ns)
    return block_of(frames, ts_ns=times, wire_len=[max(len(frame), 60) for frame in frames])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("block_size", [1 << 30, 7])
def test_fragments_find_their_flow_as_the_twin_says(seed: int, block_size: int) -> None:
    block = shuffled(seed, 80)
    decoder, context = Decoder(), Context(datagrams={})
    joined = 0
    for part in blocks_of(block, block_size):
        got = decoder.decode(part)
        assert_same_columns(got, naive_decode(part, context), part)
        joined += int(((got.reject == 0) & (got.flags & 2 != 0)).sum())
    assert joined > 100
    assert decoder.fragments.joined > 50
    assert decoder.fragments.evicted == 0


def test_shuffled_fragments_reach_every_verdict() -> None:
    reasons: set[int] = set()
    for seed in range(6):
        reasons |= set(Decoder().decode(shuffled(seed, 80)).reject.tolist())
    assert {0, Reject.LATER_FRAGMENT, Reject.FRAGMENT_OVERLAP} <= reasons


def test_without_decapsulation_fragments_belong_to_the_tunnel() -> None:
    block = shuffled(1, 80)
    got = Decoder(DecodeOptions(decap="outer")).decode(block)
    assert_same_columns(got, naive_decode(block, Context(decap=False, datagrams={})), block)
    assert not got.tunnel_kind.any()
