"""Lines reach a Kafka topic with their key; brokers that go away lose nothing that librdkafka holds.

The brokers are librdkafka's own mock cluster, in this process.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from capture.errors import UsageError
from netcls.sinks.base import SinkError
from netcls.sinks.kafka import KafkaSink
from netcls.sinks.runner import SinkRunner
from netcls.sinks.uri import parse_uri
from tests.unit.netcls.sinks.told import many, one, stats

confluent_kafka = pytest.importorskip("confluent_kafka")

FAST = (
    "linger.ms=1&reconnect.backoff.ms=20&reconnect.backoff.max.ms=50&topic.metadata.refresh.interval.ms=500"
)
WAIT_S = 20.0


def cluster() -> tuple[Any, int]:
    """A mock cluster that lives as long as the producer it belongs to, and its port."""
    producer = confluent_kafka.Producer(
        {"bootstrap.servers": "ignored", "test.mock.num.brokers": 1, "log_level": 0}
    )
    (broker,) = producer.list_topics(timeout=10).brokers.values()
    return producer, broker.port


class Front:
    """A broker's address that stays while the cluster behind it changes: forwards, and renames the port in replies."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self.backend: int | None = None
        self._open: list[socket.socket] = []
        self._closed = False
        threading.Thread(target=self._accept, daemon=True).start()

    def go_away(self) -> None:
        self.backend = None
        for connection in self._open:
            _shut(connection)
        self._open.clear()

    def close(self) -> None:
        self._closed = True
        self.go_away()
        _shut(self._server)
        self._server.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            port = self.backend
            if port is None:
                client.close()
                continue
            server = socket.create_connection(("127.0.0.1", port))
            self._open += [client, server]
            old, new = port.to_bytes(4, "big"), self.port.to_bytes(4, "big")
            threading.Thread(target=_copy, args=(client, server, b"", b""), daemon=True).start()
            threading.Thread(target=_copy, args=(server, client, old, new), daemon=True).start()


def _copy(source: socket.socket, target: socket.socket, old: bytes, new: bytes) -> None:
    try:
        while data := source.recv(1 << 20):
            target.sendall(data.replace(b"127.0.0.1" + old, b"127.0.0.1" + new) if old else data)
    except OSError:
        pass
    for connection in (source, target):
        _shut(connection)
        connection.close()


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return


@pytest.fixture(scope="module")
def brokers() -> Iterator[int]:
    producer, port = cluster()
    yield port
    del producer


def sink_of(uri: str) -> KafkaSink:
    sink = parse_uri(uri).sink()
    assert isinstance(sink, KafkaSink)
    return sink


def consumed(port: int, topic: str, n: int) -> list[Any]:
    consumer = confluent_kafka.Consumer(
        {"bootstrap.servers": f"127.0.0.1:{port}", "group.id": "test", "auto.offset.reset": "earliest"}
    )
    consumer.assign([confluent_kafka.TopicPartition(topic, p, 0) for p in range(4)])
    messages: list[Any] = []
    end_s = time.monotonic() + WAIT_S
    while len(messages) < n and time.monotonic() < end_s:
        messages += [m for m in consumer.consume(n - len(messages), timeout=0.5) if m.error() is None]
    consumer.close()
    return messages


def test_a_value_is_the_line_and_the_key_joins_both_directions(brokers: int) -> None:
    sink = sink_of(f"kafka://127.0.0.1:{brokers}/netcls.test?{FAST}")
    sink.open()
    batch = [*many(200), *stats()]
    assert sink.write(batch) == 201
    sink.close()
    assert (sink.n_delivered, sink.n_failed) == (201, 0)
    messages = consumed(brokers, "netcls.test", 201)
    assert sorted(json.loads(m.value()).get("flow_id", -1) for m in messages) == [-1, *range(200)]
    assert {m.headers()[0] for m in messages} == {("v", b"1")}
    keys = {m.key() for m in messages if b'"netcls","' in m.value() or b'"event_type":"netcls"' in m.value()}
    assert keys == {b"1:LVFcLGgiant8VSOwvi6BkCZv22Q="}
    assert [m.key() for m in messages if b'"event_type":"stats"' in m.value()] == [None]
    assert {m.value() for m in messages} == {told.line.rstrip(b"\n") for told in batch}


@pytest.mark.parametrize(("key", "expected"), [("host", socket.gethostname().encode()), ("none", None)])
def test_the_key_can_be_chosen(brokers: int, key: str, expected: bytes | None) -> None:
    sink = sink_of(f"kafka://127.0.0.1:{brokers}/key.{key}?key={key}&{FAST}")
    sink.open()
    sink.write(one())
    sink.close()
    assert [m.key() for m in consumed(brokers, f"key.{key}", 1)] == [expected]


