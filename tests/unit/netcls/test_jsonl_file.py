"""JSON lines in files, on standard output and on a unix socket: whole lines, each once."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from capture.errors import UsageError
from netcls.sinks.base import SinkError
from netcls.sinks.jsonl_file import JsonLinesFile, StandardOutput
from netcls.sinks.runner import SinkRunner
from netcls.sinks.unix_socket import UnixSocketSink
from netcls.sinks.uri import parse_uri
from tests.unit.netcls.told import told
from tests.wire import until


def numbers(*paths: Path) -> list[int]:
    return [json.loads(line)["engine"]["n"] for path in paths for line in path.read_bytes().splitlines()]


def test_a_file_has_whole_lines_and_mode_0640(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"a": 1}\n{"torn')
    sink = JsonLinesFile(path)
    sink.open()
    assert sink.write(told(1, 3)) == 3
    sink.close()
    lines = path.read_bytes().splitlines()
    assert lines[0] == b'{"a": 1}'
    assert len(lines) == 4
    fresh = JsonLinesFile(tmp_path / "new.jsonl")
    fresh.open()
    fresh.close()
    assert stat.S_IMODE((tmp_path / "new.jsonl").stat().st_mode) == 0o640


def test_rotation_by_size_and_by_time_overwrites_nothing_though_the_clock_is_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P10: names come from a wall clock that stands still here, which is as bad as one that is set back."""
    path, now = tmp_path / "events.jsonl", [0.0]
    monkeypatch.setattr("time.strftime", lambda *_: "20261124T101500Z")
    sink = JsonLinesFile(path, rotate_bytes=500, rotate_s=3600, keep=0, now_s=lambda: now[0])
    sink.open()
    for first in range(1, 41):
        sink.write(told(first, 1))
    n_by_size = len(list(tmp_path.iterdir()))
    now[0] += 3601
    sink.write(told(41, 1))
    sink.close()
    files = sorted(tmp_path.glob("events.jsonl-*"), key=lambda p: min(numbers(p)))
    assert n_by_size > 5
    assert len(files) == n_by_size
    assert numbers(*files, path) == list(range(1, 42))


def test_only_the_newest_rotated_files_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "e[1].jsonl"
    (tmp_path / "e1.jsonl-20260101T000000Z").write_text("another's\n")
    sink = JsonLinesFile(path, rotate_bytes=1, keep=3)
    sink.open()
    for first in range(1, 11):
        sink.write(told(first, 1))
    sink.close()
    rotated = [p for p in tmp_path.iterdir() if p.name.startswith("e[1].jsonl-")]
    assert sorted(numbers(*rotated, path)) == [7, 8, 9, 10]
    assert (tmp_path / "e1.jsonl-20260101T000000Z").exists()


def test_a_hundred_rotations_under_load_lose_no_line_and_tell_none_twice(tmp_path: Path) -> None:
    """P4: renamed from outside, then reopened, while events keep coming."""
    path = tmp_path / "events.jsonl"
    runner = SinkRunner(JsonLinesFile(path), queue_events=100_000, when_full="block")
    runner.start()
    until(path.exists)
    stop = threading.Event()
    put = [0]

    def load() -> None:
        while not stop.is_set():
            runner.put(told(put[0] + 1, 50))
            put[0] += 50
            time.sleep(0.01)  # 5,000 a second

    thread = threading.Thread(target=load, daemon=True)
    thread.start()
    for turn in range(100):
        path.rename(tmp_path / f"old-{turn:03}")
        runner.reopen()
        until(path.exists)
    stop.set()
    thread.join()
    assert runner.close(20)
    rotated = sorted(tmp_path.glob("old-*"))
    assert len(rotated) == 100
    assert numbers(*rotated, path) == list(range(1, put[0] + 1))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs root to mount a tmpfs")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"no tmpfs here: {done.stderr.decode()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=False)


