"""Where results go: standard output, or a file that appears under its name only when it is complete."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from pathlib import Path
from types import TracebackType
from typing import Final

from capture.errors import NetclsError, UsageError

STDOUT: Final = "-"
_STDOUT_FD: Final = 1
_BUFFER_BYTES: Final = 1 << 16
_FILE_MODE: Final = 0o666  # less the umask


class OutputError(NetclsError):
    """The output cannot be written, for example because the disk is full."""


class OutputClosed(Exception):  # noqa: N818 - not an error: whoever read us has had enough
    """The reader of our pipe has gone; the command ends quietly."""


class Output:
    """A sink of bytes, used as a context manager.

    A regular file is written to a temporary name in the same folder and renamed when the block ends;
    where it ends with an exception, or :meth:`discard` was called, nothing is left. Standard output,
    devices and pipes get the bytes as they come.

    It has what pyarrow asks of a file: ``write``, ``flush``, ``close``, ``closed``.

    Args:
        target: a path, ``file:`` and a path, or ``-`` for standard output.

    Raises:
        UsageError: for a URI that is not a file.
        OutputError: where the bytes cannot be written; also from every method that writes.
        OutputClosed: where the reader of a pipe has gone.
    """

    def __init__(self, target: str = STDOUT) -> None:
        self.path = _path_of(target)
        self.closed = False
        self._fd = _STDOUT_FD
        self._temporary: Path | None = None
        self._is_kept = True
        self._buffer = bytearray()

    def __enter__(self) -> Output:
        if self.path is None:
            return self
        try:
            if self.path.exists() and not stat.S_ISREG(self.path.stat().st_mode):
                self._fd = os.open(self.path, os.O_WRONLY)
            else:
                # The link's target is replaced, not the link.
                self.path = self.path.resolve()
                self._temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.tmp")
                self._fd = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _FILE_MODE)
        except OSError as error:
            raise self._failed(error) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._is_kept:
                self.flush()
                self._rename()
        finally:
            self.closed = True
            if self._fd != _STDOUT_FD:
                os.close(self._fd)
            if self._temporary is not None:
                self._temporary.unlink(missing_ok=True)

    @property
    def is_terminal(self) -> bool:
        """True if a person reads along."""
        return self.path is None and os.isatty(self._fd)

    def discard(self) -> None:
        """Leave no file behind; what went to standard output is gone already."""
        self._is_kept = False

    def write(self, data: bytes | memoryview) -> int:
        """Take bytes; they are passed on when 64 KiB have come together."""
        self._buffer += data
        if len(self._buffer) >= _BUFFER_BYTES:
            self.flush()
        return len(data)

    def flush(self) -> None:
        """Pass on what was taken."""
        pending, self._buffer = memoryview(self._buffer), bytearray()
        try:
            while pending:
                pending = pending[os.write(self._fd, pending) :]
        except BrokenPipeError:
            raise OutputClosed from None
        except OSError as error:
            raise self._failed(error) from None

    def close(self) -> None:
        """Nothing: the ``with`` block ends the output, not a library that was handed it."""

    def _rename(self) -> None:
        if self._temporary is None or self.path is None:
            return
        try:
            # A full network disk says so only here.
            os.fsync(self._fd)
            self._temporary.replace(self.path)
        except OSError as error:
            raise self._failed(error) from None

    def _failed(self, error: OSError) -> OutputError:
        name = "standard output" if self.path is None else f"'{self.path}'"
        remedy = {
            errno.ENOSPC: "free some space or choose another --output",
            errno.EFBIG: "raise the file size limit (ulimit -f) or choose another --output",
            errno.ENOENT: "create its folder first",
            errno.EACCES: "choose a place that you may write to",
        }.get(error.errno or 0, "choose another --output")
        return OutputError(f"cannot write {name}: {error.strerror}; {remedy}")


def _path_of(target: str) -> Path | None:
    if target == STDOUT:
        return None
    scheme, colon, rest = target.partition(":")
    if colon and scheme == "file":
        return Path(rest.removeprefix("//"))
    if colon and rest.startswith("//"):
        raise UsageError(f"--output does not know '{scheme}:'; expected a file name, file:NAME or -")
    return Path(target)
