"""The sinks of the daemon for one run of ``classify``, ``flows`` or ``sniff``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final

from netcls.event import Event, StatsEvent, encode_line, events_of
from netcls.event_batch import EventBatch
from netcls.formats import EventWriter
from netcls.sinks.base import SinkError, Told
from netcls.sinks.runner import QUEUE_EVENTS, SinkRunner
from netcls.sinks.uri import SinkUri

_CLOSE_TIMEOUT_S: Final = 30.0


class SinkEventWriter(EventWriter):
    """Gives each event to a sink, behind the same queue that the daemon has; used as a context manager.

    Args:
        uri: of the sink.
        is_live: packets do not wait, so the oldest events are dropped where the sink is slower; a file waits.
        on_state: told when the sink goes away or comes back.

    Raises:
        UsageError: for a setting that cannot be, or a library that is missing.
        SinkError: when entered, if the sink cannot be opened; when left, if events of files were not delivered.
    """

    def __init__(self, uri: SinkUri, *, is_live: bool, on_state: Callable[[str, bool, str], None]) -> None:
        self._sink = uri.sink()
        policy = uri.when_full("drop_oldest" if is_live else "block")
        size = uri.queue_events(QUEUE_EVENTS)
        self._runner = SinkRunner(self._sink, queue_events=size, when_full=policy, on_state=on_state)
        self._is_live = is_live
        self._number = 0

    def __enter__(self) -> SinkEventWriter:
        # Once here, so that a wrong address ends the run before it begins.
        self._sink.open()
        self._sink.close()
        self._runner.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._runner.close(_CLOSE_TIMEOUT_S if kind is None else 1.0)
        if self._runner.failure is not None:
            raise self._runner.failure
        if kind is None and not self._is_live and (loss := self.loss()):
            raise SinkError(loss)

    def loss(self) -> str:
        """What was not delivered, as far as is known; empty if nothing."""
        counters = self._runner.counters
        lost = counters.failed + counters.dropped + self._runner.n_undelivered
        why = f": {self._runner.last_error}" if self._runner.last_error else ""
        return (
            f"sink '{self._runner.name}' did not deliver {lost:,} of {counters.put:,} events{why}"
            if lost
            else ""
        )

    def write(self, batch: EventBatch) -> None:
        """Hand over the events of a batch."""
        self._put(list(events_of(batch)))

    def write_stats(self, stats: StatsEvent) -> None:
        """Hand over the counters."""
        self._put([stats])

    def _put(self, events: Sequence[Event | StatsEvent]) -> None:
        if self._runner.failure is not None:
            raise self._runner.failure
        first = self._number + 1
        self._number += len(events)
        self._runner.put([Told(number, e, encode_line(e)) for number, e in enumerate(events, first)])
