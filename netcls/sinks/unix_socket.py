"""Events as JSON lines on a unix stream socket, to as many readers as come.

Each reader gets whole lines from the moment it has connected. One that does not keep up is cut and counted: it never
holds up the others, and never gets a line in part without noticing that the connection has ended.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from capture.errors import UsageError
from netcls.sinks.base import SinkError, Told

if TYPE_CHECKING:
    from netcls.sinks.uri import SinkUri

MODE: Final = 0o660
MAX_READERS: Final = 64
_BACKLOG_BYTES: Final = 4 << 20  # that wait for one reader before it is cut
_LAST_LINES_S: Final = 2.0  # for readers to take what waits for them when the sink is closed
_LOOK_AGAIN_S: Final = 0.005
_LONGEST_PATH: Final = 107  # sun_path of unix(7), less the zero


@dataclass(slots=True)
class _Reader:
    connection: socket.socket
    waiting: bytearray


class UnixSocketSink:
    """A listening unix socket.

    Args:
        path: of the socket, mode 0660; what a killed process left there is replaced.
        backlog_bytes: a reader for which more waits is cut.

    Attributes:
        n_cut: readers that were too slow.
        n_refused: that came when there were :data:`MAX_READERS`.
    """

    def __init__(self, path: Path, *, backlog_bytes: int = _BACKLOG_BYTES) -> None:
        self.name = "unix"
        self._path = path
        self._backlog_bytes = backlog_bytes
        self._listener: socket.socket | None = None
        self._readers: list[_Reader] = []
        self.n_cut = self.n_refused = 0

    @property
    def n_readers(self) -> int:
        """That are connected."""
        return len(self._readers)

    def open(self) -> None:
        """See the contract."""
        if self._listener is None:
            try:
                self._listener = bind_unix(self._path)
            except OSError as error:
                raise SinkError(f"cannot listen at '{self._path}': {error.strerror}") from None

    def write(self, batch: Sequence[Told]) -> int:
        """See the contract. Without a reader events are taken and gone: nobody wanted them."""
        self._welcome()
        lines = b"".join(told.line for told in batch)
        for reader in list(self._readers):
            reader.waiting += lines
            self._send(reader)
            if len(reader.waiting) > self._backlog_bytes:
                self.n_cut += 1
                self._leave(reader)
        return len(batch)

    def flush(self) -> None:
        """Let readers have what waits for them; new ones are welcomed too."""
        self._welcome()
        for reader in list(self._readers):
            self._send(reader)

    def reopen(self) -> None:
        """Nothing: a socket is not rotated."""

    def close(self) -> None:
        """See the contract."""
        end_s = time.monotonic() + _LAST_LINES_S
        while any(reader.waiting for reader in self._readers) and time.monotonic() < end_s:
            for reader in list(self._readers):
                self._send(reader)
            time.sleep(_LOOK_AGAIN_S)
        for reader in list(self._readers):
            self._leave(reader)
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            self._path.unlink(missing_ok=True)

    def _welcome(self) -> None:
        if self._listener is None:
            raise SinkError(f"'{self._path}' is not open")
        while True:
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                raise SinkError(f"cannot accept at '{self._path}': {error.strerror}") from None
            if len(self._readers) >= MAX_READERS:
                self.n_refused += 1
                connection.close()
                continue
            connection.setblocking(False)
            self._readers.append(_Reader(connection, bytearray()))

    def _send(self, reader: _Reader) -> None:
        try:
            while reader.waiting:
                n = reader.connection.send(reader.waiting)
                del reader.waiting[:n]
        except BlockingIOError:
            return
        except OSError:
            self._leave(reader)

    def _leave(self, reader: _Reader) -> None:
        with contextlib.suppress(ValueError):
            self._readers.remove(reader)
        reader.waiting.clear()
        reader.connection.close()


def bind_unix(path: Path, mode: int = MODE) -> socket.socket:
    """Listen at a path; a socket there that nobody answers at is a dead process's, and is replaced.

    Raises:
        OSError: if that is not possible; ``EADDRINUSE`` if somebody answers there.
    """
    if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        path.chmod(mode)
        listener.listen(64)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def from_uri(uri: SinkUri) -> UnixSocketSink:
    """``unix:PATH``.

    Raises:
        UsageError: for a path that cannot be.
    """
    path = Path(uri.path)
    if len(os.fsencode(path)) > _LONGEST_PATH or not path.parent.is_dir():
        raise UsageError(
            f"--output {uri.text!r}: expected a path of at most {_LONGEST_PATH} bytes in a folder that is there"
        )
    return UnixSocketSink(path)
