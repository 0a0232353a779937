"""Flows as Arrow columns, without padding, and back.

A flow's record is a row of plain columns (`FLOW_DTYPE`, pairs as lists of two). Its first packets are one list of
structs (`PACKET_DTYPE`), and the bytes kept of them two binary values: all headers one behind the other, and all
payloads. How long each packet's share is follows from its ``header_len`` and ``payload_len``, so nothing else is
stored, and what a short packet or flow does not have costs nothing.

F is the number of flows, K the packets whose fields are stored, M those whose bytes are, H and P the most
header and payload bytes of a packet (`KeepSpec`).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from capture.errors import DataError
from capture.flow_batch import FLOW_DTYPE, PACKET_DTYPE, FlowBatch, KeepSpec
from netcls.arrow import require_pyarrow

PACKETS: Final = "first_packets"
HEADERS: Final = "first_headers"
PAYLOADS: Final = "first_payloads"
BEGINNING: Final = (PACKETS, HEADERS, PAYLOADS)
ADDRESSES: Final = ("client", "server")
LABEL_COLUMNS: Final = (("label", "int32"), ("group", "int32"))
HASH_COLUMNS: Final = (("input_hash", "uint64"), ("shape_hash", "uint64"))


def shard_schema() -> Any:
    """pyarrow.Schema of a shard, the same for every capture and every `KeepSpec`."""
    pa = require_pyarrow()
    no_flows = FlowBatch(
        np.zeros(0, FLOW_DTYPE), np.zeros((0, 1), PACKET_DTYPE), np.zeros((0, 1, 2), np.uint8)
    )
    columns = {name: pa.array([], kind) for name, kind in LABEL_COLUMNS}
    columns |= record_columns(no_flows.records)
    columns |= {name: pa.array([], kind) for name, kind in HASH_COLUMNS}
    columns |= beginning_columns(no_flows, KeepSpec(1, 1, 1, 1))
    return pa.RecordBatch.from_pydict(columns).schema


def record_columns(records: NDArray[Any]) -> dict[str, Any]:
    """``FLOW_DTYPE`` (F,) as pyarrow arrays by field name."""
    pa = require_pyarrow()
    columns = {}
    for name in FLOW_DTYPE.names or ():
        values = np.ascontiguousarray(records[name])
        if name in ADDRESSES:
            data = pa.py_buffer(values)
            columns[name] = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(records), [None, data])
        elif values.ndim == 2:
            columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
        else:
            columns[name] = pa.array(values)
    return columns


def records_of(batch: Any) -> NDArray[Any]:
    """The columns of :func:`record_columns` in a pyarrow.RecordBatch, as ``FLOW_DTYPE`` (F,)."""
    records = np.zeros(len(batch), FLOW_DTYPE)
    for name in FLOW_DTYPE.names or ():
        column = batch.column(name)
        if name in ADDRESSES:
            records[name] = address_column(column)
        elif records[name].ndim == 2:
            records[name] = column.flatten().to_numpy().reshape(records[name].shape)
        else:
            records[name] = column.to_numpy()
    return records


def address_column(column: Any) -> NDArray[np.uint8]:
    """A column of addresses: uint8 (F, 16), a view."""
    if not len(column):
        return np.empty((0, 16), np.uint8)
    start = column.offset * 16
    return np.frombuffer(column.buffers()[1], np.uint8)[start : start + 16 * len(column)].reshape(-1, 16)


def beginning_columns(flows: FlowBatch, keep: KeepSpec) -> dict[str, Any]:
    """The first packets of *ready* flows as pyarrow arrays: fields, headers, payloads.

    Args:
        flows: kept by a flow table with ``keep``.
        keep: K, M, H and P.
    """
    pa = require_pyarrow()
    present = _present(flows.records["n_kept"], keep.n_packets)
    flat = flows.packets[present]
    names = PACKET_DTYPE.names or ()
    fields = pa.StructArray.from_arrays([pa.array(np.ascontiguousarray(flat[name])) for name in names], names)
    headers, payloads = _shares(flows.packets, present, keep)
    return {
        PACKETS: pa.ListArray.from_arrays(pa.array(_offsets(present.sum(axis=1))), fields),
        HEADERS: _binary(flows.data[:, :, : keep.header_bytes], headers),
        PAYLOADS: _binary(flows.data[:, :, keep.header_bytes :], payloads),
    }


def beginnings_of(batch: Any, stored: KeepSpec, wanted: KeepSpec) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """The padded arrays of a `FlowBatch` from the columns of :func:`beginning_columns`.

    Args:
        batch: pyarrow.RecordBatch.
        stored: with which it was written.
        wanted: at most as much of everything.

    Returns:
        ``packets``: ``PACKET_DTYPE`` (F, K of ``wanted``); ``data``: uint8 (F, M, H + P of ``wanted``).

    Raises:
        DataError: the columns contradict each other.
    """
    column = batch.column(PACKETS)
    n_kept = column.value_lengths().to_numpy()
    if len(n_kept) and int(n_kept.max()) > stored.n_packets:
        raise DataError(f"a flow has {n_kept.max()} packets, expected at most {stored.n_packets}")
    values = column.flatten()
    flat = np.zeros(len(values), PACKET_DTYPE)
    for number, name in enumerate(PACKET_DTYPE.names or ()):
        flat[name] = values.field(number).to_numpy()
    present = _present(n_kept, stored.n_packets)
    packets = np.zeros((len(batch), stored.n_packets), PACKET_DTYPE)
    packets[present] = flat
    shares = _shares(packets, present, stored)
    m = wanted.n_byte_packets
    data = np.zeros((len(batch), m, wanted.row_bytes), np.uint8)
    if wanted.header_bytes:
        headers = _padded(batch.column(HEADERS), shares[0], stored.header_bytes)
        data[:, :, : wanted.header_bytes] = headers[:, :m, : wanted.header_bytes]
    if wanted.payload_bytes:
        payloads = _padded(batch.column(PAYLOADS), shares[1], stored.payload_bytes)
        data[:, :, wanted.header_bytes :] = payloads[:, :m, : wanted.payload_bytes]
    return packets[:, : wanted.n_packets], data


def narrowed(flows: FlowBatch, stored: KeepSpec, wanted: KeepSpec) -> FlowBatch:
    """Ready flows as a flow table with less to keep would have given them; the records are copied."""
    records = flows.records.copy()
    records["n_kept"] = np.minimum(records["n_kept"], wanted.n_packets)
    first = flows.data[:, : wanted.n_byte_packets]
    headers = first[:, :, : wanted.header_bytes]
    payloads = first[:, :, stored.header_bytes : stored.header_bytes + wanted.payload_bytes]
    return FlowBatch(
        records, flows.packets[:, : wanted.n_packets], np.concatenate([headers, payloads], axis=2)
    )


def covers(stored: KeepSpec, wanted: KeepSpec) -> bool:
    """Whether everything that ``wanted`` asks for is stored."""
    return (
        stored.n_packets >= wanted.n_packets
        and stored.n_byte_packets >= wanted.n_byte_packets
        and stored.header_bytes >= wanted.header_bytes
        and stored.payload_bytes >= wanted.payload_bytes
    )


def _present(n_kept: NDArray[Any], n_packets: int) -> NDArray[np.bool_]:
    return np.arange(n_packets)[None, :] < n_kept[:, None]


def _offsets(lengths: NDArray[Any]) -> NDArray[np.int32]:
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    if offsets[-1] > np.iinfo(np.int32).max:
        raise DataError(f"a batch of {len(lengths)} flows holds {offsets[-1]} values, more than 2^31 - 1")
    return offsets.astype(np.int32)


def _shares(
    packets: NDArray[Any], present: NDArray[np.bool_], keep: KeepSpec
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Header and payload bytes stored of each packet: int64 (F, M), 0 where there is none."""
    first, there = packets[:, : keep.n_byte_packets], present[:, : keep.n_byte_packets]
    headers = np.minimum(first["header_len"].astype(np.int64), keep.header_bytes)
    payloads = np.minimum(first["payload_len"].astype(np.int64), keep.payload_bytes)
    return headers * there, payloads * there


def _binary(data: NDArray[np.uint8], lengths: NDArray[np.int64]) -> Any:
    """One binary value a flow: the first ``lengths`` bytes of each of its packets."""
    pa = require_pyarrow()
    inside = np.arange(data.shape[2])[None, None, :] < lengths[:, :, None]
    offsets = _offsets(lengths.sum(axis=1))
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(data[inside]))]
    return pa.Array.from_buffers(pa.binary(), len(data), buffers)


def _padded(column: Any, lengths: NDArray[np.int64], n_bytes: int) -> NDArray[np.uint8]:
    """What :func:`_binary` took: uint8 (F, M, ``n_bytes``)."""
    offsets = np.frombuffer(column.buffers()[1], np.int32)[column.offset : column.offset + len(column) + 1]
    if not np.array_equal(np.diff(offsets), lengths.sum(axis=1)):
        raise DataError("the bytes of a flow are not as long as its packets say")
    out = np.zeros((*lengths.shape, n_bytes), np.uint8)
    if len(column) and column.buffers()[2] is not None:
        flat = np.frombuffer(column.buffers()[2], np.uint8)[offsets[0] : offsets[-1]]
        out[np.arange(n_bytes)[None, None, :] < lengths[:, :, None]] = flat
    return out
