"""A URI gives the sink that it names, or one line that says what was expected."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.errors import UsageError
from netcls.sinks.csv_file import CsvFileSink
from netcls.sinks.parquet_files import ParquetFilesSink
from netcls.sinks.uri import SinkUri, parse_uri
from netcls.sinks.zeek_log import ZeekLogSink


@pytest.mark.parametrize(
    ("text", "scheme", "path", "hosts"),
    [
        ("-", "-", "", ()),
        ("events.jsonl", "file", "events.jsonl", ()),
        ("/var/log/a:b", "file", "/var/log/a:b", ()),
        ("./a:b", "file", "./a:b", ()),
        ("file:events.jsonl", "file", "events.jsonl", ()),
        ("file:///var/log/x", "file", "/var/log/x", ()),
        ("FILE:x", "file", "x", ()),
        ("unix:/run/netcls/events.sock", "unix", "/run/netcls/events.sock", ()),
        ("csv:a b.csv", "csv", "a b.csv", ()),
        ("tcp://h:1", "tcp", "", (("h", 1),)),
        ("udp://[2001:db8::1]:65535", "udp", "", (("2001:db8::1", 65535),)),
        ("ipfix+udp://10.0.0.1", "ipfix+udp", "", (("10.0.0.1", 4739),)),
        ("ipfix+tcp://c:9995", "ipfix+tcp", "", (("c", 9995),)),
        ("kafka://a", "kafka", "", (("a", 9092),)),
        ("kafka://a:1,b/my.topic", "kafka", "my.topic", (("a", 1), ("b", 9092))),
    ],
)
def test_a_uri_is_understood(text: str, scheme: str, path: str, hosts: tuple[tuple[str, int], ...]) -> None:
    uri = parse_uri(text)
    assert (uri.scheme, uri.path, uri.hosts) == (scheme, path, hosts)


def test_settings_are_those_of_the_sink_and_those_of_its_queue() -> None:
    uri = parse_uri("parquet:/x?rows=7&when_full=block&queue_events=100")
    assert uri.settings == {"rows": "7"}
    assert uri.runner_settings == {"when_full": "block", "queue_events": "100"}


def test_what_librdkafka_knows_passes_through() -> None:
    uri = parse_uri("kafka://h/t?key=none&compression.type=zstd&ssl.ca.location=/etc/x%20y")
    assert uri.settings == {"key": "none", "compression.type": "zstd", "ssl.ca.location": "/etc/x y"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected a file name, a URI or -"),
        ("kafak://h/t", "unknown 'kafak:', expected file:, unix:, csv:.*; did you mean 'kafka'"),
        ("q9:x", r"unknown 'q9:'.*; a file of that name is \./q9:x"),
        ("zeek:", "names no file or folder, expected for example zeek:DIR"),
        ("tcp:h:1", "expected tcp:// and a host, for example tcp://logs.example:5170"),
        ("tcp://h", "has no port, expected one from 1 to 65535"),
        ("udp://h:0", "has port 0, expected one from 1 to 65535"),
        ("udp://h:70000", "has port 70000"),
        ("udp://:5", "':5' is no HOST:PORT"),
        ("udp://user@h:5", "'user@h:5' is no HOST:PORT"),
        ("udp://h:5/x", "has a path '/x', expected only a host"),
        ("kafka://h,,i/t", "'' is no HOST:PORT"),
        ("parquet:x?rows=1&rows=2", "says 'rows' twice"),
        ("parquet:x?row=1", "unknown setting 'row', expected rows, seconds, .*; did you mean 'rows'"),
        ("parquet:x?compression.type=zstd", "unknown setting 'compression.type'"),
        ("kafka://h/t?kye=none", "unknown setting 'kye', .* or a setting of librdkafka; did you mean 'key'"),
        ("parquet:x?rows", r"cannot read '\?rows', expected \?NAME=VALUE"),
        ("parquet:x?rows=0", "rows='0', expected a whole number from 1 to 100000000"),
        ("parquet:x?rows=-3", "rows='-3', expected a whole number"),
        ("zeek:x?format=tvs", "format='tvs', expected one of json, tsv; did you mean 'tsv'"),
        ("x\0y", "expected a file name"),
    ],
)
def test_a_mistake_is_one_line(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        parse_uri(text).sink()
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("--output ")


def test_a_password_is_in_no_error() -> None:
    with pytest.raises(UsageError, match=r"\?sasl.password=\.\.\.&kye=1'") as caught:
        parse_uri("kafka://h/t?sasl.password=hunter2&kye=1")
    assert "hunter2" not in str(caught.value)


def test_a_sink_is_of_the_kind_that_its_uri_names(tmp_path: Path) -> None:
    sinks = [parse_uri(f"{scheme}:{tmp_path}/x").sink() for scheme in ("csv", "zeek", "parquet")]
    assert [type(sink) for sink in sinks] == [CsvFileSink, ZeekLogSink, ParquetFilesSink]
    assert [sink.name for sink in sinks] == ["csv", "zeek", "parquet"]
    assert parse_uri(f"csv:{tmp_path}/x").sink("csv-2").name == "csv-2"


@given(st.text())
def test_any_text_is_a_uri_or_one_mistake(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert isinstance(parse_uri(text), SinkUri)
