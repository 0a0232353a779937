"""gzip and zstd streams as byte sources, found by their magic and read in bounded pieces.

Both come as concatenated members or frames. A stream that is cut or damaged ends early and says so in
``damage``; what was unpacked before is delivered.

Sources: RFC 1952 (gzip), RFC 8878 (zstd).
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Final

from capture.errors import CaptureError
from capture.readers.source import PieceBuffer

MAX_DECOMPRESSED_BYTES: Final = 64 << 30
MAX_ZSTD_WINDOW_BYTES: Final = 128 << 20  # what the zstd command accepts without being asked for more

GZIP_MAGIC: Final = bytes.fromhex("1f8b")
ZSTD_MAGIC: Final = bytes.fromhex("28b52ffd")
XZ_MAGIC: Final = bytes.fromhex("fd377a585a00")
BZIP2_MAGIC: Final = b"BZh"
LZ4_MAGIC: Final = bytes.fromhex("04224d18")
_ZSTD_SKIPPABLE: Final = 0x184D2A50  # the lowest four bits are free
_ZSTD_MAX_HEADER_BYTES: Final = 18
_ZSTD_MAX_BLOCK_BYTES: Final = 1 << 17
_GZIP_STEP_BYTES: Final = 1 << 16


class DecompressedSource(ABC):
    """The unpacked bytes of a compressed stream.

    Attributes:
        kind: name of the compression.
        damage: why the stream ended too early, once it has.
    """

    kind: ClassVar[str]

    def __init__(self, compressed: PieceBuffer, name: str, max_bytes: int | None) -> None:
        self.damage: str | None = None
        self._in = compressed
        self._name = name
        self._max_bytes = max_bytes
        self._n_bytes = 0

    def readinto(self, view: memoryview) -> int:
        """See :class:`capture.readers.source.ByteSource`.

        Raises:
            CaptureError: more than ``max_bytes`` come out.
        """
        if self.damage is not None:
            return 0
        n = self._unpack(view)
        if n == 0 and self.damage is None:
            self.damage = self._in.damage
        self._n_bytes += n
        if self._max_bytes is not None and self._n_bytes > self._max_bytes:
            raise CaptureError(
                f"{self._name}: got more than {self._max_bytes} bytes out of the {self.kind} stream, expected at most "
                f"that; unpack it yourself, or raise max_decompressed_bytes if the file is to be trusted"
            )
        return n

    @abstractmethod
    def _unpack(self, view: memoryview) -> int:
        """Write unpacked bytes to the front of ``view``; 0 at the end, with ``damage`` set if it came too early."""

    def _cut(self) -> bool:
        """Note that the stream stops too early. Always False, as is the next one."""
        self.damage = f"the {self.kind} stream is cut off at its byte {self._in.position + len(self._in)}"
        return False

    def _damaged(self, what: object) -> bool:
        self.damage = f"the {self.kind} stream is damaged near its byte {self._in.position}: {what}"
        return False


class GzipSource(DecompressedSource):
    """gzip, one or more members; zero bytes behind the last one are padding."""

    kind: ClassVar[str] = "gzip"

    def __init__(self, compressed: PieceBuffer, name: str, max_bytes: int | None) -> None:
        super().__init__(compressed, name, max_bytes)
        self._inflate: Any = zlib.decompressobj(wbits=31)
        self._step_bytes = _GZIP_STEP_BYTES

    def _unpack(self, view: memoryview) -> int:
        source = self._in
        while True:
            if self._inflate.eof and not self._begin_member():
                return 0
            step = source.head(self._step_bytes)
            before = self._inflate.copy()
            try:
                out = self._inflate.decompress(step, len(view))
            except zlib.error as error:
                if len(step) <= 1:
                    return self._damaged(str(error).rpartition(": ")[2])
                # The failing call keeps what it had unpacked: go up to the fault again, in smaller steps.
                self._inflate, self._step_bytes = before, max(1, len(step) // 64)
                continue
            source.begin += len(step) - len(self._inflate.unconsumed_tail) - len(self._inflate.unused_data)
            if out:
                view[: len(out)] = out
                return len(out)
            if not self._inflate.eof and not len(source) and not source.refill():
                return self._cut()

    def _begin_member(self) -> bool:
        """Start the next member; False at the end of the stream or if something else follows."""
        source = self._in
        while source.ensure(1):
            head = source.head(_GZIP_STEP_BYTES)
            source.begin += len(head) - len(head.lstrip(b"\0"))
            if len(source):
                break
        if not source.ensure(len(GZIP_MAGIC)) and not len(source):
            return False
        if source.head(len(GZIP_MAGIC)) != GZIP_MAGIC:
            return self._damaged(f"got {source.head(2).hex()} behind a member, expected 1f8b or the end")
        self._inflate = zlib.decompressobj(wbits=31)
        return True


class ZstdSource(DecompressedSource):
    """zstd, one or more frames.

    Frames are taken apart here, and the library is fed a block (at most 128 KiB of output) at a time: its own
    reader takes a cut stream for a complete one, and unpacks a whole input chunk at once without a bound.
    """

    kind: ClassVar[str] = "zstd"

    def __init__(self, compressed: PieceBuffer, name: str, max_bytes: int | None) -> None:
        super().__init__(compressed, name, max_bytes)
        try:
            import zstandard
        except ImportError as error:
            raise CaptureError(
                f"{name}: got a zstd-compressed file, expected the package zstandard to read it; "
                f"`pip install zstandard`, or unpack the file with `zstd -d`"
            ) from error
        self._zstd: Any = zstandard
        self._context: Any = zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW_BYTES)
        self._frame: Any = None  # the library's object for the frame at hand; None between frames
        self._has_checksum = False
        self._blocks_ended = False
        self._ready = memoryview(b"")

    def _unpack(self, view: memoryview) -> int:
        while not self._ready:
            if not self._advance():
                return 0
        n = min(len(view), len(self._ready))
        view[:n] = self._ready[:n]
        self._ready = self._ready[n:]
        return n

    def _advance(self) -> bool:
        """Go on by one frame header or block; False at the end or at damage."""
        try:
            if self._frame is None:
                return self._begin_frame()
            return self._end_frame() if self._blocks_ended else self._unpack_block()
        except self._zstd.ZstdError as error:
            return self._damaged(error)

    def _begin_frame(self) -> bool:
        source = self._in
        if not source.ensure(4):
            return self._cut() if len(source) else False
        magic = int.from_bytes(source.head(4), "little")
        if magic & 0xFFFFFFF0 == _ZSTD_SKIPPABLE:
            if not source.ensure(8) or not source.skip(8 + int.from_bytes(source.head(8)[4:], "little")):
                return self._cut()
            return True
        if source.head(4) != ZSTD_MAGIC:
            return self._damaged(f"got {source.head(4).hex()} behind a frame, expected 28b52ffd or the end")
        source.ensure(_ZSTD_MAX_HEADER_BYTES)  # a short last frame may have less
        head = source.head(_ZSTD_MAX_HEADER_BYTES)
        n = _zstd_header_bytes(head)
        if len(head) < n:
            return self._cut()
        frame = self._zstd.get_frame_parameters(head)
        if frame.window_size > MAX_ZSTD_WINDOW_BYTES:
            raise CaptureError(
                f"{self._name}: got a zstd window of {frame.window_size} bytes, expected at most "
                f"{MAX_ZSTD_WINDOW_BYTES}; unpack it with `zstd -d --long=31`"
            )
        self._frame = self._context.decompressobj()
        self._has_checksum, self._blocks_ended = frame.has_checksum, False
        self._feed(n)
        return True

    def _unpack_block(self) -> bool:
        """Feed one block, RFC 8878 section 3.1.1.2."""
        source = self._in
        if not source.ensure(3):
            return self._cut()
        header = int.from_bytes(source.head(3), "little")
        last, kind, size = header & 1, header >> 1 & 3, header >> 3
        if size > _ZSTD_MAX_BLOCK_BYTES:
            return self._damaged(f"got a block of {size} bytes, expected at most {_ZSTD_MAX_BLOCK_BYTES}")
        n = 3 + (1 if kind == 1 else size)  # kind 1 repeats one byte
        if not source.ensure(n):
            return self._cut()
        self._feed(n)
        self._blocks_ended = bool(last)
        return True

    def _end_frame(self) -> bool:
        """Feed the checksum, behind the last block so that a wrong one loses nothing."""
        if self._has_checksum:
            if not self._in.ensure(4):
                return self._cut()
            self._feed(4)
        self._frame = None
        return True

    def _feed(self, n: int) -> None:
        piece = self._in.head(n)
        self._in.begin += n
        self._ready = memoryview(self._frame.decompress(piece))


def _zstd_header_bytes(head: bytes) -> int:
    """Length of a frame header, RFC 8878 section 3.1.1.1, from its first five bytes."""
    if len(head) < 5:
        return 5
    descriptor = head[4]
    single_segment = descriptor >> 5 & 1
    content_size_bytes = (1 if single_segment else 0, 2, 4, 8)[descriptor >> 6]
    return 5 + (1 - single_segment) + (0, 1, 2, 4)[descriptor & 3] + content_size_bytes
