"""The walk through a ring block against a plain one, and on bytes that no kernel writes."""

from __future__ import annotations

import struct

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from capture.block import PacketBlock
from capture.kernels.ring_walk import walk_ring_block
from capture.live.pcap_writer import pcap_header, pcap_records
from tests.packets import block_of, frames_of
from tests.reference.ring_walk import RingPacket, as_on_the_wire, ring_block

SIZE = 1 << 13

ring_packets = st.builds(
    RingPacket,
    ts_ns=st.integers(0, 2**32 * 10**9 - 1),
    data=st.binary(max_size=80),
    wire_len=st.integers(0, 2**32 - 5),
    tci=st.none() | st.integers(0, 0xFFFF),
    tpid=st.none() | st.sampled_from((0x8100, 0x88A8)),
)


def walk(ring: bytearray, at: int, n_rows: int = 200, has_ethernet: bool = True) -> PacketBlock:
    data = np.frombuffer(ring, np.uint8)
    columns = np.empty(n_rows, np.int64), np.empty(n_rows, np.uint32), np.empty(n_rows, np.uint32)
    offset = np.empty(n_rows, np.int64)
    n = walk_ring_block(data, at, SIZE, has_ethernet, *columns, offset)
    ts_ns, captured_len, wire_len = (column[:n] for column in columns)
    return PacketBlock(ts_ns, captured_len, wire_len, offset[:n], np.ones(n, np.uint16), data)


@settings(max_examples=100, deadline=None)
@given(st.lists(ring_packets, min_size=1, max_size=40), st.booleans())
def test_a_block_is_walked_as_the_kernel_wrote_it(packets: list[RingPacket], has_ethernet: bool) -> None:
    ring = bytearray(b"\xee" * SIZE + ring_block(packets, SIZE))
    block = walk(ring, SIZE, has_ethernet=has_ethernet)
    expected = [
        as_on_the_wire(packet) if has_ethernet else (packet.ts_ns, packet.data, packet.wire_len)
        for packet in packets
    ]
    assert list(zip(block.ts_ns.tolist(), frames_of(block), block.wire_len.tolist(), strict=True)) == expected


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=80, max_size=400), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_no_row_lies_outside_its_block_whatever_the_bytes_say(junk: bytes, n: int, first: int) -> None:
    head = struct.pack("<IIIII", 1, 48, 1, n, first)
    ring = bytearray(b"\xaa" * SIZE + (head + junk).ljust(SIZE, b"\1") + b"\xaa" * SIZE)
    block = walk(ring, SIZE)
    for offset, captured in zip(block.offset.tolist(), block.captured_len.tolist(), strict=True):
        assert offset >= SIZE - 4
        assert offset + captured <= 2 * SIZE
    assert ring[: SIZE - 4] == b"\xaa" * (SIZE - 4)
    assert ring[2 * SIZE :] == b"\xaa" * SIZE


def test_records_are_those_of_a_nanosecond_pcap() -> None:
    block = block_of([b"", b"abc"], ts_ns=[1, 5_000_000_007], wire_len=[9, 3])
    assert pcap_records(block) == struct.pack("<IIII", 0, 1, 0, 9) + struct.pack("<IIII", 5, 7, 3, 3) + b"abc"
    assert pcap_header(101) == struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 262144, 101)
