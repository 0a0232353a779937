"""What every place events go to has in common.

    stages -> Told -> SinkRunner |bounded queue| -> Sink.write

A sink knows nothing of queues, policies and retries: its runner does. A new format is a new sink, never a second
pipeline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from capture.errors import NetclsError
from netcls.event import EngineEvent, Event, StatsEvent


class SinkError(NetclsError):
    """A sink cannot take events now: the receiver is away, the disk is full. Its runner tries again."""


@dataclass(frozen=True, slots=True)
class Told:
    """One event, as every sink gets it.

    Attributes:
        number: counts up from 1 in this process, without gaps; the id of server-sent events.
        event: of a flow, or of the appliance itself (``stats``, ``engine``).
        line: the event as one JSON line, UTF-8, with its newline.
    """

    number: int
    event: Event | StatsEvent | EngineEvent
    line: bytes


class Sink(Protocol):
    """Takes events in batches. All calls come from one thread, that of its runner.

    Attributes:
        name: short and unique among the sinks of a process; it labels counters and metrics.
    """

    name: str

    def open(self) -> None:
        """Connect or open. Called again after each failure.

        Raises:
            SinkError: if that is not possible now.
        """

    def write(self, batch: Sequence[Told]) -> int:
        """Take events in their order.

        Returns:
            How many of the first were taken for good; the rest is offered again.

        Raises:
            SinkError: if nothing can be taken until the sink was opened again. Nothing of the batch was taken then.
        """

    def flush(self) -> None:
        """Bring what was taken to where it survives the process. Called each second and before closing."""

    def reopen(self) -> None:
        """On SIGHUP: a file was renamed by log rotation, so open a new one. Others do nothing."""

    def close(self) -> None:
        """Flush and give everything back. May be called again."""
