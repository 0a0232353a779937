"""Where the bytes of a capture come from: a stream read in pieces into one buffer, never seeked.

Reading 1 MiB pieces into a buffer that stays in the cache costs half of what a memory map costs,
because the walk and the decode behind it then find every byte in the cache.
"""

from __future__ import annotations

import time
from typing import Any, BinaryIO, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from capture.errors import CaptureError

# The longest record or block that is believed, bytes: the largest snap length libpcap knows (DLT_USBPCAP, 128 MiB).
MAX_RECORD_BYTES: Final = 1 << 27
FOLLOW_POLL_S: Final = 0.1


class ByteSource(Protocol):
    """Bytes in order. ``damage`` says, once the end is reached, why it came too early (None: it did not)."""

    damage: str | None

    def readinto(self, view: memoryview) -> int:
        """Fill the front of ``view`` and return how many bytes; 0 only at the end. May return fewer than fit."""
        ...


class StreamSource:
    """A binary stream of Python (file, pipe, ``io.BytesIO``, ...) as a :class:`ByteSource`.

    A call takes what the stream has, so a slow pipe is read as it comes.

    Args:
        stream: what to read.
        name: for messages.
        follow_s: at its end, wait for more until none has come for so many seconds, or an interrupt.

    Attributes:
        n_bytes: bytes taken from the stream so far.
    """

    def __init__(self, stream: BinaryIO, name: str, follow_s: float = 0.0) -> None:
        self.damage: str | None = None
        self.n_bytes = 0
        self._follow_s = follow_s
        self._stream = stream
        self._name = name
        # readinto1 of a buffered stream waits for one read only; readinto would wait until the piece is full.
        self._readinto = getattr(stream, "readinto1", None) or getattr(stream, "readinto", None)

    def readinto(self, view: memoryview) -> int:
        """See :class:`ByteSource`; at the end of a file that is followed it waits."""
        n = self._read_once(view)
        if n or not self._follow_s:
            return n
        end_s = time.monotonic() + self._follow_s
        try:
            while n == 0 and time.monotonic() < end_s:
                time.sleep(FOLLOW_POLL_S)
                n = self._read_once(view)
        except KeyboardInterrupt:
            self._follow_s = 0.0  # nobody waits for the rest
        return n

    def _read_once(self, view: memoryview) -> int:
        """One read.

        Raises:
            CaptureError: the stream fails, is non-blocking, or was opened as text.
        """
        try:
            n = self._readinto(view) if self._readinto else self._read(view)
        except OSError as error:
            raise CaptureError(
                f"{self._name}: reading failed behind byte {self.n_bytes}: {error.strerror or error}; "
                f"copy the file to another place and read the copy"
            ) from error
        if n is None:
            raise CaptureError(f"{self._name}: got a non-blocking stream without data; give a blocking one")
        self.n_bytes += n
        return int(n)

    def _read(self, view: memoryview) -> int:
        piece = self._stream.read(len(view))
        if not isinstance(piece, bytes | bytearray | memoryview):
            raise CaptureError(
                f"{self._name}: got a stream of {type(piece).__name__}, expected bytes; open it with mode 'rb'"
            )
        view[: len(piece)] = piece
        return len(piece)


class PieceBuffer:
    """A window on a :class:`ByteSource`: one reused buffer whose unread part is carried to the front.

    Attributes:
        data: uint8 (capacity,). The bytes ``begin:end`` are read and not yet used. Replaced by a larger array when a
            record does not fit; it grows only as bytes really arrive, so a length that lies allocates nothing.
        begin: first unused byte in ``data``; whoever uses bytes moves it.
        end: behind the last byte read.
    """

    def __init__(self, source: ByteSource, piece_bytes: int) -> None:
        if piece_bytes < 1:
            raise ValueError(f"piece_bytes is {piece_bytes}, expected at least 1")
        self.data: NDArray[np.uint8] = np.empty(piece_bytes, np.uint8)
        self.begin = 0
        self.end = 0
        self._source = source
        self._carried_bytes = 0  # bytes of the source before data[0]

    @property
    def damage(self) -> str | None:
        """Why the source ended too early; None while it did not."""
        return self._source.damage

    @property
    def position(self) -> int:
        """Offset of ``begin`` from the start of the (decompressed) capture, bytes."""
        return self._carried_bytes + self.begin

    def __len__(self) -> int:
        return self.end - self.begin

    def head(self, n: int) -> bytes:
        """Up to ``n`` unused bytes, without using them."""
        return self.data[self.begin : min(self.end, self.begin + n)].tobytes()

    def refill(self) -> bool:
        """Carry the unused bytes to the front and read behind them once; False at the end of the source."""
        left = len(self)
        if left == len(self.data):
            grown = np.empty(2 * left, np.uint8)
            grown[:left] = self.data
            self.data = grown
        elif self.begin and left:
            self.data[:left] = self.data[self.begin : self.end]
        self._carried_bytes += self.begin
        self.begin, self.end = 0, left
        free: Any = self.data[left:]
        self.end += self._source.readinto(memoryview(free))
        return self.end > left

    def ensure(self, n: int) -> bool:
        """Read until ``n`` unused bytes are there; False if the source ends before."""
        while len(self) < n:
            if not self.refill():
                return False
        return True

    def skip(self, n: int) -> bool:
        """Use ``n`` bytes unseen, without holding them all; False if the source ends before."""
        while n > len(self):
            n -= len(self)
            self.begin = self.end
            if not self.refill():
                return False
        self.begin += n
        return True
