"""Files that grow hold whole records only; Parquet files are complete when they have their name."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import stat
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from netcls.flat import column_names
from netcls.sinks.append_file import AppendFile
from netcls.sinks.base import SinkError
from netcls.sinks.csv_file import CsvFileSink
from netcls.sinks.parquet_files import ParquetFilesSink
from netcls.sinks.zeek_log import ZeekLogSink, uid
from tests.unit.netcls.batches import START_NS, classified, record, unclassified
from tests.unit.netcls.sinks.told import many, one, stats, told


def test_a_growing_file_goes_on_where_it_ended_and_keeps_its_one_header(tmp_path: Path) -> None:
    target = tmp_path / "x"
    for line in (b"1\n", b"2\n"):
        file = AppendFile(target, b"header\n")
        file.open()
        file.append(line)
        file.close()
    assert target.read_bytes() == b"header\n1\n2\n"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640 & ~_umask()


def test_what_a_killed_process_left_of_a_line_is_cut_off(tmp_path: Path) -> None:
    target = tmp_path / "x"
    target.write_bytes(b"header\nwhole\ntor")
    file = AppendFile(target, b"header\n")
    file.open()
    file.append(b"next\n")
    assert target.read_bytes() == b"header\nwhole\nnext\n"


def test_a_full_disk_leaves_whole_lines_and_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    room = [10]

    def write(fd: int, data: memoryview) -> int:
        taken = min(len(data), room[0])
        if not taken:
            raise OSError(28, "No space left on device")
        room[0] -= taken
        return real(fd, data[:taken])

    file = AppendFile(tmp_path / "x")
    file.open()
    monkeypatch.setattr(os, "write", write)
    file.append(b"1234567\n")
    with pytest.raises(SinkError, match=r"cannot write '.*/x': No space left on device"):
        file.append(b"abcdefg\n")
    assert (tmp_path / "x").read_bytes() == b"1234567\n"
    room[0] = 100
    file.append(b"abcdefg\n")
    assert (tmp_path / "x").read_bytes() == b"1234567\nabcdefg\n"


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    for sink in (CsvFileSink(tmp_path / "no" / "x"), ZeekLogSink(tmp_path / "no" / "no")):
        with pytest.raises(SinkError, match="No such file or directory"):
            sink.open()


def test_csv_has_a_row_for_each_flow_and_none_for_counters(tmp_path: Path) -> None:
    sink = CsvFileSink(tmp_path / "x.csv")
    sink.open()
    assert sink.write([*many(3), *stats()]) == 4
    sink.flush()
    sink.close()
    rows = list(csv.DictReader(io.StringIO((tmp_path / "x.csv").read_text(), newline="")))
    assert [row["flow_id"] for row in rows] == ["0", "1", "2"]
    assert tuple(rows[0]) == column_names()


def test_after_a_rotation_by_name_a_new_file_has_the_header(tmp_path: Path) -> None:
    sink = CsvFileSink(tmp_path / "x.csv")
    sink.open()
    sink.write(many(2))
    (tmp_path / "x.csv").rename(tmp_path / "x.csv.1")
    sink.write(many(1))
    sink.reopen()
    sink.write(many(1))
    sink.close()
    lines = [(tmp_path / name).read_text().splitlines() for name in ("x.csv.1", "x.csv")]
    assert [len(part) for part in lines] == [4, 2]
    assert lines[0][0] == lines[1][0]


def test_a_zeek_log_of_json_has_zeeks_names(tmp_path: Path) -> None:
    sink = ZeekLogSink(tmp_path / "logs")
    sink.open()
    assert sink.write([*one(), *stats()]) == 2
    sink.close()
    (line,) = (tmp_path / "logs" / "netcls.log").read_text().splitlines()
    assert json.loads(line) == {
        "ts": 1795515302.123456,
        "uid": uid(1187423905567123),
        "id.orig_h": "10.0.0.2",
        "id.orig_p": 40212,
        "id.resp_h": "10.0.0.9",
        "id.resp_p": 8443,
        "proto": "tcp",
        "community_id": "1:LVFcLGgiant8VSOwvi6BkCZv22Q=",
        "label": "web",
        "probability": 0.9431,
        "unknown": False,
        "model": "lab-small",
    }


def test_a_zeek_log_of_tabs_has_zeeks_header_and_as_many_fields(tmp_path: Path) -> None:
    sink = ZeekLogSink(tmp_path, tsv=True)
    for _ in range(2):
        sink.open()
        sink.write(told(classified(record(protocol=1, client_port=8, server_port=0)), unclassified()))
        sink.close()
    lines = (tmp_path / "netcls.log").read_text().splitlines()
    header = [line for line in lines if line.startswith("#")]
    assert header[:4] == ["#separator \\x09", "#set_separator\t,", "#empty_field\t(empty)", "#unset_field\t-"]
    assert len(header) == 7
    names, types = header[-2].split("\t")[1:], header[-1].split("\t")[1:]
    rows = [dict(zip(names, line.split("\t"), strict=True)) for line in lines[len(header) :]]
    assert len(rows) == 4
    assert len(types) == len(names) == 12
    assert (rows[0]["id.orig_p"], rows[0]["id.resp_p"], rows[0]["proto"]) == ("8", "0", "icmp")
    assert (rows[0]["ts"], rows[0]["unknown"]) == ("1795515302.123456", "F")
    assert [rows[1][name] for name in ("label", "probability", "unknown", "model")] == ["-"] * 4


@pytest.mark.parametrize(
    ("label", "written"),
    [("-", r"\x2d"), ("(empty)", r"\x28empty)"), ("#fields", r"\x23fields"), ("a\\", "a\\\\")],
)
def test_a_label_that_zeek_would_take_for_something_else_is_written_out(
    tmp_path: Path, label: str, written: str
) -> None:
    from netcls.sinks.zeek_log import _tsv_field

    assert _tsv_field(("label", label)) == written


def test_a_uid_is_zeeks_form_and_always_the_same() -> None:
    uids = [uid(i) for i in range(2000)]
    assert len(set(uids)) == 2000
    assert uid(7) == uids[7]
    assert all(re.fullmatch(r"N[0-9A-Za-z]{17}", text) for text in uids)


def test_early_answers_have_no_line_in_zeeks_log(tmp_path: Path) -> None:
    import dataclasses

    early = dataclasses.replace(classified(), is_live=True, phase="ready", final=False)
    sink = ZeekLogSink(tmp_path)
    sink.open()
    assert sink.write(told(early, classified())) == 2
    assert len((tmp_path / "netcls.log").read_text().splitlines()) == 1


def test_parquet_files_end_by_rows_and_lose_none(tmp_path: Path) -> None:
    sink = ParquetFilesSink(tmp_path / "out", rows=4)
    sink.open()
    batch = many(10)
    for start in range(0, 10, 2):
        assert sink.write(batch[start : start + 2]) == 2
    assert sink.write(stats()) == 1
    files = sorted((tmp_path / "out").iterdir())
    assert [f.suffix for f in files] == [".tmp", ".parquet", ".parquet"]
    sink.close()
    files = sorted((tmp_path / "out").iterdir())
    tables = [parquet.read_table(file) for file in files]
    assert [len(table) for table in tables] == [4, 4, 2]
    assert [i for table in tables for i in table["flow_id"].to_pylist()] == list(range(10))
    assert tuple(tables[0].column_names) == column_names()


def test_parquet_times_are_the_events(tmp_path: Path) -> None:
    sink = ParquetFilesSink(tmp_path)
    sink.open()
    sink.write(one())
    sink.close()
    (file,) = tmp_path.iterdir()
    table = parquet.read_table(file)
    start_us = START_NS // 1000 * 1000
    assert table["flow_start"].cast("int64").to_pylist() == [start_us]
    assert table["netcls_label"].to_pylist() == ["web"]


def test_parquet_files_end_by_age_and_by_a_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from netcls.sinks import parquet_files

    now_s = [100.0]
    monkeypatch.setattr(parquet_files.time, "monotonic", lambda: now_s[0])
    sink = ParquetFilesSink(tmp_path, seconds=60)
    sink.open()
    sink.write(many(1))
    sink.flush()
    assert not list(tmp_path.glob("*.parquet"))
    now_s[0] += 60
    sink.flush()
    assert len(list(tmp_path.glob("*.parquet"))) == 1
    sink.write(many(1))
    sink.reopen()
    sink.flush()
    assert len(list(tmp_path.glob("*.parquet"))) == 2


def test_a_parquet_file_that_cannot_be_ended_is_counted_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = ParquetFilesSink(tmp_path)
    sink.open()
    sink.write(many(3))
    real = os.write
    monkeypatch.setattr(os, "write", _no_space)
    with pytest.raises(SinkError, match="No space left on device"):
        sink.close()
    monkeypatch.setattr(os, "write", real)
    assert sink.n_failed == 3
    assert not list(tmp_path.iterdir())
    sink.open()
    sink.write(many(2))
    sink.close()
    assert len(list(tmp_path.glob("*.parquet"))) == 1


def test_an_unknown_label_keeps_its_name(tmp_path: Path) -> None:
    sink = ZeekLogSink(tmp_path)
    sink.open()
    sink.write(told(classified(unknown=np.array([True]))))
    line = json.loads((tmp_path / "netcls.log").read_text())
    assert (line["label"], line["unknown"]) == ("unknown", True)


def _no_space(fd: int, data: memoryview) -> int:
    raise OSError(28, "No space left on device")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
