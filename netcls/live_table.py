"""Events of live interfaces as lines to watch: written as they come, in columns of fixed width."""

from __future__ import annotations

from typing import Final

from netcls.event import Event, StatsEvent, events_of
from netcls.event_batch import EventBatch
from netcls.formats import EventWriter
from netcls.output import Output
from netcls.table import books_lines, endpoint
from netcls.text import printable

# (title, width); a minus before the width: right-aligned.
_COLUMNS: Final = (
    *(("time", 12), ("proto", 5), ("client", 24), ("server", 24), ("packets", -7), ("bytes", -10)),
    *(("phase", 6), ("prob", -5), ("label", 0)),
)


class LiveTableWriter(EventWriter):
    """One line an event; a wide cell pushes the others to the right instead of being cut."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._output.write(_line([title for title, _ in _COLUMNS]))
        self._output.flush()

    def write(self, batch: EventBatch) -> None:
        """Lines, passed on at once."""
        for event in events_of(batch):
            self._output.write(_line(_cells(event, batch.phase)))
        self._output.flush()

    def write_stats(self, stats: StatsEvent) -> None:
        """The counters as lines below."""
        self._output.write("\n".join(["", *books_lines(stats.stats), ""]).encode())


def _cells(event: Event, phase: str) -> list[str]:
    flow, ours = event.flow, event.netcls
    label = ""
    if isinstance(ours.label, str):
        label = f"{ours.label} ({ours.nearest}?)" if isinstance(ours.nearest, str) else ours.label
        label += f" (was {ours.was})" if isinstance(ours.was, str) else ""
    return [
        event.timestamp[11:23],
        event.proto,
        endpoint(event.src_ip, event.src_port),
        endpoint(event.dest_ip, event.dest_port),
        str(flow.pkts_toserver + flow.pkts_toclient),
        str(flow.bytes_toserver + flow.bytes_toclient),
        phase,
        f"{ours.probability:.2f}" if isinstance(ours.probability, float) else "",
        label,
    ]


def _line(cells: list[str]) -> bytes:
    padded = [
        cell.rjust(-width) if width < 0 else cell.ljust(width)
        for cell, (_, width) in zip(map(printable, cells), _COLUMNS, strict=True)
    ]
    return ("  ".join(padded).rstrip() + "\n").encode()
