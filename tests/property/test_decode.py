"""Whatever the bytes are: no exception, no byte outside the packet, the same answer as the slow twin."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capture.block import PACKET_TRUNCATED, DecodedBlock, PacketBlock
from capture.decode import DecodeOptions, count_rejects, decode
from capture.kernels.decode import MAX_EXTENSIONS
from capture.reject import Reject
from tests import encapsulations as e
from tests import frames
from tests import frames as f
from tests.packets import block_of, blocks_of, frames_of
from tests.reference.decode import assert_same_columns, naive_decode

LINK_TYPES = [0, 1, 9, 12, 14, 50, 51, 101, 104, 105, 108, 113, 127, 204, 228, 229, 276, 147]
ROOT = Path(__file__).parents[2]


def random_transport(rng: random.Random) -> tuple[bytes, int]:
    """A transport header, often right, sometimes with a lying length; and its protocol number."""
    payload = rng.randbytes(rng.choice([0, 0, 1, 3, 20]))
    lie = rng.random() < 0.2
    match rng.randrange(6):
        case 0:
            offset = rng.randrange(16) if lie else None
            options = bytes(4 * rng.randrange(4))
            return frames.tcp(
                payload, flags=rng.randrange(256), options=options, data_offset=offset
            ), frames.TCP
        case 1:
            length = rng.choice([0, 7, 8, 9, 65535]) if lie else None
            return frames.udp(payload, length=length, dst_port=rng.randrange(65536)), frames.UDP
        case 2:
            return frames.icmp(payload, kind=rng.randrange(256), code=rng.randrange(256)), frames.ICMP
        case 3:
            return frames.icmp(payload)[: rng.randrange(12)], frames.ICMPV6
        case 4:
            return frames.sctp(payload), frames.SCTP
    return payload, rng.randrange(256)


def random_ip(rng: random.Random) -> tuple[bytes, int]:
    """An IP packet and its version."""
    content, protocol = random_transport(rng)
    lie = rng.choice([0, 19, 21, 40, 60, 65535]) if rng.random() < 0.2 else None
    if rng.random() < 0.5:
        fragment = rng.choice([0, 0x4000, 0x2000, 0x0001, 0x2001]) if rng.random() < 0.3 else 0
        options = bytes(4 * rng.randrange(11)) if rng.random() < 0.3 else b""
        ihl = rng.randrange(16) if rng.random() < 0.1 else None
        version = rng.randrange(16) if rng.random() < 0.05 else 4
        return frames.ipv4(
            content, protocol, total_len=lie, fragment=fragment, options=options, ihl=ihl, version=version
        ), 4
    for _ in range(rng.choice([0, 0, 0, 1, 2, MAX_EXTENSIONS, MAX_EXTENSIONS + 1])):
        kind = rng.choice([0, 43, 44, 51, 60, 135, 139, 140])
        if kind == frames.FRAGMENT:
            later = rng.random() < 0.2
            content = frames.fragment_header(protocol, offset=later, more=rng.random() < 0.5) + content
        elif kind == frames.AH:
            content = frames.authentication(protocol, n_bytes=rng.choice([8, 12, 24])) + content
        else:
            content = frames.extension(protocol, n_bytes=rng.choice([8, 16])) + content
        protocol = kind
    return frames.ipv6(content, protocol, payload_len=lie), 6


def random_tunnel(rng: random.Random, inner: bytes, version: int) -> tuple[bytes, int]:
    """An IP packet around another one, and its version."""
    ether_type = 0x0800 if version == 4 else 0x86DD
    vlans = [rng.randrange(65536) for _ in range(rng.choice([0, 0, 0, 1, 2, 4]))]
    frame = f.ethernet(inner, ether_type, vlans=vlans)
    ppp = e.ppp(inner, 0x21 if version == 4 else 0x57, framed=rng.random() < 0.5, short=rng.random() < 0.3)
    number = rng.choice([0, 1, 77, 0x123456])
    labels = [rng.randrange(1 << 20) for _ in range(rng.choice([1, 2, 8, 9]))]
    key = rng.choice([None, 0, 5, 0x12345678])
    match rng.randrange(19):
        case 0:
            content, protocol = inner, 4 if version == 4 else 41
        case 1:
            content, protocol = e.gre(inner, ether_type, key=key, checksum=rng.random() < 0.3), e.GRE
        case 2:
            content, protocol = e.gre(frame, 0x6558, key=key, sequence=rng.choice([None, 1])), e.GRE
        case 3:
            content, protocol = e.erspan(frame, rng.choice([1, 2, 3]), rng.choice([0, 9])), e.GRE
        case 4:
            content, protocol = e.pptp(ppp, ack=rng.random() < 0.5), e.GRE
        case 5:
            content, protocol = e.gre(e.mpls(inner, *labels), 0x8847, key=key), e.GRE
        case 6:
            content, protocol = b"\x30\x00" + frame, e.ETHERIP
        case 7:
            skip = rng.choice([b"", bytes(4), bytes(8)])
            content, protocol = e.l2tpv3(frame, number, cookie=skip, sublayer=rng.random() < 0.5), e.L2TP
        case 8:
            content, protocol = e.mpls(rng.choice([inner, frame, bytes(4) + frame]), *labels), e.MPLS
        case _:
            port = rng.choice([4789, 8472, 4790, 6081, 2152, 3544, 1701, 6635, 4754])
            content = {
                4789: e.vxlan(frame, number),
                8472: e.vxlan(frame, number, flags=rng.choice([0, 8, 0xFF])),
                4790: e.vxlan_gpe(rng.choice([inner, frame]), rng.randrange(7), number),
                6081: e.geneve(
                    rng.choice([inner, frame]),
                    rng.choice([ether_type, 0x6558, 0x8847]),
                    number,
                    options=bytes(4 * rng.randrange(4)),
                ),
                2152: e.gtpu(
                    inner, number, extensions=(1,) * rng.choice([0, 0, 1, 2, 9]), sequence=rng.random() < 0.3
                ),
                3544: e.teredo(inner, origin=rng.random() < 0.5, authentication=rng.random() < 0.5),
                1701: e.l2tp(ppp, length=rng.random() < 0.5, offset=rng.choice([0, 0, 4])),
                6635: e.mpls(inner, *labels),
                4754: e.gre(inner, ether_type, key=key),
            }[port]
            if port == 1701 and rng.random() < 0.3:
                content = b"\x00\x03\x00\x00" + e.l2tpv3(frame, number)
            ports = (port, 50000) if rng.random() < 0.2 else (50000, port)
            content, protocol = f.udp(content, src_port=ports[0], dst_port=ports[1]), f.UDP
    if rng.random() < 0.5:
        fragment = 0x2000 if rng.random() < 0.1 else 0
        return f.ipv4(content, protocol, fragment=fragment, dst=rng.choice(["10.0.0.2", "10.0.0.3"])), 4
    return f.ipv6(content, protocol), 6


def random_wrapped(rng: random.Random) -> tuple[bytes, int]:
    """A frame with tunnels or a rarer link layer, and its link type."""
    ip, version = random_ip(rng)
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3, 4, 5])):
        ip, version = random_tunnel(rng, ip, version)
    ether_type = f.ETHER_IPV4 if version == 4 else f.ETHER_IPV6
    ppp = e.ppp(ip, rng.choice([0x21, 0x57, 0xC021, 0x3D]), framed=rng.random() < 0.3)
    match rng.randrange(10):
        case 0:
            code = rng.choice([0, 0, 0, 9])
            length = rng.choice([None, None, 20, 60000])
            return f.ethernet(e.pppoe(ppp, code=code, length=length), rng.choice([0x8863, 0x8864, 0x8864])), 1
        case 1:
            labels = [rng.randrange(1 << 20) for _ in range(rng.choice([1, 3, 8, 9]))]
            inner = rng.choice([ip, f.ethernet(ip, ether_type), bytes(4) + f.ethernet(ip, ether_type)])
            return f.ethernet(e.mpls(inner, *labels), 0x8847), 1
        case 2:
            return ppp, rng.choice([9, 50])
        case 3:
            return bytes(1) + ppp, 204
        case 4:
            return e.pppoe(ppp), 51
        case 5:
            return b"\x0f\x00" + ether_type.to_bytes(2, "big") + ip, rng.choice([50, 104])
        case 6 | 7:
            frame = e.wifi(
                ip,
                ether_type=ether_type,
                subtype=rng.choice([0, 0, 4, 8, 12]),
                kind=rng.choice([2, 2, 2, 0]),
                flags=rng.choice([1, 2, 3, 0x41, 0x81]),
                fragment=rng.choice([0, 0, 0, 1]),
                qos=rng.choice([0, 0, 0x80]),
            )
            if rng.random() < 0.5:
                return frame, 105
            flags = rng.choice([None, 0, 0x10, 0x20, 0x40])
            return e.radiotap(frame, flags=flags, tsft=rng.random() < 0.5, more=rng.random() < 0.3), 127
    return f.ethernet(ip, ether_type, vlans=[rng.randrange(4096)] * rng.choice([0, 0, 1, 2])), 1


def random_frame(rng: random.Random) -> tuple[bytes, int]:
    """A frame whose headers mostly follow each other, and its link type."""
    if rng.random() < 0.4:
        return random_wrapped(rng)
    ip, version = random_ip(rng)
    ether_type = frames.ETHER_IPV4 if version == 4 else frames.ETHER_IPV6
    if rng.random() < 0.05:
        ether_type = rng.choice([0, 7, 8, 1500, 1501, 0x0806, 0x8100, 0x88A8, 0x9100, 0x88CC])
    match rng.randrange(8):
        case 0:
            return frames.sll(ip, ether_type), 113
        case 1:
            return frames.sll2(ip, ether_type), 276
        case 2:
            family = rng.choice([2, 10, 24, 28, 30])
            return family.to_bytes(4, rng.choice(["big", "little"])) + ip, rng.choice([0, 108])
        case 3:
            return ip, rng.choice([12, 14, 101, 228, 229])
        case 4:
            return frames.snap(ip, ether_type), 1
    vlans = [rng.randrange(65536) for _ in range(rng.choice([0, 0, 1, 2, 3, 4]))]
    return frames.ethernet(ip, ether_type, vlans=vlans, tpid=rng.choice([0x8100, 0x88A8, 0x9100])), 1


def mangled(rng: random.Random, frame: bytes) -> bytes:
    """Flip, cut, duplicate, pad, or leave."""
    match rng.randrange(6):
        case 0 if frame:
            at = rng.randrange(len(frame))
            return frame[:at] + bytes([frame[at] ^ 1 << rng.randrange(8)]) + frame[at + 1 :]
        case 1:
            return frame[: rng.randrange(len(frame) + 1)]
        case 2:
            a, b = sorted(rng.randrange(len(frame) + 1) for _ in range(2))
            return frame[:b] + frame[a:]
        case 3:
            return frame + bytes(rng.randrange(1, 30))
    return frame


def random_block(
    seed: int, n_packets: int, make: Callable[[random.Random], tuple[bytes, int]]
) -> PacketBlock:
    rng = random.Random(seed)
    packets = [make(rng) for _ in range(n_packets)]
    cut = [mangled(rng, frame) for frame, _ in packets]
    wire_len = [max(0, len(frame) + rng.choice([0, 0, 0, -1, 1, 100, 70_000])) for frame in cut]
    return block_of(cut, [link for _, link in packets], wire_len=wire_len, gap=rng.randrange(3))


def check_promises(decoded: DecodedBlock, block: PacketBlock) -> None:
    """What the columns of every decoded packet promise each other."""
    ok = decoded.reject == 0
    l3, l4, payload, ip_len, payload_len = (
        getattr(decoded, name)[ok].astype(np.int64)
        for name in ("l3_offset", "l4_offset", "payload_offset", "ip_len", "payload_len")
    )
    assert (l3 < l4).all()
    assert (l4 <= payload).all()
    assert (payload + payload_len <= l3 + ip_len).all()
    assert (l4 <= block.captured_len[ok]).all()
    assert np.isin(decoded.ip_version[ok], (4, 6)).all()
    missing = l3 + ip_len > block.captured_len[ok]
    assert (decoded.flags[ok][missing] & PACKET_TRUNCATED != 0).all()
    counts = count_rejects(decoded)
    assert counts.n_decoded + counts.rejected.total() + counts.ignored.total() == len(block)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(st.binary(max_size=120), st.sampled_from(LINK_TYPES), st.integers(0, 2**32 - 1)), max_size=8
    )
)
def test_any_bytes_decode_as_the_twin_says(packets: list[tuple[bytes, int, int]]) -> None:
    block = block_of(
        [p[0] for p in packets], [p[1] for p in packets], wire_len=[p[2] for p in packets], gap=1
    )
    decoded = decode(block)
    assert_same_columns(decoded, naive_decode(block), block)
    check_promises(decoded, block)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
def test_frames_with_one_thing_wrong_decode_as_the_twin_says(seed: int) -> None:
    block = random_block(seed, 40, random_frame)
    decoded = decode(block)
    assert_same_columns(decoded, naive_decode(block), block)
    check_promises(decoded, block)


def test_the_random_frames_reach_every_reason() -> None:
    blocks = [random_block(seed, 2000, random_frame) for seed in range(10)]
    decoded = [decode(block, DecodeOptions(check_checksums=i % 2 > 0)) for i, block in enumerate(blocks)]
    reached = {int(reason) for part in decoded for reason in (*part.reject, *part.tunnel_stop)}
    reached |= {int(decode(block_of([b"x"], 147)).reject[0])}
    reached |= {int(decode(block_of([f.ipv6(b"", f.NO_NEXT_HEADER)], 229)).reject[0])}
    with_table = {Reject.FRAGMENT_OVERLAP, Reject.FRAGMENT_TOO_LONG, Reject.TOO_MANY_FRAGMENTS}
    assert {Reject(reason) for reason in reached} == set(Reject) - with_table


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 41))
def test_a_block_size_never_changes_a_row(seed: int, n_packets: int) -> None:
    block = random_block(seed, 40, random_frame)
    whole = decode(block)
    parts = [decode(part) for part in blocks_of(block, n_packets)]
    for column in DecodedBlock.__slots__:
        assert np.array_equal(
            np.concatenate([getattr(part, column) for part in parts]), getattr(whole, column)
        )


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.binary(min_size=1, max_size=1))
def test_bytes_outside_a_packet_never_change_its_row(seed: int, filler: bytes) -> None:
    block = random_block(seed, 40, random_frame)
    inside = np.zeros(len(block.data), bool)
    for start, length in zip(block.offset, block.captured_len, strict=True):
        inside[start : start + length] = True
    other = np.where(inside, block.data, filler[0]).astype(np.uint8)
    assert_same_columns(decode(replace(block, data=other)), decode(block), block)


def test_a_cut_anywhere_gives_the_headers_before_it_and_a_reason() -> None:
    rng = random.Random(11)
    for _ in range(60):
        frame, link_type = random_frame(rng)
        cuts = [frame[:n] for n in range(len(frame) + 1)]
        block = block_of(cuts, link_type, wire_len=[len(frame)] * len(cuts))
        assert_same_columns(decode(block), naive_decode(block), block)


def fuzz(n_blocks: int, n_packets: int, first_seed: int = 0) -> None:
    """Mangled frames against the twin."""
    for seed in range(first_seed, first_seed + n_blocks):
        block = random_block(seed, n_packets, random_frame)
        assert_same_columns(decode(block), naive_decode(block), block)


def fuzz_alone(n_packets: int) -> None:
    """Each packet is all the data there is: with checked indices, the first byte outside it is an IndexError."""
    block = random_block(5, n_packets, random_frame)
    for frame, link_type, wire_len in zip(
        frames_of(block), block.link_type.tolist(), block.wire_len.tolist(), strict=True
    ):
        decode(block_of([frame], link_type, wire_len=[wire_len]))


def attributes_for_records() -> None:
    """Uncompiled, a record has its fields as items only, and a hash that overflows on purpose warns."""
    if not numba.config.DISABLE_JIT:
        return
    import capture.decode as module

    unwrap = module.unwrap_rows

    def patched(*arguments: object) -> None:
        with np.errstate(over="ignore"):
            unwrap(
                *(
                    a.view(np.recarray) if isinstance(a, np.ndarray) and a.dtype.names else a
                    for a in arguments
                )
            )

    module.unwrap_rows = patched


@pytest.mark.parametrize(
    ("variable", "n_packets"),
    [("NUMBA_BOUNDSCHECK", 5000), ("NUMBA_DISABLE_JIT", 500)],
    ids=["checked", "uncompiled"],
)
def test_the_kernel_stays_in_bounds_and_says_the_same(variable: str, n_packets: int, tmp_path: Path) -> None:
    code = (
        "from tests.property.test_decode import attributes_for_records, fuzz, fuzz_alone; attributes_for_records(); "
        f"fuzz(1, {n_packets}); fuzz_alone({n_packets})"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", code],
        cwd=ROOT,
        env=os.environ | {variable: "1", "NUMBA_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_hundred_thousand_mangled_frames_decode_as_the_twin_says() -> None:
    fuzz(50, 2000, first_seed=1000)
