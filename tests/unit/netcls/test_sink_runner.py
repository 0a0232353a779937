"""A runner: bounded, by its policy, patient with failures, and its counts are exact."""

from __future__ import annotations

import threading

import pytest

from capture.errors import UsageError
from netcls.sinks import runner as runner_module
from netcls.sinks.runner import SinkRunner
from tests.unit.netcls.told import FakeSink, told
from tests.wire import until


def counted(runner: SinkRunner) -> int:
    counters = runner.counters
    return counters.sent + counters.dropped + counters.failed + runner.depth


@pytest.mark.parametrize("policy", ["drop_oldest", "drop_newest"])
def test_a_full_queue_drops_by_its_policy_and_counts_each(policy: str) -> None:
    sink = FakeSink()
    sink.may_write.clear()
    runner = SinkRunner(sink, queue_events=100, when_full=policy)
    runner.start()
    runner.put(told(1, 10))
    assert sink.is_writing.wait(10)  # these ten are being looked at: no policy takes them away
    for first in range(11, 1011, 50):
        runner.put(told(first, 50))
        assert runner.depth <= 100
    assert runner.counters.dropped == 910
    sink.may_write.set()
    assert runner.close(10)
    kept = range(921, 1011) if policy == "drop_oldest" else range(11, 101)
    assert sink.taken == [*range(1, 11), *kept]
    assert (runner.counters.sent, runner.counters.failed) == (100, 0)
    assert counted(runner) == runner.counters.put == 1010


def test_block_lets_who_puts_wait_and_loses_nothing_while_a_second_sink_goes_on() -> None:
    slow, quick = FakeSink("slow"), FakeSink("quick")
    slow.may_write.clear()
    blocked = threading.Event()
    runner = SinkRunner(slow, queue_events=10, when_full="block", on_blocked=blocked.set)
    beside = SinkRunner(quick, queue_events=10_000)
    runner.start()
    beside.start()
    done = threading.Event()

    def put() -> None:
        runner.put(told(1, 1000))
        done.set()

    threading.Thread(target=put, daemon=True).start()
    assert blocked.wait(10)
    assert runner.depth <= 10
    assert not done.is_set()
    beside.put(told(1, 1000))
    until(lambda: beside.counters.sent == 1000)
    slow.may_write.set()
    assert done.wait(10)
    assert runner.close(10)
    assert beside.close(10)
    assert slow.taken == quick.taken == list(range(1, 1001))
    assert runner.counters.dropped == 0


def test_a_sink_that_goes_and_comes_back_loses_nothing_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runner_module, "FIRST_BACK_OFF_S", 0.02)
    sink, said = FakeSink(), list[tuple[str, bool]]()
    sink.is_away = True
    runner = SinkRunner(sink, queue_events=1000, on_state=lambda name, is_up, _: said.append((name, is_up)))
    runner._back_off_s = 0.02
    runner.start()
    runner.put(told(1, 300))
    until(lambda: said == [("fake", False)])
    sink.is_away = False
    until(lambda: len(sink.taken) == 300)
    sink.is_away = True
    runner.put(told(301, 300))
    until(lambda: len(said) == 3)
    sink.is_away = False
    until(lambda: len(sink.taken) == 600)
    assert runner.close(10)
    assert sink.taken == list(range(1, 601))
    assert said == [("fake", False), ("fake", True), ("fake", False), ("fake", True)]
    assert runner.counters.retried >= 300
    assert runner.last_error in ("it went away", "it is away")
    assert counted(runner) == 600


def test_what_a_sink_has_no_room_for_is_offered_again_in_order() -> None:
    sink = FakeSink()
    sink.most = 7
    runner = SinkRunner(sink, queue_events=100)
    runner.start()
    runner.put(told(1, 50))
    assert runner.close(20)
    assert sink.taken == list(range(1, 51))


def test_what_an_absent_sink_never_took_is_failed_when_it_closes() -> None:
    sink = FakeSink()
    sink.is_away = True
    runner = SinkRunner(sink, queue_events=100)
    runner.start()
    runner.put(told(1, 60))
    assert runner.close(0.2)
    assert (runner.counters.sent, runner.counters.failed) == (0, 60)


def test_a_defect_of_a_sink_ends_the_runner_and_lets_nobody_wait() -> None:
    sink = FakeSink()
    sink.defect = ValueError("a defect")
    runner = SinkRunner(sink, queue_events=5, when_full="block")
    runner.start()
    runner.put(told(1, 3))
    until(lambda: runner.failure is not None)
    runner.put(told(4, 100))  # returns although there is no room
    assert isinstance(runner.failure, ValueError)
    assert sink.n_closed == 1


def test_reopening_happens_between_two_batches_and_flushing_each_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runner_module, "_FLUSH_S", 0.02)
    sink = FakeSink()
    runner = SinkRunner(sink, queue_events=10)
    runner.start()
    runner.reopen()
    until(lambda: sink.n_reopened == 1)
    until(lambda: sink.n_flushed > 2)
    assert runner.close()
    assert sink.n_closed == 1


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(
        UsageError, match="when_full is 'maybe'; expected one of block, drop_oldest, drop_newest"
    ):
        SinkRunner(FakeSink(), when_full="maybe")
    with pytest.raises(UsageError, match="queue_events is 0; give 1 or more"):
        SinkRunner(FakeSink(), queue_events=0)
