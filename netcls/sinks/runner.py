"""Stands between the appliance and one sink: a bounded queue, what to do when it is full, and patience with failures.

    put -> |queue| -> Sink.write        (a thread for each sink: one that is slow or away hurts no other)

Every event that is put is sent, dropped (by the policy), failed (given up when closing) or still in the queue:
``put == sent + dropped + failed + depth``, at any time.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from capture.errors import UsageError
from netcls.sinks.base import Sink, SinkError, Told

WHEN_FULL: Final = ("block", "drop_oldest", "drop_newest")
QUEUE_EVENTS: Final = 10_000
FIRST_BACK_OFF_S: Final = 0.5
LONGEST_BACK_OFF_S: Final = 30.0

_BATCH_EVENTS: Final = 512
_FLUSH_S: Final = 1.0
_BEAT_S: Final = 0.25  # so often a waiting thread shows that it lives
_RECHECK_S: Final = 0.05  # before what a sink had no room for is offered again


@dataclass(slots=True)
class SinkCounters:
    """What became of a sink's events.

    Attributes:
        put: handed to the runner.
        sent: taken by the sink for good.
        dropped: left out by the policy because the queue was full.
        retried: offered again after the sink had failed.
        failed: given up when the runner was closed and the sink did not take them.
    """

    put: int = 0
    sent: int = 0
    dropped: int = 0
    retried: int = 0
    failed: int = 0


class SinkRunner:
    """Runs one sink.

    Args:
        sink: not open yet.
        queue_events: most events that wait, those that the sink is just being offered included.
        when_full: ``block`` (who puts waits), ``drop_oldest`` or ``drop_newest``.
        on_state: called from the runner's thread when the sink went away or came back: name, whether it is up, why.
        beat: called several times a second while the runner lives, and after each piece of work.
        on_blocked: called several times a second by a ``put`` that waits for room.
        at_write: called before each write with the number of events, for faults on purpose.

    Attributes:
        name: the sink's.
        counters: see :class:`SinkCounters`.
        is_up: whether the sink takes events now; None before it was opened the first time.
        last_error: why it did not, the last time.
        failure: what ended the thread; a defect.

    Raises:
        UsageError: for a policy or a size that cannot be.
    """

    def __init__(
        self,
        sink: Sink,
        *,
        queue_events: int = QUEUE_EVENTS,
        when_full: str = "drop_oldest",
        on_state: Callable[[str, bool, str], None] | None = None,
        beat: Callable[[], None] | None = None,
        on_blocked: Callable[[], None] | None = None,
        at_write: Callable[[int], None] | None = None,
    ) -> None:
        if when_full not in WHEN_FULL:
            raise UsageError(
                f"sink '{sink.name}': when_full is '{when_full}'; expected one of {', '.join(WHEN_FULL)}"
            )
        if queue_events < 1:
            raise UsageError(f"sink '{sink.name}': queue_events is {queue_events}; give 1 or more")
        self.name, self.limit, self.when_full = sink.name, queue_events, when_full
        self.counters = SinkCounters()
        self.is_up: bool | None = None
        self.last_error = ""
        self.failure: BaseException | None = None
        self._sink = sink
        self._on_state = on_state or (lambda _name, _is_up, _why: None)
        self._beat = beat or (lambda: None)
        self._on_blocked = on_blocked or (lambda: None)
        self._at_write = at_write or (lambda _n: None)
        self._queue: deque[Told] = deque()
        self._offered: list[Told] = []  # oldest of all; out of the queue while the sink looks at them
        self._changed = threading.Condition()
        self._is_open = False
        self._is_closing = False
        self._give_up_s = float("inf")
        self._reopen = False
        self._back_off_s = FIRST_BACK_OFF_S
        self._thread = threading.Thread(target=self._run, name=f"netcls-sink-{sink.name}", daemon=True)

    @property
    def depth(self) -> int:
        """Events that wait."""
        return len(self._queue) + len(self._offered)

    @property
    def n_undelivered(self) -> int:
        """Of those that were sent: how many the sink is known to have lost afterwards (Kafka, Parquet, UDP)."""
        return int(getattr(self._sink, "n_failed", 0))

    @property
    def is_alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Open the sink and begin to send, in a thread of its own."""
        self._thread.start()

    def put(self, batch: Sequence[Told]) -> None:
        """Take events. Waits only under the policy ``block``, and not for a runner that has ended."""
        with self._changed:
            self.counters.put += len(batch)
            if self.when_full == "block":
                self._put_all(batch)
            elif self.when_full == "drop_newest":
                room = max(self.limit - self.depth, 0)
                self._queue.extend(batch[:room])
                self.counters.dropped += max(len(batch) - room, 0)
            else:
                self._put_newest(batch)
            self._changed.notify_all()

    def reopen(self) -> None:
        """Let the sink open its file anew, behind what it has been given so far. Does not wait."""
        with self._changed:
            self._reopen = True
            self._changed.notify_all()

    def close(self, timeout_s: float = 5.0) -> bool:
        """Send what waits, then close the sink. What it has not taken after ``timeout_s`` counts as failed.

        Returns:
            False if the sink did not come back from a call, so that its thread had to be left behind.
        """
        with self._changed:
            self._is_closing = True
            self._give_up_s = time.monotonic() + timeout_s
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(timeout_s + 1.0)
        with self._changed:
            self.counters.failed += self.depth
            self._queue.clear()
            self._offered = []
        return not self._thread.is_alive()

    def _put_all(self, batch: Sequence[Told]) -> None:
        at = 0
        while at < len(batch):
            if self._is_closing or self.failure is not None:
                self.counters.failed += len(batch) - at
                return
            room = self.limit - self.depth
            if room <= 0:
                self._on_blocked()
                self._changed.wait(_BEAT_S)
                continue
            self._queue.extend(batch[at : at + room])
            at += room
            self._changed.notify_all()

    def _put_newest(self, batch: Sequence[Told]) -> None:
        self._queue.extend(batch)
        # What the sink is just looking at may be gone already: it is left alone, and counts.
        excess = self.depth - self.limit
        for _ in range(min(excess, len(self._queue))):
            self._queue.popleft()
            self.counters.dropped += 1

    def _run(self) -> None:
        try:
            while self._step():
                pass
        except BaseException as error:
            self.failure = error
            with self._changed:
                self._changed.notify_all()
        finally:
            self._close_sink()

    def _step(self) -> bool:
        """Open if need be, send a batch, flush, rest; False when there is nothing left to do."""
        self._beat()
        try:
            if not self._is_open:
                self._sink.open()
                self._is_open = True
                self._next_flush_s = time.monotonic() + _FLUSH_S
            self._send()
        except SinkError as error:
            self._went_away(str(error))
            return self._rest()
        with self._changed:
            if self._queue or self._offered or self._reopen:
                return not (self._is_closing and time.monotonic() >= self._give_up_s)
            if self._is_closing:
                return False
            self._changed.wait(_BEAT_S)
        return True

    def _came_back(self) -> None:
        """A sink is up when it has taken something, or there was nothing to take: a full disk can be opened too."""
        was, self.is_up = self.is_up, True
        self._back_off_s = FIRST_BACK_OFF_S
        if was is False:
            self._on_state(self.name, True, f"back; {self.counters.dropped} dropped so far")

    def _send(self) -> None:
        """Offer one batch; also reopens and flushes when it is time."""
        if self._reopen:
            with self._changed:
                self._reopen = False
            self._sink.reopen()
        with self._changed:
            if not self._offered:
                n = min(len(self._queue), _BATCH_EVENTS)
                self._offered = [self._queue.popleft() for _ in range(n)]
        if self._offered:
            self._at_write(len(self._offered))
            n_taken = self._sink.write(self._offered)
            if n_taken and not self.is_up:
                self._came_back()
            with self._changed:
                self.counters.sent += n_taken
                self._offered = self._offered[n_taken:]
                self._changed.notify_all()
                if self._offered:
                    self._changed.wait(_RECHECK_S)
        elif not self.is_up:
            self._came_back()
        if time.monotonic() >= self._next_flush_s:
            self._sink.flush()
            self._next_flush_s = time.monotonic() + _FLUSH_S

    def _went_away(self, why: str) -> None:
        """Say so once, and let what was offered be the oldest of the queue again."""
        was, self.is_up, self.last_error = self.is_up, False, why
        self._is_open = False
        with self._changed:
            self.counters.retried += len(self._offered)
            self._queue.extendleft(reversed(self._offered))
            self._offered = []
        self._close_sink()
        if was is not False:
            self._on_state(self.name, False, why)

    def _rest(self) -> bool:
        """Wait before the next try; False if there will be none."""
        end_s = time.monotonic() + self._back_off_s
        self._back_off_s = min(2 * self._back_off_s, LONGEST_BACK_OFF_S)
        with self._changed:
            while (now_s := time.monotonic()) < end_s:
                if self._is_closing:
                    if not self._queue or now_s >= self._give_up_s:
                        return False
                    end_s = min(end_s, now_s + FIRST_BACK_OFF_S)
                self._beat()
                self._changed.wait(min(_BEAT_S, end_s - now_s))
        return True

    def _close_sink(self) -> None:
        try:
            self._sink.close()
        except SinkError as error:
            self.last_error = str(error)
