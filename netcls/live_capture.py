"""The capture side of a live run: a thread that takes packets to flows and never waits for the model."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from capture.block import PacketBlock
from capture.decode import DecodeOptions, Decoder
from capture.flow_batch import EndReason, FlowStep, KeepSpec
from capture.flow_table import FlowTable, FlowTableConfig
from capture.handshake import HandshakeTracker
from capture.live.base import LiveSource, wait_for_packets
from capture.live.pcap_writer import pcap_header, pcap_records
from netcls.counters import NO_QUIC_NAMES, Counters
from netcls.step_queue import LiveStep, StepQueue

if TYPE_CHECKING:
    from netcls.output import Output

_WAIT_S: Final = 0.05
_ADVANCE_S: Final = 0.05
_BOOKS_S: Final = 0.5
# A packet of this age may still lie in a block of the ring that is not full; a silent wire's clock stays behind it.
_RING_DELAY_NS: Final = 200_000_000
_DRAIN_S: Final = 0.2
_LONGEST_DRAIN_S: Final = 1.0
_CLOCK_WAS_SET_NS: Final = 1_000_000_000


class CaptureLoop:
    """Sources to flow tables, one for each; steps to a queue.

    Args:
        sources: opened; closed by :meth:`close`.
        config: of one of so many tables.
        keep: what the model needs of each flow.
        counters: the books.
        queue: where steps go.
        duration_s: ends by itself after so long; None: never.
        save: where to write every packet as pcap; None: nowhere.
        decode_options: what of a packet makes its flow; None: the defaults.
        sni: whether server names and ALPN are looked for.

    Attributes:
        warnings: what happened to interfaces, one line each.
        failure: what ended the loop before its time.
        books: the counters as they were at the end of a step, at most half a second old.
        beat: called several times a second, also on a silent wire; a sign of life.
        at_block, at_decode: called with the packets of a block before it is taken and decoded, for faults on purpose.
    """

    def __init__(
        self,
        sources: Sequence[LiveSource],
        config: Callable[[int], FlowTableConfig],
        keep: KeepSpec,
        counters: Counters,
        queue: StepQueue,
        *,
        duration_s: float | None = None,
        save: Output | None = None,
        decode_options: DecodeOptions | None = None,
        sni: bool = True,
    ) -> None:
        self.sources = list(sources)
        self._decode_options = decode_options
        self._decoders = [Decoder(decode_options) for _ in self.sources]
        self.handshakes = [HandshakeTracker() if sni else None for _ in self.sources]
        self.tables = [FlowTable(config(len(self.sources)), keep) for _ in self.sources]
        self.warnings: list[str] = []
        self.failure: BaseException | None = None
        self.books = Counters()
        self.beat: Callable[[], None] | None = None
        self.at_block: Callable[[int], None] | None = None
        self.at_decode: Callable[[int], None] | None = None
        self._next_books_s = 0.0
        self._counters, self._queue, self._save = counters, queue, save
        self._duration_s = duration_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="netcls-capture", daemon=True)
        self._next_advance_s = 0.0
        self._wall_offset_ns = time.time_ns() - time.monotonic_ns()

    def warm_up(self) -> None:
        """Load or compile every kernel that packets go through; the ring would run full meanwhile."""
        for source in self.sources:
            source.warm_up()
        block = _warm_up_block()
        # Of its own: the books of the one in use begin at 0.
        decoded = Decoder(self._decode_options).decode(block)
        if self.handshakes[0] is not None:
            self.handshakes[0].see(block, decoded)
        for table in self.tables[:1]:
            spare = table.spare()
            for _ in (*spare.push(block, decoded), *spare.advance(1), *spare.flush()):
                pass
        if self._save is not None:
            pcap_records(block)

    def start(self) -> None:
        """Begin to capture."""
        if self._save is not None:
            self._save.write(pcap_header(self.sources[0].link_type))
        for source in self.sources:
            source.begin()
        self._thread.start()

    def stop(self) -> None:
        """End all flows soon; the queue is closed behind the last one."""
        self._stopping.set()

    def close(self) -> None:
        """Stop, let nothing wait, and leave the interfaces."""
        self._stopping.set()
        self._queue.close()
        if self._thread.ident is not None:
            self._thread.join()
        for source in self.sources:
            source.close()

    def _run(self) -> None:
        try:
            self._capture()
            self._drain()
        except BaseException as error:
            self.failure = error
        try:
            for number, table in enumerate(self.tables):
                for step in table.flush(EndReason.FORCED):
                    self._put(number, step, may_wait=True)
            self._close_books()
        except BaseException as error:
            self.failure = self.failure or error
        finally:
            self._queue.close()

    def _capture(self) -> None:
        end_s = time.monotonic() + self._duration_s if self._duration_s is not None else None
        while not self._stopping.is_set():
            if not self._take_blocks():
                wait_for_packets(self.sources, _WAIT_S)
            if end_s is not None and time.monotonic() >= end_s:
                return
            for source in self.sources:
                if news := source.check():
                    self.warnings.append(news)
            self._show_books()

    def _drain(self) -> None:
        """What had arrived by now, also what lies in a block that is not full yet."""
        quiet_s = time.monotonic() + _DRAIN_S
        end_s = time.monotonic() + _LONGEST_DRAIN_S
        while time.monotonic() < min(quiet_s, end_s):
            if not self._take_blocks():
                wait_for_packets(self.sources, _WAIT_S)

    def _take_blocks(self) -> bool:
        """One block of each source; False if there was none. Silent sources hear what time it is."""
        now_s = time.monotonic()
        is_time = now_s >= self._next_advance_s
        if is_time:
            self._next_advance_s = now_s + _ADVANCE_S
        any_block = False
        for number, source in enumerate(self.sources):
            block = source.next_block()
            # Behind the block and before its packets' times are believed.
            self._follow_wall_clock()
            if block is not None:
                any_block = True
                self._take(number, block)
            elif is_time:
                for step in self.tables[number].advance(self._now_ns() - _RING_DELAY_NS):
                    self._put(number, step)
        return any_block

    def _take(self, number: int, block: PacketBlock) -> None:
        counters = self._counters
        if self.at_block is not None:
            self.at_block(len(block))
        if self.at_decode is not None:
            self.at_decode(len(block))
        if self._save is not None:
            self._save.write(pcap_records(block))
        decoded = self._decoders[number].decode(block)
        counters.packets_seen += len(block)
        counters.bytes_seen += int(block.captured_len.sum())
        counters.count_decoded(decoded)
        handshakes = self.handshakes[number]
        if handshakes is not None:
            handshakes.see(block, decoded)
        for step in self.tables[number].push(block, decoded):
            self._put(number, step)

    def _put(self, number: int, step: FlowStep, *, may_wait: bool = False) -> None:
        handshakes = self.handshakes[number]
        hellos = handshakes.take(step.ended.records) if handshakes is not None else None
        self._queue.put(LiveStep(number, step, time.time_ns(), hellos), may_wait=may_wait)

    def _now_ns(self) -> int:
        """What the wall clock showed when we last looked, and what has passed since."""
        return time.monotonic_ns() + self._wall_offset_ns

    def _follow_wall_clock(self) -> None:
        """Packets carry wall clock time: where that is set, flows must not age by the step."""
        offset_ns = time.time_ns() - time.monotonic_ns()
        step_ns = offset_ns - self._wall_offset_ns
        if abs(step_ns) > _CLOCK_WAS_SET_NS:
            for table in self.tables:
                table.clock_was_set(step_ns)
            self.warnings.append(
                f"the wall clock was set by {step_ns / 1e9:+.0f} s; open flows do not age by it"
            )
        self._wall_offset_ns = offset_ns

    def _show_books(self) -> None:
        """Make a copy of the books for whoever reads along; between two steps, so that it balances."""
        if self.beat is not None:
            self.beat()
        now_s = time.monotonic()
        if now_s < self._next_books_s:
            return
        self._next_books_s = now_s + _BOOKS_S
        books = copy.deepcopy(self._counters)
        self._fill(books)
        self.books = books

    def _close_books(self) -> None:
        for source in self.sources:
            source.count()
        self._fill(self._counters)
        self.books = self._counters

    def _fill(self, counters: Counters) -> None:
        """Add what sources, decoders, tables and queue have counted by themselves."""
        for source, table, decoder in zip(self.sources, self.tables, self._decoders, strict=True):
            counters.count_decoder(decoder)
            counters.add_table(table.counters)
            counters.interfaces[source.name] = copy.copy(source.counters)
        for tracker in filter(None, self.handshakes):
            counters.count_handshakes(tracker)
            if tracker.counters.no_cryptography and NO_QUIC_NAMES not in self.warnings:
                self.warnings.append(NO_QUIC_NAMES)
        queue = self._queue
        counters.queue_dropped = {
            "early": queue.dropped_early,
            "ready": queue.dropped_ready,
            "ended": queue.dropped_ended,
        }


def _warm_up_block() -> PacketBlock:
    """One packet that is no packet: the kernels are compiled for its columns all the same.

    Its link type is unknown, and so it goes the way of tunnels and fragments, too.
    """
    return PacketBlock(
        ts_ns=np.zeros(1, np.int64),
        captured_len=np.ones(1, np.uint32),
        wire_len=np.ones(1, np.uint32),
        offset=np.zeros(1, np.int64),
        link_type=np.full(1, 0xFFFF, np.uint16),
        data=np.zeros(1, np.uint8),
    )
