"""The store as a sink: takes events in batches, keeps the newest of each flow, and stays within its bounds.

    Told -> flows (one row each) + rates (per label, 10 s and 5 min) -> retention by age, number and size

Written by one thread, that of the sink's runner; read by the API's threads through connections of their own. Without a
file it lives in memory, which then is also the bound of what the page can show.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from netcls.event import Event
from netcls.sinks.base import SinkError, Told
from netcls.store.filter import is_final, label_of, packed, text_of
from netcls.store.kept import KeptFlows
from netcls.store.schema import PAGE_BYTES, StoreError, open_database, open_reader

_LOG: Final = logging.getLogger(__name__)

FINE_STEP_S: Final = 10
COARSE_STEP_S: Final = 300
_FINE_KEPT_S: Final = 2 * 3600
_MAX_EARLIER: Final = 16  # answers kept of one flow beside the newest
_MAX_LABELS: Final = 100_000
_RETENTION_EVERY_S: Final = 10.0
_DELETE_AT_ONCE: Final = 5_000
_QUERY_LIMIT_S: Final = 2.0
_STEPS_BETWEEN_CHECKS: Final = 10_000  # of SQLite's virtual machine, some 0.1 ms


class SlowQueryError(StoreError):
    """A query was ended because it took too long."""


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """How much history is kept.

    Attributes:
        path: of the file; None: in memory, gone with the process.
        max_age_s: flows told longer ago are forgotten.
        max_bytes: of the file; the flows told first are forgotten first.
        max_flows: the same by number; None: no limit. In memory 50,000 unless told otherwise.
        keep_packets: also the first packets of each flow, for the page's picture and for fine-tuning.
    """

    path: Path | None = None
    max_age_s: float = 30 * 86_400.0
    max_bytes: int = 1 << 30
    max_flows: int | None = None
    keep_packets: bool = True

    @property
    def flow_limit(self) -> int | None:
        """The limit by number that holds."""
        return 50_000 if self.max_flows is None and self.path is None else self.max_flows


class Store:
    """History of flows and labels; see the module.

    Args:
        options: how much, and where.
        kept: where the first packets of flows are looked up when their events come; None: nowhere.

    Attributes:
        name: of the sink.
        warnings: one line each, for example of a file that was set aside.
        counters: ``flows_written``, ``flows_expired``, ``labels``.
    """

    name: Final = "store"

    def __init__(self, options: StoreOptions | None = None, kept: KeptFlows | None = None) -> None:
        self.options = options or StoreOptions()
        self.kept = kept if self.options.keep_packets else None
        self.warnings: list[str] = []
        self.counters: dict[str, int] = {"flows_written": 0, "flows_expired": 0, "labels": 0}
        self._lock = threading.RLock()  # of the connection that writes
        self._database: sqlite3.Connection | None = None
        self._readers = threading.local()
        self._generation = 0  # of the file; readers of an older one are opened anew
        self._next_retention_s = 0.0

    # --- the sink

    def open(self) -> None:
        """Open or make the file; a damaged one is set aside.

        Raises:
            SinkError: if it cannot be opened.
        """
        with self._lock:
            if self._database is not None:
                if self.options.path is None:
                    return
                self.close()
            try:
                self._database, warnings = open_database(self.options.path)
            except (StoreError, OSError, sqlite3.Error) as error:
                raise SinkError(str(error)) from None
            self._generation += 1
            for warning in warnings:
                _LOG.warning(warning)
            self.warnings += warnings
            self.counters["labels"] = self._scalar("SELECT count(*) FROM labels")

    def write(self, batch: Sequence[Told]) -> int:
        """Keep the flows of a batch, in one transaction.

        Returns:
            The length of the batch.

        Raises:
            SinkError: if the disk is full or the file is damaged; it is looked at anew when the sink is opened again.
        """
        now_s = time.time()
        events = [(told.event, told.line) for told in batch if isinstance(told.event, Event)]
        try:
            with self._lock:
                database = self._writer()
                if events:
                    database.execute("BEGIN IMMEDIATE")
                    try:
                        _Write(database, self.kept, int(now_s)).take(events)
                        database.execute("COMMIT")
                    except BaseException:
                        database.execute("ROLLBACK")
                        raise
                    self.counters["flows_written"] += len(events)
                if now_s >= self._next_retention_s or self._is_over_number():
                    self._next_retention_s = now_s + _RETENTION_EVERY_S
                    self._forget(now_s)
        except sqlite3.Error as error:
            raise SinkError(f"store {self.options.path}: {error}") from None
        return len(batch)

    def flush(self) -> None:
        """Nothing to do: each batch is a transaction, which survives the process (not a power cut)."""

    def reopen(self) -> None:
        """Nothing to do: nobody rotates a database."""

    def close(self) -> None:
        """Close the file; without one, what was kept in memory stays readable until the process ends."""
        with self._lock:
            if self._database is not None and self.options.path is not None:
                self._database.close()
                self._database = None

    # --- reading and labelling, from any thread

    @contextmanager
    def reading(self, limit_s: float = _QUERY_LIMIT_S) -> Iterator[sqlite3.Connection]:
        """A connection to read from, that gives up after a time.

        Raises:
            SlowQueryError: if it took longer.
            StoreError: if the store is not open, or damaged.
        """
        if self.options.path is None:
            with self._lock, self._bounded(self._writer(), limit_s) as database:
                yield database
            return
        if getattr(self._readers, "generation", None) != self._generation:
            self._writer()
            self._readers.database = open_reader(self.options.path)
            self._readers.generation = self._generation
        with self._bounded(self._readers.database, limit_s) as database:
            yield database

    def put_label(self, flow_id: int, label: str, note: str = "") -> bool:
        """Note an operator's label for a flow that is in the store, in place of an earlier one.

        Returns:
            Whether the flow's first packets are there, so that a model can learn from it.

        Raises:
            KeyError: if the flow is not in the store.
            StoreError: if there are too many labels, or the file cannot be written.
        """
        with self._lock:
            try:
                return self._put_label(flow_id, label, note)
            except sqlite3.Error as error:
                raise StoreError(f"the label was not stored: {error}") from None

    def _put_label(self, flow_id: int, label: str, note: str) -> bool:
        database = self._writer()
        row = database.execute("SELECT line, kept FROM flows WHERE flow_id = ?", (flow_id,)).fetchone()
        if row is None:
            raise KeyError(flow_id)
        if self._scalar("SELECT count(*) FROM labels") >= _MAX_LABELS:
            raise StoreError(
                f"the store holds {_MAX_LABELS} labels, which is its limit; fine-tune, then begin anew"
            )
        kept = row[1]
        if kept is None and self.kept is not None and (found := self.kept.of(flow_id)):
            kept = found.pack()
        database.execute(
            "INSERT OR REPLACE INTO labels VALUES (?, ?, ?, ?, ?, ?)",
            (flow_id, label, note, int(time.time()), row[0], kept),
        )
        self.counters["labels"] = self._scalar("SELECT count(*) FROM labels")
        return kept is not None

    def remove_label(self, flow_id: int) -> bool:
        """Forget an operator's label; False where there was none."""
        with self._lock:
            n = self._writer().execute("DELETE FROM labels WHERE flow_id = ?", (flow_id,)).rowcount
            self.counters["labels"] = self._scalar("SELECT count(*) FROM labels")
            return n > 0

    def size_bytes(self) -> int:
        """Of what the store uses of its file."""
        with self._lock:
            return self._used_bytes()

    # --- within bounds

    def _forget(self, now_s: float) -> None:
        """Age, number, size: what was told first goes first."""
        database = self._writer()
        database.execute(
            "DELETE FROM rates WHERE step_s = ? AND begin_s < ?", (FINE_STEP_S, int(now_s) - _FINE_KEPT_S)
        )
        oldest_s = int(now_s - self.options.max_age_s)
        database.execute("DELETE FROM rates WHERE begin_s < ?", (oldest_s - COARSE_STEP_S,))
        # seq and told_s grow together, so the oldest are the first.
        last = self._scalar(
            "SELECT max(seq) FROM (SELECT seq, told_s FROM flows ORDER BY seq LIMIT ?) WHERE told_s < ?",
            _DELETE_AT_ONCE,
            oldest_s,
        )
        self._delete_up_to(last)
        limit = self.options.flow_limit
        if limit is not None:
            over = self._scalar("SELECT count(*) FROM flows") - limit
            if over > 0:
                self._delete_first(over)
        while self._used_bytes() > self.options.max_bytes and (span := self._span()):
            self._delete_first(min(span // 10 + 1, _DELETE_AT_ONCE))
        database.execute("PRAGMA incremental_vacuum(2000)")

    def _is_over_number(self) -> bool:
        # Cheap, so that a store in memory stays within its bound between two looks at everything.
        limit = self.options.flow_limit
        return limit is not None and self._span() > 2 * limit

    def _span(self) -> int:
        """About how many flows there are, at most; 0: none."""
        first, last = (
            self._writer()
            .execute("SELECT (SELECT min(seq) FROM flows), (SELECT max(seq) FROM flows)")
            .fetchone()
        )
        return 0 if last is None else int(last - first) + 1

    def _delete_first(self, n: int) -> None:
        self._delete_up_to(
            self._scalar("SELECT max(seq) FROM (SELECT seq FROM flows ORDER BY seq LIMIT ?)", n)
        )

    def _delete_up_to(self, seq: int | None) -> None:
        if seq is not None:
            n = self._writer().execute("DELETE FROM flows WHERE seq <= ?", (seq,)).rowcount
            self.counters["flows_expired"] += n

    def _used_bytes(self) -> int:
        pages = int(self._scalar("PRAGMA page_count")) - int(self._scalar("PRAGMA freelist_count"))
        return pages * PAGE_BYTES

    # --- small things

    def _writer(self) -> sqlite3.Connection:
        if self._database is None:
            raise StoreError("the store is not open")
        return self._database

    def _scalar(self, sql: str, *values: Any) -> Any:
        return self._writer().execute(sql, values).fetchone()[0]

    @contextmanager
    def _bounded(self, database: sqlite3.Connection, limit_s: float) -> Iterator[sqlite3.Connection]:
        end_s = time.monotonic() + limit_s
        database.set_progress_handler(lambda: time.monotonic() > end_s, _STEPS_BETWEEN_CHECKS)
        try:
            yield database
        except sqlite3.OperationalError as error:
            if "interrupted" in str(error):
                raise SlowQueryError(
                    f"the query took longer than {limit_s:g} s; ask for a label, an address or a shorter time"
                ) from None
            raise StoreError(f"the store cannot be read: {error}") from None
        except sqlite3.DatabaseError as error:
            raise StoreError(f"the store cannot be read: {error}") from None
        finally:
            database.set_progress_handler(None, 0)


class _Write:
    """One batch on its way into the tables."""

    def __init__(self, database: sqlite3.Connection, kept: KeptFlows | None, now_s: int) -> None:
        self._database, self._kept, self._now_s = database, kept, now_s
        self._rates: dict[tuple[int, int, str], list[int]] = {}

    def take(self, events: list[tuple[Event, bytes]]) -> None:
        for event, line in events:
            self._flow(event, line)
        self._database.executemany(
            "INSERT INTO rates VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
            "flows = flows + excluded.flows, packets = packets + excluded.packets, bytes = bytes + excluded.bytes",
            [(*key, *counts) for key, counts in self._rates.items()],
        )

    def _flow(self, event: Event, line: bytes) -> None:
        ours, flow = event.netcls, event.flow
        label = label_of(event)
        packets, size = flow.pkts_toserver + flow.pkts_toclient, flow.bytes_toserver + flow.bytes_toclient
        before = self._database.execute(
            "SELECT first_told_s, label, packets, bytes, line, earlier, kept FROM flows WHERE flow_id = ?",
            (event.flow_id,),
        ).fetchone()
        first_told_s, earlier, kept = self._now_s, b"[]", None
        if before is None:
            self._count(self._now_s, label, 1, packets, size)
        else:
            first_told_s, label_before, packets_before, bytes_before, line_before, earlier, kept = before
            if label != label_before:
                # A flow counts once, when it was first told, for what it turned out to be.
                self._count(first_told_s, label_before, -1, 0, 0)
                self._count(first_told_s, label, 1, 0, 0)
            more = (max(packets - packets_before, 0), max(size - bytes_before, 0))
            self._count(self._now_s, label, 0, *more)
            told = [*json.loads(earlier), json.loads(line_before)]
            # The first answer and the newest ones tell how it developed.
            earlier = json.dumps(told[:1] + told[1:][-(_MAX_EARLIER - 1) :], ensure_ascii=False).encode()
        if self._kept is not None and (found := self._kept.of(event.flow_id)):
            kept = found.pack()
        self._database.execute(
            "INSERT OR REPLACE INTO flows (flow_id, told_s, first_told_s, label, probability, unknown, final, src, "
            "dest, src_port, dest_port, proto, packets, bytes, text, line, earlier, kept) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                event.flow_id,
                self._now_s,
                first_told_s,
                label,
                ours.probability if isinstance(ours.probability, float | int) else None,
                ours.unknown if isinstance(ours.unknown, bool) else None,
                is_final(event),
                packed(event.src_ip),
                packed(event.dest_ip),
                event.src_port if isinstance(event.src_port, int) else None,
                event.dest_port if isinstance(event.dest_port, int) else None,
                event.proto,
                packets,
                size,
                text_of(event),
                line.rstrip(b"\n"),
                earlier,
                kept,
            ),
        )

    def _count(self, at_s: int, label: str, flows: int, packets: int, size: int) -> None:
        for step_s in (FINE_STEP_S, COARSE_STEP_S):
            counts = self._rates.setdefault((step_s, at_s - at_s % step_s, label), [0, 0, 0])
            counts[0] += flows
            counts[1] += packets
            counts[2] += size
