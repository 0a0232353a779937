"""Events as sinks get them."""

from __future__ import annotations

from typing import Any

from netcls.event import Event, StatsEvent, encode_line, events_of, stats_event
from netcls.event_batch import EventBatch
from netcls.sinks.base import Told
from tests.unit.netcls.batches import START_NS, classified, record


def told_of(*events: Event | StatsEvent, first: int = 1) -> list[Told]:
    """Numbered events with their lines."""
    return [Told(number, event, encode_line(event)) for number, event in enumerate(events, first)]


def told(*batches: EventBatch) -> list[Told]:
    """All events of the batches."""
    return told_of(*(event for batch in batches for event in events_of(batch)))


def one(**fields: Any) -> list[Told]:
    """One classified flow; ``fields`` change its record."""
    return told(classified(record(**fields)))


def many(n: int) -> list[Told]:
    """n flows, told apart by ``flow_id`` (from 0)."""
    return told(classified(*[record(flow_id=i) for i in range(n)]))


def stats() -> list[Told]:
    """The counters."""
    return told_of(stats_event({"netcls": {}}, START_NS, {"a.pcap"}))
