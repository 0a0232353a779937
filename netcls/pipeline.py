"""The one place that sees capture and models: packets of captures in, answered flows out.

    reader -> decode -> FlowTable -> representation -> Predictor -> EventBatch

Every capture has a flow table of its own, unless all are one stream. A flow is answered when it is ready (it has the
packets that the representation wants, or it ended before) and leaves, with its final counters, when it ends: one event
a flow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from capture.decode import DecodeOptions, Decoder
from capture.errors import CaptureError
from capture.flow_batch import EndReason, FlowBatch, FlowStep, KeepSpec
from capture.flow_table import FlowTable, FlowTableConfig
from capture.handshake import HandshakeTracker
from capture.readers import MAX_DECOMPRESSED_BYTES, open_capture
from netcls.answers import AnswerStore
from netcls.counters import NO_QUIC_NAMES, Counters
from netcls.event_batch import EventBatch, ModelName
from netcls.inputs import by_first_packet

if TYPE_CHECKING:
    from models.checkpoint import Checkpoint

# Flows that wait for the model, or ended flows that wait for them, before a batch is made of them.
READY_FLOWS = 256
ENDED_FLOWS = 4096
# A block this small says that the source (a pipe, a slow disk) has nothing more for now: what is done is handed out.
SMALL_BLOCK_PACKETS = 256


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How captures are turned into flows and answers.

    Attributes:
        model: name or folder of a checkpoint.
        idle_timeout_s, active_timeout_s, tcp_linger_s: see :class:`capture.flow_table.FlowTableConfig`.
        memory_limit_bytes: ceiling of one flow table.
        min_packets: flows with fewer packets are left out of the output, and counted.
        top: best labels to give with each answer; 0: only the answer and the runner-up.
        strict: a capture that ends in the middle of a record is an error.
        threads: of the model; None: one per core.
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: of the model on a CPU: ``auto``, ``fp32``, ``bf16`` or ``int8``.
        early_exit: answer a flow before its last packet where the model is sure; see :mod:`models.early_exit`.
        decap: ``inner`` or ``outer``; see :class:`capture.decode.DecodeOptions`.
        check_checksums: see there.
        as_one_stream: all captures, in the order of their first packets, through one flow table.
        follow: wait for more at the end of a file, until an interrupt.
        follow_idle_s: or until nothing has come for so long; 0: no limit.
        sni: whether server names and ALPN of TLS and QUIC handshakes are looked for.
        max_decompressed_bytes: that one compressed capture may unpack to; None: no bound.
    """

    model: str = "default"
    idle_timeout_s: float = 120.0
    active_timeout_s: float = 1800.0
    tcp_linger_s: float = 5.0
    memory_limit_bytes: int = 256 << 20
    min_packets: int = 0
    top: int = 0
    strict: bool = False
    threads: int | None = None
    device: str = "auto"
    precision: str = "auto"
    early_exit: bool = False
    decap: str = "inner"
    check_checksums: bool = False
    sni: bool = True
    as_one_stream: bool = False
    follow: bool = False
    follow_idle_s: float = 0.0
    max_decompressed_bytes: int | None = MAX_DECOMPRESSED_BYTES

    def follow_s(self) -> float:
        """How long to wait for more at the end of a capture; see :func:`capture.readers.open_capture`."""
        return (self.follow_idle_s or math.inf) if self.follow else 0.0

    def decode_options(self) -> DecodeOptions:
        """The decoder's part of these options."""
        return DecodeOptions(self.decap, self.check_checksums)

    def flow_table_config(self) -> FlowTableConfig:
        """The flow table's part of these options."""
        return FlowTableConfig(
            idle_timeout_s=self.idle_timeout_s,
            active_timeout_s=self.active_timeout_s,
            tcp_linger_s=self.tcp_linger_s,
            memory_limit_bytes=self.memory_limit_bytes,
        )


