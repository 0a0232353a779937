"""The control socket: Suricata's protocol, so that ``suricatasc`` feels at home; one JSON object a line.

    -> {"version": "0.2"}                                   <- {"return": "OK"}
    -> {"command": "iface-stat", "arguments": {"iface": "eth0"}}   <- {"return": "OK", "message": {...}}

Source: Suricata, doc/userguide/unix-socket.rst.
"""

from __future__ import annotations

import contextlib
import grp
import json
import logging
import os
import pwd
import selectors
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from capture.errors import LiveError, NetclsError
from netcls.sinks.unix_socket import bind_unix

if TYPE_CHECKING:
    from netcls.daemon.appliance import Appliance

_LOG: Final = logging.getLogger("netcls.daemon")

VERSIONS: Final = ("0.1", "0.2")
_LONGEST_LINE: Final = 64 << 10
_MOST_CLIENTS: Final = 32
_MOST_ANSWER: Final = 8 << 20
_WAKE_S: Final = 0.5
_RECENT_FLOWS: Final = 20


class CommandError(NetclsError):
    """A command that cannot be carried out; its text is the answer."""


@dataclass(slots=True)
class _Client:
    connection: socket.socket
    received: bytearray = field(default_factory=bytearray)
    waiting: bytearray = field(default_factory=bytearray)
    has_version: bool = False


class ControlServer:
    """Answers commands, in a thread of its own.

    Args:
        appliance: what they are about.
        path: of the socket, mode 0660; the peer must be root, this user, or of the socket's group.

    Raises:
        LiveError: if it cannot listen there.
    """

    def __init__(self, appliance: Appliance, path: Path) -> None:
        self._commands = Commands(appliance)
        self._path = path
        try:
            self._listener = bind_unix(path)
        except OSError as error:
            raise LiveError(
                f"control: cannot listen at '{path}': {error.strerror}; give --control PATH, or none"
            ) from None
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, None)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="netcls-control", daemon=True)
        self._n_clients = 0

    @property
    def is_alive(self) -> bool:
        """False once its thread has ended."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Answer from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Answer no more, and remove the socket."""
        self._stopping.set()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(2.0)
        self._path.unlink(missing_ok=True)

    def _run(self) -> None:
        while not self._stopping.is_set():
            for key, events in self._selector.select(_WAKE_S):
                if key.data is None:
                    self._welcome()
                else:
                    self._serve(key.data, events)
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        self._selector.close()

    def _welcome(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        if self._n_clients >= _MOST_CLIENTS or not _may_command(connection):
            connection.close()
            return
        connection.setblocking(False)
        self._n_clients += 1
        self._selector.register(connection, selectors.EVENT_READ, _Client(connection))

    def _serve(self, client: _Client, events: int) -> None:
        try:
            if events & selectors.EVENT_READ:
                data = client.connection.recv(_LONGEST_LINE)
                if not data:
                    self._leave(client)
                    return
                client.received += data
                while (end := client.received.find(b"\n")) >= 0:
                    line = bytes(client.received[:end])
                    del client.received[: end + 1]
                    client.waiting += self._commands.answer(line, client) + b"\n"
                # suricatasc of version 0.1 sends no newline.
                if client.received.endswith(b"}") and _is_whole(client.received):
                    line, client.received = bytes(client.received), bytearray()
                    client.waiting += self._commands.answer(line, client) + b"\n"
                if len(client.received) > _LONGEST_LINE or len(client.waiting) > _MOST_ANSWER:
                    self._leave(client)
                    return
            if client.waiting:
                n = client.connection.send(client.waiting)
                del client.waiting[:n]
        except BlockingIOError:
            pass
        except OSError:
            self._leave(client)
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.waiting else 0)
        self._selector.modify(client.connection, wanted, client)

    def _leave(self, client: _Client) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(client.connection)
            self._n_clients -= 1
        client.connection.close()


