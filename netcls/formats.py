"""The formats of results: JSON lines, CSV, Parquet, a table to look at, and none.

A writer takes batches of events and writes them to an :class:`Output`.
The table has its own module; what needs pyarrow or rich imports it when such a writer is made.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from typing import Any, Final

from capture.errors import UsageError
from netcls.event import StatsEvent, as_dict, encode_line, encode_lines, events_of
from netcls.event_batch import EventBatch
from netcls.flat import column_names, flat_row
from netcls.output import Output
from netcls.text import printable

FORMATS: Final = ("table", "jsonl", "csv", "parquet")

_ROW_GROUP_FLOWS: Final = 50_000

# A spreadsheet takes a cell that begins with one of these as a formula.
_FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r")


class EventWriter:
    """Takes the events of a run, batch by batch. This one, ``none``, drops them: only the counters are wanted."""

    def write(self, batch: EventBatch) -> None:
        """Write the events of a batch."""

    def write_stats(self, stats: StatsEvent) -> None:
        """Write the counters, after the last batch."""

    def finish(self) -> None:
        """End what needs an end."""


def event_writer(name: str, output: Output, *, has_labels: bool) -> EventWriter:
    """The writer of a format.

    Args:
        name: one of :data:`FORMATS`, or ``none``.
        output: where to.
        has_labels: True where a model answers; the table then shows labels.

    Raises:
        UsageError: if the format cannot go there, or its library is missing.
    """
    if name == "jsonl":
        return JsonLinesWriter(output)
    if name == "csv":
        return CsvWriter(output)
    if name == "parquet":
        refuse_terminal(output, name)
        return ParquetWriter(output)
    if name == "table":
        from netcls.table import TableWriter

        return TableWriter(output, has_labels=has_labels)
    return EventWriter()


def refuse_terminal(output: Output, name: str) -> None:
    """Raise UsageError if the binary format ``name`` would go to a terminal."""
    if output.is_terminal:
        raise UsageError(f"{name} is binary and standard output is a terminal; give --output FILE")


class JsonLinesWriter(EventWriter):
    """One JSON object a line, UTF-8."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def write(self, batch: EventBatch) -> None:
        """One line a flow, passed on at once."""
        self._output.write(encode_lines(batch))
        self._output.flush()

    def write_stats(self, stats: StatsEvent) -> None:
        """One line."""
        self._output.write(encode_line(stats))


class CsvWriter(EventWriter):
    """RFC 4180 with a header; every column of the schema is there, lists stand as JSON."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._output.write(csv_text(column_names(), []))

    def write(self, batch: EventBatch) -> None:
        """One row a flow, passed on at once."""
        rows = (flat_row(as_dict(event)) for event in events_of(batch))
        self._output.write(csv_text(column_names(), rows, with_header=False))
        self._output.flush()


class ParquetWriter(EventWriter):
    """The flat schema of :mod:`netcls.arrow`."""

    def __init__(self, output: Output) -> None:
        from netcls.arrow import RowGroups, event_schema

        self._groups = RowGroups(output, event_schema(), _ROW_GROUP_FLOWS)

    def write(self, batch: EventBatch) -> None:
        """Take the rows; a row group is written when it is full."""
        from netcls.arrow import record_batch

        self._groups.write(record_batch(batch))

    def finish(self) -> None:
        """Write the last rows and the footer, without which the file is none."""
        self._groups.close()


def csv_text(names: Iterable[str], rows: Iterable[dict[str, Any]], *, with_header: bool = True) -> bytes:
    """Rows as CSV; a column that a row lacks is empty, a cell that looks like a formula begins with ``'``.

    Characters that a terminal obeys are written out, so a row is always one line.
    """
    text = io.StringIO()
    columns = list(names)
    writer = csv.writer(text, lineterminator="\r\n")
    if with_header:
        writer.writerow(columns)
    writer.writerows([_cell(row.get(name)) for name in columns] for row in rows)
    return text.getvalue().encode()


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        return ("'" if value.startswith(_FORMULA_STARTS) else "") + printable(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return json.dumps(value, separators=(",", ":")).replace("\x7f", "\\u007f")
    return value