@pytest.mark.root
def test_a_disk_that_fills_up_and_is_freed_tears_no_line_and_counts_what_it_cost(small_disk: Path) -> None:
    """P6."""
    path = small_disk / "events.jsonl"
    said: list[bool] = []
    runner = SinkRunner(
        JsonLinesFile(path), queue_events=1000, on_state=lambda _name, is_up, _why: said.append(is_up)
    )
    runner.start()
    n = 0
    while not said:
        runner.put(told(n + 1, 500))
        n += 500
        until(lambda: runner.depth < 500 or bool(said))
    assert said == [False]
    assert "No space left" in runner.last_error
    for _ in range(10):
        runner.put(told(n + 1, 500))
        n += 500
    moved = small_disk.parent / "moved.jsonl"
    shutil.copy(path, moved)
    path.unlink()
    until(lambda: said == [False, True])
    assert runner.close(20)
    kept = numbers(moved, path)
    assert path.read_bytes().endswith(b"\n")
    assert kept == sorted(set(kept))
    counters = runner.counters
    assert counters.sent == len(kept)
    assert counters.put == n == counters.sent + counters.dropped
    assert counters.dropped > 0


def test_standard_output_goes_to_a_pipe_and_a_slow_reader_only_fills_the_queue() -> None:
    reading, writing = os.pipe()
    sink = StandardOutput(writing)
    batch = told(1, 2000)
    everything = b"".join(each.line for each in batch)
    n = sink.write(batch)
    assert 0 < n < 2000  # the pipe is full
    assert sink.write(batch[n:]) == 0
    got = bytearray()
    while len(got) < len(everything):
        got += os.read(reading, 1 << 20)
        n += sink.write(batch[n:])
        sink.flush()
    assert bytes(got) == everything
    os.close(reading)
    with pytest.raises(SinkError, match="cannot write standard output"):
        sink.write(batch)
    os.close(writing)


def connected(path: Path) -> socket.socket:
    reader = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    reader.connect(str(path))
    return reader


def test_many_readers_get_every_line_and_a_slow_one_is_cut_and_counted(tmp_path: Path) -> None:
    """P7 and P8 of a socket: readers come, go and return."""
    path = tmp_path / "events.sock"
    sink = UnixSocketSink(path, backlog_bytes=200_000)
    sink.open()
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert sink.write(told(1, 5)) == 5  # nobody listens
    slow, quick = connected(path), connected(path)
    quick.setblocking(False)
    got, n = bytearray(), 0
    while not sink.n_cut:
        batch = told(100 + n, 500)
        sink.write(batch)
        n += 500
        while True:
            try:
                got += quick.recv(1 << 20)
            except BlockingIOError:
                break
        sink.flush()
    while len(got.splitlines()) < n:
        sink.flush()
        try:
            got += quick.recv(1 << 20)
        except BlockingIOError:
            continue
    assert [json.loads(line)["engine"]["n"] for line in got.splitlines()] == list(range(100, 100 + n))
    assert (sink.n_cut, sink.n_readers) == (1, 1)
    slow.close()
    quick.close()
    sink.write(told(1, 1))
    sink.write(told(1, 1))
    assert sink.n_readers == 0
    with connected(path) as again:
        sink.write(told(7, 1))
        assert json.loads(again.recv(1000))["engine"]["n"] == 7
    sink.close()
    assert not path.exists()


def test_closing_lets_a_reader_take_what_waits_for_it(tmp_path: Path) -> None:
    path = tmp_path / "events.sock"
    sink = UnixSocketSink(path)
    sink.open()
    with connected(path) as reader:
        batch = told(1, 5000)
        sink.write(batch)  # more than the kernel holds
        closing = threading.Thread(target=sink.close)
        closing.start()
        got = bytearray()
        while data := reader.recv(1 << 16):
            got += data
        closing.join()
    assert bytes(got) == b"".join(each.line for each in batch)


def test_a_socket_that_a_killed_process_left_is_replaced_and_a_living_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "events.sock"
    dead = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    dead.bind(str(path))
    dead.close()
    sink = UnixSocketSink(path)
    sink.open()
    with pytest.raises(SinkError, match="Address already in use"):
        UnixSocketSink(path).open()
    sink.close()


def test_uris_of_files_and_sockets_are_checked(tmp_path: Path) -> None:
    assert parse_uri("-").sink().name == "stdout"
    assert parse_uri(f"file:{tmp_path}/e.jsonl?rotate_bytes=1000&keep=2").sink().name == "file"
    for uri, words in (
        (f"file:{tmp_path}", "is a folder"),
        (f"file:{tmp_path}/none/e.jsonl", "which is no folder"),
        (f"file:{tmp_path}/e.jsonl?rotate_bytes=-1", "expected a whole number"),
        (f"unix:{tmp_path}/{'x' * 120}", "at most 107 bytes"),
    ):
        with pytest.raises(UsageError, match=words):
            parse_uri(uri).sink()
