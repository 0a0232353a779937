"""JSON lines by TCP and UDP, to receivers that come and go."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Callable, Iterator

import pytest

from netcls.sinks.base import SinkError, Told
from netcls.sinks.network_lines import TcpLinesSink, UdpLinesSink
from netcls.sinks.runner import SinkRunner
from tests.unit.netcls.sinks.told import many


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(5)
        yield listening


@pytest.fixture
def receiver() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
        bound.bind(("127.0.0.1", 0))
        bound.settimeout(5)
        yield bound


def test_lines_arrive_whole_and_in_order(server: socket.socket) -> None:
    sink = TcpLinesSink(*server.getsockname())
    sink.open()
    connection, _ = server.accept()
    assert sink.write(many(100)) == 100
    sink.close()
    with connection, connection.makefile("rb") as stream:
        assert [json.loads(line)["flow_id"] for line in stream] == list(range(100))


def test_a_receiver_that_closed_is_noticed_before_a_line_is_lost(server: socket.socket) -> None:
    sink = TcpLinesSink(*server.getsockname())
    sink.open()
    connection, _ = server.accept()
    connection.sendall(b"noise that is ignored")
    assert sink.write(many(1)) == 1
    connection.recv(100_000)
    connection.close()
    with pytest.raises(SinkError, match="it closed the connection"):
        sink.write(many(2))
    sink.open()
    connection, _ = server.accept()
    assert sink.write(many(2)) == 2
    sink.close()
    with connection, connection.makefile("rb") as stream:
        assert [json.loads(line)["flow_id"] for line in stream] == [0, 1]


def test_a_receiver_that_stalls_gets_whole_lines_and_the_rest_is_offered_again(
    server: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    from netcls.sinks import peer

    monkeypatch.setattr(peer, "_SEND_TIMEOUT_S", 0.2)
    sink = TcpLinesSink(*server.getsockname())
    sink.open()
    connection, _ = server.accept()
    padded = [Told(t.number, t.event, t.line[:-1] + b" " * 100_000 + b"\n") for t in many(200)]
    taken = sink.write(padded)
    assert 0 < taken < 200
    with connection, connection.makefile("rb") as stream:
        lines = stream.readlines()
    assert [json.loads(line)["flow_id"] for line in lines[:taken]] == list(range(taken))
    assert len(lines) <= taken + 1
    with pytest.raises(SinkError, match="is not connected"):
        sink.write(padded[taken:])


def test_a_connection_that_was_reset_is_told(server: socket.socket) -> None:
    sink = TcpLinesSink(*server.getsockname())
    sink.open()
    connection, _ = server.accept()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    with pytest.raises(SinkError, match="Connection reset by peer"):
        sink.write(many(1))


def test_nobody_there_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        host, port = listening.getsockname()
    with pytest.raises(SinkError, match=rf"cannot send to 127.0.0.1:{port}: Connection refused"):
        TcpLinesSink(host, port).open()


def test_a_datagram_is_a_line(receiver: socket.socket) -> None:
    sink = UdpLinesSink(*receiver.getsockname())
    sink.open()
    assert sink.write(many(3)) == 3
    assert [json.loads(receiver.recv(65536))["flow_id"] for _ in range(3)] == [0, 1, 2]


def test_a_line_longer_than_a_datagram_is_counted_and_left_out(receiver: socket.socket) -> None:
    sink = UdpLinesSink(*receiver.getsockname())
    sink.open()
    long = [Told(1, many(1)[0].event, b"x" * 70_000)]
    assert sink.write(long + many(1)) == 2
    assert sink.n_failed == 1
    assert json.loads(receiver.recv(65536))["flow_id"] == 0


def test_a_refused_datagram_is_told_and_the_receivers_return_noticed() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
        bound.bind(("127.0.0.1", 0))
        host, port = bound.getsockname()
    sink = UdpLinesSink(host, port)
    sink.open()
    assert sink.write(many(3)) == 1  # the first is refused, which the second learns
    for _ in range(2):
        with pytest.raises(SinkError, match=rf"cannot send to 127.0.0.1:{port}: Connection refused|nobody"):
            sink.open()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
        bound.bind((host, port))
        bound.settimeout(5)
        sink.open()
        assert sink.write(many(2)) == 2
        assert [len(bound.recv(65536)) > 0 for _ in range(3)] == [False, True, True]


def test_the_runner_connects_again_says_it_once_and_loses_what_nobody_had_read_at_most() -> None:
    server = socket.create_server(("127.0.0.1", 0))
    address = server.getsockname()
    said: list[bool] = []
    runner = SinkRunner(TcpLinesSink(*address), on_state=lambda _name, is_up, _why: said.append(is_up))
    runner.start()
    connection, _ = server.accept()
    runner.put(many(10))
    with connection.makefile("rb") as stream:
        assert [json.loads(stream.readline())["flow_id"] for _ in range(10)] == list(range(10))
    connection.close()
    server.close()
    runner.put(many(5))
    wait_for(lambda: said == [False])
    server = socket.create_server(address)
    connection, _ = server.accept()
    with connection, server, connection.makefile("rb") as stream:
        assert [json.loads(stream.readline())["flow_id"] for _ in range(5)] == list(range(5))
        wait_for(lambda: said == [False, True])
        assert runner.close()
    assert (runner.counters.put, runner.counters.sent, runner.counters.dropped) == (15, 15, 0)


def wait_for(is_true: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 20
    while not is_true():
        assert time.monotonic() < end_s
        time.sleep(0.01)
