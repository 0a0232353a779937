"""Classification of live interfaces: packets of the ring in, events out as soon as there is something to say.

    ring -> decode -> FlowTable  |queue|  representation -> Predictor -> EventBatch
    `------- capture thread -----'     '------- whoever iterates --------'

A flow is answered when it is ready (or from what is there, when the ready timeout passes), again if a later answer
differs, and a last time when it ends, with its final counters. The capture thread never waits: what the model cannot
keep up with is left out in a stated order and counted (:class:`netcls.step_queue.StepQueue`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from capture.errors import NetclsError, UsageError
from capture.flow_batch import EndReason, FlowBatch, KeepSpec
from capture.flow_table import FlowTableConfig
from netcls.counters import Counters
from netcls.event_batch import READY_BY_END, READY_BY_PACKETS, READY_BY_TIMEOUT, EventBatch
from netcls.live_capture import CaptureLoop
from netcls.pipeline import Answerer, RunOptions, joined
from netcls.step_queue import LiveStep, StepQueue

if TYPE_CHECKING:
    from capture.handshake.tls import Handshake
    from capture.live.base import LiveSource
    from models.checkpoint import Checkpoint
    from netcls.answers import AnswerStore
    from netcls.output import Output

EMIT: Final = ("first", "last", "both")
_MICRO_BATCH: Final = 4  # of the predictor, a thread
_MOST_FLOWS_AT_ONCE: Final = 256


@dataclass(frozen=True, slots=True)
class LiveOptions(RunOptions):
    """How live packets are turned into events; what files and interfaces share stands in RunOptions.

    Attributes:
        emit: ``first`` (one event a flow, when it is answered), ``last`` (one, when it ends) or ``both``.
        ready_timeout_s: see :class:`capture.flow_table.FlowTableConfig`.
        max_latency_ms: so long a ready flow waits for others to make a full batch.
        duration_s: end by itself after so long; None: never.
        queue_flows: ready flows that may wait for the model.
    """

    emit: str = "both"
    ready_timeout_s: float = 1.0
    max_latency_ms: float = 20.0
    duration_s: float | None = None
    queue_flows: int = 16_384

    def __post_init__(self) -> None:
        if self.emit not in EMIT:
            raise UsageError(f"emit is '{self.emit}'; expected one of {', '.join(EMIT)}")

    def table_config(self, n_tables: int) -> FlowTableConfig:
        """Of one of so many flow tables. Who wants only last answers needs no early ones."""
        return replace(
            self.flow_table_config(),
            memory_limit_bytes=self.memory_limit_bytes // n_tables,
            ready_timeout_s=0.0 if self.emit == "last" else self.ready_timeout_s,
        )


class LiveRun:
    """One capture from opening to stop; iterate it once for its events. A context manager that closes its sources.

    Args:
        sources: opened; nothing is captured before :meth:`start`, or the iteration if that comes first.
        options: how.
        classify: False: flow records only, without a model.
        checkpoint: already loaded; None: ``options.model`` is loaded.
        save: where to write every packet as pcap.

    Attributes:
        counters: the books; complete when the iteration has ended.
        warnings: one line each, for example of an interface that went away.
        on_news: called by the iteration some ten times a second, also while no event comes; for who shows warnings.

    Raises:
        CheckpointError: if the model cannot be loaded.
        LiveError: while iterating, if capturing cannot go on.
    """

    def __init__(
        self,
        sources: Sequence[LiveSource],
        options: LiveOptions,
        *,
        classify: bool = True,
        checkpoint: Checkpoint | None = None,
        save: Output | None = None,
    ) -> None:
        self._options = options
        self._names = [source.name for source in sources]
        self.counters = Counters()
        self._answerer: Answerer | None = None
        keep = KeepSpec()
        if classify:
            self._answerer = Answerer.of(options, checkpoint)
            self._answerer.warm_up()
            keep = self._answerer.representation.keep
        self._queue = StepQueue(options.queue_flows, 16 * options.queue_flows)
        self._loop = CaptureLoop(
            sources,
            options.table_config,
            keep,
            self.counters,
            self._queue,
            duration_s=options.duration_s,
            save=save,
            decode_options=options.decode_options(),
            sni=options.sni,
        )
        self._loop.warm_up()
        self._stores = (
            [self._answerer.new_store(2 * table.most_flows) for table in self._loop.tables]
            if self._answerer
            else []
        )
        self.warnings = self._loop.warnings
        self.on_news: Callable[[], None] | None = None
        self._is_started = False

    def __enter__(self) -> LiveRun:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Give everything back, whatever is still open. May be called again."""
        self._loop.close()
        if self._answerer:
            self._answerer.close()

    def start(self) -> None:
        """Begin to capture: what is on the wire from here on is seen. May be called again."""
        if not self._is_started:
            self._is_started = True
            self._loop.start()

    def stop(self) -> None:
        """Stop capturing and end all flows; the iteration ends behind their events. Safe in a signal handler."""
        self._loop.stop()

    def __iter__(self) -> Iterator[EventBatch]:
        threads = self._answerer.threads if self._answerer else 1
        patience_s = self._options.max_latency_ms / 1000
        self.start()
        while True:
            steps = self._queue.take(_MICRO_BATCH * threads, patience_s, _MOST_FLOWS_AT_ONCE)
            if self.on_news is not None:
                self.on_news()
            if steps is None:
                break
            for number in sorted({step.source for step in steps}):
                yield from self._deliver(number, [step for step in steps if step.source == number])
        if self._loop.failure is not None:
            raise self._loop.failure

    def _deliver(self, number: int, steps: list[LiveStep]) -> Iterator[EventBatch]:
        ended = joined([step.step.ended for step in steps])
        if self._answerer:
            yield from self._answer(number, steps, ended.records["serial"])
        hellos = [hello for step in steps for hello in step.hellos or ()] if self._options.sni else None
        yield from self._ended(number, ended, hellos)

    def _answer(self, number: int, steps: list[LiveStep], ended: NDArray[np.uint64]) -> Iterator[EventBatch]:
        assert self._answerer is not None
        store = self._stores[number]
        for flows, ready_by, ready_ns in self._ready(steps):
            self._answerer.answer(flows, store)
            latency_us = np.maximum(time.time_ns() - ready_ns, 0) // 1000
            store.note(flows.records["serial"], ready_by, latency_us)
            if self._options.emit == "last":
                continue
            told = self._is_told(flows.records) & ~np.isin(flows.records["serial"], ended)
            told &= store.is_news(flows.records["serial"], first_only=self._options.emit == "first")
            if told.any():
                records = flows.records[told]
                answers = store.look_up(records["serial"])
                store.tell(records["serial"])
                yield EventBatch(
                    self._names[number],
                    records,
                    answers,
                    is_live=True,
                    phase="ready",
                    final=self._options.emit == "first",
                )

    def _ready(self, steps: list[LiveStep]) -> Iterator[tuple[FlowBatch, NDArray[Any], NDArray[Any]]]:
        """Ready flows in pieces of at most 256, with how each became ready, and when (wall clock, ns)."""
        batch = joined([step.step.ready for step in steps])
        early = np.concatenate([step.step.is_early() for step in steps])
        made_ns = np.concatenate([np.full(len(step.step.ready), step.made_ns) for step in steps])
        if not len(batch):
            return
        # A flow that is here early and again is asked about once.
        serial = batch.records["serial"]
        wanted = ~(early & np.isin(serial, serial[~early]))
        batch, early, made_ns = batch.take(wanted), early[wanted], made_ns[wanted]
        by_packets = batch.records["end_reason"] == EndReason.OPEN
        by_packets &= ~early
        ready_by = np.where(by_packets, READY_BY_PACKETS, np.where(early, READY_BY_TIMEOUT, READY_BY_END))
        ready_ns = np.where(by_packets, batch.packets["ts_ns"][:, -1], made_ns)
        for start in range(0, len(batch), _MOST_FLOWS_AT_ONCE):
            rows = np.zeros(len(batch), np.bool_)
            rows[start : start + _MOST_FLOWS_AT_ONCE] = True
            yield batch.take(rows), ready_by[rows], ready_ns[rows]

    def _ended(
        self, number: int, ended: FlowBatch, hellos: list[Handshake | None] | None
    ) -> Iterator[EventBatch]:
        records = ended.records
        if not len(records):
            return
        enough = self._is_told(records)
        if self._answerer is None:
            self.counters.flows_skipped += int((~enough).sum())
            if enough.any():
                yield EventBatch(self._names[number], records, None, is_live=True, handshakes=hellos).take(
                    enough
                )
            return
        store = self._stores[number]
        known = store.knows(records["serial"])
        self.counters.flows_unanswered += int((~known).sum())
        if self._options.emit == "first":
            enough &= ~(known & store.was_told(records["serial"]))
            n_told_before = int((known & store.was_told(records["serial"])).sum())
        else:
            n_told_before = 0
        self.counters.flows_skipped += int((~enough).sum()) - n_told_before
        batch = EventBatch(self._names[number], records, None, is_live=True, handshakes=hellos)
        yield from self._last_events(batch, known, enough, store)

    def _last_events(
        self,
        batch: EventBatch,
        known: NDArray[np.bool_],
        enough: NDArray[np.bool_],
        store: AnswerStore,
    ) -> Iterator[EventBatch]:
        answers = store.pop(batch.records["serial"][known])
        self.counters.predictions += len(answers.label_index)
        self.counters.unknown += int(answers.unknown.sum())
        rows = known & enough
        if rows.any():
            yield replace(batch.take(rows), answers=answers.take(enough[known]))
        rows = ~known & enough
        if rows.any():
            # The model did not get round to these: a record is better than nothing, and than a guess.
            yield batch.take(rows)

    def _is_told(self, records: Any) -> NDArray[np.bool_]:
        told: NDArray[np.bool_] = records["packets"].sum(axis=1) >= self._options.min_packets
        return told


def first_flows(batches: Iterable[EventBatch], n: int, stop: Callable[[], None]) -> Iterator[EventBatch]:
    """The events of the first ``n`` flows that have one; ``stop`` is called once there are so many."""
    let_in: set[int] = set()
    n_open = n
    for batch in batches:
        rows = np.zeros(len(batch), np.bool_)
        for row, flow_id in enumerate(batch.records["flow_id"].tolist()):
            if flow_id in let_in or len(let_in) < n:
                let_in.add(flow_id)
                rows[row] = True
        if rows.any():
            n_open -= int(rows.sum()) if batch.final else 0
            yield batch.take(rows)
        if len(let_in) == n:
            stop()
        if n_open == 0:
            return


def refuse_mixed_link_types(sources: Sequence[LiveSource]) -> None:
    """A pcap file has one link type.

    Raises:
        NetclsError: if the sources differ.
    """
    if len({source.link_type for source in sources}) > 1:
        kinds = ", ".join(f"{source.name} has {source.link_type}" for source in sources)
        raise NetclsError(f"--write makes a pcap of one link type, and {kinds}; capture them one by one")
