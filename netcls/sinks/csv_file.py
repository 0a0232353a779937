"""``csv:FILE``: a growing CSV file, with the columns that ``--format csv`` has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from netcls.event import Event, as_dict
from netcls.flat import column_names, flat_row
from netcls.formats import csv_text
from netcls.sinks.append_file import AppendFile
from netcls.sinks.base import Told
from netcls.sinks.uri import SinkUri


class CsvFileSink:
    """A row a flow's event; the counters have no place in it.

    Args:
        path: of the file, appended to; a new one begins with the header.
    """

    def __init__(self, path: Path) -> None:
        self.name = "csv"
        self._file = AppendFile(path, csv_text(column_names(), []))

    def open(self) -> None:
        """See the contract."""
        self._file.open()

    def write(self, batch: Sequence[Told]) -> int:
        """See the contract."""
        rows = (flat_row(as_dict(told.event)) for told in batch if isinstance(told.event, Event))
        self._file.append(csv_text(column_names(), rows, with_header=False))
        return len(batch)

    def flush(self) -> None:
        """See the contract."""
        self._file.sync()

    def reopen(self) -> None:
        """See the contract."""
        self._file.open()

    def close(self) -> None:
        """See the contract."""
        self._file.close()


def from_uri(uri: SinkUri) -> CsvFileSink:
    """The sink of ``csv:FILE``."""
    return CsvFileSink(Path(uri.path))
