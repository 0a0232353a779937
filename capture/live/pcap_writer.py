"""Blocks of packets as bytes of a classic pcap with nanoseconds, exactly as they were seen."""

from __future__ import annotations

import struct
from typing import Final

import numpy as np
from numpy.typing import NDArray

from capture.block import PacketBlock
from capture.kernels.ring_walk import write_records

_MAGIC_NS: Final = 0xA1B23C4D
_SNAPLEN: Final = 262_144
_RECORD_HEADER_BYTES: Final = 16


def pcap_header(link_type: int) -> bytes:
    """The file header, little-endian."""
    return struct.pack("<IHHiIII", _MAGIC_NS, 2, 4, 0, 0, _SNAPLEN, link_type)


def pcap_records(block: PacketBlock) -> bytes:
    """The records of all packets of a block, in order."""
    size = int(block.captured_len.sum(dtype=np.int64)) + _RECORD_HEADER_BYTES * len(block)
    out: NDArray[np.uint8] = np.empty(size, np.uint8)
    n = write_records(block.data, block.ts_ns, block.captured_len, block.wire_len, block.offset, out)
    return out[:n].tobytes()
