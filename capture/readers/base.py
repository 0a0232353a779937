"""What every capture reader shares: the counters, the reused columns, and how an early end is told."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import ClassVar, Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from capture.block import PacketBlock
from capture.errors import CutCaptureError
from capture.readers.source import PieceBuffer, StreamSource

# Magic of classic pcap as it lies in the file -> (byte order for struct, nanoseconds per unit of the fraction).
PCAP_MAGICS: Final = {
    bytes.fromhex("d4c3b2a1"): ("<", 1000),
    bytes.fromhex("a1b2c3d4"): (">", 1000),
    bytes.fromhex("4d3cb2a1"): ("<", 1),
    bytes.fromhex("a1b23c4d"): (">", 1),
}
PCAPNG_MAGIC: Final = bytes.fromhex("0a0d0d0a")

MAX_BLOCK_PACKETS: Final = 16_384  # rows of the columns; a 1 MiB piece of 64-byte packets has 13,000


@dataclass(slots=True)
class ReadCounters:
    """What a reader has delivered so far.

    Attributes:
        n_packets: packets in the blocks given out.
        n_bytes: captured bytes of these packets.
        n_source_bytes: bytes taken from the file or pipe, as they lie there (compressed, with headers).
        n_without_time: packets that carry no time (pcapng simple packet blocks); they got the time of the
            packet before them, or 0.
        cut: the capture ended in the middle of a record, or could not be believed from some byte on.
        cut_message: one line for the operator about that; empty while ``cut`` is False.
    """

    n_packets: int = 0
    n_bytes: int = 0
    n_source_bytes: int = 0
    n_without_time: int = 0
    cut: bool = False
    cut_message: str = ""


class Columns(NamedTuple):
    """The columns of a :class:`PacketBlock`, allocated once per reader, in the order the kernels take them."""

    ts_ns: NDArray[np.int64]
    captured_len: NDArray[np.uint32]
    wire_len: NDArray[np.uint32]
    offset: NDArray[np.int64]
    link_type: NDArray[np.uint16]

    @classmethod
    def allocate(cls, n: int) -> Columns:
        """Columns of ``n`` rows, uninitialised."""
        return cls(
            np.empty(n, np.int64),
            np.empty(n, np.uint32),
            np.empty(n, np.uint32),
            np.empty(n, np.int64),
            np.empty(n, np.uint16),
        )


class CaptureReader(ABC):
    """A capture as an iterator of :class:`PacketBlock`, and a context manager that closes what it opened.

    A block and all of its columns are valid until the next one is asked for: the reader writes them again.
    A block holds at most ``MAX_BLOCK_PACKETS`` packets; where blocks begin and end depends on how the bytes
    arrive and means nothing. A capture that is cut, or not believable from some byte on, is read up to there:
    ``counters.cut`` is set, and with ``strict`` the iteration ends in a CutCaptureError.

    Attributes:
        format: "pcap" or "pcapng".
        name: the path as given, "stdin", or the stream's own name.
        counters: what was delivered so far.
    """

    format: ClassVar[str]

    def __init__(self, buffer: PieceBuffer, name: str, *, strict: bool) -> None:
        self.name = name
        self.counters = ReadCounters()
        self._buffer = buffer
        self._strict = strict
        self._columns = Columns.allocate(MAX_BLOCK_PACKETS)
        self._ended = False
        self._open = ExitStack()
        self._stream: StreamSource | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the iteration and close the file, if the reader opened it. May be called again."""
        self._ended = True
        self._open.close()

    def owning(self, resources: ExitStack, stream: StreamSource) -> Self:
        """Take over what :meth:`close` shall close, and the stream below for ``counters.n_source_bytes``."""
        self._open = resources
        self._stream = stream
        return self

    def __iter__(self) -> Iterator[PacketBlock]:
        return self

    def __next__(self) -> PacketBlock:
        if self._ended:
            raise StopIteration
        try:
            n = self._fill_columns()
        except BaseException:
            self._ended = True
            raise
        finally:
            if self._stream is not None:
                self.counters.n_source_bytes = self._stream.n_bytes
        if n == 0:
            self._ended = True
            raise StopIteration
        ts_ns, captured_len, wire_len, offset, link_type = self._columns
        block = PacketBlock(
            ts_ns[:n], captured_len[:n], wire_len[:n], offset[:n], link_type[:n], self._buffer.data
        )
        self.counters.n_packets += n
        self.counters.n_bytes += int(block.captured_len.sum(dtype=np.int64))
        return block

    @abstractmethod
    def _fill_columns(self) -> int:
        """Write the next packets into the columns and return how many; 0 at the end of the capture."""

    def _end(self, record: str, expected_bytes: int) -> int:
        """The source has no more bytes: a clean end, or a cut if a record has begun or the source is damaged."""
        damage, left = self._buffer.damage, len(self._buffer)
        if damage is not None:
            return self._cut(damage)
        if left:
            return self._cut(
                f"cut off in the {record} at byte {self._buffer.position}: "
                f"got {left} bytes of it, expected at least {expected_bytes}"
            )
        return 0

    def _damaged(self, what: str) -> int:
        """The bytes at hand cannot be believed: ``what`` says why, unless they are clearly another file."""
        head = self._buffer.head(4)
        if head in PCAP_MAGICS or head == PCAPNG_MAGIC:
            what = (
                f"another capture file begins at byte {self._buffer.position}; "
                f"join files with `mergecap`, not with `cat`"
            )
        return self._cut(what)

    def _cut(self, what: str) -> int:
        """Remember that nothing behind this point is read.

        Raises:
            CutCaptureError: if the reader is strict.
        """
        self.counters.cut = True
        n = self.counters.n_packets
        self.counters.cut_message = (
            f"{self.name}: {what}; the {n} packets before it were read, nothing behind it"
        )
        if self._strict:
            raise CutCaptureError(self.counters.cut_message)
        return 0
