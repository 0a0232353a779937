"""Events for tests of sinks, and a sink that a test can hold up and break."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from netcls.event import EngineEvent, encode_line
from netcls.sinks.base import SinkError, Told


def told(first: int, n: int) -> list[Told]:
    """Events that carry their numbers."""
    made = []
    for number in range(first, first + n):
        event = EngineEvent(
            timestamp="2026-11-24T10:00:00.000000+0000", engine={"action": "test", "n": number}
        )
        made.append(Told(number, event, encode_line(event)))
    return made


class FakeSink:
    """Remembers what it took; ``is_away`` fails, ``may_write`` holds up, ``most`` takes only so many at once."""

    def __init__(self, name: str = "fake") -> None:
        self.name = name
        self.taken: list[int] = []
        self.n_opened = self.n_reopened = self.n_flushed = self.n_closed = 0
        self.is_away = False
        self.most: int | None = None
        self.may_write = threading.Event()
        self.may_write.set()
        self.is_writing = threading.Event()
        self.defect: Exception | None = None

    def open(self) -> None:
        if self.is_away:
            raise SinkError("it is away")
        self.n_opened += 1

    def write(self, batch: Sequence[Told]) -> int:
        self.is_writing.set()
        self.may_write.wait()
        if self.defect is not None:
            raise self.defect
        if self.is_away:
            raise SinkError("it went away")
        n = len(batch) if self.most is None else min(self.most, len(batch))
        self.taken += [each.number for each in batch[:n]]
        return n

    def flush(self) -> None:
        self.n_flushed += 1

    def reopen(self) -> None:
        self.n_reopened += 1

    def close(self) -> None:
        self.n_closed += 1
