"""Tables for people: aligned text anywhere, drawn by rich on a terminal."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Final

from netcls.event import Event, NumberPart, StatsEvent, events_of
from netcls.event_batch import EventBatch
from netcls.formats import EventWriter
from netcls.output import Output
from netcls.text import printable

# Column widths come from this many flows; it also bounds what is held back.
_PAGE_ROWS: Final = 1000
_MIN_TERMINAL_WIDTH: Final = 60

Row = Sequence[str]

_FLOW_COLUMNS: Final = ("start", "proto", "client", "server", ">packets", ">bytes", ">age s", "end")
_LABEL_COLUMNS: Final = ("label", ">prob", "runner-up")


class TableWriter(EventWriter):
    """Pages of at most 1000 flows, each with its header."""

    def __init__(self, output: Output, *, has_labels: bool) -> None:
        self._output = output
        self._columns = _FLOW_COLUMNS[:-2] + _LABEL_COLUMNS if has_labels else _FLOW_COLUMNS
        self._rows: list[Row] = []

    def write(self, batch: EventBatch) -> None:
        """Take rows; a page is written when it is full."""
        self._rows.extend(_row(event) for event in events_of(batch))
        while len(self._rows) >= _PAGE_ROWS:
            self._page(self._rows[:_PAGE_ROWS])
            del self._rows[:_PAGE_ROWS]

    def write_stats(self, stats: StatsEvent) -> None:
        """The counters as lines below the table."""
        self.finish()
        self._output.write("\n".join(["", *books_lines(stats.stats), ""]).encode())

    def finish(self) -> None:
        """Write the last page."""
        if self._rows:
            self._page(self._rows)
            self._rows = []

    def _page(self, rows: Sequence[Row]) -> None:
        self._output.write(table_text(self._columns, rows, on_terminal=self._output.is_terminal).encode())
        self._output.flush()


def table_text(columns: Sequence[str], rows: Sequence[Row], *, on_terminal: bool) -> str:
    """Rows under their headers. Hostile characters are written out, so nothing steers the terminal.

    Args:
        columns: headers; one that begins with ``>`` is of right-aligned numbers.
        rows: cells, as many as columns.
        on_terminal: draw with rich, in the terminal's width (NO_COLOR holds); else plain aligned text.
    """
    clean = [[printable(cell) for cell in row] for row in rows]
    return _drawn(columns, clean) if on_terminal else _aligned(columns, clean)


def books_lines(stats: dict[str, object], prefix: str = "") -> list[str]:
    """Nested counters as lines ``packets.seen 120400``."""
    lines: list[str] = []
    for name, value in stats.items():
        if isinstance(value, dict):
            lines += books_lines(value, f"{prefix}{name}.")
        else:
            lines.append(f"{prefix}{name} {value}")
    return lines


def _row(event: Event) -> Row:
    flow, ours = event.flow, event.netcls
    cells = [
        flow.start[11:23],
        event.proto,
        endpoint(event.src_ip, event.src_port),
        endpoint(event.dest_ip, event.dest_port),
        str(flow.pkts_toserver + flow.pkts_toclient),
        str(flow.bytes_toserver + flow.bytes_toclient),
    ]
    if isinstance(ours.label, str):
        second = ours.runner_up
        best = f"{ours.label} ({ours.nearest}?)" if isinstance(ours.nearest, str) else ours.label
        runner_up = f"{second.label} {second.probability:.2f}" if second else ""
        return [*cells, best, f"{ours.probability:.2f}", runner_up]
    if isinstance(ours.number, NumberPart):
        number = ours.number
        return [
            *cells,
            f"{number.name} {number.estimate:g} {number.unit}",
            "",
            f"{number.low:g} to {number.high:g}",
        ]
    if isinstance(ours.labels, list):
        names = ", ".join(said.label for said in ours.labels)
        return [*cells, names, f"{ours.labels[0].probability:.2f}" if names else "", ""]
    return [*cells, str(flow.age), str(ours.end_reason or "")]


def endpoint(address: str, port: object) -> str:
    """``10.0.0.2:443``, ``[2001:db8::1]:443``; the address alone where there is no port."""
    if not isinstance(port, int):
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _aligned(columns: Sequence[str], rows: Sequence[Row]) -> str:
    headers = [column.lstrip(">") for column in columns]
    widths = [max(map(len, cells)) for cells in zip(headers, *rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if column.startswith(">") else cell.ljust(width)
            for column, cell, width in zip(columns, row, widths, strict=True)
        ).rstrip()
        for row in (headers, *rows)
    ]
    return "\n".join(lines) + "\n"


def _drawn(columns: Sequence[str], rows: Sequence[Row]) -> str:
    import io

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    width = max(shutil.get_terminal_size().columns, _MIN_TERMINAL_WIDTH)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        style = {"label": "cyan", "end": "dim", "runner-up": "dim"}.get(column, "")
        table.add_column(
            column.lstrip(">"),
            justify="right" if column.startswith(">") else "left",
            style=style,
            overflow="fold",
        )
    for row in rows:
        # Text, not str: a cell is never rich's markup.
        table.add_row(*map(Text, row))
    text = io.StringIO()
    Console(file=text, force_terminal=True, width=width, emoji=False).print(table)
    return text.getvalue()
