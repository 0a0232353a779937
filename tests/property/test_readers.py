"""Any bytes give packets or a CaptureError, and always what the slow twin gives."""

from __future__ import annotations

import contextlib
import gzip
import io

import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from capture.errors import CaptureError
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
from tests.reference.pcap_reader import read_capture

MAGICS = [
    bytes.fromhex(x) for x in ("d4c3b2a1", "a1b2c3d4", "4d3cb2a1", "a1b23c4d", "0a0d0d0a", "1f8b", "28b52ffd")
]
ORDERS = st.sampled_from("<>")
U64 = st.integers(0, 2**64 - 1)
DATA = st.binary(max_size=40)
WIRE = st.integers(0, 2**32 - 1)


@st.composite
def pcaps(draw: st.DrawFn) -> bytes:
    packet = st.builds(Packet, st.integers(0, 2**32 * 10**9 - 1), st.just(1), WIRE, DATA)
    return pcap(
        draw(st.lists(packet, max_size=6)),
        order=draw(ORDERS),
        nano=draw(st.booleans()),
        version=(2, draw(st.integers(0, 4))),
    )


@st.composite
def sections(draw: st.DrawFn) -> bytes:
    order = draw(ORDERS)
    number = st.integers(0, 2)
    any_option = st.builds(
        option, st.sampled_from([0, 2, 9, 14]), st.binary(min_size=1, max_size=9), order=st.just(order)
    )
    blocks = st.one_of(
        st.builds(
            interface,
            st.integers(0, 65535),
            st.integers(0, 60),
            st.lists(any_option, max_size=2).map(b"".join),
            order=st.just(order),
        ),
        st.builds(enhanced, U64, DATA, WIRE, interface_id=number, order=st.just(order)),
        st.builds(obsolete, U64, DATA, WIRE, interface_id=number, order=st.just(order)),
        st.builds(simple, DATA, st.integers(0, 50), order=st.just(order)),
        st.builds(block, st.integers(0, 12), DATA, order=st.just(order)),
    )
    return section(order=order) + interface(order=order) + b"".join(draw(st.lists(blocks, max_size=6)))


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A capture with a few bytes changed, taken out or put in, and perhaps cut."""
    data = bytearray(draw(st.one_of(pcaps(), st.lists(sections(), min_size=1, max_size=2).map(b"".join))))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


def agree(data: bytes, piece_bytes: int, source: bytes | None = None) -> None:
    """Our reader of ``source`` (default ``data``) and the twin of ``data`` say the same."""
    try:
        wanted, clean = read_capture(data)
    except ValueError:
        wanted = None
    try:
        got, reader = packets_of(io.BytesIO(data if source is None else source), piece_bytes=piece_bytes)
    except CaptureError:
        assert wanted is None
        return
    assert got == wanted
    assert reader.counters.cut is not clean
    assert reader.counters.n_packets == len(got)
    assert reader.counters.n_bytes == sum(len(packet.data) for packet in got)


@settings(deadline=None, max_examples=200)
@given(damaged(), st.integers(1, 200))
def test_a_damaged_capture_gives_what_the_twin_gives(data: bytes, piece_bytes: int) -> None:
    agree(data, piece_bytes)


@settings(deadline=None, max_examples=100)
@given(damaged(), st.sampled_from([gzip.compress, zstandard.compress]), st.integers(1, 200))
def test_compressed_gives_what_the_twin_gives(data: bytes, compress, piece_bytes: int) -> None:  # type: ignore[no-untyped-def]
    agree(data, piece_bytes, compress(data))


@settings(deadline=None, max_examples=200)
@given(st.sampled_from([*MAGICS, b""]), st.binary(max_size=300), st.integers(1, 400))
def test_any_bytes_give_packets_or_a_capture_error(magic: bytes, rest: bytes, piece_bytes: int) -> None:
    try:
        _, reader = packets_of(
            io.BytesIO(magic + rest), piece_bytes=piece_bytes, max_decompressed_bytes=1 << 20
        )
    except CaptureError as error:
        message = str(error)
    else:
        message = reader.counters.cut_message
        assert reader.counters.cut is (message != "")
    assert "\n" not in message


@settings(deadline=None, max_examples=100)
@given(damaged(), st.sampled_from([gzip.compress, zstandard.compress]), st.data())
def test_a_damaged_stream_gives_packets_or_a_capture_error(
    data: bytes, compress, draw: st.DataObject
) -> None:  # type: ignore[no-untyped-def]
    stream = bytearray(compress(data))
    at = draw.draw(st.integers(0, len(stream) - 1))
    stream[at] ^= draw.draw(st.integers(1, 255))
    with contextlib.suppress(CaptureError):
        packets_of(io.BytesIO(bytes(stream)), max_decompressed_bytes=1 << 24)
