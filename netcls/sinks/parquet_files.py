"""``parquet:DIR``: files of events in the schema of :mod:`netcls.arrow`, each complete when it has its name."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from netcls.event import Event
from netcls.output import Output, OutputError
from netcls.sinks.base import SinkError, Told
from netcls.sinks.uri import SinkUri

DEFAULT_ROWS: Final = 1_000_000
DEFAULT_SECONDS: Final = 300

_FOLDER_MODE: Final = 0o750
_ROW_GROUP_ROWS: Final = 50_000


class ParquetFilesSink:
    """A file is begun with the first event for it and ends by rows, age, SIGHUP or the end of the process.

    A Parquet file is none without its footer: a killed process loses the file that it was writing, so ``seconds``
    bounds what can be lost. The counters have no place in it.

    Args:
        folder: made where it is not there.
        rows: a file ends with the batch that brings it to so many.
        seconds: or when it is so old.

    Attributes:
        n_failed: events that were taken and are lost, because their file could not be finished.

    Raises:
        UsageError: without pyarrow.
    """

    def __init__(self, folder: Path, rows: int = DEFAULT_ROWS, seconds: int = DEFAULT_SECONDS) -> None:
        from netcls.arrow import require_pyarrow

        require_pyarrow()
        self.name = "parquet"
        self.n_failed = 0
        self._folder = folder
        self._rows = rows
        self._seconds = seconds
        self._stack = ExitStack()
        self._groups: Any = None
        self._n_rows = 0
        self._n_files = 0
        self._begun_s = 0.0

    def open(self) -> None:
        """See the contract."""
        try:
            self._folder.mkdir(mode=_FOLDER_MODE, exist_ok=True)
        except OSError as error:
            raise SinkError(f"cannot make the folder '{self._folder}': {error.strerror}") from None

    def write(self, batch: Sequence[Told]) -> int:
        """See the contract."""
        from netcls.arrow import record_batch_of

        events = [told.event for told in batch if isinstance(told.event, Event)]
        if not events:
            return len(batch)
        try:
            if self._groups is None:
                self._begin()
            self._groups.write(record_batch_of(events))
        except (OutputError, OSError) as error:
            self._give_up()
            raise SinkError(str(error)) from None
        self._n_rows += len(events)
        self._end_if_due()
        return len(batch)

    def flush(self) -> None:
        """End the file if it is old enough."""
        self._end_if_due()

    def reopen(self) -> None:
        """End the file."""
        self._end()

    def close(self) -> None:
        """See the contract."""
        self._end()

    def _begin(self) -> None:
        from netcls.arrow import RowGroups, event_schema

        # Two processes, or one that began again within a second, never take the same name.
        while True:
            self._n_files += 1
            stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
            path = self._folder / f"netcls-{stamp}-{self._n_files:06d}.parquet"
            if not path.exists():
                break
        output = self._stack.enter_context(Output(str(path.absolute())))
        self._groups = RowGroups(output, event_schema(), _ROW_GROUP_ROWS)
        self._n_rows = 0
        self._begun_s = time.monotonic()

    def _end_if_due(self) -> None:
        is_old = time.monotonic() - self._begun_s >= self._seconds
        if self._groups is not None and (self._n_rows >= self._rows or is_old):
            self._end()

    def _end(self) -> None:
        if self._groups is None:
            return
        try:
            self._groups.close()
            self._groups = None
            self._stack.close()
        except (OutputError, OSError) as error:
            self._give_up()
            raise SinkError(str(error)) from None

    def _give_up(self) -> None:
        """Leave no file; the rows that went into it are lost and counted."""
        self.n_failed += self._n_rows
        self._groups, self._n_rows = None, 0
        stack, self._stack = self._stack, ExitStack()
        stack.__exit__(SinkError, SinkError(), None)


def from_uri(uri: SinkUri) -> ParquetFilesSink:
    """The sink of ``parquet:DIR``."""
    return ParquetFilesSink(
        Path(uri.path),
        rows=uri.whole_number("rows", DEFAULT_ROWS, 1, 100_000_000),
        seconds=uri.whole_number("seconds", DEFAULT_SECONDS, 1, 86_400),
    )
