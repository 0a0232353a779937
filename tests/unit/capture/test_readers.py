"""Classic pcap: what is read, up to where, and what is counted."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from capture.errors import CaptureError, CutCaptureError
from capture.kernels.pcap_walk import walk_pcap
from capture.readers import MAX_BLOCK_PACKETS, open_capture
from tests.captures import Packet, packets_of, pcap, record
from tests.reference.pcap_reader import read_capture

SECOND_NS = 10**9
PACKETS = [
    Packet(1_700_000_000 * SECOND_NS + 123_456_000, 1, 60, bytes(range(60))),
    Packet(1_700_000_000 * SECOND_NS + 999_999_000, 1, 1514, b"cut by the snap length"),
    Packet(0, 1, 0, b""),
    Packet(4_294_967_295 * SECOND_NS, 1, 9000, bytes(700)),
]
ORDERS = pytest.mark.parametrize("order", ["<", ">"])


@ORDERS
@pytest.mark.parametrize("nano", [False, True])
def test_both_byte_orders_and_both_resolutions_give_the_packets_written(order: str, nano: bool) -> None:
    wanted = [packet._replace(ts_ns=packet.ts_ns + 789 * nano) for packet in PACKETS]
    got, reader = packets_of(io.BytesIO(pcap(wanted, order=order, nano=nano)))
    assert got == wanted
    assert reader.format == "pcap"
    assert not reader.counters.cut


def test_a_block_has_the_dtypes_of_the_contract() -> None:
    with open_capture(io.BytesIO(pcap(PACKETS))) as reader:
        block = next(reader)
        assert len(block) == 4
        assert [c.dtype.name for c in (block.ts_ns, block.captured_len, block.wire_len, block.offset)] == [
            "int64",
            "uint32",
            "uint32",
            "int64",
        ]
        assert (block.link_type.dtype, block.data.dtype) == (np.uint16, np.uint8)


@pytest.mark.parametrize("piece_bytes", [1, 7, 24, 100, 1000, 1 << 20])
def test_the_size_of_a_piece_never_changes_a_packet(piece_bytes: int) -> None:
    packets = [Packet(i * SECOND_NS, 1, i, bytes([i]) * (i * 7 % 211)) for i in range(100)]
    got, reader = packets_of(io.BytesIO(pcap(packets)), piece_bytes=piece_bytes)
    assert got == packets
    assert reader.counters.n_packets == 100
    assert reader.counters.n_bytes == sum(len(p.data) for p in packets)
    assert reader.counters.n_source_bytes == len(pcap(packets))


def test_a_packet_larger_than_the_piece_is_read_whole() -> None:
    packets = [Packet(0, 1, 250_000, os.urandom(250_000)), Packet(1, 1, 1, b"x")]
    got, _ = packets_of(io.BytesIO(pcap(packets, nano=True)), piece_bytes=4096)
    assert got == packets


def test_more_packets_than_a_block_holds_come_in_several_blocks() -> None:
    n = MAX_BLOCK_PACKETS + 5
    data = pcap() + record(7, 8, b"", 9) * n
    with open_capture(io.BytesIO(data)) as reader:
        lengths = [len(block) for block in reader]
    assert sum(lengths) == n
    assert max(lengths) == MAX_BLOCK_PACKETS


@ORDERS
def test_every_truncation_is_read_up_to_the_cut(order: str) -> None:
    data = pcap(PACKETS[:3], order=order, nano=True)
    for length in range(len(data) + 1):
        if length < 24:
            with pytest.raises(CaptureError):
                packets_of(io.BytesIO(data[:length]))
            continue
        got, reader = packets_of(io.BytesIO(data[:length]))
        wanted, clean = read_capture(data[:length])
        assert got == wanted
        assert reader.counters.cut is not clean
        assert (reader.counters.cut_message == "") is clean


def test_a_cut_is_told_in_one_line() -> None:
    _, reader = packets_of(io.BytesIO(pcap(PACKETS)[:120]))
    assert reader.counters.cut_message == (
        "<stream>: cut off in the record at byte 100: got 20 bytes of it, expected at least 38; "
        "the 1 packets before it were read, nothing behind it"
    )


def test_strict_raises_behind_the_last_whole_packet() -> None:
    with open_capture(io.BytesIO(pcap(PACKETS)[:-1]), strict=True) as reader:
        assert len(next(reader)) == 3
        with pytest.raises(CutCaptureError, match="cut off in the record at byte 154"):
            next(reader)
        assert list(reader) == []


def test_strict_says_nothing_about_a_whole_capture() -> None:
    assert packets_of(io.BytesIO(pcap(PACKETS)), strict=True)[0] == PACKETS


@ORDERS
def test_an_absurd_length_ends_the_capture_and_names_the_byte(order: str) -> None:
    data = pcap(PACKETS[:2], order=order) + struct.pack(order + "IIII", 1, 1, 0xFFFFFFFF, 60) + bytes(800)
    got, reader = packets_of(io.BytesIO(data))
    assert got == PACKETS[:2]
    assert reader.counters.cut
    assert (
        "damaged: the record at byte 138 claims 4294967295 captured bytes, expected at most 262144"
        in reader.counters.cut_message
    )


def test_a_length_that_lies_allocates_nothing() -> None:
    claim = struct.pack("<IIII", 1, 1, 120_000_000, 60)
    with open_capture(io.BytesIO(pcap(snaplen=1 << 27) + claim + bytes(999)), piece_bytes=64) as reader:
        assert list(reader) == []
        assert "expected at least 120000016" in reader.counters.cut_message
        assert len(reader._buffer.data) <= 2048


def test_a_fraction_of_more_than_a_second_is_carried_over() -> None:
    data = pcap() + record(10, 1_500_000, b"", 0)
    assert packets_of(io.BytesIO(data))[0][0].ts_ns == 11_500_000_000


def test_the_frame_check_bits_are_no_link_type() -> None:
    got, _ = packets_of(io.BytesIO(pcap(PACKETS[:1], link_type=0x2400_0000 | 276)))
    assert got[0].link_type == 276


@pytest.mark.parametrize(
    ("minor", "first", "second", "captured", "wire"),
    [(4, 4, 9, 4, 9), (3, 9, 4, 4, 9), (3, 4, 9, 4, 9), (2, 9, 4, 4, 9), (1, 9, 4, 4, 9)],
)
def test_old_files_have_their_lengths_the_other_way_round(
    minor: int, first: int, second: int, captured: int, wire: int
) -> None:
    data = pcap(version=(2, minor)) + struct.pack("<IIII", 0, 0, first, second) + b"abcd"
    got, reader = packets_of(io.BytesIO(data))
    assert [(len(p.data), p.wire_len) for p in got] == [(captured, wire)]
    assert not reader.counters.cut


@ORDERS
def test_files_joined_with_cat_are_read_up_to_the_second(order: str) -> None:
    for second in (
        pcap(PACKETS),
        pcap(PACKETS, order=">", nano=True),
        b"\n\r\r\n\x1c\0\0\0\x4d\x3c\x2b\x1a" + bytes(99),
    ):
        got, reader = packets_of(io.BytesIO(pcap(PACKETS, order=order) + second))
        assert got == PACKETS
        assert "another capture file begins at byte 870" in reader.counters.cut_message
        assert "`mergecap`" in reader.counters.cut_message


def test_a_header_and_no_packet_is_a_capture_of_nothing() -> None:
    got, reader = packets_of(io.BytesIO(pcap()))
    assert got == []
    assert not reader.counters.cut


def test_a_stream_is_never_seeked_and_left_open() -> None:
    class Pipe(io.RawIOBase):
        def __init__(self, data: bytes) -> None:
            self.data = data

        def readable(self) -> bool:
            return True

        def readinto(self, view) -> int:  # type: ignore[no-untyped-def, override]
            n = min(5, len(view), len(self.data))
            view[:n], self.data = self.data[:n], self.data[n:]
            return n

        def seek(self, *_: int) -> int:
            raise AssertionError

    pipe = Pipe(pcap(PACKETS))
    assert packets_of(pipe)[0] == PACKETS  # type: ignore[arg-type]
    assert not pipe.closed


def test_an_object_with_only_read_is_a_stream_too() -> None:
    class Response:
        def __init__(self, data: bytes) -> None:
            self.read = io.BytesIO(data).read

    assert packets_of(Response(pcap(PACKETS)))[0] == PACKETS  # type: ignore[arg-type]


def test_a_path_is_closed_with_the_reader(tmp_path: Path) -> None:
    path = tmp_path / "a.pcap"
    path.write_bytes(pcap(PACKETS))
    n_open = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    reader = open_capture(path)
    assert len(os.listdir("/proc/self/fd")) == n_open + 1  # noqa: PTH208
    assert reader.name == str(path)
    reader.close()
    reader.close()
    assert len(os.listdir("/proc/self/fd")) == n_open  # noqa: PTH208
    assert list(reader) == []


def test_standard_input_is_read_as_it_comes() -> None:
    script = (
        "from tests.captures import packets_of; p, r = packets_of('-'); "
        "print(len(p), r.name, p[1].data.decode(), r.counters.cut)"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", script], input=pcap(PACKETS), capture_output=True, check=True, cwd=root
    )
    assert done.stdout.decode().strip() == "4 stdin cut by the snap length False"


def test_the_walk_is_compiled_once() -> None:
    for order in "<>":
        packets_of(io.BytesIO(pcap(PACKETS, order=order, nano=True)), piece_bytes=50)
    assert len(getattr(walk_pcap, "signatures", [])) <= 1  # a plain function under NUMBA_DISABLE_JIT
