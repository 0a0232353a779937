"""``kafka://HOST/TOPIC``: the lines as values of a Kafka topic, by librdkafka.

A line is taken when librdkafka has it in its own bounded queue; its delivery report comes later, and ``n_delivered``
and ``n_failed`` count those. While no broker can be reached nothing more is taken, and what librdkafka holds is kept
for its ``message.timeout.ms`` (5 minutes unless set).
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from capture.errors import UsageError
from netcls.event import SCHEMA_VERSION, Event
from netcls.sinks.base import SinkError, Told
from netcls.sinks.uri import SinkUri
from netcls.text import printable

if TYPE_CHECKING:
    from confluent_kafka import Producer

DEFAULT_TOPIC: Final = "netcls.events"
KEYS: Final = ("community_id", "host", "none")

_METADATA_TIMEOUT_S: Final = 3.0
_RECHECK_TIMEOUT_S: Final = 1.0
_CLOSE_TIMEOUT_S: Final = 5.0
_MAX_TOPIC_CHARACTERS: Final = 249  # Kafka's own limit
_HEADERS: Final[list[tuple[str, str | bytes | None]]] = [("v", str(SCHEMA_VERSION).encode())]
# Bounded in messages and in memory; whoever sends more a second than this raises them in the URI.
_SETTINGS: Final = {
    "client.id": "netcls",
    "queue.buffering.max.messages": "10000",
    "queue.buffering.max.kbytes": "32768",
    "linger.ms": "50",
}
# What this sink sets itself, or what would call code.
_OURS: Final = frozenset({"bootstrap.servers", "metadata.broker.list", "plugin.library.paths"})


class KafkaSink:
    """Produces to one topic.

    Args:
        brokers: ``host:port`` each.
        topic: of the events.
        key: ``community_id``: both directions and all sensors meet in one partition; ``host``: this host's name;
            ``none``: partitions in turn. Counters have no community id and so no key.
        settings: of librdkafka; they beat ours.

    Attributes:
        n_delivered: lines that a broker confirmed.
        n_failed: lines that librdkafka gave up after they were taken.

    Raises:
        UsageError: for a setting that librdkafka refuses, or without confluent-kafka.
    """

    def __init__(self, brokers: list[str], topic: str, key: str, settings: dict[str, str]) -> None:
        self.name = "kafka"
        self.n_delivered = 0
        self.n_failed = 0
        self._brokers = ",".join(brokers)
        self._topic = topic
        self._key = key
        self._host = socket.gethostname().encode()
        self._is_open = False
        self._is_down = False
        self._last_failure = ""
        self._producer = self._made(settings)

    def open(self) -> None:
        """See the contract. What librdkafka still holds from before stays there and is sent."""
        self._is_open = True
        self._producer.poll(0)
        self._ask(_METADATA_TIMEOUT_S)

    def write(self, batch: Sequence[Told]) -> int:
        """See the contract. Fewer are taken where librdkafka's queue is full."""
        from confluent_kafka import KafkaException

        self._producer.poll(0)
        if self._is_down:
            # Or only the one connection was closed for being idle.
            self._ask(_RECHECK_TIMEOUT_S)
        for n_taken, told in enumerate(batch):
            try:
                self._producer.produce(
                    self._topic,
                    told.line.rstrip(b"\n"),
                    self._key_of(told),
                    headers=_HEADERS,
                    on_delivery=self._report,
                )
            except BufferError:
                self._producer.poll(0.1)
                return n_taken
            except KafkaException as error:
                # A line that is larger than a message may be: it will never be taken.
                self.n_failed += 1
                self._last_failure = error.args[0].str()
        self._producer.poll(0)
        return len(batch)

    def flush(self) -> None:
        """Take delivery reports."""
        self._producer.poll(0)

    def reopen(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Wait a bounded time for what librdkafka holds; what is left then counts as failed.

        The first close after brokers went away waits for nothing: the runner opens again, and then it is sent.
        """
        if self._is_down and self._is_open:
            self._is_open = False
            return
        self._is_open = False
        self._producer.flush(_CLOSE_TIMEOUT_S)
        self._producer.purge()
        self._producer.flush(_CLOSE_TIMEOUT_S)

    def _ask(self, timeout_s: float) -> None:
        """Ask for the topic; afterwards the brokers are up.

        Raises:
            SinkError: if none answers.
        """
        from confluent_kafka import KafkaException

        try:
            self._producer.list_topics(self._topic, timeout=timeout_s)
        except KafkaException as error:
            self._is_down = True
            raise self._unreachable(error.args[0].str()) from None
        # Reports and errors of before are taken first.
        self._producer.poll(0)
        self._is_down = False

    def _key_of(self, told: Told) -> bytes | None:
        if self._key == "host":
            return self._host
        if self._key == "community_id" and isinstance(told.event, Event):
            return told.event.community_id.encode()
        return None

    def _made(self, settings: dict[str, str]) -> Producer:
        try:
            from confluent_kafka import KafkaException, Producer
        except ImportError:
            raise UsageError(
                "Kafka needs confluent-kafka, which is not installed; pip install 'netcls[kafka]'"
            ) from None
        config: dict[str, Any] = _SETTINGS | settings
        config |= {"bootstrap.servers": self._brokers, "error_cb": self._error, "logger": _Silence()}
        try:
            return Producer(config)
        except KafkaException as error:
            raise UsageError(f"kafka://{self._brokers}: {printable(error.args[0].str())}") from None

    def _report(self, error: Any, _message: Any) -> None:
        if error is None:
            self.n_delivered += 1
            self._is_down = False
        else:
            self.n_failed += 1
            self._last_failure = error.str()

    def _error(self, error: Any) -> None:
        from confluent_kafka import KafkaError

        self._last_failure = error.str()
        if error.code() == KafkaError._ALL_BROKERS_DOWN or error.fatal():
            self._is_down = True

    def _unreachable(self, why: str) -> SinkError:
        return SinkError(f"cannot send to kafka://{self._brokers}: {printable(self._last_failure or why)}")


class _Silence:
    """librdkafka logs each failed connection; the runner says it once."""

    def log(self, *_args: Any, **_kwargs: Any) -> None:
        """Drop the line."""

    def isEnabledFor(self, _level: int) -> bool:  # noqa: N802 - logging's name
        """No level is wanted."""
        return False


def from_uri(uri: SinkUri) -> KafkaSink:
    """The sink of ``kafka://HOST/TOPIC``.

    Raises:
        UsageError: see :class:`KafkaSink`.
    """
    topic = uri.path or DEFAULT_TOPIC
    is_name = topic.isascii() and topic.replace(".", "a").replace("_", "a").replace("-", "a").isalnum()
    if not is_name or len(topic) > _MAX_TOPIC_CHARACTERS or topic in (".", ".."):
        raise uri.wrong(f"topic {topic!r}, expected letters, digits, '.', '_' and '-'")
    settings = {name: value for name, value in uri.settings.items() if "." in name}
    for name in settings.keys() & _OURS:
        raise uri.wrong(f"'{name}' cannot be set here, brokers stand before the topic")
    brokers = [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in uri.hosts]
    try:
        return KafkaSink(brokers, topic, uri.choice("key", KEYS), settings)
    except UsageError as error:
        raise uri.wrong(str(error)) from None
