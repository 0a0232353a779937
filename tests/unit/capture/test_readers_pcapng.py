"""pcapng: sections, interfaces, times, and blocks that lie."""

from __future__ import annotations

import io
import math
import struct
from fractions import Fraction

import pytest

from capture.errors import CaptureError, CutCaptureError, NotACaptureError
from capture.kernels.pcapng_walk import MAX_UNITS_PER_S, units_to_ns, walk_pcapng
from capture.readers import open_capture
from tests.captures import (
    Packet,
    block,
    enhanced,
    interface,
    obsolete,
    option,
    packets_of,
    pcap,
    section,
    simple,
)
from tests.reference.pcap_reader import INT64_NS, read_capture

MICRO = 1_700_000_000_123_456
ORDERS = pytest.mark.parametrize("order", ["<", ">"])


def resolution(value: int, *, order: str = "<") -> bytes:
    return option(9, bytes([value]), order=order)


@ORDERS
def test_every_kind_of_packet_block_is_read(order: str) -> None:
    data = (
        section(order=order)
        + interface(1, 8, order=order)
        + interface(113, 0, resolution(9, order=order), order=order)
        + enhanced(MICRO, b"ethernet", 60, order=order)
        + enhanced(MICRO * 1000 + 7, b"cooked", 61, interface_id=1, order=order)
        + obsolete(MICRO, b"old", 62, interface_id=1, order=order)
        + simple(b"simple..", 63, order=order)
    )
    got, reader = packets_of(io.BytesIO(data))
    assert got == [
        Packet(MICRO * 1000, 1, 60, b"ethernet"),
        Packet(MICRO * 1000 + 7, 113, 61, b"cooked"),
        Packet(MICRO, 113, 62, b"old"),
        Packet(MICRO, 1, 63, b"simple.."),
    ]
    assert reader.format == "pcapng"
    assert reader.counters.n_without_time == 1
    assert not reader.counters.cut


def test_a_simple_packet_before_all_others_has_time_zero() -> None:
    got, _ = packets_of(io.BytesIO(section() + interface(1) + simple(b"ab", 2)))
    assert got == [Packet(0, 1, 2, b"ab")]


def test_a_section_brings_its_own_byte_order_and_interfaces() -> None:
    data = section() + interface(1) + enhanced(1, b"a", 1)
    data += section(order=">", version=(1, 2)) + interface(101, order=">") + enhanced(2, b"b", 1, order=">")
    got, reader = packets_of(io.BytesIO(data))
    assert [(p.ts_ns, p.link_type, p.data) for p in got] == [(1000, 1, b"a"), (2000, 101, b"b")]
    assert not reader.counters.cut


def test_a_section_forgets_the_interfaces_of_the_one_before() -> None:
    got, reader = packets_of(io.BytesIO(section() + interface() + section() + enhanced(1, b"a", 1)))
    assert got == []
    assert "is of an interface beyond the 0 described" in reader.counters.cut_message


def test_many_interfaces_keep_their_link_types_apart() -> None:
    data = section() + b"".join(interface(i) for i in range(300))
    data += b"".join(enhanced(i, b"", 0, interface_id=i) for i in range(300))
    assert [p.link_type for p in packets_of(io.BytesIO(data))[0]] == list(range(300))


def test_unknown_blocks_and_options_are_skipped() -> None:
    noise = block(0x0BAD, bytes(100)) + block(5, bytes(12)) + block(4, b"names")
    options = option(2, b"eth0") + option(9, b"\x03") + option(0, b"") + b"behind the end"
    data = section() + noise + interface(1, 0, options) + noise + enhanced(5, b"x", 1) + noise
    got, reader = packets_of(io.BytesIO(data))
    assert got == [Packet(5_000_000, 1, 1, b"x")]
    assert not reader.counters.cut


@ORDERS
def test_the_offset_of_an_interface_is_added(order: str) -> None:
    options = option(14, struct.pack(order + "q", -3), order=order)
    data = section(order=order) + interface(1, 0, options, order=order) + enhanced(1, b"", 0, order=order)
    assert packets_of(io.BytesIO(data))[0][0].ts_ns == -3 * 10**9 + 1000


@pytest.mark.parametrize(
    "units_per_s", [1, 10**3, 10**6, 10**9, 10**12, 10**17, 2, 2**10, 2**20, 2**30, 2**32, 2**33, 2**59]
)
@pytest.mark.parametrize("offset_s", [0, 1, -1, 2**63 - 1, -(2**63), 1 - 2**63])
def test_times_are_exact_in_every_resolution(units_per_s: int, offset_s: int) -> None:
    for units in (0, 1, 999_999, MICRO, MICRO * 1000 + 1, 2**62 + 12345, 2**63 - 1, 2**64 - 1):
        exact = math.floor((Fraction(min(units, 2**63 - 1), units_per_s) + offset_s) * 10**9)
        wanted = min(max(exact, INT64_NS[0]), INT64_NS[-1])
        assert units_to_ns(units >> 32, units & 0xFFFFFFFF, units_per_s, offset_s) == wanted