class Answerer:
    """Representation and predictor, and the answers of open flows over all captures of a run.

    Attributes:
        watch: called with all flows that are answered and what is kept of each, before the model is; for who keeps
            them, see :class:`netcls.store.kept.KeptFlows`.
        checkpoint: who answers.
        name: the same, as events say it.
        representation: of what it reads.
    """

    def __init__(self, checkpoint: Checkpoint, options: RunOptions) -> None:
        from capture.representations import build, representation_id
        from models.predictor import Predictor

        self.watch: Callable[[FlowBatch, KeepSpec], None] | None = None
        self.representation = build(checkpoint.representation, checkpoint.representation_settings)
        self._predictor = Predictor(
            checkpoint,
            threads=options.threads,
            device=options.device,
            precision=options.precision,
            early_exit=options.early_exit,
        )
        task = checkpoint.task
        name = ModelName(
            checkpoint.name,
            checkpoint.digest,
            representation_id(self.representation),
            (task.target,) if task.kind == "regression" else tuple(checkpoint.labels),
            task,
        )
        self._n_values = 0 if task.kind == "class" else len(checkpoint.labels)
        self.checkpoint = checkpoint
        self.name, self._top = name, options.top
        self._threshold = checkpoint.calibration.unknown_threshold
        self.store = AnswerStore(name, options.top, self._threshold, n_values=self._n_values)

    @classmethod
    def of(cls, options: RunOptions, checkpoint: Checkpoint | None) -> Answerer:
        """With a checkpoint that is already loaded, or the one that the options name.

        Raises:
            CheckpointError: if it cannot be loaded.
        """
        if checkpoint is None:
            from models.checkpoint import load_checkpoint

            checkpoint = load_checkpoint(options.model)
        return cls(checkpoint, options)

    @property
    def threads(self) -> int:
        """Of the model."""
        return self._predictor.threads

    def new_store(self, limit: int) -> AnswerStore:
        """For the flows of an interface; see :class:`netcls.answers.AnswerStore`."""
        return AnswerStore(
            self.name, self._top, self._threshold, limit=limit, is_live=True, n_values=self._n_values
        )

    def reads_like(self, other: Answerer) -> bool:
        """Whether another model is asked about the same tokens, so that one can stand in for the other."""
        mine, theirs = self.checkpoint, other.checkpoint
        return (
            self.name.representation == other.name.representation
            and mine.representation_settings == theirs.representation_settings
        )

    def warm_up(self) -> None:
        """So that the first flow finds everything compiled and loaded."""
        self._predictor.warm_up()

    def close(self) -> None:
        """End the model's worker threads."""
        self._predictor.close()

    def answer(
        self, flows: FlowBatch, store: AnswerStore | None = None, *, counters: Counters | None = None
    ) -> None:
        """Put the answers of ready flows into a store; into the run's own unless another is given."""
        if self.watch is not None:
            self.watch(flows, self.representation.keep)
        tokens = self.representation.tokenize(flows)
        said = self._predictor.predict(tokens)
        if counters is not None and self._predictor.early_exit:
            counters.count_looked_at(said.packets_used, tokens.packets_used)
        last = np.maximum(said.packets_used.astype(np.intp), 1) - 1
        ts_ns = flows.packets["ts_ns"][np.arange(len(flows)), last]
        (self.store if store is None else store).put(
            flows.records["serial"],
            said.probabilities,
            said.unknown_score,
            said.packets_used,
            ts_ns,
            said.values if self._n_values else None,
        )


