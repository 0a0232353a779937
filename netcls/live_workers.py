"""``--workers N``: processes that share the packets of an interface by flow, each with its own flow table and model.

The kernel shares out by a hash that is the same for both directions (PACKET_FANOUT). The parent opens the sockets and
drops its privileges; the children get the sockets, never a capability, and send their events back.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

from capture.errors import LiveError, NetclsError
from netcls.counters import Counters

if TYPE_CHECKING:
    from capture.live.base import LiveSource
    from capture.live.packet_socket import RingSocket
    from netcls.event_batch import EventBatch
    from netcls.live import LiveOptions

_NO_NEWS_S = 0.1
_LEAVE_S = 10.0


class WorkerPool:
    """What a :class:`netcls.live.LiveRun` is, over several processes.

    Args:
        rings: for each worker, its sockets; closed here once the workers have them.
        options: how; of each worker.
        classify: False: flow records only.

    Attributes:
        counters: summed over the workers; complete when the iteration has ended.
        warnings: one line each.
        on_news: see :class:`netcls.live.LiveRun`.

    Raises:
        NetclsError: if a worker cannot get ready, for its reason.
    """

    def __init__(
        self, rings: Sequence[list[RingSocket]], options: LiveOptions, *, classify: bool = True
    ) -> None:
        self.counters = Counters()
        self.warnings: list[str] = []
        self.on_news: Callable[[], None] | None = None
        self._is_started = False
        self._connections: list[Connection] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        try:
            for sockets in rings:
                ours, theirs = multiprocessing.Pipe()
                process = _start(theirs.fileno(), [ring.socket.fileno() for ring in sockets])
                theirs.close()
                self._connections.append(ours)
                self._processes.append(process)
                ours.send(([_described(ring) for ring in sockets], options, classify))
            for sockets in rings:
                for ring in sockets:
                    ring.close()
            self._wait_for_all("ready")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _wait_for_all(self, what_for: str) -> None:
        for connection in self._connections:
            try:
                kind, what = connection.recv()
            except EOFError:
                raise LiveError(
                    f"a worker ended before it was {what_for}; try --workers 1 to see why"
                ) from None
            if kind == "failed":
                raise NetclsError(what)

    def close(self) -> None:
        """End the workers; those that do not go by themselves are killed."""
        self.stop()
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            try:
                process.wait(_LEAVE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def start(self) -> None:
        """See :meth:`netcls.live.LiveRun.start`; returns when every worker sees packets."""
        if not self._is_started:
            self._is_started = True
            self._send("go")
            self._wait_for_all("capturing")

    def stop(self) -> None:
        """See :meth:`netcls.live.LiveRun.stop`."""
        self._send("stop")

    def _send(self, word: str) -> None:
        for connection in self._connections:
            try:
                connection.send(word)
            except OSError:
                # It has ended already.
                continue

    def __iter__(self) -> Iterator[EventBatch]:
        self.start()
        failures: list[str] = []
        waiting = list(self._connections)
        while waiting:
            came: list[Any] = wait(waiting, _NO_NEWS_S)
            if self.on_news is not None:
                self.on_news()
            for connection in came:
                number = self._connections.index(connection)
                try:
                    kind, what = connection.recv()
                except (EOFError, ConnectionResetError):
                    waiting.remove(connection)
                    failures.append(f"worker {number} died; the packets of its flows are lost")
                    self.warnings.append(failures[-1])
                    continue
                if kind == "batch":
                    yield what
                elif kind == "warning":
                    if what not in self.warnings:
                        self.warnings.append(what)
                else:
                    waiting.remove(connection)
                    if kind == "failed":
                        failures.append(what)
                    else:
                        self.counters.add(what)
        if failures:
            raise LiveError("; ".join(failures))


def _start(connection_fd: int, socket_fds: list[int]) -> subprocess.Popen[bytes]:
    """A worker's process. Not by multiprocessing, whose children run the main script once more."""
    code = f"from netcls.live_workers import work; work({connection_fd})"
    # -P: a models.py in the working directory is not ours.
    return subprocess.Popen(
        [sys.executable, "-P", "-c", code], pass_fds=[connection_fd, *socket_fds], stdin=subprocess.DEVNULL
    )


def _described(ring: RingSocket) -> dict[str, Any]:
    """A ring socket as plain values; the socket itself is the number of an inherited descriptor."""
    values = {field.name: getattr(ring, field.name) for field in fields(ring)}
    return values | {"socket": ring.socket.fileno()}


def work(connection_fd: int) -> None:
    """One worker: hears what to do, reports ``warm``, waits for ``go``, sends batches and warnings, then its books."""
    # Ctrl-C reaches the whole group: the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.set_inheritable(connection_fd, False)
    connection = Connection(connection_fd)
    from capture.live.privileges import drop_privileges

    try:
        drop_privileges()
        described, options, classify = connection.recv()
        sources = _sources(described)
        from netcls.live import LiveRun

        with LiveRun(sources, options, classify=classify) as run:
            connection.send(("warm", None))
            if connection.recv() == "go":
                run.start()
                connection.send(("begun", None))
                threading.Thread(target=_listen, args=(connection, run), daemon=True).start()
                _send_all(run, connection)
            connection.send(("end", run.counters))
    except NetclsError as error:
        connection.send(("failed", str(error)))
    except (BrokenPipeError, EOFError, ConnectionResetError):
        return  # the parent has gone


def _sources(described: list[dict[str, Any]]) -> list[LiveSource]:
    from capture.live.packet_socket import RingSocket
    from capture.live.ring import RingSource

    return [
        RingSource(RingSocket(**values | {"socket": socket.socket(fileno=values["socket"])}))
        for values in described
    ]


def _send_all(run: Any, connection: Connection) -> None:
    n_warned = 0

    def warn() -> None:
        nonlocal n_warned
        for text in run.warnings[n_warned:]:
            n_warned += 1
            connection.send(("warning", text))

    run.on_news = warn
    for batch in run:
        connection.send(("batch", batch))


def _listen(connection: Connection, run: Any) -> None:
    """Any word now means to stop, and so does a parent that has gone."""
    with contextlib.suppress(EOFError, OSError):
        connection.recv()
    run.stop()
