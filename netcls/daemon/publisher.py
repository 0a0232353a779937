"""The one way out: numbers events and hands each to every sink's runner."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from netcls.daemon.tallies import Tallies
from netcls.event import EngineEvent, Event, StatsEvent, encode_line, events_of, timestamp_text
from netcls.sinks.base import Told

if TYPE_CHECKING:
    from netcls.event_batch import EventBatch
    from netcls.sinks.runner import SinkRunner

_RECENT: Final = 100


class Publisher:
    """Gives events their numbers and their places.

    Only the thread that answers hands out (a sink may make it wait); what others have to say waits for its next
    :meth:`flush`, some ten times a second.

    Args:
        tallies: what is counted on the way.
        at_output: called with the number of events before they are encoded, for faults on purpose.

    Attributes:
        runners: of all sinks; replaced as a whole when sinks come or go.
        n_told: the number of the newest event.
        recent: the newest events of flows.
    """

    def __init__(self, tallies: Tallies, at_output: Callable[[int], None] | None = None) -> None:
        self.runners: Sequence[SinkRunner] = ()
        self.n_told = 0
        self._tallies = tallies
        self._at_output = at_output
        self.recent: deque[Told] = deque(maxlen=_RECENT)
        self._waiting: deque[EngineEvent | StatsEvent] = deque(maxlen=1000)

    def flows(self, batch: EventBatch) -> None:
        """Tell the flows of a batch, and what waited."""
        self.flush()
        begin_s = time.monotonic()
        if self._at_output is not None:
            self._at_output(len(batch))
        self.recent.extend(self._hand_out(list(events_of(batch))))
        self._tallies.told(batch, time.monotonic() - begin_s)

    def engine(self, action: str, message: str, **more: Any) -> None:
        """Say, soon, what happened to netcls itself. From any thread; never waits."""
        engine = {"action": action, "message": message} | more
        self._waiting.append(EngineEvent(timestamp=timestamp_text(time.time_ns()), engine=engine))

    def stats(self, stats: dict[str, Any], iface: Any) -> None:
        """Tell, soon, the counters. From any thread; never waits."""
        self._waiting.append(
            StatsEvent(timestamp=timestamp_text(time.time_ns()), in_iface=iface, stats=stats)
        )

    def flush(self) -> None:
        """Tell what waited."""
        while self._waiting:
            event = self._waiting.popleft()
            self._tallies.events[event.event_type] += 1
            self._hand_out([event])

    def _hand_out(self, events: Sequence[Event | StatsEvent | EngineEvent]) -> list[Told]:
        batch = [
            Told(number, event, encode_line(event))
            for number, event in enumerate(events, start=self.n_told + 1)
        ]
        self.n_told += len(batch)
        for runner in self.runners:
            runner.put(batch)
        return batch