class Commands:
    """What each command answers.

    Args:
        appliance: what they are about.
    """

    def __init__(self, appliance: Appliance) -> None:
        self._appliance = appliance
        self._by_name: dict[str, Callable[[dict[str, Any]], Any]] = {
            "version": lambda _: _version(),
            "uptime": lambda _: int(appliance.uptime_s),
            "status": lambda _: appliance.status(),
            "stats": lambda _: _stats(appliance),
            "dump-counters": lambda _: _stats(appliance),
            "flows": self._flows,
            "iface-list": self._iface_list,
            "iface-stat": self._iface_stat,
            "conf-get": self._conf_get,
            "reload": lambda _: appliance.reload(),
            "reload-rules": lambda _: appliance.reload(),
            "reopen": self._reopen,
            "reopen-log-files": self._reopen,
            "shutdown": self._shutdown,
            "command-list": lambda _: {"count": len(self._by_name), "commands": sorted(self._by_name)},
        }

    def answer(self, line: bytes, client: Any) -> bytes:
        """The answer to a line, whatever the line is."""
        try:
            return json.dumps(self._answer(line, client), default=str).encode()
        except NetclsError as error:
            return json.dumps({"return": "NOK", "message": str(error)}).encode()
        except Exception as error:
            _LOG.warning("a control command failed: %s: %s", type(error).__name__, error)
            return json.dumps({"return": "NOK", "message": f"{type(error).__name__}"}).encode()

    def _answer(self, line: bytes, client: Any) -> dict[str, Any]:
        try:
            asked = json.loads(line)
        except (ValueError, RecursionError):
            raise CommandError('got no JSON object; expected {"command": "status"}') from None
        if not isinstance(asked, dict):
            raise CommandError('got no JSON object; expected {"command": "status"}')
        if not client.has_version:
            if asked.get("version") not in VERSIONS:
                raise CommandError(f'expected {{"version": "{VERSIONS[-1]}"}} first')
            client.has_version = True
            return {"return": "OK"}
        name, arguments = asked.get("command"), asked.get("arguments") or {}
        if not isinstance(name, str) or name not in self._by_name:
            raise CommandError(f"no such command; expected one of {', '.join(sorted(self._by_name))}")
        if not isinstance(arguments, dict):
            raise CommandError("arguments must be an object")
        return {"return": "OK", "message": self._by_name[name](arguments)}

    def _flows(self, _arguments: dict[str, Any]) -> dict[str, Any]:
        books = self._appliance.counters
        recent = list(self._appliance.publisher.recent)[-_RECENT_FLOWS:]
        return {
            "open": books.flows_open,
            "started": books.flows_started,
            "ended": books.flows_ended,
            "recent": [json.loads(told.line) for told in recent],
        }

    def _iface_list(self, _arguments: dict[str, Any]) -> dict[str, Any]:
        names = list(self._appliance.config.iface)
        return {"count": len(names), "ifaces": names}

    def _iface_stat(self, arguments: dict[str, Any]) -> dict[str, Any]:
        name = arguments.get("iface")
        counted = self._appliance.counters.interfaces.get(name) if isinstance(name, str) else None
        if counted is None:
            raise CommandError(
                f"no such interface; expected one of {', '.join(self._appliance.config.iface)}"
            )
        return {
            "pkts": counted.n_kernel_packets,
            "drop": counted.n_kernel_drops,
            "bytes": counted.n_bytes,
            "read": counted.n_packets,
            "invalid-checksums": 0,
            "bypassed": 0,
        }

    def _conf_get(self, arguments: dict[str, Any]) -> Any:
        config, name = self._appliance.config, arguments.get("variable")
        key = name.removeprefix("serve.") if isinstance(name, str) else ""
        if key not in type(config).__dataclass_fields__ or key == "token":
            known = ", ".join(sorted(set(type(config).__dataclass_fields__) - {"token"}))
            raise CommandError(f"no such variable; expected one of {known}")
        return getattr(config, key)

    def _reopen(self, _arguments: dict[str, Any]) -> str:
        self._appliance.reopen()
        return "sinks reopen their files"

    def _shutdown(self, _arguments: dict[str, Any]) -> str:
        self._appliance.request_shutdown()
        return "Closing netcls"


def _stats(appliance: Appliance) -> dict[str, Any]:
    from netcls.daemon.status import stats_of

    return stats_of(appliance)


def _version() -> str:
    import netcls

    return netcls.__version__


def _is_whole(received: bytearray) -> bool:
    try:
        json.loads(received)
    except (ValueError, RecursionError):
        return False
    return True


def _may_command(connection: socket.socket) -> bool:
    """Whether the process at the other end is root's, this user's, or of this group (unix(7), SO_PEERCRED)."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, gid = struct.unpack("3i", credentials)
    if uid in (0, os.geteuid()) or gid == os.getegid():
        return True
    try:
        name = pwd.getpwuid(uid).pw_name
        return name in grp.getgrgid(os.getegid()).gr_mem
    except KeyError:
        return False
