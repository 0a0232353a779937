"""What several sinks take from an event in another form than its line has it."""

from __future__ import annotations

import calendar
import time
from functools import lru_cache
from typing import Final

from msgspec import UNSET

from netcls.event import EngineEvent, Event, StatsEvent

_NS_PER_US: Final = 1000
_US_PER_S: Final = 1_000_000
# 2026-11-24T10:15:02.123456+0000: the second ends here, the microseconds stand behind it.
_SECOND: Final = slice(0, 19)
_MICROSECONDS: Final = slice(20, 26)


def is_last_of_flow(event: Event | StatsEvent | EngineEvent) -> bool:
    """True for the one event of each flow behind which none follows.

    What counts packets and bytes (IPFIX), or has no column that tells early answers from last ones (Zeek),
    takes only those.
    """
    return isinstance(event, Event) and event.netcls.final is not False


def label_text(event: Event) -> str | None:
    """What the model says: its label, or all that hold joined by commas; None where there is no label."""
    ours = event.netcls
    if ours.label is not UNSET:
        return ours.label
    if ours.labels is not UNSET:
        return ",".join(part.label for part in ours.labels)
    return None


def epoch_us(timestamp: str) -> int:
    """Microseconds since the Unix epoch of an event's time (see :func:`netcls.event.timestamp_text`)."""
    return _second_of(timestamp[_SECOND]) * _US_PER_S + int(timestamp[_MICROSECONDS])


def epoch_ns(timestamp: str) -> int:
    """Nanoseconds since the Unix epoch of an event's time, which has microseconds."""
    return epoch_us(timestamp) * _NS_PER_US


@lru_cache(maxsize=4096)
def _second_of(text: str) -> int:
    return calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
