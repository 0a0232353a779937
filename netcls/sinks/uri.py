"""``--output URI``: which sink is meant, and whether everything said of it makes sense.

    -  ·  events.jsonl  ·  file:PATH  ·  unix:PATH  ·  csv:FILE  ·  parquet:DIR  ·  zeek:DIR
    tcp://HOST:PORT  ·  udp://HOST:PORT  ·  ipfix+udp://HOST[:4739]  ·  ipfix+tcp://HOST[:4739]
    kafka://HOST[:9092][,HOST...][/TOPIC]

Settings follow a ``?`` as in any URI: ``parquet:/var/lib/netcls?rows=100000&seconds=60``. A path is taken as it is
written, up to the first ``?``. ``queue_events`` and ``when_full`` are allowed everywhere and are the runner's.

The modules of the sinks are imported when such a sink is made, their libraries when it is opened or made.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, unquote

from capture.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from netcls.sinks.base import Sink

RUNNER_SETTINGS: Final[tuple[str, ...]] = ("queue_events", "when_full")
WHEN_FULL: Final = ("block", "drop_oldest", "drop_newest")

_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(.*)", re.DOTALL)
# As in `sasl.password` and `ssl.key.pem`.
_SECRET: Final = re.compile(r"([?&][^=&]*(?:password|secret|token|\.pem)[^=&]*=)[^&]*", re.IGNORECASE)
_MAX_PORT: Final = 65535
_MAX_URI_CHARACTERS: Final = 4096


@dataclass(frozen=True, slots=True)
class _Kind:
    """What may be said of one kind of sink.

    Attributes:
        factory: ``module:function``, called with a :class:`SinkUri`.
        example: a URI that is right, for error messages.
        settings: names that may stand behind the ``?``.
        default_port: of a HOST without one; 0 where it must be given; None where a path is meant.
        several_hosts: True where a comma joins hosts.
        any_dotted: True where a setting with a dot in its name is passed on to a library that checks it.
    """

    factory: str
    example: str
    settings: tuple[str, ...] = ()
    default_port: int | None = None
    several_hosts: bool = False
    any_dotted: bool = False


_IPFIX_SETTINGS: Final = ("domain", "inline_names", "template_refresh_s")
_FILE_SETTINGS: Final = ("rotate_bytes", "rotate_s", "keep")

_KINDS: Final = {
    "-": _Kind("netcls.sinks.jsonl_file:stdout_from_uri", "-"),
    "file": _Kind("netcls.sinks.jsonl_file:from_uri", "file:events.jsonl", _FILE_SETTINGS),
    "unix": _Kind("netcls.sinks.unix_socket:from_uri", "unix:/run/netcls/events.sock"),
    "csv": _Kind("netcls.sinks.csv_file:from_uri", "csv:events.csv"),
    "parquet": _Kind("netcls.sinks.parquet_files:from_uri", "parquet:DIR", ("rows", "seconds")),
    "zeek": _Kind("netcls.sinks.zeek_log:from_uri", "zeek:DIR", ("format",)),
    "tcp": _Kind("netcls.sinks.network_lines:tcp_from_uri", "tcp://logs.example:5170", (), 0),
    "udp": _Kind("netcls.sinks.network_lines:udp_from_uri", "udp://logs.example:5170", (), 0),
    "ipfix+udp": _Kind(
        "netcls.sinks.ipfix:udp_from_uri", "ipfix+udp://collector.example:4739", _IPFIX_SETTINGS, 4739
    ),
    "ipfix+tcp": _Kind(
        "netcls.sinks.ipfix:tcp_from_uri",
        "ipfix+tcp://collector.example:4739",
        tuple(name for name in _IPFIX_SETTINGS if name != "template_refresh_s"),
        4739,
    ),
    "kafka": _Kind(
        "netcls.sinks.kafka:from_uri", "kafka://broker.example:9092/netcls.events", ("key",), 9092, True, True
    ),
}


@dataclass(frozen=True, slots=True)
class SinkUri:
    """A URI that was understood.

    Attributes:
        text: as the operator wrote it.
        scheme: ``-``, or what stands before the colon, lower case; ``file`` for a bare name.
        path: of a file, folder or socket; of a network address what follows the host, without its ``/``.
        hosts: (name, port) of a network address; else empty.
        settings: of the sink.
        runner_settings: of its queue, see :data:`RUNNER_SETTINGS`.
    """

    text: str
    scheme: str
    path: str
    hosts: tuple[tuple[str, int], ...] = ()
    settings: dict[str, str] = field(default_factory=dict)
    runner_settings: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of its sink, for counters and logs, where no other has it."""
        return {"-": "stdout"}.get(self.scheme, self.scheme.replace("+", "_"))

    def sink(self, name: str | None = None) -> Sink:
        """The sink, not opened yet.

        Args:
            name: other than :attr:`name`.

        Raises:
            UsageError: for a setting with a wrong value, or where the sink's library is missing.
        """
        module, _, factory = _KINDS[self.scheme].factory.partition(":")
        make: Callable[[SinkUri], Sink] = getattr(importlib.import_module(module), factory)
        sink = make(self)
        sink.name = name or self.name
        return sink

    def whole_number(self, name: str, default: int, least: int, most: int) -> int:
        """The value of a setting that is a whole number.

        Raises:
            UsageError: if it is none, or is not from ``least`` to ``most``.
        """
        return self._whole_number(self.settings, name, default, least, most)

    def _whole_number(self, settings: dict[str, str], name: str, default: int, least: int, most: int) -> int:
        text = settings.get(name, str(default))
        if not (text.isascii() and text.isdigit() and len(text) < 20 and least <= int(text) <= most):
            raise self.wrong(f"{name}={text!r}, expected a whole number from {least} to {most}")
        return int(text)

    def queue_events(self, default: int) -> int:
        """How many events its queue holds.

        Raises:
            UsageError: if that is no whole number from 1 to 10,000,000.
        """
        return self._whole_number(self.runner_settings, "queue_events", default, 1, 10_000_000)

    def when_full(self, default: str) -> str:
        """What happens when its queue is full, one of :data:`WHEN_FULL`.

        Raises:
            UsageError: if it is none of them.
        """
        return self._choice(self.runner_settings, "when_full", WHEN_FULL, default)

    def choice(self, name: str, options: tuple[str, ...]) -> str:
        """The value of a setting that is one of several words, the first where it is not given.

        Raises:
            UsageError: if it is none of them.
        """
        return self._choice(self.settings, name, options, options[0])

    def _choice(self, settings: dict[str, str], name: str, options: tuple[str, ...], default: str) -> str:
        word = settings.get(name, default)
        if word not in options:
            raise self.wrong(
                f"{name}={word!r}, expected one of {', '.join(options)}{did_you_mean(word, options)}"
            )
        return word

    def flag(self, name: str) -> bool:
        """The value of a setting that is ``true`` or ``false``; false where it is not given.

        Raises:
            UsageError: if it is neither.
        """
        return self.choice(name, ("false", "true")) == "true"

    def wrong(self, what: str) -> UsageError:
        """The error that says what is wrong with this URI."""
        return _wrong(self.text, what)


