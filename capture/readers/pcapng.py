"""Reader of pcapng: sections of either byte order, several interfaces, every time resolution.

Packets come from enhanced, simple and obsolete packet blocks. Blocks of other kinds are skipped.

Source: draft-ietf-opsawg-pcapng.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from capture.errors import CaptureError, NotACaptureError
from capture.kernels import pcapng_walk as walk
from capture.readers.base import CaptureReader
from capture.readers.source import MAX_RECORD_BYTES, PieceBuffer

_BYTE_ORDER_MAGIC: Final = 0x1A2B3C4D
_SECTION_BYTES: Final = 28  # the shortest section header block
_INTERFACE_HEADER_BYTES: Final = 16
_OPTION_IF_TSRESOL: Final = 9
_OPTION_IF_TSOFFSET: Final = 14


class PcapngReader(CaptureReader):
    """pcapng."""

    format: ClassVar[str] = "pcapng"

    def __init__(self, buffer: PieceBuffer, name: str, *, strict: bool) -> None:
        super().__init__(buffer, name, strict=strict)
        self._big_endian = False
        self._interfaces: NDArray[np.int64] = np.zeros((4, walk.IF_COLUMNS), np.int64)
        self._n_interfaces = 0
        self._last_ts_ns = 0
        problem = self._read_section()
        if problem:
            error = CaptureError if "cut off" in problem else NotACaptureError
            raise error(
                f"{name}: {problem}; {buffer.damage or 'nothing can be read'}, take a new copy of the file"
            )

    def _fill_columns(self) -> int:
        buffer = self._buffer
        while True:
            n, buffer.begin, stop, n_without_time = walk.walk_pcapng(
                buffer.data,
                buffer.begin,
                buffer.end,
                self._big_endian,
                MAX_RECORD_BYTES,
                self._interfaces[: self._n_interfaces],
                self._last_ts_ns,
                *self._columns,
            )
            if n:
                self.counters.n_without_time += int(n_without_time)
                self._last_ts_ns = int(self._columns.ts_ns[n - 1])
                return int(n)  # why the walk stopped is seen again by the next one, which begins there
            if stop == walk.NEEDS_BYTES:
                if not buffer.refill():
                    return self._end("block", self._length() or 8)
                continue
            if stop == walk.AT_SECTION:
                problem = self._read_section()
            elif stop == walk.AT_INTERFACE:
                problem = self._read_interface()
            else:
                return self._damaged(self._describe(stop))
            if problem:
                return self._cut(buffer.damage or problem)

    def _read_section(self) -> str:
        """Take a section header block: byte order and version. Returns what is wrong with it, or ""."""
        buffer = self._buffer
        where = f"section header at byte {buffer.position}"
        if not buffer.ensure(_SECTION_BYTES):
            return (
                f"cut off in the {where}: got {len(buffer)} bytes of it, expected at least {_SECTION_BYTES}"
            )
        head = buffer.head(_SECTION_BYTES)
        for order in "<>":
            length, magic, major, minor = struct.unpack_from(order + "IIHH", head, 4)
            if magic == _BYTE_ORDER_MAGIC:
                break
        else:
            return f"damaged {where}: got byte-order magic {head[8:12].hex()}, expected 1a2b3c4d or 4d3c2b1a"
        if (major, minor) not in ((1, 0), (1, 2)):
            return f"unknown pcapng version in the {where}: got {major}.{minor}, expected 1.0"
        if length < _SECTION_BYTES or length > MAX_RECORD_BYTES or length % 4:
            return f"damaged {where}: got length {length}, expected a multiple of 4 from {_SECTION_BYTES}"
        if not buffer.ensure(length):
            return f"cut off in the {where}: got {len(buffer)} bytes of it, expected {length}"
        trailer = struct.unpack(order + "I", buffer.head(length)[-4:])[0]
        if trailer != length:
            return f"damaged {where}: got length {length} before and {trailer} behind it, expected the same"
        self._big_endian = order == ">"
        self._n_interfaces = 0
        buffer.begin += length
        return ""

    def _read_interface(self) -> str:
        """Take a complete interface description block. Returns what is wrong with it, or ""."""
        where = f"interface description at byte {self._buffer.position}"
        order = self._order()
        block = self._buffer.head(self._length())
        link_type, snaplen = struct.unpack_from(order + "HxxI", block, 8)
        units_per_s, offset_s = 1_000_000, 0
        try:
            for code, value in _options(block[_INTERFACE_HEADER_BYTES:-4], order):
                if code == _OPTION_IF_TSRESOL:
                    units_per_s = _units_per_s(value[0])
                elif code == _OPTION_IF_TSOFFSET:
                    offset_s = struct.unpack_from(order + "q", value)[0]
        except (struct.error, IndexError):
            return f"damaged {where}: an option is shorter than its kind needs or longer than the block"
        if not 1 <= units_per_s <= walk.MAX_UNITS_PER_S:
            return f"damaged {where}: got {units_per_s} units of time per second, expected at most 10**17 or 2**59"
        if self._n_interfaces == len(self._interfaces):
            self._interfaces = np.concatenate([self._interfaces, np.zeros_like(self._interfaces)])
        self._interfaces[self._n_interfaces] = link_type, snaplen, units_per_s, offset_s
        self._n_interfaces += 1
        self._buffer.begin += len(block)
        return ""

    def _describe(self, stop: int) -> str:
        """What is wrong with the block at which the walk stopped."""
        where = f"block at byte {self._buffer.position}"
        length = self._length()
        if stop == walk.BAD_LENGTH:
            return f"damaged: the {where} claims {length} bytes, expected a multiple of 4 that fits its kind"
        if stop == walk.BAD_TRAILER:
            trailer = struct.unpack(self._order() + "I", self._buffer.head(length)[-4:])[0]
            return (
                f"damaged: the {where} has length {length} before and {trailer} behind it, expected the same"
            )
        if stop == walk.BAD_CAPTURED_LEN:
            return f"damaged: the packet of the {where} claims more captured bytes than its {length} have room for"
        assert stop == walk.BAD_INTERFACE
        return (
            f"damaged: the packet of the {where} is of an interface beyond the {self._n_interfaces} described"
        )

    def _order(self) -> str:
        return ">" if self._big_endian else "<"

    def _length(self) -> int:
        """Total length of the block at hand, bytes; 0 if not even that is there."""
        head = self._buffer.head(8)
        return int(struct.unpack(self._order() + "I", head[4:])[0]) if len(head) == 8 else 0


def _options(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Code and value of each option of a block, section 3.5; a value may be shorter than it claims."""
    position = 0
    while position + 4 <= len(data):
        code, length = struct.unpack_from(order + "HH", data, position)
        if code == 0:
            return
        yield code, data[position + 4 : position + 4 + length]
        position += 4 + (length + 3) // 4 * 4


def _units_per_s(resolution: int) -> int:
    """The byte if_tsresol: a negative power of 2 with the highest bit set, else of 10."""
    return 1 << (resolution & 0x7F) if resolution & 0x80 else 10 ** (resolution & 0x7F)
