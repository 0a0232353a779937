"""gzip and zstd: the same packets as plain, every cut told, no bomb unpacked."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import lz4.frame
import pytest
import zstandard

from capture.errors import CaptureError, NotACaptureError
from capture.readers import open_capture
from tests.captures import Packet, enhanced, interface, packets_of, pcap, section

PACKETS = [Packet(i * 10**9, 1, 100 + i, os.urandom(i % 50) + bytes(i * 37 % 900)) for i in range(600)]
PLAIN = pcap(PACKETS)


def gzip_members(data: bytes) -> bytes:
    third = len(data) // 3
    return gzip.compress(data[:third]) + gzip.compress(data[third:], 9) + gzip.compress(b"")


def zstd(data: bytes, *, level: int = 3, checksum: bool = True, size: bool = True) -> bytes:
    return zstandard.ZstdCompressor(level=level, write_checksum=checksum, write_content_size=size).compress(
        data
    )


def zstd_stream(data: bytes) -> bytes:
    """As a pipe through the command makes it: no content size, several blocks flushed early."""
    writer = zstandard.ZstdCompressor(level=1).compressobj()
    out = b""
    for i in range(0, len(data), 5000):
        out += writer.compress(data[i : i + 5000]) + writer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    return out + writer.flush()


def zstd_frames(data: bytes) -> bytes:
    skippable = struct.pack("<II", 0x184D2A57, 3) + b"abc"
    return (
        zstd(data[:9])
        + skippable
        + zstd(b"")
        + zstd_stream(data[9:50_000])
        + zstd(data[50_000:], checksum=False)
    )


WAYS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "gzip members": gzip_members,
    "gzip stored": lambda data: gzip.compress(data, 0),
    "gzip padded": lambda data: gzip.compress(data) + bytes(700),
    "zstd": zstd,
    "zstd level 19": lambda data: zstd(data, level=19, checksum=False),
    "zstd without size": lambda data: zstd(data, size=False),
    "zstd stream": zstd_stream,
    "zstd frames": zstd_frames,
    "xz": lzma.compress,
    "xz streams": lambda data: lzma.compress(data[:500]) + lzma.compress(data[500:], preset=9) + bytes(8),
    "bzip2": bz2.compress,
    "bzip2 streams": lambda data: bz2.compress(data[:500]) + bz2.compress(data[500:], 1),
    "lz4": lz4.frame.compress,
    "lz4 frames": lambda data: (
        lz4.frame.compress(data[:500], content_checksum=True) + lz4.frame.compress(data[500:])
    ),
}
EVERY_WAY = pytest.mark.parametrize("compress", WAYS.values(), ids=WAYS.keys())


@EVERY_WAY
@pytest.mark.parametrize("piece_bytes", [100, 1 << 20])
def test_compressed_equals_plain(compress: Callable[[bytes], bytes], piece_bytes: int) -> None:
    data = compress(PLAIN)
    got, reader = packets_of(io.BytesIO(data), piece_bytes=piece_bytes)
    assert got == PACKETS
    assert not reader.counters.cut
    assert reader.counters.n_source_bytes == len(data)


def test_the_name_of_a_file_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.pcap"
    path.write_bytes(zstd(section() + interface() + enhanced(1, b"a", 1)))
    got, reader = packets_of(path)
    assert (got, reader.format) == ([Packet(1000, 1, 1, b"a")], "pcapng")


def test_blocks_of_every_zstd_kind_are_read() -> None:
    packet = Packet(0, 1, 1, os.urandom(200_000) + bytes(200_000))  # stored blocks, then a run of one byte
    data = zstd(pcap([packet], snaplen=1 << 20))
    assert packets_of(io.BytesIO(data))[0] == [packet]


@pytest.mark.parametrize(
    "compress",
    [
        *(gzip.compress, gzip_members, zstd, zstd_stream, zstd_frames, lz4.frame.compress),
        lambda data: lzma.compress(data, preset=0),
        lambda data: bz2.compress(data, 1),
    ],
)
def test_every_cut_is_told(compress: Callable[[bytes], bytes]) -> None:
    data = compress(PLAIN)
    n_before = 0
    step = 211 if len(data) < 150_000 else 4001
    for length in [*range(30), *range(30, len(data), step), len(data) - 1]:
        try:
            got, reader = packets_of(io.BytesIO(data[:length]))
        except CaptureError:
            assert n_before == 0  # not even the file header came out
            continue
        assert got == PACKETS[: len(got)]
        assert len(got) >= n_before
        whole_members = compress is gzip_members and length == len(data) - len(gzip.compress(b""))
        assert reader.counters.cut or whole_members
        n_before = len(got)
    assert n_before > 300


def test_a_cut_names_the_stream_and_the_byte() -> None:
    data = zstd(PLAIN)[:-1]
    _, reader = packets_of(io.BytesIO(data))
    assert f"<stream>: the zstd stream is cut off at its byte {len(data)};" in reader.counters.cut_message
    data = gzip.compress(PLAIN)[:-1]
    _, reader = packets_of(io.BytesIO(data))
    assert f"<stream>: the gzip stream is cut off at its byte {len(data)};" in reader.counters.cut_message


@pytest.mark.parametrize(("kind", "compress"), [("gzip", gzip.compress), ("zstd", zstd)])
def test_a_wrong_checksum_is_damage(kind: str, compress: Callable[[bytes], bytes]) -> None:
    data = bytearray(compress(PLAIN))
    data[-5 if kind == "gzip" else -1] ^= 1
    got, reader = packets_of(io.BytesIO(bytes(data)))
    assert got == PACKETS
    assert f"the {kind} stream is damaged near its byte" in reader.counters.cut_message


def test_damage_in_a_gzip_stream_loses_only_what_lies_behind_it() -> None:
    data = bytearray(gzip.compress(PLAIN, 1))
    at = len(data) * 3 // 4
    data[at : at + 8] = b"\xff" * 8
    got, reader = packets_of(io.BytesIO(bytes(data)))
    assert len(got) > 400
    assert got[:400] == PACKETS[:400]
    assert reader.counters.cut


@pytest.mark.parametrize("compress", [gzip.compress, zstd])
def test_other_bytes_behind_the_stream_are_told(compress: Callable[[bytes], bytes]) -> None:
    got, reader = packets_of(io.BytesIO(compress(PLAIN) + b"rest of something"))
    assert got == PACKETS
    assert "got 7265" in reader.counters.cut_message


@pytest.mark.parametrize("compress", [gzip.compress, zstd])
def test_a_bomb_is_stopped_at_the_bound(compress: Callable[[bytes], bytes]) -> None:
    data = compress(pcap() + bytes(16 * 100_000))
    with pytest.raises(
        CaptureError, match=r"got more than 1200000 bytes out of the (gzip|zstd) stream"
    ) as error:
        packets_of(io.BytesIO(data), max_decompressed_bytes=1_200_000)
    assert "raise max_decompressed_bytes" in str(error.value)
    assert len(packets_of(io.BytesIO(data), max_decompressed_bytes=None)[0]) == 100_000


def test_a_dense_stream_is_unpacked_in_bounded_steps() -> None:
    data = zstd(pcap(snaplen=1 << 27) + struct.pack("<IIII", 0, 0, 100 << 20, 1) + bytes(60 << 20))
    assert len(data) < 20_000
    with open_capture(io.BytesIO(data)) as reader:
        assert len(reader._buffer.data) == 1 << 20
        assert len(reader._buffer._source._ready) <= 1 << 17  # type: ignore[attr-defined]


def test_a_zstd_window_beyond_the_limit_is_refused_by_name() -> None:
    data = b"\x28\xb5\x2f\xfd\x00\x90" + bytes(20)  # a frame header that asks for 256 MiB
    with pytest.raises(
        CaptureError, match=r"got a zstd window of 268435456 bytes, expected at most 134217728; .*--long=31"
    ):
        open_capture(io.BytesIO(data))


def test_compressed_twice_is_refused() -> None:
    with pytest.raises(NotACaptureError, match="compressed twice, expected a capture in one zstd stream"):
        open_capture(io.BytesIO(zstd(gzip.compress(PLAIN))))


def test_a_stream_of_nothing_is_an_empty_file() -> None:
    for data in (gzip.compress(b""), zstd(b"")):
        with pytest.raises(NotACaptureError, match="got an empty file"):
            open_capture(io.BytesIO(data))


def test_damage_before_the_first_byte_is_an_error() -> None:
    with pytest.raises(
        CaptureError, match="gzip stream is damaged near its byte 3: unknown compression method, expected"
    ):
        open_capture(io.BytesIO(b"\x1f\x8b\xff" + bytes(50)))
    with pytest.raises(CaptureError, match="zstd stream is cut off at its byte 8, expected a capture inside"):
        open_capture(io.BytesIO(zstd(PLAIN)[:8]))
    cut = zlib.compressobj(wbits=31)
    with pytest.raises(
        CaptureError, match="got 9 bytes of a pcap file header, expected 24; the gzip stream is cut off"
    ):
        open_capture(io.BytesIO(cut.compress(PLAIN[:9]) + cut.flush(zlib.Z_FULL_FLUSH)))


def test_a_missing_zstandard_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(
        CaptureError, match="expected the package zstandard to read it; `pip install zstandard`"
    ):
        open_capture(io.BytesIO(zstd(PLAIN)))
    assert packets_of(io.BytesIO(gzip.compress(PLAIN)))[0] == PACKETS


@pytest.mark.parametrize(("kind", "compress"), [("xz", lzma.compress), ("bzip2", bz2.compress)])
def test_damage_in_other_streams_is_told(kind: str, compress: Callable[[bytes], bytes]) -> None:
    data = bytearray(compress(PLAIN))
    data[len(data) // 2] ^= 0xFF
    try:
        got, reader = packets_of(io.BytesIO(bytes(data)))
    except CaptureError as error:
        assert f"the {kind} stream is damaged near its byte" in str(error)  # noqa: PT017 - either way is right
    else:
        assert got == PACKETS[: len(got)]
        assert f"the {kind} stream is damaged near its byte" in reader.counters.cut_message


@pytest.mark.parametrize("compress", [lzma.compress, bz2.compress, lz4.frame.compress])
def test_a_bomb_of_another_kind_is_stopped_at_its_bound(compress: Callable[[bytes], bytes]) -> None:
    data = compress(pcap([]) + bytes(64 << 20))
    assert len(data) < 1 << 20
    reader = open_capture(io.BytesIO(data), max_decompressed_bytes=8 << 20)
    with pytest.raises(CaptureError, match="got more than 8388608 bytes out of the"):
        for _ in reader:
            pass


def test_an_xz_stream_that_wants_too_much_memory_is_refused() -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 29}]
    with pytest.raises(CaptureError, match="needs more than 167772160 bytes of memory"):
        packets_of(io.BytesIO(lzma.compress(b"x", filters=filters)))


def test_lz4_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lz4.frame", None)
    with pytest.raises(CaptureError, match=r"pip install 'netcls\[lz4\]'"):
        open_capture(io.BytesIO(lz4.frame.compress(PLAIN)))
