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

from capture.errors import CheckpointError, NetclsError, UsageError
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
        is_daemon: flows that end because netcls stops say so (``flow.reason`` is ``shutdown``).
    """

    emit: str = "both"
    ready_timeout_s: float = 1.0
    max_latency_ms: float = 20.0
    duration_s: float | None = None
    queue_flows: int = 16_384
    is_daemon: bool = False

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


@dataclass(slots=True)
class Pace:
    """How the model's work is cut; may be changed while a run goes on.

    Attributes:
        batch_flows: ready flows that make a full batch.
        patience_s: so long a ready flow waits for others.
        end_only: nothing is told before a flow ends, and no early look is taken.
    """

    batch_flows: int
    patience_s: float
    end_only: bool = False


@dataclass(frozen=True, slots=True)
class Answered:
    """What asking the model about a batch has cost; for who measures.

    Attributes:
        latency_s: float64 (n,), from the packet (timeout, end) that made each flow ready to its answer.
        queue_s: float64 (n,), until the model's turn came.
        model_s: tokens and network, of the whole batch.
    """

    latency_s: NDArray[np.float64]
    queue_s: NDArray[np.float64]
    model_s: float


class LiveRun:
    """One capture from opening to stop; iterate it once for its events. A context manager that closes its sources.

    Args:
        sources: opened; nothing is captured before :meth:`start`, or the iteration if that comes first.
        options: how.
        classify: False: flow records only, without a model.
        checkpoint: already loaded; None: ``options.model`` is loaded.
        answerer: in place of one that the run makes; warm, and not closed here.
        save: where to write every packet as pcap.

    Attributes:
        counters: the books; complete when the iteration has ended.
        warnings: one line each, for example of an interface that went away.
        on_news: called by the iteration some ten times a second, also while no event comes; for who shows warnings.
        on_answered: called with the cost of each batch that the model was asked about.
        at_predict: called with the flows that the model will be asked about.
        pace: how the model's work is cut.
        queue: of what waits for the model.
        loop: the capture side.

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
        answerer: Answerer | None = None,
        save: Output | None = None,
    ) -> None:
        self._options = options
        self._names = [source.name for source in sources]
        self.counters = Counters()
        self._answerer = answerer
        self._is_own = answerer is None
        keep = KeepSpec()
        if classify and answerer is None:
            self._answerer = Answerer.of(options, checkpoint)
            self._answerer.warm_up()
        if self._answerer:
            keep = self._answerer.representation.keep
        self.queue = StepQueue(options.queue_flows, 16 * options.queue_flows)
        self.loop = CaptureLoop(
            sources,
            options.table_config,
            keep,
            self.counters,
            self.queue,
            duration_s=options.duration_s,
            save=save,
            decode_options=options.decode_options(),
            sni=options.sni,
        )
        self.loop.warm_up()
        # Of each source: the present model's first, then those of models that had answered flows that are still open.
        self._stores = [
            [self._answerer.new_store(2 * table.most_flows)] if self._answerer else []
            for table in self.loop.tables
        ]
        self.pace = Pace(
            _MICRO_BATCH * (self._answerer.threads if self._answerer else 1), options.max_latency_ms / 1000
        )
        self.warnings = self.loop.warnings
        self.on_news: Callable[[], None] | None = None
        self.on_answered: Callable[[Answered], None] | None = None
        self.at_predict: Callable[[FlowBatch], None] | None = None
        self._next_answerer: Answerer | None = None
        self._is_started = False

    def __enter__(self) -> LiveRun:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Give everything back, whatever is still open. May be called again."""
        self.loop.close()
        if self._answerer and self._is_own:
            self._answerer.close()

    def watch(
        self,
        beat: Callable[[], None],
        at_block: Callable[[int], None] | None = None,
        at_decode: Callable[[int], None] | None = None,
    ) -> None:
        """Before the start: who hears signs of life of the capture side, and faults on purpose."""
        self.loop.beat, self.loop.at_block, self.loop.at_decode = beat, at_block, at_decode

    def spool_status(self) -> dict[str, int]:
        """Nothing: there are no files."""
        return {}

    @property
    def books(self) -> Counters:
        """The counters while the run goes on: at most half a second old, and in balance."""
        return self.loop.books

    @property
    def answerer(self) -> Answerer | None:
        """Who answers now."""
        return self._answerer

    def swap(self, answerer: Answerer) -> None:
        """Let another model answer, from the next batch on; no flow is lost, and none is told twice. From any thread.

        The one before is not closed.

        Raises:
            CheckpointError: if it reads another representation: the first packets of open flows were kept for this one.
        """
        present = self._answerer
        if present is None:
            raise ValueError("this run has no model")
        if not answerer.reads_like(present):
            raise CheckpointError(
                f"checkpoint '{answerer.name.name}' reads {answerer.name.representation} with its settings, the "
                f"running one reads {present.name.representation} with others; restart netcls to change it"
            )
        self._next_answerer = answerer

    def _take_over(self) -> None:
        """Between two batches."""
        answerer, self._next_answerer = self._next_answerer, None
        if answerer is None or answerer is self._answerer:
            return
        self._answerer = answerer
        for number, table in enumerate(self.loop.tables):
            kept = [store for store in self._stores[number] if len(store)]
            own = [store for store in kept if store.model == answerer.name]
            others = [store for store in kept if store.model != answerer.name]
            self._stores[number] = [*(own or [answerer.new_store(2 * table.most_flows)]), *others]

    def start(self) -> None:
        """Begin to capture: what is on the wire from here on is seen. May be called again."""
        if not self._is_started:
            self._is_started = True
            self.loop.start()

    def stop(self) -> None:
        """Stop capturing and end all flows; the iteration ends behind their events. Safe in a signal handler."""
        self.loop.stop()

    def __iter__(self) -> Iterator[EventBatch]:
        self.start()
        while True:
            self.queue.takes_early = not self.pace.end_only
            steps = self.queue.take(self.pace.batch_flows, self.pace.patience_s, _MOST_FLOWS_AT_ONCE)
            self._take_over()
            if self.on_news is not None:
                self.on_news()
            if steps is None:
                break
            for number in sorted({step.source for step in steps}):
                yield from self._deliver(number, [step for step in steps if step.source == number])
        if self.loop.failure is not None:
            raise self.loop.failure

    def _deliver(self, number: int, steps: list[LiveStep]) -> Iterator[EventBatch]:
        ended = joined([step.step.ended for step in steps])
        if self._answerer:
            yield from self._answer(number, steps, ended.records["serial"])
        hellos = [hello for step in steps for hello in step.hellos or ()] if self._options.sni else None
        yield from self._ended(number, ended, hellos)

    def _answer(self, number: int, steps: list[LiveStep], ended: NDArray[np.uint64]) -> Iterator[EventBatch]:
        assert self._answerer is not None
        store, *others = self._stores[number]
        for flows, ready_by, ready_ns in self._ready(steps):
            if self.at_predict is not None:
                self.at_predict(flows)
            begin_ns = time.time_ns()
            self._answerer.answer(flows, store, counters=self.counters)
            end_ns = time.time_ns()
            for other in others:
                store.take_over(other, flows.records["serial"])
            latency_us = np.maximum(end_ns - ready_ns, 0) // 1000
            store.note(flows.records["serial"], ready_by, latency_us)
            if self.on_answered is not None:
                queue_s = np.maximum(begin_ns - ready_ns, 0) / 1e9
                self.on_answered(Answered(latency_us / 1e6, queue_s, (end_ns - begin_ns) / 1e9))
            if self._options.emit == "last" or self.pace.end_only:
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
        stores = [store for store in self._stores[number] if len(store)]
        knows = [store.knows(records["serial"]) for store in stores]
        known = np.logical_or.reduce([np.zeros(len(records), np.bool_), *knows])
        self.counters.flows_unanswered += int((~known).sum())
        n_told_before = 0
        if self._options.emit == "first":
            for store in stores:
                told = store.was_told(records["serial"])
                enough &= ~told
                n_told_before += int(told.sum())
        self.counters.flows_skipped += int((~enough).sum()) - n_told_before
        batch = EventBatch(
            self._names[number],
            records,
            None,
            is_live=True,
            handshakes=hellos,
            is_shutdown=self._options.is_daemon,
        )
        for store, mine in zip(stores, knows, strict=True):
            yield from self._answered(batch, mine, enough, store)
        rows = ~known & enough
        if rows.any():
            # The model did not get round to these: a record is better than nothing, and than a guess.
            yield batch.take(rows)

    def _answered(
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
