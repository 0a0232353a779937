"""The first packets of flows that were answered lately, as the model saw them.

They show an operator what the answer came from, and become training data where the operator gives the flow another
label. A ring in memory; the store takes them from there when it writes the flow.

K: packets whose fields are kept, M: packets whose bytes are kept, R: bytes kept of each.
"""

from __future__ import annotations

import struct
import threading
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import zstandard
from numpy.typing import NDArray

from capture.flow_batch import FLOW_DTYPE, PACKET_DTYPE, FlowBatch, KeepSpec

_FORMAT: Final = 1
_HEAD: Final = struct.Struct(
    "<BHHHHHH"
)  # format, item sizes of records and packets, K, M, header and payload bytes
_MOST_BYTES: Final = 4 << 20  # of one unpacked flow; larger ones were not made here


@dataclass(frozen=True, slots=True)
class KeptFlow:
    """One flow: a batch of one, and what was kept of it."""

    flow: FlowBatch
    keep: KeepSpec

    def pack(self) -> bytes:
        """As bytes, compressed."""
        n = int(self.flow.records["n_kept"][0])
        keep = self.keep
        head = _HEAD.pack(
            _FORMAT,
            FLOW_DTYPE.itemsize,
            PACKET_DTYPE.itemsize,
            keep.n_packets,
            keep.n_byte_packets,
            keep.header_bytes,
            keep.payload_bytes,
        )
        body = (
            self.flow.records.tobytes(),
            self.flow.packets[0, :n].tobytes(),
            self.flow.data[0, : min(n, keep.n_byte_packets)].tobytes(),
        )
        return zstandard.ZstdCompressor(level=1).compress(head + b"".join(body))

    @classmethod
    def unpack(cls, packed: bytes) -> KeptFlow | None:
        """The way back; None for what is damaged or of another version."""
        try:
            plain = zstandard.ZstdDecompressor().decompress(packed, max_output_size=_MOST_BYTES)
            fmt, of_record, of_packet, n_packets, n_byte_packets, header, payload = _HEAD.unpack_from(plain)
            keep = KeepSpec(n_packets, n_byte_packets, header, payload)
        except (zstandard.ZstdError, struct.error, ValueError):
            return None
        if (fmt, of_record, of_packet) != (_FORMAT, FLOW_DTYPE.itemsize, PACKET_DTYPE.itemsize):
            return None
        if keep.n_packets * of_packet + keep.n_byte_packets * keep.row_bytes > _MOST_BYTES:
            return None
        at = _HEAD.size
        if len(plain) < at + of_record:
            return None
        records = np.frombuffer(plain, FLOW_DTYPE, 1, at).copy()
        at += of_record
        n = int(records["n_kept"][0])
        n_rows = min(n, keep.n_byte_packets)
        if n > keep.n_packets or len(plain) != at + n * of_packet + n_rows * keep.row_bytes:
            return None
        packets = np.zeros((1, keep.n_packets), PACKET_DTYPE)
        packets[0, :n] = np.frombuffer(plain, PACKET_DTYPE, n, at)
        data = np.zeros((1, keep.n_byte_packets, keep.row_bytes), np.uint8)
        data[0, :n_rows] = np.frombuffer(
            plain, np.uint8, n_rows * keep.row_bytes, at + n * of_packet
        ).reshape(n_rows, keep.row_bytes)
        return cls(FlowBatch(records, packets, data), keep)

    def shape(self) -> dict[str, list[int]]:
        """Sizes and times of its packets, for a picture.

        Returns:
            ``bytes``: whole frames, negative to the client; ``at_us``: microseconds since the first packet.
        """
        n = int(self.flow.records["n_kept"][0])
        packets = self.flow.packets[0, :n]
        signed = np.where(packets["direction"] == 1, -1, 1) * packets["wire_len"].astype(np.int64)
        at_us = (packets["ts_ns"] - (packets["ts_ns"][0] if n else 0)) // 1000
        return {"bytes": signed.tolist(), "at_us": at_us.tolist()}


class KeptFlows:
    """A ring of the flows that were answered last.

    Args:
        limit_bytes: of memory; flows that came first are forgotten first.
    """

    def __init__(self, limit_bytes: int = 32 << 20) -> None:
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._keep = KeepSpec()
        self._rows: FlowBatch | None = None
        self._row_of: dict[int, int] = {}
        self._ids: NDArray[np.uint64] = np.zeros(0, np.uint64)
        self._next = 0

    def __len__(self) -> int:
        return len(self._row_of)

    def see(self, flows: FlowBatch, keep: KeepSpec) -> None:
        """Remember ready flows, in place of what was remembered of the same ones."""
        if not len(flows) or not keep.n_packets:
            return
        with self._lock:
            if self._rows is None or keep != self._keep:
                self._begin(keep)
            rows = self._rows
            assert rows is not None
            flow_ids = flows.records["flow_id"].tolist()
            places = []
            for flow_id in flow_ids:
                place = self._row_of.get(flow_id)
                if place is None:
                    place = self._next
                    self._next = (place + 1) % len(self._ids)
                    # The ring is full where another flow has this place.
                    if self._row_of.get(int(self._ids[place])) == place:
                        del self._row_of[int(self._ids[place])]
                    self._ids[place] = flow_id
                    self._row_of[flow_id] = place
                places.append(place)
            rows.records[places] = flows.records
            rows.packets[places] = flows.packets[:, : keep.n_packets]
            rows.data[places] = flows.data

    def of(self, flow_id: int) -> KeptFlow | None:
        """A copy of one flow; None where it is not remembered."""
        with self._lock:
            row = self._row_of.get(flow_id)
            if row is None or self._rows is None:
                return None
            one = slice(row, row + 1)
            flow = FlowBatch(*(column[one].copy() for column in self._columns()))
            return KeptFlow(flow, self._keep)

    def _columns(self) -> tuple[NDArray[Any], ...]:
        assert self._rows is not None
        return self._rows.records, self._rows.packets, self._rows.data

    def _begin(self, keep: KeepSpec) -> None:
        per_flow = (
            FLOW_DTYPE.itemsize
            + keep.n_packets * PACKET_DTYPE.itemsize
            + keep.n_byte_packets * keep.row_bytes
        )
        n = max(self._limit_bytes // per_flow, 16)
        self._keep = keep
        # np.zeros touches no page before it is written: an idle appliance pays nothing for it.
        self._rows = FlowBatch(
            np.zeros(n, FLOW_DTYPE),
            np.zeros((n, keep.n_packets), PACKET_DTYPE),
            np.zeros((n, keep.n_byte_packets, keep.row_bytes), np.uint8),
        )
        self._ids = np.zeros(n, np.uint64)
        self._row_of.clear()
        self._next = 0
