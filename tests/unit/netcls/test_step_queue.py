"""The queue between capture and model: never waits, leaves out in the stated order, counts."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Any

import numpy as np

from capture.flow_batch import FLOW_DTYPE, PACKET_DTYPE, EndReason, FlowBatch, FlowStep
from netcls.step_queue import LiveStep, StepQueue

K = 3


def step(early: int = 0, ready: int = 0, ended: int = 0, *, source: int = 0) -> LiveStep:
    records = np.zeros(early + ready, FLOW_DTYPE)
    records["n_kept"] = [1] * early + [K] * ready
    ends = np.zeros(ended, FLOW_DTYPE)
    ends["end_reason"] = EndReason.IDLE

    def batch(rows: Any) -> FlowBatch:
        return FlowBatch(rows, np.zeros((len(rows), K), PACKET_DTYPE), np.zeros((len(rows), 0, 0), np.uint8))

    return LiveStep(source, FlowStep(batch(records), batch(ends)), time.time_ns())


def sizes(steps: list[LiveStep] | None) -> list[tuple[int, int]]:
    assert steps is not None
    return [(len(live.step.ready), len(live.step.ended)) for live in steps]


def test_steps_come_out_in_order_and_in_pieces_of_the_wanted_size() -> None:
    queue = StepQueue(100, 100)
    for n in (3, 2, 5):
        queue.put(step(ready=n, ended=n))
    assert queue.depth == 10
    assert sizes(queue.take(1, 0, n_most=4)) == [(3, 3), (2, 2)]
    assert sizes(queue.take(1, 0, n_most=4)) == [(5, 5)]
    assert queue.depth == 0


def test_early_looks_are_left_out_first_then_ready_flows_then_records() -> None:
    queue = StepQueue(10, 4)
    queue.put(step(ready=4))
    queue.put(step(early=3, ready=1))  # more than half full
    assert (queue.dropped_early, queue.depth) == (3, 5)
    queue.put(step(ready=6, ended=3))  # does not fit, but its records do
    assert (queue.dropped_ready, queue.depth) == (6, 5)
    queue.put(step(ended=2))
    assert (queue.dropped_early, queue.dropped_ready, queue.dropped_ended) == (3, 6, 2)
    assert sizes(queue.take(1, 0, n_most=99)) == [(4, 0), (1, 0), (0, 3)]


def test_names_go_with_their_records() -> None:
    queue = StepQueue(10, 2)
    for n in (2, 1):
        queue.put(replace(step(ready=1, ended=n), hellos=[None] * n))
    taken = queue.take(1, 0, n_most=99)
    assert taken is not None
    assert [(len(live.step.ended), live.hellos) for live in taken] == [(2, [None, None]), (0, [])]


def test_a_full_queue_never_makes_the_capture_side_wait_unless_it_says_it_may() -> None:
    queue = StepQueue(1, 1)
    queue.put(step(ready=1))
    queue.put(step(ready=1))
    waiting = threading.Thread(target=queue.put, args=(step(ready=1, ended=1),), kwargs={"may_wait": True})
    waiting.start()
    assert sizes(queue.take(1, 0, n_most=9)) == [(1, 0)]
    waiting.join(10)
    assert sizes(queue.take(1, 0, n_most=9)) == [(1, 1)]
    assert queue.dropped_ready == 1


def test_a_reader_hears_of_no_news_and_of_the_end() -> None:
    queue = StepQueue(9, 9)
    assert queue.take(1, 5.0, n_most=9) == []
    queue.put(step(ended=1))
    queue.close()
    assert sizes(queue.take(8, 5.0, n_most=9)) == [(0, 1)]
    assert queue.take(8, 5.0, n_most=9) is None
