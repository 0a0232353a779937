"""The small parts of the daemon: faults, stages, overload, sd_notify, tallies, spool journal, log."""

from __future__ import annotations

import errno
import logging
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from capture.errors import UsageError
from models.checkpoint import Checkpoint, save_checkpoint
from netcls.daemon.faults import Faults, InjectedFault
from netcls.daemon.log import OneLine
from netcls.daemon.notify import notify, watchdog_s
from netcls.daemon.overload import OverloadPolicy, Step
from netcls.daemon.spool import BAD, JOURNAL, SpoolRun
from netcls.daemon.stages import StageBoard
from netcls.daemon.tallies import Histogram
from netcls.pipeline import Answerer, RunOptions
from netcls.sinks.base import SinkError
from tests.packets import DATA
from tests.unit.models.tiny_family import checkpoint_arguments, registered

DEMO = DATA / "captures" / "demo.pcap.zst"


def test_faults_strike_where_when_and_as_often_as_they_were_told() -> None:
    faults = Faults("sink.file:enospc:after=100:n=2, predictor:raise:n=1, output:enospc,decode:stall:0.01s")
    at = faults.at("sink.file")
    assert at is not None
    at(60)
    at(60)
    for _ in range(2):
        with pytest.raises(SinkError, match="No space left"):
            at(1)
    at(1)
    predictor, output, decode = faults.at("predictor"), faults.at("output"), faults.at("decode")
    assert predictor
    assert output
    assert decode
    with pytest.raises(InjectedFault):
        predictor(1)
    predictor(1)
    with pytest.raises(OSError, match="No space") as raised:
        output(1)
    assert raised.value.errno == errno.ENOSPC
    decode(1)
    assert faults.at("capture") is None
    assert Faults().at("decode") is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("decoed:stall", "'decoed' is no place; expected .*did you mean 'decode'"),
        ("decode:explode", "'explode' is no kind of fault"),
        ("decode:stall:soon", "cannot read 'soon' of 'decode:stall:soon'"),
        ("decode:raise:after=x", "cannot read 'after=x'"),
    ],
)
def test_a_fault_that_cannot_be_read_is_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Faults(text)


def test_a_stage_that_died_or_stands_still_is_named() -> None:
    board = StageBoard()
    decode, answer = board.add("decode", 5.0), board.add("answer", 5.0)
    assert board.trouble() == ""
    assert board.all_moved(1.0)
    decode.last_s -= 6
    assert board.trouble().startswith("stage 'decode' has not moved for 6")
    assert not board.all_moved(1.0)
    decode.is_done = True
    assert board.trouble() == ""
    answer.failure = ValueError("x")
    assert board.trouble() == "stage 'answer' died: ValueError: x"
    board.remove("answer")
    assert board.trouble() == ""


def steps_of(policy: OverloadPolicy, looks: list[tuple[float, float, bool]]) -> list[Step]:
    """The steps in the order in which they are taken."""
    seen = [policy.step]
    for now_s, fill, is_dropping in looks:
        step = policy.look(fill, now_s, is_dropping=is_dropping)
        if step != seen[-1]:
            seen.append(step)
    return seen


@pytest.mark.parametrize("has_small", [True, False])
def test_overload_takes_every_step_in_its_order_and_takes_them_back(has_small: bool) -> None:
    policy = OverloadPolicy(has_small_model=has_small)
    up = [Step.LARGER_BATCHES, *([Step.SMALL_MODEL] if has_small else []), Step.END_ONLY, Step.DROPPING]
    full = [(0.1 * i, 1.0, False) for i in range(100)]
    assert steps_of(policy, full) == [Step.NORMAL, *up]
    empty = [(10 + 0.1 * i, 0.0, False) for i in range(400)]
    assert steps_of(policy, empty) == [*reversed(up), Step.NORMAL]


def test_overload_does_not_swing_with_a_queue_that_does() -> None:
    policy = OverloadPolicy()
    swinging = [(0.1 * i, 0.2 if i % 2 else 0.0, False) for i in range(1000)]
    assert steps_of(policy, swinging) == [Step.NORMAL]
    assert policy.look(0.0, 199.9) == policy.look(0.2, 200.0) == Step.NORMAL
    assert policy.look(0.2, 200.6) == Step.LARGER_BATCHES
    # Between the two thresholds nothing changes, however long.
    assert steps_of(policy, [(201 + i, 0.03, False) for i in range(100)]) == [Step.LARGER_BATCHES]