def parse_uri(text: str) -> SinkUri:
    """Understand ``--output``.

    Raises:
        UsageError: one line: what was got, what was expected.
    """
    if not text or "\0" in text or len(text) > _MAX_URI_CHARACTERS:
        raise _wrong(text[:40], "expected a file name, a URI or -")
    if text == "-":
        return SinkUri(text, "-", "")
    match = _SCHEME.fullmatch(text)
    if match is None:
        return SinkUri(text, "file", text)
    scheme, rest = match[1].lower(), match[2]
    kind = _KINDS.get(scheme)
    if kind is None:
        raise _wrong(
            text,
            f"unknown '{match[1]}:', expected {', '.join(f'{name}:' for name in _KINDS if name != '-')} or -"
            + (did_you_mean(scheme, _KINDS) or f"; a file of that name is ./{text}"),
        )
    rest, _, query = rest.partition("?")
    settings = _settings(text, query, kind)
    runner = {name: settings.pop(name) for name in RUNNER_SETTINGS if name in settings}
    if kind.default_port is None:
        path = rest.removeprefix("//")
        if not path:
            raise _wrong(text, f"names no file or folder, expected for example {kind.example}")
        return SinkUri(text, scheme, path, (), settings, runner)
    if not rest.startswith("//"):
        raise _wrong(text, f"expected {scheme}:// and a host, for example {kind.example}")
    authority, _, path = rest[2:].partition("/")
    if path and not kind.several_hosts:
        raise _wrong(text, f"has a path '/{path}', expected only a host, for example {kind.example}")
    hosts = authority.split(",") if kind.several_hosts else [authority]
    return SinkUri(
        text, scheme, unquote(path), tuple(_host(text, host, kind) for host in hosts), settings, runner
    )


def _settings(text: str, query: str, kind: _Kind) -> dict[str, str]:
    if not query:
        return {}
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True, max_num_fields=100)
    except ValueError:
        raise _wrong(text, f"cannot read '?{query}', expected ?NAME=VALUE&NAME=VALUE") from None
    settings: dict[str, str] = {}
    known = (*kind.settings, *RUNNER_SETTINGS)
    for name, value in pairs:
        if name in settings:
            raise _wrong(text, f"says '{name}' twice, expected it once")
        if name not in known and not (kind.any_dotted and "." in name):
            raise _wrong(
                text,
                f"unknown setting '{name}', expected {', '.join(known)}"
                + (" or a setting of librdkafka" if kind.any_dotted else "")
                + did_you_mean(name, known),
            )
        settings[name] = value
    return settings


def _host(text: str, authority: str, kind: _Kind) -> tuple[str, int]:
    """``host:port``, ``[2001:db8::1]:port``, or without the port."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s:@\[\]/]+))(?::([0-9]{1,5}))?", authority)
    if match is None:
        raise _wrong(text, f"'{authority}' is no HOST:PORT, expected for example {kind.example}")
    port = int(match[3]) if match[3] else kind.default_port or 0
    if not 0 < port <= _MAX_PORT:
        got = f"port {port}" if match[3] else "no port"
        raise _wrong(text, f"has {got}, expected one from 1 to {_MAX_PORT}, for example {kind.example}")
    return match[1] or match[2], port


def without_secrets(text: str) -> str:
    """The URI as logs and errors may show it."""
    return _SECRET.sub(r"\1...", text)


def _wrong(text: str, what: str) -> UsageError:
    return UsageError(f"--output {without_secrets(text)!r}: {what}")
