"""Decoding: the headers of a block of packets become columns, and every packet that has none gets a reason.

Link types, headers, bounds and what is not supported: docs/decode.md. The compiled work is in
``capture.kernels.decode`` (what nearly every packet is) and ``capture.kernels.unwrap`` (the rest), the slow twin of
both in ``tests/reference/decode.py``.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from capture.block import DecodedBlock, PacketBlock
from capture.errors import UsageError
from capture.fragment_table import FRAGMENT_LIMIT_S, NO_FRAGMENTS, FragmentCounters, FragmentTable
from capture.kernels.checksums import CHECKED_COLUMNS, check_rows
from capture.kernels.decode import decode_block
from capture.kernels.fragments import FRAGMENT_DTYPE
from capture.kernels.tunnel_headers import port_table
from capture.kernels.unwrap import UNWRAPPED_DTYPE, UNWRAPPED_WORDS, find_wrapped, unwrap_rows
from capture.reject import Reject, is_ignored
from capture.tunnel import MAX_TUNNELS

DECAP_POLICIES: Final = ("inner", "outer")
_PORTS: Final = port_table()

_TUNNEL_COLUMNS: Final = ("tunnel_kind", "tunnel_depth", "tunnel_id", "tunnel_path", "tunnel_stop")
_COLUMNS: Final = tuple(
    field.name for field in fields(DecodedBlock) if field.name not in _TUNNEL_COLUMNS
)  # in the order of the first kernel's arguments


@dataclass(frozen=True, slots=True)
class DecodeOptions:
    """What of a packet makes its flow.

    Attributes:
        decap: ``inner``: the innermost packet of tunnels that can be followed; ``outer``: the tunnel's own headers.
            Link layers (VLAN, MPLS, PPPoE, PPP, 802.11) are followed either way.
        check_checksums: reject packets whose IPv4, TCP or UDP checksum is wrong. Not checked: what the capture lacks,
            fragments, packets with IPv4 options or IPv6 extension headers (TCP, UDP), headers outside of a tunnel but
            IPv4's.
    """

    decap: str = "inner"
    check_checksums: bool = False

    def __post_init__(self) -> None:
        if self.decap not in DECAP_POLICIES:
            raise UsageError(f"decap is {self.decap!r}; choose one of {', '.join(DECAP_POLICIES)}")


class Decoder:
    """Decodes the blocks of one capture: :func:`decode` with a memory for fragments.

    Args:
        options: see there.
        fragment_limit_s: how long a datagram's first fragment is remembered, packet clock, seconds.
        hash_key: 16 bytes for the hash of the fragment table. None: random. Only who makes room depends on it.

    Attributes:
        n_unfollowed: int64 (256,), tunnels that were not followed, by ``Reject`` value.
    """

    def __init__(
        self,
        options: DecodeOptions | None = None,
        *,
        fragment_limit_s: float = FRAGMENT_LIMIT_S,
        hash_key: bytes | None = None,
    ) -> None:
        self._options = options or DecodeOptions()
        self._fragments = FragmentTable(fragment_limit_s, hash_key)
        self.n_unfollowed = np.zeros(256, np.int64)

    def decode(self, block: PacketBlock) -> DecodedBlock:
        """As :func:`decode`; later fragments belong to the flow of their first one if that came before."""
        decoded = _decode(block, self._options, self._fragments)
        if decoded.tunnel_stop.any():
            self.n_unfollowed += np.bincount(decoded.tunnel_stop, minlength=256)
            self.n_unfollowed[0] = 0
        return decoded

    @property
    def fragments(self) -> FragmentCounters:
        """What the fragment table has done so far."""
        return self._fragments.counters


def decode(block: PacketBlock, options: DecodeOptions | None = None) -> DecodedBlock:
    """Decode the headers of every packet of a block, each for itself (later fragments are ignored).

    Layers fill in their columns as far as they were believed: a row that is rejected in the transport
    layer still has its addresses. No byte outside ``[offset, offset + captured_len)`` is read.

    Args:
        block: n packets; ``data`` is not written to.
        options: None: the defaults.

    Returns:
        n rows, in the order of the packets. The columns are new arrays and outlive ``block``.

    Raises:
        ValueError: a packet does not lie inside ``block.data``; no capture can cause it, only a faulty reader.
    """
    return _decode(block, options or DecodeOptions(), None)


def _decode(block: PacketBlock, options: DecodeOptions, fragments: FragmentTable | None) -> DecodedBlock:
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
    rows = np.empty(len(block), np.int64)
    n_rows = find_wrapped(
        decoded.reject,
        decoded.protocol,
        decoded.src_port,
        decoded.dst_port,
        decoded.flags,
        _PORTS,
        options.decap == "inner",
        rows,
    )
    if n_rows:
        _unwrap(block, data, decoded, rows[:n_rows], options, fragments)
    if options.check_checksums:
        check_rows(
            (data, block.offset, block.captured_len),
            tuple(getattr(decoded, column) for column in CHECKED_COLUMNS),
            decoded.reject,
        )
    return decoded


def _unwrap(
    block: PacketBlock,
    data: NDArray[np.uint8],
    decoded: DecodedBlock,
    rows: NDArray[np.int64],
    options: DecodeOptions,
    fragments: FragmentTable | None,
) -> None:
    """Decode some packets again, with all that may lie around them."""
    out, scratch = np.zeros(len(rows), UNWRAPPED_DTYPE), np.zeros(1, UNWRAPPED_DTYPE)
    table, entries = fragments.memory if fragments else NO_FRAGMENTS
    unwrap_rows(
        (data, block.ts_ns, block.offset, block.captured_len, block.wire_len, block.link_type),
        rows,
        options.decap == "inner",
        options.check_checksums,
        table,
        entries,
        out,
        out.view(np.int64).reshape(len(rows), UNWRAPPED_WORDS),
        scratch,
        scratch.view(np.int64).reshape(1, UNWRAPPED_WORDS),
        np.zeros(MAX_TUNNELS + 2, FRAGMENT_DTYPE),
    )
    for field in fields(DecodedBlock):
        column = getattr(decoded, field.name)
        values = np.ascontiguousarray(out[field.name])
        column[rows] = values.view(np.uint8) if field.name in ("src", "dst") else values


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
        tunnel_kind=zeros(np.uint8),
        tunnel_depth=zeros(np.uint8),
        tunnel_id=zeros(np.uint32),
        tunnel_path=zeros(np.uint64),
        tunnel_stop=zeros(np.uint8),
    )