def test_the_service_manager_is_told_and_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify("READY=1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        assert notify("READY=1\nSTATUS=x")
        assert manager.recv(100) == b"READY=1\nSTATUS=x"
    assert not notify("gone")
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    assert watchdog_s() == 30.0
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert watchdog_s() is None
    monkeypatch.setenv("WATCHDOG_USEC", "soon")
    assert watchdog_s() is None


def test_a_histogram_counts_as_prometheus_does() -> None:
    histogram = Histogram((1, 2, 5))
    histogram.observe([0.5, 1.0, 1.5, 5.0, 6.0])
    histogram.observe([])
    assert histogram.as_dict() == {"bounds": [1.0, 2.0, 5.0], "counts": [2, 1, 1, 1], "sum": 14.0}


def test_nobody_forges_a_line_of_the_log() -> None:
    record = logging.LogRecord(
        "netcls", logging.WARNING, "", 0, "label %s", ("a\n2026 INFO netcls: b\x1b[31m",), None
    )
    line = OneLine().format(record)
    assert "\n" not in line
    assert "\x1b" not in line
    assert "WARNING netcls: label a" in line


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkpoint]:
    with registered():
        yield save_checkpoint(tmp_path_factory.mktemp("models") / "tiny", **checkpoint_arguments())


def flows_of_spool(
    folder: Path, tiny: Checkpoint, n_files: int, settle_s: float = 0.0
) -> tuple[SpoolRun, list[int]]:
    """Run until so many files are done or bad, and the spool is quiet."""
    answerer = Answerer(tiny, RunOptions(threads=1))
    run = SpoolRun(str(folder), RunOptions(threads=1), answerer, settle_s=settle_s)
    stop = threading.Timer(20, run.stop)
    stop.start()
    n_quiet = [0]

    def look() -> None:
        n_quiet[0] = n_quiet[0] + 1 if run.n_done + run.n_bad >= n_files else 0
        if n_quiet[0] > 2:
            run.stop()

    run.on_news = look
    flow_ids = [int(flow_id) for batch in run for flow_id in batch.records["flow_id"]]
    stop.cancel()
    answerer.close()
    return run, flow_ids


def test_a_spool_reads_each_file_once_also_after_a_restart_and_sets_bad_ones_aside(
    tmp_path: Path, tiny: Checkpoint
) -> None:
    shutil.copy(DEMO, tmp_path / "a.pcap.zst")
    (tmp_path / "b.pcap").write_bytes(b"this is no capture at all, not even nearly")
    (tmp_path / ".hidden.pcap").write_bytes(b"x")
    (tmp_path / "growing.pcap.part").write_bytes(b"x")
    run, flow_ids = flows_of_spool(tmp_path, tiny, 2)
    assert len(flow_ids) == len(set(flow_ids)) > 100
    assert run.spool_status() == {"done": 1, "bad": 1, "waiting": 0}
    assert [path.name for path in (tmp_path / BAD).iterdir()] == ["b.pcap"]
    assert run.books.books_balance()
    assert run.books.packets_seen > 1000
    # A restart, with a journal whose last line was torn by a kill, and one new file.
    with (tmp_path / JOURNAL).open("ab") as journal:
        journal.write(b'{"name": "torn')
    shutil.copy(DEMO, tmp_path / "c.pcap.zst")
    again, new_ids = flows_of_spool(tmp_path, tiny, 1)
    assert sorted(new_ids) == sorted(flow_ids)  # of c, which has the same bytes; a was not read again
    assert again.spool_status() == {"done": 1, "bad": 0, "waiting": 0}
    third, none = flows_of_spool(tmp_path, tiny, 0)
    assert (none, third.n_done) == ([], 0)


def test_a_file_that_still_grows_waits(tmp_path: Path, tiny: Checkpoint) -> None:
    shutil.copy(DEMO, tmp_path / "a.pcap.zst")
    answerer = Answerer(tiny, RunOptions(threads=1))
    run = SpoolRun(str(tmp_path), RunOptions(threads=1), answerer, settle_s=1e6)
    looks = [0]

    def look() -> None:
        looks[0] += 1
        if looks[0] > 2:
            run.stop()

    run.on_news = look
    assert list(run) == []
    assert run.spool_status() == {"done": 0, "bad": 0, "waiting": 1}
    answerer.close()
