"""Between capture and model: a queue that the capture side never waits for, and that counts what it cannot take."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass

from capture.flow_batch import FlowBatch, FlowStep
from capture.handshake.tls import Handshake

_NO_NEWS_S = 0.1  # so often a reader hears from an empty queue, so that it can look at other things


@dataclass(frozen=True, slots=True)
class LiveStep:
    """What a flow table of a live source brought forth.

    Attributes:
        source: number of the source.
        step: ready and ended flows.
        made_ns: wall clock when it came out, nanoseconds since the epoch.
        hellos: ClientHello of each ended flow; None where none is looked for.
    """

    source: int
    step: FlowStep
    made_ns: int
    hellos: list[Handshake | None] | None = None


class StepQueue:
    """Bounded by flows, not by steps; one thread puts, one takes.

    Overload, in this order: early looks are left out when the queue is half full (their flows are answered when ready),
    then ready flows (their records still come, without an answer), then records.

    Args:
        n_ready: flows that may wait for the model; each holds its first packets.
        n_ended: records that may wait.

    Attributes:
        dropped_early, dropped_ready, dropped_ended: flows that were left out.
        takes_early: False: early looks are left out however much room there is.
    """

    def __init__(self, n_ready: int, n_ended: int) -> None:
        self._most_ready, self._most_ended = n_ready, n_ended
        self._steps: deque[LiveStep] = deque()
        self._n_ready = self._n_ended = 0
        self._is_closed = False
        self._changed = threading.Condition()
        self.dropped_early = self.dropped_ready = self.dropped_ended = 0
        self.takes_early = True

    @property
    def depth(self) -> int:
        """Flows that wait for the model."""
        return self._n_ready

    @property
    def limit(self) -> int:
        """Most flows that may wait for the model."""
        return self._most_ready

    @property
    def ended_depth(self) -> int:
        """Records that wait."""
        return self._n_ended

    @property
    def ended_limit(self) -> int:
        """Most records that may wait."""
        return self._most_ended

    def put(self, step: LiveStep, *, may_wait: bool = False) -> None:
        """Take a step, or what there is room for of it; wait for room only if ``may_wait``."""
        with self._changed:
            while may_wait and not self._is_closed and not self._has_room(step):
                self._changed.wait(_NO_NEWS_S)
            step = self._fitted(step)
            if len(step.step.ready) or len(step.step.ended):
                self._steps.append(step)
                self._n_ready += len(step.step.ready)
                self._n_ended += len(step.step.ended)
                self._changed.notify_all()

    def take(self, n_wanted: int, patience_s: float, n_most: int) -> list[LiveStep] | None:
        """Steps in their order.

        Waits until ``n_wanted`` ready flows are there, or the oldest step has waited for ``patience_s``.

        Args:
            n_wanted: ready flows that make a full batch.
            patience_s: seconds.
            n_most: ready flows after which no further step is taken.

        Returns:
            Steps; none if there is no news for a while; None when the queue is closed and empty.
        """
        with self._changed:
            give_up_s = time.monotonic() + _NO_NEWS_S
            while not self._is_closed and self._n_ready < n_wanted:
                now_s = time.monotonic()
                due_s = give_up_s
                if self._steps:
                    due_s = now_s + patience_s - (time.time_ns() - self._steps[0].made_ns) / 1e9
                    due_s = min(due_s, now_s + patience_s)  # the wall clock may have been set
                if due_s <= now_s:
                    break
                self._changed.wait(due_s - now_s)
            if not self._steps:
                return None if self._is_closed else []
            taken: list[LiveStep] = []
            n_ready = 0
            while self._steps and (not taken or n_ready < n_most):
                step = self._steps.popleft()
                n_ready += len(step.step.ready)
                self._n_ended -= len(step.step.ended)
                taken.append(step)
            self._n_ready -= n_ready
            self._changed.notify_all()
            return taken

    def close(self) -> None:
        """Nothing more will be put; also lets a waiting ``put`` go."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _has_room(self, step: LiveStep) -> bool:
        return (
            self._n_ready + len(step.step.ready) <= self._most_ready
            and self._n_ended + len(step.step.ended) <= self._most_ended
        )

    def _fitted(self, live: LiveStep) -> LiveStep:
        ready, ended = live.step.ready, live.step.ended
        early = live.step.is_early()
        too_full = 2 * (self._n_ready + len(ready)) > self._most_ready
        if early.any() and (too_full or not self.takes_early):
            self.dropped_early += int(early.sum())
            ready = ready.take(~early)
        if self._n_ready + len(ready) > self._most_ready:
            # Early looks are gone by now: half of the queue is less than all of it.
            self.dropped_ready += len(ready)
            ready = _none_of(ready)
        if self._n_ended + len(ended) > self._most_ended:
            self.dropped_ended += len(ended)
            ended = _none_of(ended)
        hellos = live.hellos if len(ended) or live.hellos is None else []
        return LiveStep(live.source, FlowStep(ready, ended), live.made_ns, hellos)


def _none_of(flows: FlowBatch) -> FlowBatch:
    return FlowBatch(flows.records[:0], flows.packets[:0], flows.data[:0])
