"""Decoding: the headers of a block of packets become columns, and every packet that has none gets a reason.

Link types, headers, bounds and what is not supported: docs/decode.md. The compiled work is in
``capture.kernels.decode``, its slow twin in ``tests/reference/decode.py``.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from capture.block import DecodedBlock, PacketBlock
from capture.kernels.decode import decode_block
from capture.reject import Reject, is_ignored

_COLUMNS: Final = tuple(
    field.name for field in fields(DecodedBlock)
)  # in the order of the kernel's arguments


def decode(block: PacketBlock) -> DecodedBlock:
    """Decode the headers of every packet of a block.

    Layers fill in their columns as far as they were believed: a row that is rejected in the transport
    layer still has its addresses. No byte outside ``[offset, offset + captured_len)`` is read.

    Args:
        block: n packets; ``data`` is not written to.

    Returns:
        n rows, in the order of the packets. The columns are new arrays and outlive ``block``.

    Raises:
        ValueError: a packet does not lie inside ``block.data``; no capture can cause it, only a faulty reader.
    """
    decoded = _empty_block(len(block))
    # Read-only always: numba would compile a second kernel for a writable buffer.
    data = block.data.view()
    data.flags.writeable = False
    bad_row = decode_block(
        data,
        block.offset,
        block.captured_len,
        block.wire_len,
        block.link_type,
        *(getattr(decoded, column) for column in _COLUMNS),
    )
    if bad_row >= 0:
        raise ValueError(
            f"packet {bad_row} of the block claims {block.captured_len[bad_row]} bytes from offset "
            f"{block.offset[bad_row]}, but data holds {len(block.data)}; the reader must keep "
            "0 <= offset and offset + captured_len <= len(data)"
        )
    return decoded


@dataclass(frozen=True, slots=True)
class RejectCounts:
    """How the packets of a block came out; the three parts add up to its length.

    Attributes:
        n_decoded: packets that belong to a flow.
        rejected: lower-case name of a ``Reject`` -> packets, only those that occur.
        ignored: the same, for well-formed packets that belong to no flow.
    """

    n_decoded: int
    rejected: Counter[str]
    ignored: Counter[str]


def count_rejects(decoded: DecodedBlock) -> RejectCounts:
    """Count the packets of a block by outcome. ``Counter`` values of several blocks can be added."""
    per_reason = np.bincount(decoded.reject, minlength=1).tolist()
    rejected: Counter[str] = Counter()
    ignored: Counter[str] = Counter()
    for reason, n_packets in enumerate(per_reason):
        if reason != Reject.DECODED and n_packets:
            (ignored if is_ignored(reason) else rejected)[Reject(reason).name.lower()] = n_packets
    return RejectCounts(per_reason[Reject.DECODED], rejected, ignored)


def _empty_block(n_packets: int) -> DecodedBlock:
    """A block of zeros, the state in which the kernel takes the columns."""

    def zeros(dtype: type[np.generic], *width: int) -> NDArray[Any]:
        return np.zeros((n_packets, *width), dtype)

    return DecodedBlock(
        reject=zeros(np.uint8),
        ip_version=zeros(np.uint8),
        protocol=zeros(np.uint8),
        vlan=zeros(np.uint16, 2),
        src=zeros(np.uint8, 16),
        dst=zeros(np.uint8, 16),
        src_port=zeros(np.uint16),
        dst_port=zeros(np.uint16),
        l3_offset=zeros(np.uint32),
        l4_offset=zeros(np.uint32),
        payload_offset=zeros(np.uint32),
        ip_len=zeros(np.uint32),
        payload_len=zeros(np.uint32),
        ttl=zeros(np.uint8),
        tos=zeros(np.uint8),
        tcp_flags=zeros(np.uint8),
        tcp_window=zeros(np.uint16),
        tcp_seq=zeros(np.uint32),
        tcp_ack=zeros(np.uint32),
        flags=zeros(np.uint8),
    )
