"""Events as JSON lines to a file, with rotation, or to standard output.

Whole lines only: what a full disk took of one is cut off again, and what a killed process left of one goes when the
file is opened the next time (:mod:`netcls.sinks.append_file`).
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from capture.errors import UsageError
from netcls.sinks.append_file import AppendFile
from netcls.sinks.base import SinkError, Told

if TYPE_CHECKING:
    from netcls.sinks.uri import SinkUri

KEEP_FILES: Final = 10
_STDOUT_FD: Final = 1
_MOST_BYTES: Final = 1 << 50
_MOST_SECONDS: Final = 10 * 365 * 86_400
_PIPE_WAIT_S: Final = 0.2
_PIECE_BYTES: Final = 1 << 16


class JsonLinesFile:
    """A file that grows by whole lines, with mode 0640.

    It is renamed to ``NAME-<UTC time>`` when it is large or old enough, and the newest such files are kept. Whoever
    rotates it otherwise renames it and sends SIGHUP: lines go to the old file until then, and to the new one after.

    Args:
        path: of the file.
        rotate_bytes: from this size on a new file is begun; 0: never.
        rotate_s: after so long a new file is begun (by a clock that nobody sets); 0: never.
        keep: rotated files that are kept; 0: all.
        now_s: the monotonic clock.
    """

    def __init__(
        self,
        path: Path,
        *,
        rotate_bytes: int = 0,
        rotate_s: int = 0,
        keep: int = KEEP_FILES,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = "file"
        self._path = path
        self._file = AppendFile(path)
        self._rotate_bytes, self._rotate_s, self._keep = rotate_bytes, rotate_s, keep
        self._now_s = now_s
        self._n_bytes = 0
        self._opened_s = 0.0

    def open(self) -> None:
        """See the contract."""
        self._file.open()
        self._n_bytes = self._file.size
        self._opened_s = self._now_s()

    def write(self, batch: Sequence[Told]) -> int:
        """See the contract: the whole batch, or a SinkError and nothing of it."""
        if self._n_bytes and self._is_due():
            self._rotate()
        lines = b"".join(told.line for told in batch)
        self._file.append(lines)
        self._n_bytes += len(lines)
        return len(batch)

    def flush(self) -> None:
        """Bring it to the disk; each second, so that a power failure costs no more than that."""
        self._file.sync()

    def reopen(self) -> None:
        """Somebody has renamed the file: go on in a new one."""
        self._file.sync()
        self.open()

    def close(self) -> None:
        """See the contract."""
        self._file.close()

    def _is_due(self) -> bool:
        too_large = 0 < self._rotate_bytes <= self._n_bytes
        return too_large or 0 < self._rotate_s <= self._now_s() - self._opened_s

    def _rotate(self) -> None:
        """Rename the file to a name that is free, begin a new one, forget the oldest."""
        stem = f"{self._path.name}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
        number = 0
        while True:
            # The wall clock may have been set back: a name is never used twice.
            target = self._path.with_name(stem if not number else f"{stem}.{number}")
            try:
                os.link(self._path, target)
                break
            except FileExistsError:
                number += 1
            except OSError as error:
                raise SinkError(f"cannot rename '{self._path}': {error.strerror}") from None
        self._file.sync()
        self._path.unlink(missing_ok=True)
        self.open()
        if self._keep:
            rotated = sorted(
                self._path.parent.glob(f"{_literal(self._path.name)}-[0-9]*T[0-9]*Z*"),
                key=lambda path: path.stat().st_mtime_ns,
            )
            for old in rotated[: -self._keep]:
                old.unlink(missing_ok=True)


class StandardOutput:
    """JSON lines to standard output, for a pipe; a reader that is slow makes the queue fill, no more.

    When the reader has gone, everything is dropped: there is no way back.

    Args:
        descriptor: to write to.
    """

    def __init__(self, descriptor: int = _STDOUT_FD) -> None:
        self.name = "stdout"
        self._fd = descriptor
        self._rest = b""
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)

    def open(self) -> None:
        """Nothing: it is open."""

    def write(self, batch: Sequence[Told]) -> int:
        """Take lines while there is room; what the pipe took of a line is finished before anything else."""
        if not self._write_rest():
            return 0
        taken = 0
        while taken < len(batch):
            # Pieces: a pipe holds 64 KiB, and what was taken must be right at each moment.
            piece, n = b"", 0
            while taken + n < len(batch) and len(piece) < _PIECE_BYTES:
                piece += batch[taken + n].line
                n += 1
            self._rest = piece
            taken += n
            if not self._write_rest():
                break
        return taken

    def flush(self) -> None:
        """Finish a line, if the reader lets us."""
        self._write_rest()

    def reopen(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Finish the last line, if the reader lets us."""
        self._write_rest()

    def _write_rest(self) -> bool:
        """Whether everything taken so far has left."""
        while self._rest:
            if not self._poll.poll(_PIPE_WAIT_S * 1000):
                return False
            try:
                # A pipe that is ready takes at least PIPE_BUF bytes without making us wait (pipe(7)).
                n = os.write(self._fd, self._rest[: select.PIPE_BUF])
            except OSError as error:
                raise SinkError(f"cannot write standard output: {error.strerror}") from None
            self._rest = self._rest[n:]
        return True


def from_uri(uri: SinkUri) -> JsonLinesFile:
    """``file:PATH?rotate_bytes=N&rotate_s=N&keep=N``.

    Raises:
        UsageError: for a value that cannot be, or a folder that is not there.
    """
    path = Path(uri.path)
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder" if path.is_dir() else f"lies in '{path.parent}', which is no folder"
        raise UsageError(f"--output {uri.text!r}: '{path}' {what}; expected a file in a folder that is there")
    return JsonLinesFile(
        path,
        rotate_bytes=uri.whole_number("rotate_bytes", 0, 0, _MOST_BYTES),
        rotate_s=uri.whole_number("rotate_s", 0, 0, _MOST_SECONDS),
        keep=uri.whole_number("keep", KEEP_FILES, 0, 1_000_000),
    )


def stdout_from_uri(_uri: SinkUri) -> StandardOutput:
    """``-``."""
    return StandardOutput()


def _literal(name: str) -> str:
    """A name as a pattern that matches only itself."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