@pytest.mark.parametrize("value", [18, 127, 0x80 | 60, 0xFF])
def test_a_resolution_beyond_any_clock_ends_the_capture(value: int) -> None:
    data = section() + interface() + enhanced(1, b"a", 1) + interface(1, 0, resolution(value))
    got, reader = packets_of(io.BytesIO(data + enhanced(2, b"b", 1)))
    assert [p.data for p in got] == [b"a"]
    assert "units of time per second, expected at most 10**17 or 2**59" in reader.counters.cut_message
    assert 10**17 <= MAX_UNITS_PER_S < 10**18


BAD_BLOCKS = {
    "claims 13 bytes, expected a multiple of 4": struct.pack("<II", 6, 13) + bytes(40),
    "claims 4294967292 bytes, expected a multiple of 4": struct.pack("<II", 0x0BAD, 0xFFFFFFFC) + bytes(40),
    "claims 8 bytes": struct.pack("<II", 0x0BAD, 8) + bytes(40),
    "has length 16 before and 20 behind it, expected the same": struct.pack("<IIII", 0x0BAD, 16, 0, 20),
    "claims more captured bytes than its 36 have room for": block(
        6, struct.pack("<IIIIII", 0, 0, 0, 5, 5, 0)
    ),
    "is of an interface beyond the 1 described": enhanced(1, b"x", 1, interface_id=1),
    "expected a multiple of 4 that fits its kind": block(6, bytes(16)),
    "an option is shorter than its kind needs": interface(1, 0, option(14, b"1234")),
    "another capture file begins at byte 84; join files with `mergecap`": pcap(),
    "got byte-order magic 00000000, expected 1a2b3c4d": block(0x0A0D0D0A, bytes(16)),
    "unknown pcapng version in the section header at byte 84: got 2.0": section(version=(2, 0)),
}


@pytest.mark.parametrize(("text", "bad"), BAD_BLOCKS.items(), ids=range(len(BAD_BLOCKS)))
def test_a_block_that_lies_ends_the_capture_by_name(text: str, bad: bytes) -> None:
    data = section() + interface() + enhanced(1, b"good", 4) + bad + enhanced(2, b"never", 5)
    got, reader = packets_of(io.BytesIO(data))
    assert [p.data for p in got] == [b"good"]
    assert text in reader.counters.cut_message
    with open_capture(io.BytesIO(data), strict=True) as strict:
        assert len(next(strict)) == 1
        with pytest.raises(CutCaptureError):
            next(strict)


def test_a_simple_packet_that_lies_ends_the_capture() -> None:
    _, reader = packets_of(io.BytesIO(section() + interface(1, 0) + simple(b"ab", 9)))
    assert "claims more captured bytes than its 20" in reader.counters.cut_message


@pytest.mark.parametrize("piece_bytes", [1, 33, 1 << 20])
@ORDERS
def test_every_truncation_is_read_up_to_the_cut(order: str, piece_bytes: int) -> None:
    data = section(order=order) + interface(order=order) + enhanced(MICRO, b"abc", 60, order=order)
    data += section() + interface(228) + simple(b"12345", 5)
    for length in range(len(data) + 1):
        if length < 28:
            with pytest.raises(CaptureError):
                packets_of(io.BytesIO(data[:length]), piece_bytes=piece_bytes)
            continue
        got, reader = packets_of(io.BytesIO(data[:length]), piece_bytes=piece_bytes)
        wanted, clean = read_capture(data[:length])
        assert got == wanted
        assert reader.counters.cut is not clean


def test_a_first_section_that_is_none_is_refused() -> None:
    with pytest.raises(NotACaptureError, match="got byte-order magic 01020304, expected 1a2b3c4d"):
        open_capture(io.BytesIO(section().replace(b"\x4d\x3c\x2b\x1a", b"\1\2\3\4")))
    with pytest.raises(CaptureError, match="cut off in the section header at byte 0: got 9 bytes of it"):
        open_capture(io.BytesIO(section()[:9]))


def test_the_walk_is_compiled_once() -> None:
    for order in "<>":
        data = section(order=order) + interface(order=order) + enhanced(MICRO, b"abc", 60, order=order)
        packets_of(io.BytesIO(data), piece_bytes=50)
    assert len(getattr(walk_pcapng, "signatures", [])) <= 1  # a plain function under NUMBA_DISABLE_JIT
