"""Reads a TPACKET_V3 ring in place: a block of it becomes a PacketBlock, and goes back when the next is asked for.

Nothing is copied: what the flow table keeps of a packet, it copies itself, and no block outlives its turn.
"""

from __future__ import annotations

import errno
import mmap
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from capture.block import LINK_ETHERNET, PacketBlock
from capture.errors import LiveError
from capture.kernels.ring_walk import BLOCK_STATUS_AT, walk_ring_block
from capture.live import interfaces
from capture.live.base import LiveSource
from capture.live.packet_socket import RingSocket
from capture.readers.base import Columns

_STATUS_USER: Final = 1  # TP_STATUS_USER: the block is ours
_LEAST_RECORD_BYTES: Final = 80  # header, address and alignment of a packet in the ring


class RingSource(LiveSource):
    """The packets of a :class:`RingSocket`, which it takes over.

    Raises:
        LiveError: if the ring cannot be mapped.
    """

    def __init__(self, ring: RingSocket) -> None:
        super().__init__(ring.name, ring.link_type)
        self._socket = ring
        sizes = ring.sizes
        try:
            self._map: mmap.mmap | None = mmap.mmap(ring.socket.fileno(), sizes.ring_bytes)
        except OSError as error:
            raise LiveError(
                f"cannot map the ring of '{ring.name}': {error.strerror}; give a smaller --ring-mib"
            ) from None
        self._data: NDArray[np.uint8] = np.frombuffer(self._map, np.uint8)
        words = self._data.view(np.uint32)
        self._status: NDArray[np.uint32] = words[BLOCK_STATUS_AT // 4 :: sizes.block_bytes // 4]
        self._columns = Columns.allocate(sizes.block_bytes // _LEAST_RECORD_BYTES)
        self._columns.link_type.fill(ring.link_type)
        self._at = 0
        self._is_held = False
        self._state = "up"

    def warm_up(self) -> None:
        """Load the walk's kernel; the ring is empty, so it finds nothing."""
        self._walk(self._columns)

    def begin(self) -> None:
        """Packets may come from now on; what the kernel has counted so far is forgotten."""
        self._socket.statistics()
        self._socket.begin()

    def fileno(self) -> int:
        """The socket's."""
        return self._socket.socket.fileno()

    def next_block(self) -> PacketBlock | None:
        """The next block that the kernel has handed over; the one before goes back to it."""
        if self._map is None:
            return None
        if self._is_held:
            self._give_back()
        while self._status[self._at] & _STATUS_USER:
            self._is_held = True
            columns = self._columns
            n = self._walk(columns)
            if n:
                block = PacketBlock(
                    columns.ts_ns[:n],
                    columns.captured_len[:n],
                    columns.wire_len[:n],
                    columns.offset[:n],
                    columns.link_type[:n],
                    self._data,
                )
                self.counters.n_packets += n
                self.counters.n_bytes += int(block.captured_len.sum(dtype=np.int64))
                return block
            self._give_back()
        return None

    def _walk(self, columns: Columns) -> int:
        """Fill the columns from the block at hand; returns the rows."""
        block_bytes = self._socket.sizes.block_bytes
        n: int = walk_ring_block(
            self._data, self._at * block_bytes, block_bytes, self.link_type == LINK_ETHERNET, *columns[:4]
        )
        return n

    def _give_back(self) -> None:
        self._status[self._at] = 0
        self._at = (self._at + 1) % self._socket.sizes.n_blocks
        self._is_held = False

    def count(self) -> None:
        """Add up what the kernel counted; it starts again at 0 each time it is asked."""
        packets, drops, freezes = self._socket.statistics()
        self.counters.n_kernel_packets += packets
        self.counters.n_kernel_drops += drops
        self.counters.n_freezes += freezes

    def _look(self) -> str:
        name, was = self.name, self._state
        error = self._socket.pending_error()
        index = interfaces.index_of(name)
        if index == self._socket.index:
            self._state = "up" if interfaces.is_up(name) else "down"
            if self._state != was or (error == errno.ENETDOWN and self._state == "down" != was):
                return f"interface '{name}' is {self._state}{'; waiting for it' if self._state == 'down' else ' again'}"
            return ""
        present_name = interfaces.name_of(self._socket.index)
        if present_name is not None:
            self._state = "renamed"
            return (
                ""
                if was == "renamed"
                else f"interface '{name}' is now called '{present_name}'; still capturing on it"
            )
        if index is None:
            self._state = "gone"
            return "" if was == "gone" else f"interface '{name}' was removed; waiting for one of that name"
        return self._bind_again()

    def _bind_again(self) -> str:
        if self._socket.in_fanout:
            was, self._state = self._state, "lost"
            # The kernel does not bind a socket again that shares its interface.
            return (
                ""
                if was == "lost"
                else f"interface '{self.name}' was created again; several workers cannot take it up, start netcls anew"
            )
        self._socket.bind_again()
        self._state = "up" if interfaces.is_up(self.name) else "down"
        return f"interface '{self.name}' was created again; capturing on the new one"

    def close(self) -> None:
        """Close the socket and unmap the ring; a block that is still held keeps the memory until it goes."""
        ring_map, self._map = self._map, None
        if ring_map is None:
            return
        self._socket.close()
        nothing: Any = np.zeros(0, np.uint8)
        self._data, self._status = nothing, nothing.view(np.uint32)
        try:
            ring_map.close()
        except BufferError:
            # Someone holds a block; unmapped with it.
            return
