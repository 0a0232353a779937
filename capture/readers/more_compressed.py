"""xz, bzip2 and lz4 streams as byte sources: libraries that unpack so many bytes and no more.

Concatenated streams are one; a stream that is cut or damaged ends early, as in ``compressed``. Nothing is unpacked
beyond the piece that is asked for, and a stream that needs more memory than ``MAX_DICTIONARY_BYTES`` is refused.

Sources: the .xz file format 1.1.0; lz4_Frame_format 1.6.1.
"""

from __future__ import annotations

import bz2
import lzma
from abc import abstractmethod
from typing import Any, ClassVar, Final

from capture.errors import CaptureError
from capture.readers.compressed import BZIP2_MAGIC, LZ4_MAGIC, XZ_MAGIC, DecompressedSource
from capture.readers.source import PieceBuffer

MAX_DICTIONARY_BYTES: Final = 160 << 20  # `xz -9` needs 65 MiB

# What a failing call had unpacked is lost with it, so calls are small.
_STEP_BYTES: Final = 1 << 12


class LibrarySource(DecompressedSource):
    """Any decompressor with the interface of ``bz2.BZ2Decompressor``."""

    magic: ClassVar[bytes]
    padding: ClassVar[bytes] = b""
    errors: ClassVar[tuple[type[Exception], ...]]

    def __init__(self, compressed: PieceBuffer, name: str, max_bytes: int | None) -> None:
        super().__init__(compressed, name, max_bytes)
        self._decompressor = self._new()

    @abstractmethod
    def _new(self) -> Any:
        """A decompressor for the next stream."""

    def _unpack(self, view: memoryview) -> int:
        source = self._in
        while True:
            if self._decompressor.eof and not self._begin_stream():
                return 0
            step = b""
            if self._decompressor.needs_input:
                if not len(source) and not source.refill():
                    self._cut()
                    return 0
                step = source.head(_STEP_BYTES)
                source.begin += len(step)
            try:
                out = self._decompressor.decompress(step, len(view))
            except self.errors as error:
                if "emory" in str(error):  # "Memory usage limit exceeded"
                    raise CaptureError(
                        f"{self._name}: got a {self.kind} stream that needs more than {MAX_DICTIONARY_BYTES} bytes "
                        f"of memory to unpack; unpack it yourself if the file is to be trusted"
                    ) from error
                self._damaged(error)
                return 0
            if self._decompressor.eof:
                source.begin -= len(self._decompressor.unused_data or b"")
            if out:
                view[: len(out)] = out
                return len(out)

    def _begin_stream(self) -> bool:
        """Start the next stream; False at the end, or if something else follows."""
        source = self._in
        while source.ensure(1) and self.padding and source.head(1) == self.padding:
            source.begin += 1
        if not len(source):
            return False
        source.ensure(len(self.magic))
        head = source.head(len(self.magic))
        if head != self.magic:
            return self._damaged(f"got {head.hex()} behind a stream, expected {self.magic.hex()} or the end")
        self._decompressor = self._new()
        return True


class XzSource(LibrarySource):
    """xz."""

    kind: ClassVar[str] = "xz"
    magic: ClassVar[bytes] = XZ_MAGIC
    padding: ClassVar[bytes] = b"\0"
    errors: ClassVar[tuple[type[Exception], ...]] = (lzma.LZMAError, MemoryError)

    def _new(self) -> Any:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_DICTIONARY_BYTES)


class Bzip2Source(LibrarySource):
    """bzip2."""

    kind: ClassVar[str] = "bzip2"
    magic: ClassVar[bytes] = BZIP2_MAGIC
    errors: ClassVar[tuple[type[Exception], ...]] = (OSError, ValueError)

    def _new(self) -> Any:
        return bz2.BZ2Decompressor()


class Lz4Source(LibrarySource):
    """lz4 frames, by the package ``lz4``."""

    kind: ClassVar[str] = "lz4"
    magic: ClassVar[bytes] = LZ4_MAGIC
    errors: ClassVar[tuple[type[Exception], ...]] = (RuntimeError, ValueError)

    def __init__(self, compressed: PieceBuffer, name: str, max_bytes: int | None) -> None:
        try:
            import lz4.frame
        except ImportError as error:
            raise CaptureError(
                f"{name}: got an lz4-compressed file, expected the package lz4 to read it; "
                f"`pip install 'netcls[lz4]'`, or unpack the file with `unlz4`"
            ) from error
        self._lz4 = lz4.frame
        super().__init__(compressed, name, max_bytes)

    def _new(self) -> Any:
        return self._lz4.LZ4FrameDecompressor()