def test_a_broker_that_goes_away_and_returns_is_told_once_and_nothing_is_lost() -> None:
    front = Front()
    old, front.backend = cluster()
    sink = sink_of(f"kafka://127.0.0.1:{front.port}/outage?{FAST}&queue.buffering.max.messages=10")
    sink.open()
    assert sink.write(many(3)) == 3
    wait_for(lambda: (sink.flush(), sink.n_delivered)[1] == 3)
    front.go_away()
    del old
    batch = many(50)
    n_taken = taken_until_down(sink, batch)
    assert n_taken <= 10, "librdkafka's queue is bounded"
    sink.close()  # as the runner does after a failure
    with pytest.raises(SinkError, match="cannot send to kafka://"):
        sink.open()
    sink.close()
    new, front.backend = cluster()
    returned_s = time.monotonic()
    wait_for(lambda: opened(sink))
    while n_taken < len(batch):
        n_taken += sink.write(batch[n_taken:])
    sink.close()
    assert (sink.n_delivered, sink.n_failed) == (53, 0)
    assert time.monotonic() - returned_s < 15
    seen = [json.loads(m.value())["flow_id"] for m in consumed(front.backend, "outage", 50)]
    assert sorted(seen) == list(range(50))
    front.close()
    del new


def test_the_runner_says_once_that_brokers_went_and_once_that_they_are_back() -> None:
    front = Front()
    old, front.backend = cluster()
    sink = sink_of(f"kafka://127.0.0.1:{front.port}/runner?{FAST}")
    said: list[bool] = []
    runner = SinkRunner(sink, when_full="block", on_state=lambda _name, is_up, _why: said.append(is_up))
    runner.start()
    batch = many(30)
    runner.put(batch[:10])
    wait_for(lambda: sink.n_delivered == 10)
    front.go_away()
    del old
    for told in batch[10:20]:  # so that something is to be sent while nobody is there
        runner.put([told])
        time.sleep(0.02)
    wait_for(lambda: said == [False])
    runner.put(batch[20:])
    new, front.backend = cluster()
    returned_s = time.monotonic()
    wait_for(lambda: sink.n_delivered == 30)
    assert (
        time.monotonic() - returned_s < 10
    )  # 5 s of the requirement, and as much for a machine that is busy
    assert said == [False, True]
    assert runner.close()
    assert (runner.counters.sent, runner.counters.dropped, runner.n_undelivered) == (30, 0, 0)
    assert len(consumed(front.backend, "runner", 20)) == 20
    front.close()
    del new


def test_what_is_never_delivered_is_counted_as_failed() -> None:
    front = Front()
    old, front.backend = cluster()
    sink = sink_of(f"kafka://127.0.0.1:{front.port}/lost?{FAST}")
    sink.open()
    front.go_away()
    n_taken = taken_until_down(sink, many(5))
    sink.close()
    from netcls.sinks import kafka

    before, kafka._CLOSE_TIMEOUT_S = kafka._CLOSE_TIMEOUT_S, 0.2  # type: ignore[misc]
    try:
        sink.close()
    finally:
        kafka._CLOSE_TIMEOUT_S = before  # type: ignore[misc]
    assert (sink.n_delivered, sink.n_failed) == (0, n_taken)
    front.close()
    del old


def test_nobody_there_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    sink = sink_of(f"kafka://127.0.0.1:{port}/x?{FAST}")
    with pytest.raises(SinkError, match=rf"cannot send to kafka://127.0.0.1:{port}: ") as caught:
        sink.open()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("kafka://h/t?compresion.type=zstd", "No such configuration property: .compresion.type"),
        ("kafka://h/t?compression.type=brotli", "compression.type"),
        ("kafka://h/t?bootstrap.servers=x", "'bootstrap.servers' cannot be set here"),
        ("kafka://h/t?plugin.library.paths=/tmp/x.so", "'plugin.library.paths' cannot be set here"),
        ("kafka://h/a%20b", "topic 'a b', expected letters"),
        ("kafka://h/t?key=flow", "key='flow', expected one of community_id, host, none"),
    ],
)
def test_a_setting_that_cannot_be_is_one_line(uri: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        parse_uri(uri).sink()
    assert "\n" not in str(caught.value)


def test_without_the_library_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "confluent_kafka", None)
    with pytest.raises(UsageError, match=r"not installed; pip install 'netcls\[kafka\]'"):
        parse_uri("kafka://h/t").sink()


def taken_until_down(sink: KafkaSink, batch: list[Any]) -> int:
    """Offer a batch until the sink says that nobody is there."""
    n_taken = 0
    end_s = time.monotonic() + WAIT_S
    while time.monotonic() < end_s:
        try:
            n_taken += sink.write(batch[n_taken:])
        except SinkError:
            return n_taken
        time.sleep(0.02)
    raise AssertionError("the sink never noticed")


def opened(sink: KafkaSink) -> bool:
    try:
        sink.open()
    except SinkError:
        return False
    return True


def wait_for(is_true: Any) -> None:
    end_s = time.monotonic() + WAIT_S
    while not is_true():
        assert time.monotonic() < end_s
        time.sleep(0.02)
