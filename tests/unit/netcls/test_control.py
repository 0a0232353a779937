"""The control socket: Suricata's handshake and answers, and any bytes at all hurt nobody."""

from __future__ import annotations

import json
import random
import socket
import stat
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from capture.errors import CheckpointError, LiveError
from capture.live.base import LiveCounters
from netcls.counters import Counters
from netcls.daemon.config import ServeConfig
from netcls.daemon.control import ControlServer
from tests.wire import until


class FakeAppliance:
    def __init__(self) -> None:
        self.config = ServeConfig(iface=("eth0",), token="secret")
        self.counters = Counters()
        self.counters.interfaces["eth0"] = LiveCounters(90, 9000, 100, 10)
        self.uptime_s = 12.7
        self.publisher = SimpleNamespace(recent=deque())
        self.asked: list[str] = []

    def status(self) -> dict[str, Any]:
        return {"state": "running"}

    def reload(self) -> str:
        raise CheckpointError("got a model of another representation")

    def reopen(self) -> None:
        self.asked.append("reopen")

    def request_shutdown(self) -> None:
        self.asked.append("shutdown")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[FakeAppliance, Path, ControlServer]]:
    appliance, path = FakeAppliance(), tmp_path / "c.sock"
    control = ControlServer(appliance, path)  # type: ignore[arg-type]
    control.start()
    yield appliance, path, control
    control.stop()
    assert not path.exists()


class Client:
    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(20)
        self.socket.connect(str(path))
        self.lines = self.socket.makefile("rb")

    def ask(self, line: bytes) -> Any:
        self.socket.sendall(line)
        return json.loads(self.lines.readline())

    def command(self, name: str, **arguments: str) -> Any:
        return self.ask(json.dumps({"command": name, "arguments": arguments}).encode() + b"\n")

    def close(self) -> None:
        self.lines.close()
        self.socket.close()


def test_it_answers_as_suricata_does(server: tuple[FakeAppliance, Path, ControlServer]) -> None:
    appliance, path, _ = server
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    client = Client(path)
    assert client.ask(b'{"command": "uptime"}\n')["return"] == "NOK"  # the version comes first
    assert client.ask(b'{"version": "0.2"}\n') == {"return": "OK"}
    assert client.command("uptime") == {"return": "OK", "message": 12}
    assert client.command("iface-list")["message"] == {"count": 1, "ifaces": ["eth0"]}
    stats = client.command("iface-stat", iface="eth0")["message"]
    assert (stats["pkts"], stats["drop"]) == (100, 10)
    assert client.command("iface-stat", iface="eth9")["return"] == "NOK"
    assert client.command("status")["message"] == {"state": "running"}
    assert client.command("conf-get", variable="serve.idle_timeout_s")["message"] == 120.0
    assert "secret" not in json.dumps(client.command("conf-get", variable="token"))
    assert client.command("reload") == {"return": "NOK", "message": "got a model of another representation"}
    assert client.command("nonsense")["message"].startswith("no such command; expected one of")
    assert client.command("reopen-log-files")["return"] == "OK"
    assert client.command("shutdown")["return"] == "OK"
    assert appliance.asked == ["reopen", "shutdown"]
    client.close()
    # suricatasc of version 0.1 ends nothing with a newline.
    old = Client(path)
    assert old.ask(b'{"version": "0.1"}') == {"return": "OK"}
    assert old.ask(b'{"command": "uptime"}')["message"] == 12
    old.close()


def test_ten_thousand_fuzzed_lines_hurt_nobody(server: tuple[FakeAppliance, Path, ControlServer]) -> None:
    """S7."""
    appliance, path, control = server
    chance = random.Random(8)
    words = [
        b'{"command": ',
        b'"status"',
        b"}",
        b"null",
        b"[" * 900,
        b'{"a":' * 900,
        b"\x00\xff\xfe",
        b"1e999",
        b'"\\ud800"',
    ]
    words += [
        b'{"command": "iface-stat", "arguments": {"iface": ["x"]}}',
        b'{"command": "conf-get", "arguments": 3}',
    ]
    words += [
        b'{"command": {"a": 1}}',
        b'{"command": "flows", "arguments": [1]}',
        b"NaN",
        b'{"version": {}}',
        b" ",
    ]
    for _ in range(10):
        client = Client(path)
        assert client.ask(b'{"version": "0.2"}\n') == {"return": "OK"}
        for _ in range(1000):
            line = b"".join(chance.choices(words, k=chance.randint(0, 4))) + chance.randbytes(
                chance.randint(0, 9)
            )
            said = client.ask(line.replace(b"\n", b"") + b"\n")
            assert said["return"] in ("OK", "NOK")
        client.close()
    assert control.is_alive
    assert appliance.asked == []


def test_who_never_ends_a_line_or_never_reads_is_left(
    server: tuple[FakeAppliance, Path, ControlServer],
) -> None:
    _, path, control = server
    endless = Client(path)
    with pytest.raises(OSError, match=r"Broken pipe|reset"):
        endless.socket.sendall(b"x" * (40 << 20))
    crowd = [Client(path) for _ in range(40)]
    until(lambda: control._n_clients >= 30)
    for client in crowd:
        client.close()
    until(lambda: control._n_clients == 0)
    assert Client(path).ask(b'{"version": "0.2"}\n') == {"return": "OK"}


def test_a_second_daemon_is_refused(server: tuple[FakeAppliance, Path, ControlServer]) -> None:
    _, path, _ = server
    with pytest.raises(LiveError, match="Address already in use; give --control PATH"):
        ControlServer(FakeAppliance(), path)  # type: ignore[arg-type]
