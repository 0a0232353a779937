"""A file that grows by whole records, and keeps none in part."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from netcls.sinks.base import SinkError

_MODE: Final = 0o640
_TAIL_BYTES: Final = 1 << 20


class AppendFile:
    """Whole lines behind what is there.

    What a killed process left of a line is cut off when the file is opened; what a full disk took of one, at once.

    Args:
        path: of the file; made with mode 0640 where it is not there. Its folder must be.
        header: lines that a new or empty file begins with.
    """

    def __init__(self, path: Path, header: bytes = b"") -> None:
        self.path = path
        self._header = header
        self._fd = -1

    @property
    def is_open(self) -> bool:
        """True between :meth:`open` and :meth:`close`."""
        return self._fd >= 0

    @property
    def size(self) -> int:
        """Bytes of the open file, whatever its name is by now."""
        return os.fstat(self._fd).st_size

    def open(self) -> None:
        """Open or make it.

        Raises:
            SinkError: if that is not possible.
        """
        self.close()
        try:
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            self._fd = os.open(self.path, flags, _MODE)
            self._cut_torn_line()
            if self._header and not os.fstat(self._fd).st_size:
                self.append(self._header)
        except OSError as error:
            self.close()
            raise self._failed(error) from None

    def append(self, lines: bytes) -> None:
        """Write all of it, or nothing.

        Raises:
            SinkError: if it did not fit; the file is then as before.
        """
        if self._fd < 0:
            raise SinkError(f"'{self.path}' is not open")
        size = os.fstat(self._fd).st_size
        pending = memoryview(lines)
        try:
            while pending:
                pending = pending[os.write(self._fd, pending) :]
        except OSError as error:
            os.ftruncate(self._fd, size)
            raise self._failed(error) from None

    def sync(self) -> None:
        """Ask the kernel to bring it to the disk.

        Raises:
            SinkError: if the disk refuses.
        """
        if self._fd >= 0:
            try:
                os.fdatasync(self._fd)
            except OSError as error:
                raise self._failed(error) from None

    def close(self) -> None:
        """Let go of the file. May be called again."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def _cut_torn_line(self) -> None:
        size = os.fstat(self._fd).st_size
        start = max(size - _TAIL_BYTES, 0)
        tail = os.pread(self._fd, size - start, start)
        if tail and not tail.endswith(b"\n"):
            os.ftruncate(self._fd, start + tail.rfind(b"\n") + 1)

    def _failed(self, error: OSError) -> SinkError:
        return SinkError(f"cannot write '{self.path}': {error.strerror}")