class Run:
    """One pass over captures; iterate it once for the ended flows of all of them.

    Args:
        paths: capture files; ``-`` is standard input.
        options: how.
        classify: False: flow records only; no model is loaded and torch is not imported.
        checkpoint: already loaded; None: ``options.model`` is loaded.
        answerer: in place of one that the run makes; it is not closed here.
        on_error: called with the error of a capture that cannot be read, after which the run goes on with the
            next one; None: the error is raised.

    Attributes:
        counters: the books, up to date whenever a batch is handed out.
        warnings: one line each, for example of a capture that was cut off.

    Raises:
        CheckpointError: if the model cannot be loaded.
        CaptureError: while iterating, for a capture that cannot be read, where ``on_error`` is None.
    """

    def __init__(
        self,
        paths: Sequence[str],
        options: RunOptions | None = None,
        *,
        classify: bool,
        checkpoint: Checkpoint | None = None,
        answerer: Answerer | None = None,
        on_error: Callable[[CaptureError], None] | None = None,
    ) -> None:
        self._paths = list(paths)
        self._options = options or RunOptions()
        self._on_error = on_error
        self.counters = Counters()
        self.warnings: list[str] = []
        self._said_no_quic = False
        self._is_own = answerer is None
        self._answerer = (answerer or Answerer.of(self._options, checkpoint)) if classify else None

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._answerer and self._is_own:
            self._answerer.close()

    def __iter__(self) -> Iterator[EventBatch]:
        if self._options.as_one_stream:
            yield from self._stream(by_first_packet(self._paths))
        else:
            for path in self._paths:
                yield from self._stream([path])

    def _stream(self, paths: Sequence[str]) -> Iterator[EventBatch]:
        """Captures through one flow table, in their order."""
        keep = self._answerer.representation.keep if self._answerer else KeepSpec()
        table = FlowTable(self._options.flow_table_config(), keep)
        decoder = Decoder(self._options.decode_options())
        pending = _Pending(HandshakeTracker() if self._options.sni else None)
        failure: CaptureError | None = None
        for path in paths:
            pending.begin_file(path, table.counters.flows_started)
            try:
                yield from self._one_capture(path, table, decoder, pending)
            except CaptureError as error:
                self.counters.captures_failed += 1
                failure = error
                if self._on_error is None:
                    break
                self._on_error(error)
        # What was read before an error is answered and counted like everything else.
        for step in table.flush(EndReason.FORCED):
            yield from self._take(step, pending)
        self.counters.add_table(table.counters)
        self.counters.count_decoder(decoder)
        yield from self._hand_out(pending)
        if pending.handshakes:
            self._count_handshakes(pending.handshakes)
        if failure is not None and self._on_error is None:
            raise failure

    def _one_capture(
        self, path: str, table: FlowTable, decoder: Decoder, pending: _Pending
    ) -> Iterator[EventBatch]:
        options = self._options
        with open_capture(
            path,
            strict=options.strict,
            follow_s=options.follow_s(),
            max_decompressed_bytes=options.max_decompressed_bytes,
        ) as reader:
            self.counters.captures += 1
            try:
                for block in reader:
                    decoded = decoder.decode(block)
                    self.counters.packets_seen += len(block)
                    self.counters.bytes_seen += int(block.captured_len.sum())
                    self.counters.count_decoded(decoded)
                    if pending.handshakes:
                        pending.handshakes.see(block, decoded)
                    for step in table.push(block, decoded):
                        yield from self._take(step, pending)
                    if len(block) < SMALL_BLOCK_PACKETS:
                        yield from self._hand_out(pending)
            except CaptureError:
                self.counters.captures_cut += reader.counters.cut
                raise
            except KeyboardInterrupt:
                # Flows that have ended are delivered before the run stops.
                yield from self._hand_out(pending)
                raise
            if reader.counters.cut:
                self.counters.captures_cut += 1
                self.warnings.append(reader.counters.cut_message)

    def _take(self, step: FlowStep, pending: _Pending) -> Iterator[EventBatch]:
        if self._answerer and len(step.ready):
            pending.ready.append(step.ready)
        if len(step.ended):
            pending.ended.append(step.ended)
        if pending.n_ready() >= READY_FLOWS or pending.n_ended() >= ENDED_FLOWS:
            yield from self._hand_out(pending)

    def _hand_out(self, pending: _Pending) -> Iterator[EventBatch]:
        if self._answerer and pending.ready:
            self._answerer.answer(joined(pending.ready), counters=self.counters)
        pending.ready.clear()
        ended, pending.ended = pending.ended, []
        for flows in ended:
            records = flows.records
            answers = self._answerer.store.pop(records["serial"]) if self._answerer else None
            hellos = pending.handshakes.take(records) if pending.handshakes else None
            enough = records["packets"].sum(axis=1) >= self._options.min_packets
            self.counters.flows_skipped += int((~enough).sum())
            for path, rows in pending.by_file(records["serial"]):
                rows &= enough
                n = int(rows.sum())
                if not n:
                    continue
                told = answers.take(rows) if answers else None
                if told:
                    self.counters.predictions += n
                    self.counters.unknown += int(told.unknown.sum())
                said = [hello for hello, keep in zip(hellos, rows, strict=True) if keep] if hellos else None
                yield EventBatch(path, records[rows], told, handshakes=said)

    def _count_handshakes(self, tracker: HandshakeTracker) -> None:
        self.counters.count_handshakes(tracker)
        if tracker.counters.no_cryptography and not self._said_no_quic:
            self._said_no_quic = True
            self.warnings.append(NO_QUIC_NAMES)


class _Pending:
    """Flows of one capture between the flow table and the output, and the handshakes they will be told with."""

    def __init__(self, handshakes: HandshakeTracker | None) -> None:
        self.handshakes = handshakes
        self._files: list[str] = []
        self._first_serials: list[int] = []
        self.ready: list[FlowBatch] = []
        self.ended: list[FlowBatch] = []

    def begin_file(self, path: str, first_serial: int) -> None:
        """Flows from this number on begin in another file."""
        self._files.append(path)
        self._first_serials.append(first_serial)

    def by_file(self, serials: NDArray[np.uint64]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """The files in which flows began, each with a mask of its flows."""
        file_of = np.searchsorted(self._first_serials, serials, side="right") - 1
        for number in np.unique(file_of):
            yield self._files[number], file_of == number

    def n_ready(self) -> int:
        return sum(len(batch) for batch in self.ready)

    def n_ended(self) -> int:
        return sum(len(batch) for batch in self.ended)


def joined(batches: list[FlowBatch]) -> FlowBatch:
    """Batches of one flow table as one."""
    if len(batches) == 1:
        return batches[0]
    return FlowBatch(
        np.concatenate([batch.records for batch in batches]),
        np.concatenate([batch.packets for batch in batches]),
        np.concatenate([batch.data for batch in batches]),
    )
