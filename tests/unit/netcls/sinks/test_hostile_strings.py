"""S3: whatever stands in a label, a server name, a file or interface name: each sink writes one valid record."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from capture.handshake import Handshake
from netcls.event import events_of
from netcls.event_batch import EventBatch
from netcls.flat import column_names
from netcls.formats import _FORMULA_STARTS
from netcls.sinks.base import Told
from netcls.sinks.ipfix import IpfixSink
from netcls.sinks.ipfix_messages import fixed_text
from netcls.sinks.uri import parse_uri
from netcls.sinks.zeek_log import zeek_fields
from tests.reference.ipfix import Collector, text
from tests.unit.netcls.batches import MODEL, classified, record
from tests.unit.netcls.sinks.test_ipfix import PeerInMemory
from tests.unit.netcls.sinks.told import told

N_STRINGS = 500
SEED = 3
PIECES = [
    "\n", "\r\n", "\x1b[31m", "\x1b]0;title\x07", "\x9b2J", "\x00", "\t", "|", ",", '"', "'", "\\", "\\x1b",
    "\x7f", "\x85", "<script>alert(1)</script>", "=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "-", "(empty)",
    "#fields", "#close", "\u202e", "\u2028", "\ufeff", "\U0001f4a3", "é", "%n%s", "${jndi:ldap://x}",
    "'; DROP TABLE x; --", "../../etc/passwd", "null", "NaN", "a" * 300, " ", "",
]  # fmt: skip


@cache
def hostile_strings() -> tuple[str, ...]:
    rng = random.Random(SEED)
    joined = ["".join(rng.choices(PIECES, k=rng.randint(1, 5))) for _ in range(2 * N_STRINGS)]
    return tuple(dict.fromkeys(PIECES + joined))[:N_STRINGS]


def hostile(place: str, string: str, flow_id: int) -> EventBatch:
    model = dataclasses.replace(MODEL, labels=(string if place == "label" else "web", "video"))
    batch = classified(record(flow_id=flow_id), source=string if place in ("file", "interface") else "a.pcap")
    assert batch.answers is not None
    return dataclasses.replace(
        batch,
        answers=dataclasses.replace(batch.answers, model=model),
        is_live=place == "interface",
        handshakes=[Handshake(sni=string, alpn=(string,))] if place == "name" else None,
    )


PLACES = ["label", "name", "file", "interface"]


@cache
def events(place: str) -> tuple[Told, ...]:
    return tuple(told(*(hostile(place, s, number) for number, s in enumerate(hostile_strings()))))


def written(place: str, uri: str) -> None:
    sink = parse_uri(uri).sink()
    sink.open()
    assert sink.write(events(place)) == N_STRINGS
    sink.close()


def expected(place: str) -> list[Any]:
    pick = {
        "label": lambda e: e.netcls.label,
        "name": lambda e: e.netcls.sni or None,
        "file": lambda e: e.pcap_filename,
        "interface": lambda e: e.in_iface,
    }[place]
    return [pick(t.event) for t in events(place)]


COLUMN = {"label": "netcls_label", "name": "netcls_sni", "file": "pcap_filename", "interface": "in_iface"}


def test_there_are_as_many_strings_as_promised() -> None:
    assert len(hostile_strings()) == N_STRINGS


@pytest.mark.parametrize("place", PLACES)
def test_lines_are_one_object_each(place: str) -> None:
    for number, one in enumerate(events(place)):
        assert one.line.count(b"\n") == 1
        assert not {0x1B, 0x0D, 0x00} & set(one.line)
        assert json.loads(one.line)["flow_id"] == number


@pytest.mark.parametrize("place", PLACES)
def test_a_csv_row_is_one_line_and_no_cell_a_formula(place: str, tmp_path: Path) -> None:
    written(place, f"csv:{tmp_path}/x")
    data = (tmp_path / "x").read_bytes()
    assert data.count(b"\r\n") == data.count(b"\n") == data.count(b"\r") == N_STRINGS + 1
    assert b"\x1b" not in data
    rows = list(csv.reader(io.StringIO(data.decode(), newline="")))
    assert {len(row) for row in rows} == {len(column_names())}
    assert not [cell for row in rows[1:] for cell in row if cell.startswith(_FORMULA_STARTS)]
    at = column_names().index("flow_id")
    assert [row[at] for row in rows[1:]] == [str(i) for i in range(N_STRINGS)]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("form", ["json", "tsv"])
def test_a_line_of_zeeks_log_has_no_column_more(place: str, form: str, tmp_path: Path) -> None:
    written(place, f"zeek:{tmp_path}/z?format={form}")
    data = (tmp_path / "z" / "netcls.log").read_bytes()
    assert not {0x1B, 0x0D, 0x00} & set(data)
    lines = data.decode().split("\n")[:-1]
    if form == "json":
        labels = [json.loads(line)["label"] for line in lines]
        assert labels == [zeek_fields(t.event)["label"] for t in events(place)]  # type: ignore[arg-type]
        return
    assert len(lines) == N_STRINGS + 7
    rows = [line.split("\t") for line in lines[7:]]
    assert {len(row) for row in rows} == {12}
    assert not [row for row in rows if row[0].startswith("#")]
    assert not [row[8] for row in rows if row[8] in ("", "-")]


@pytest.mark.parametrize("place", PLACES)
def test_parquet_keeps_the_string_itself(place: str, tmp_path: Path) -> None:
    written(place, f"parquet:{tmp_path}/p")
    (file,) = (tmp_path / "p").iterdir()
    table = parquet.read_table(file)
    assert table["flow_id"].to_pylist() == list(range(N_STRINGS))
    assert table[COLUMN[place]].to_pylist() == expected(place)


def test_an_ipfix_name_has_its_fixed_length_and_nothing_that_a_terminal_obeys() -> None:
    peer, collector = PeerInMemory(), Collector()
    sink = IpfixSink(peer, is_udp=True, inline_names=True)
    assert sink.write(events("label")) == N_STRINGS
    del sink
    peer.sent.insert(0, _templates())
    records = [r for data in peer.sent for r in collector.decode(data).records]
    flows = [r for r in records if not r["is_option"]]
    names = [text(flow, "96") for flow in flows]
    assert names == [fixed_text(s, 24).rstrip(b"\0").decode() for s in hostile_strings()]
    assert not [name for name in names if {"\x1b", "\n", "\r"} & set(name)]
    # Two labels never share a number, however much of their names is cut.
    told_names = {r["95"]: text(r, "94") for r in records if r["is_option"]}
    assert len(told_names) == N_STRINGS - 1  # one of them is empty: no label


def _templates() -> bytes:
    peer = PeerInMemory()
    IpfixSink(peer, is_udp=True, inline_names=True).open()
    return peer.sent[0]


def test_a_file_name_that_is_no_text_is_made_one() -> None:
    (event,) = events_of(classified(source="\udcff\udc80.pcap"))
    assert event.pcap_filename
    str(event.pcap_filename).encode()
