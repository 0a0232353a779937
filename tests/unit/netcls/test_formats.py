"""The same flows in every format, whatever stands in their strings."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from netcls import formats
from netcls.event import as_dict, encode_line, events_of, stats_event
from netcls.event_batch import EventBatch
from netcls.flat import column_names, flat_row
from netcls.formats import csv_text, event_writer
from netcls.output import Output
from netcls.summary import SummaryWriter
from netcls.table import books_lines, table_text
from netcls.text import printable
from tests.unit.netcls.batches import START_NS, classified, record, unclassified


def written(name: str, target: Path, *batches: EventBatch, has_labels: bool = True) -> bytes:
    with Output(str(target)) as output:
        writer = event_writer(name, output, has_labels=has_labels)
        for batch in batches:
            writer.write(batch)
        writer.finish()
    return target.read_bytes()


def summed(name: str, target: Path, *batches: EventBatch) -> bytes:
    with Output(str(target)) as output:
        writer = SummaryWriter(name, output)
        for batch in batches:
            writer.write(batch)
        writer.finish()
    return target.read_bytes()


BATCH = classified(
    record(vlan=(10, 20), quality=3), record(protocol=1, client_port=8, server_port=0), n_top=2
)


def test_jsonl_is_one_event_a_line(tmp_path: Path) -> None:
    lines = written("jsonl", tmp_path / "x", BATCH, unclassified()).splitlines()
    assert [json.loads(line)["event_type"] for line in lines] == ["netcls", "netcls", "flow"]


def test_stats_are_the_last_line_of_jsonl(tmp_path: Path) -> None:
    stats = stats_event({"netcls": {"packets": {"seen": 20}}}, START_NS, {"a.pcap"})
    with Output(str(tmp_path / "x")) as output:
        writer = event_writer("jsonl", output, has_labels=True)
        writer.write(BATCH)
        writer.write_stats(stats)
        writer.finish()
    assert (tmp_path / "x").read_bytes().endswith(b"\n" + encode_line(stats))


def test_csv_has_the_same_columns_whatever_the_flows(tmp_path: Path) -> None:
    headers = {
        written("csv", tmp_path / "x", *batches).split(b"\r\n")[0]
        for batches in ([], [BATCH], [unclassified()], [classified(record(ip_version=6))])
    }
    (header,) = headers
    assert tuple(header.decode().split(",")) == column_names()


def test_csv_cells_are_the_events_values(tmp_path: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(written("csv", tmp_path / "x", BATCH).decode(), newline="")))
    for row, event in zip(rows, events_of(BATCH), strict=True):
        flat = flat_row(as_dict(event))
        for name in column_names():
            value = flat.get(name, "")
            expected = json.dumps(value) if isinstance(value, list | bool) else str(value)
            assert row[name].replace(" ", "") == expected.replace(" ", ""), name
    assert (rows[0]["vlan"], rows[0]["netcls_quality"]) == ("[10,20]", '["midstream","truncated"]')
    assert (rows[0]["netcls_unknown"], rows[1]["icmp_type"], rows[1]["src_port"]) == ("false", "8", "")


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_a_csv_cell_is_never_a_formula(start: str) -> None:
    text = csv_text(["label", "n"], [{"label": f"{start}cmd|' /C calc'!A0", "n": -3}]).decode()
    (row,) = csv.DictReader(io.StringIO(text, newline=""))
    assert row == {"label": f"'{printable(start)}cmd|' /C calc'!A0", "n": "-3"}


def test_parquet_keeps_every_field_and_the_nanoseconds(tmp_path: Path) -> None:
    written("parquet", tmp_path / "x", BATCH, unclassified())
    table = parquet.read_table(tmp_path / "x")
    assert tuple(table.column_names) == column_names()
    rows = table.to_pylist()
    times = ("timestamp", "flow_start", "flow_end")
    events = [*events_of(BATCH), *events_of(unclassified())]
    for row, event in zip(rows, events, strict=True):
        flat = flat_row(as_dict(event))
        for name in set(column_names()) - set(times):
            value, expected = row[name], flat.get(name)
            if name == "netcls_top" and expected:
                assert [(t["label"], pytest.approx(t["probability"])) for t in value] == [
                    (t["label"], t["probability"]) for t in expected
                ]
            else:
                assert value == (pytest.approx(expected) if isinstance(expected, float) else expected), name
    assert table["flow_start"].cast(pa.int64()).to_pylist() == [START_NS] * 3
    assert table["flow_end"].cast(pa.int64()).to_pylist() == [START_NS + 3_999_999_999] * 3
    assert table["timestamp"].cast(pa.int64()).to_pylist()[0] == START_NS + 1_000_000
    assert pa.types.is_dictionary(table.schema.field("netcls_label").type)


def test_parquet_puts_small_batches_together_and_loses_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "_ROW_GROUP_FLOWS", 4)
    written(
        "parquet", tmp_path / "x", *[classified(record(flow_id=i), source=f"{i}.pcap") for i in range(10)]
    )
    file = parquet.ParquetFile(tmp_path / "x")
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [4, 4, 2]
    assert file.read()["flow_id"].to_pylist() == list(range(10))
    assert file.read()["pcap_filename"].to_pylist() == [f"{i}.pcap" for i in range(10)]


def test_parquet_of_no_flows_is_a_table_with_all_columns(tmp_path: Path) -> None:
    written("parquet", tmp_path / "x")
    table = parquet.read_table(tmp_path / "x")
    assert (table.num_rows, tuple(table.column_names)) == (0, column_names())


def test_without_pyarrow_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    from capture.errors import UsageError

    with pytest.raises(
        UsageError, match=r"need pyarrow, which is not installed; pip install 'netcls\[arrow\]'"
    ):
        written("parquet", tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_none_writes_nothing(tmp_path: Path) -> None:
    assert written("none", tmp_path / "x", BATCH) == b""


def test_a_table_is_aligned_text_without_a_terminal(tmp_path: Path) -> None:
    text = written(
        "table", tmp_path / "x", classified(record(), record(server_port=1, packets=(100, 1000)))
    ).decode()
    assert text == (
        "start         proto  client          server         packets  bytes  label  prob  runner-up\n"
        "10:15:02.123  TCP    10.0.0.2:40212  10.0.0.9:8443       20   9411  web    0.94  video 0.04\n"
        "10:15:02.123  TCP    10.0.0.2:40212  10.0.0.9:1        1100   9411  web    0.94  video 0.04\n"
    )


def test_a_table_of_flows_says_how_they_ended(tmp_path: Path) -> None:
    header, row = written("table", tmp_path / "x", unclassified(), has_labels=False).decode().splitlines()
    assert header.split()[-2:] == ["s", "end"]
    assert row.split()[-2:] == ["3", "end_detected"]


def test_a_long_table_is_written_in_pages_that_lose_no_row(tmp_path: Path) -> None:
    batches = [unclassified(*[record()] * 700)] * 3
    lines = written("table", tmp_path / "x", *batches, has_labels=False).decode().splitlines()
    assert sum(line.startswith("10:15") for line in lines) == 2100
    assert sum(line.startswith("start") for line in lines) == 3


@pytest.mark.parametrize("on_terminal", [False, True])
def test_a_hostile_label_never_steers_the_terminal(
    on_terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    hostile = "a\x1b[31m\n\x9b2J\u202e[bold]x[/bold]:smile:"
    text = table_text(["label"], [[hostile]], on_terminal=on_terminal)
    # What rich itself sends for a bold header is the only sequence allowed.
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", re.sub(r"\x1b\[[01]m", "", text))
    assert r"a\x1b[31m\n\x9b2J\u202e[bold]x[/bold]:smile:" in text


def test_colour_is_left_out_when_NO_COLOR_is_set(monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: N802
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[36m" in table_text(["label"], [["web"]], on_terminal=True)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[36m" not in table_text(["label"], [["web"]], on_terminal=True)


@given(st.text())
def test_printable_text_has_no_control_characters_and_can_be_encoded(text: str) -> None:
    clean = printable(text)
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]", clean)
    clean.encode()


def test_printable_leaves_ordinary_text_alone() -> None:
    assert printable("Vidéo 视频 [x] \\n") == "Vidéo 视频 [x] \\n"


SUMMARY = [
    {"label": "web", "flows": 2, "packets": 40, "bytes": 18822},
    {"label": "unknown", "flows": 1, "packets": 20, "bytes": 9411},
    {"label": "video", "flows": 1, "packets": 20, "bytes": 9411},
]
SUMMED = (
    classified(record(), record(), label_index=np.array([0, 1], np.int32)),
    classified(record(), record(), unknown=np.array([False, True])),
)


def test_a_summary_adds_up_each_label_with_most_flows_first(tmp_path: Path) -> None:
    lines = summed("jsonl", tmp_path / "x", *SUMMED).splitlines()
    assert [json.loads(line) for line in lines] == [{"event_type": "summary"} | row for row in SUMMARY]


def test_a_summary_is_the_same_in_every_format(tmp_path: Path) -> None:
    text = summed("csv", tmp_path / "x", *SUMMED).decode()
    assert list(csv.DictReader(io.StringIO(text))) == [{k: str(v) for k, v in row.items()} for row in SUMMARY]
    summed("parquet", tmp_path / "y", *SUMMED)
    assert parquet.read_table(tmp_path / "y").to_pylist() == SUMMARY
    header, *rows = summed("table", tmp_path / "z", *SUMMED).decode().splitlines()
    assert header.split() == list(SUMMARY[0])
    assert [row.split() for row in rows] == [[str(v) for v in row.values()] for row in SUMMARY]


def test_books_are_shown_as_dotted_lines() -> None:
    assert books_lines({"packets": {"seen": 3, "rejected": {"empty": 1}}, "unknown": 0}) == [
        "packets.seen 3",
        "packets.rejected.empty 1",
        "unknown 0",
    ]
