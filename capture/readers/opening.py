"""Open a capture: find out what it is from its first bytes, and hand it to the reader for that."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from typing import BinaryIO, Final, cast

from capture.errors import CaptureError, NotACaptureError
from capture.readers.base import PCAP_MAGICS, PCAPNG_MAGIC, CaptureReader
from capture.readers.compressed import (
    BZIP2_MAGIC,
    GZIP_MAGIC,
    LZ4_MAGIC,
    MAX_DECOMPRESSED_BYTES,
    XZ_MAGIC,
    ZSTD_MAGIC,
    DecompressedSource,
    GzipSource,
    ZstdSource,
)
from capture.readers.pcap import PcapReader
from capture.readers.pcapng import PcapngReader
from capture.readers.source import PieceBuffer, StreamSource

PIECE_BYTES: Final = 1 << 20

# What people also call a capture: its first bytes, what it is, what to do.
_KNOWN_OTHERS: Final = (
    (bytes.fromhex("a1b2cd34"), "a 'modified' pcap (Kuznetzov's)", "convert it with `editcap -F pcap`"),
    (bytes.fromhex("34cdb2a1"), "a 'modified' pcap (Kuznetzov's)", "convert it with `editcap -F pcap`"),
    (b"snoop\0", "a snoop capture", "convert it with `editcap -F pcap`"),
    (b"GMBU", "a Network Monitor capture", "convert it with `editcap -F pcap`"),
    (bytes.fromhex("02214c18"), "an lz4 file of the legacy format", "unpack it with `unlz4`"),
    (b"PK\x03\x04", "a zip archive", "unpack it with `unzip`"),
)


def open_capture(
    source: str | os.PathLike[str] | BinaryIO,
    *,
    piece_bytes: int = PIECE_BYTES,
    strict: bool = False,
    max_decompressed_bytes: int | None = MAX_DECOMPRESSED_BYTES,
    follow_s: float = 0.0,
) -> CaptureReader:
    """Open a classic pcap or pcapng, plain or in gzip, zstd, xz, bzip2 or lz4, all found by content.

    Nothing is seeked, so pipes work. The first bytes are read at once; the packets as they are asked for.

    Args:
        source: a path, ``"-"`` for standard input, or a binary stream, which is read from where it stands
            and left open.
        piece_bytes: bytes read at a time. 512 KiB to 4 MiB are equally fast; it never changes a packet.
        strict: raise CutCaptureError at the end of a capture that is cut off or damaged, behind its last
            packet. Otherwise ``reader.counters`` tells.
        max_decompressed_bytes: bound on what a compressed file may unpack to; None for no bound.
        follow_s: at the end, wait for more until none has come for so many seconds (``math.inf``: for ever).

    Raises:
        CaptureError: the source cannot be opened or read, or its file header is cut off. Later, from the
            iteration: reading fails, or a compressed file unpacks to too much.
        NotACaptureError: it is empty or of another kind.
    """
    with ExitStack() as resources:
        stream, name = _open_stream(source, resources)
        source_bytes = StreamSource(stream, name, follow_s)
        buffer = _unpacked(PieceBuffer(source_bytes, piece_bytes), name, piece_bytes, max_decompressed_bytes)
        buffer.ensure(4)
        magic = buffer.head(4)
        if magic in PCAP_MAGICS:
            reader: CaptureReader = PcapReader(buffer, name, strict=strict)
        elif magic == PCAPNG_MAGIC:
            reader = PcapngReader(buffer, name, strict=strict)
        else:
            raise _not_a_capture(buffer, name)
        return reader.owning(resources.pop_all(), source_bytes)


def _open_stream(source: str | os.PathLike[str] | BinaryIO, resources: ExitStack) -> tuple[BinaryIO, str]:
    """The stream to read and the name to show."""
    if not isinstance(source, str | os.PathLike):
        name = getattr(source, "name", None)
        return source, name if isinstance(name, str) else "<stream>"
    name = os.fspath(source)
    if name == "-":
        return _standard_input(), "stdin"
    try:
        return resources.enter_context(open(name, "rb", buffering=0)), name  # noqa: PTH123 - not every name is a Path
    except FileNotFoundError as error:
        raise CaptureError(f"{name}: no such file, expected a capture; check the path") from error
    except IsADirectoryError as error:
        raise CaptureError(
            f"{name}: got a directory, expected a capture file; name the files in it"
        ) from error
    except PermissionError as error:
        raise CaptureError(
            f"{name}: permission denied, expected a readable capture; check its mode and owner"
        ) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise CaptureError(
            f"{name!r}: cannot be opened ({reason}), expected a capture file; check the path"
        ) from error


def _standard_input() -> BinaryIO:
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None:
        raise CaptureError("stdin: closed, expected a capture; give a path, or pipe one in")
    if stream.isatty():
        raise CaptureError("stdin: got a terminal, expected a capture; give a path, or pipe one in")
    return cast(BinaryIO, stream)


def _unpacked(raw: PieceBuffer, name: str, piece_bytes: int, max_bytes: int | None) -> PieceBuffer:
    """``raw`` itself, or what comes out of it if it is compressed."""
    kind = _compression(raw)
    if kind is None:
        return raw
    unpacked = PieceBuffer(kind(raw, name, max_bytes), piece_bytes)
    if _compression(unpacked) is not None:
        raise NotACaptureError(
            f"{name}: got a file compressed twice, expected a capture in one {kind.kind} stream; unpack it once"
        )
    return unpacked


def _compression(buffer: PieceBuffer) -> type[DecompressedSource] | None:
    """What unpacks the bytes at hand; None: they are not compressed."""
    buffer.ensure(4)
    head = buffer.head(4)
    if head == XZ_MAGIC[:4]:  # the standard library's, imported when they are needed
        from capture.readers.more_compressed import XzSource

        return XzSource
    if head[:3] == BZIP2_MAGIC and head[3:].isdigit():
        from capture.readers.more_compressed import Bzip2Source

        return Bzip2Source
    if head == LZ4_MAGIC:
        from capture.readers.more_compressed import Lz4Source

        return Lz4Source
    if head[:2] == GZIP_MAGIC:
        return GzipSource
    return ZstdSource if head == ZSTD_MAGIC else None


def _not_a_capture(buffer: PieceBuffer, name: str) -> CaptureError:
    head = buffer.head(8)
    if not head and buffer.damage is None:
        return NotACaptureError(f"{name}: got an empty file, expected a capture; was anything captured?")
    if buffer.damage is not None:
        return CaptureError(
            f"{name}: {buffer.damage}, expected a capture inside; take a new copy of the file"
        )
    for magic, kind, advice in _KNOWN_OTHERS:
        if head.startswith(magic):
            return NotACaptureError(f"{name}: got {kind}, expected pcap or pcapng; {advice}")
    return NotACaptureError(
        f"{name}: not a capture: got first bytes {head[:4].hex()}, expected those of pcap (d4c3b2a1, a1b2c3d4, "
        f"4d3cb2a1, a1b23c4d) or pcapng (0a0d0d0a), plain or compressed; "
        f"convert it with `editcap -F pcap` if it is a capture of another kind"
    )
