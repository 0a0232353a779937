"""Events as Arrow: one flat table. pyarrow is an extra and is imported when asked for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from capture.errors import UsageError
from capture.flow_batch import EndReason
from netcls.event import Event, as_dict, events_of
from netcls.event_batch import EventBatch
from netcls.flat import column_names, flat_row


def require_pyarrow() -> Any:
    """The pyarrow module.

    Raises:
        UsageError: where it is not installed; names the extra.
    """
    try:
        import pyarrow as pa
    except ImportError:
        raise UsageError(
            "Parquet and Arrow need pyarrow, which is not installed; pip install 'netcls[arrow]'"
        ) from None
    return pa


@cache
def event_schema() -> Any:
    """pyarrow.Schema of :func:`record_batch`, the same for every batch."""
    pa = require_pyarrow()
    instant = pa.timestamp("ns", "UTC")
    word = pa.dictionary(pa.int32(), pa.string())
    labelled = pa.struct([("label", pa.string()), ("probability", pa.float32())])
    special = {
        "timestamp": instant,
        "flow_start": instant,
        "flow_end": instant,
        "flow_id": pa.int64(),
        "event_type": word,
        "pcap_filename": word,
        "proto": word,
        "vlan": pa.list_(pa.uint16()),
        "tunnel_kind": word,
        "flow_reason": word,
        "netcls_label": word,
        "netcls_nearest": word,
        "netcls_runner_up_label": word,
        "netcls_probability": pa.float32(),
        "netcls_runner_up_probability": pa.float32(),
        "netcls_unknown": pa.bool_(),
        "netcls_unknown_score": pa.float32(),
        "netcls_top": pa.list_(labelled),
        "netcls_labels": pa.list_(labelled),
        "netcls_number_name": word,
        "netcls_number_unit": word,
        "netcls_number_estimate": pa.float64(),
        "netcls_number_low": pa.float64(),
        "netcls_number_high": pa.float64(),
        "netcls_final": pa.bool_(),
        "netcls_alpn": pa.list_(pa.string()),
        "netcls_model": word,
        "netcls_checkpoint": word,
        "netcls_representation": word,
        "netcls_end_reason": word,
        "netcls_quality": pa.list_(pa.string()),
    }
    whole = {
        "src_port", "dest_port", "icmp_type", "icmp_code", "ip_v", "flow_age", "flow_pkts_toserver",
        "flow_pkts_toclient", "flow_bytes_toserver", "flow_bytes_toclient", "flow_ip_bytes_toserver",
        "flow_ip_bytes_toclient", "netcls_v", "netcls_packets_used",
        "netcls_latency_us", "tunnel_id", "tunnel_id_toclient", "tunnel_depth",
    }  # fmt: skip
    return pa.schema(
        [
            (name, special.get(name) or (pa.int64() if name in whole else pa.string()))
            for name in column_names()
        ]
    )


class RowGroups:
    """A Parquet file, written in row groups of many small batches: each group costs some 10 KB.

    Args:
        output: an object with ``write``; see :class:`netcls.output.Output`.
        schema: pyarrow.Schema of every batch.
        n_rows: of a row group, about.
    """

    def __init__(self, output: Any, schema: Any, n_rows: int) -> None:
        require_pyarrow()
        from pyarrow import parquet

        self._writer = parquet.ParquetWriter(output, schema, compression="zstd")
        self._schema = schema
        self._n_rows = n_rows
        self._pending: list[Any] = []
        self._n_pending = 0

    def write(self, batch: Any) -> None:
        """Take a pyarrow.RecordBatch."""
        self._pending.append(batch)
        self._n_pending += len(batch)
        if self._n_pending >= self._n_rows:
            self._write_group()

    def close(self) -> None:
        """Write what is pending, and the footer."""
        if self._pending:
            self._write_group()
        self._writer.close()

    def _write_group(self) -> None:
        self._writer.write_table(require_pyarrow().Table.from_batches(self._pending, self._schema))
        self._pending, self._n_pending = [], 0


def record_batch(batch: EventBatch) -> Any:
    """The events of a batch as a pyarrow.RecordBatch, one row a flow."""
    return _record_batch(list(events_of(batch)), _times(batch))


def record_batch_of(events: Sequence[Event]) -> Any:
    """Single events as a pyarrow.RecordBatch, a row each; times have the microseconds of an event."""
    from netcls.sinks.fields import epoch_ns

    ends = [event.flow.end for event in events]
    times = {
        "timestamp": [epoch_ns(event.timestamp) for event in events],
        "flow_start": [epoch_ns(event.flow.start) for event in events],
        "flow_end": [epoch_ns(end) if isinstance(end, str) else None for end in ends],
    }
    return _record_batch(events, times)


def _record_batch(events: Sequence[Event], times: dict[str, Any]) -> Any:
    pa = require_pyarrow()
    schema = event_schema()
    rows = [flat_row(as_dict(event)) for event in events]
    columns = []
    for field in schema:
        if field.name in times:
            columns.append(_instants(pa, times[field.name], field.type))
        else:
            columns.append(pa.array([row.get(field.name) for row in rows], field.type))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _instants(pa: Any, times: Any, kind: Any) -> Any:
    return pa.array(times, pa.int64() if isinstance(times, list) else None).cast(kind)


def _times(batch: EventBatch) -> dict[str, Any]:
    # The records' nanoseconds; the text of an event has only microseconds.
    records, answers = batch.records, batch.answers
    answered = records["last_ts_ns"] if answers is None else answers.answer_ts_ns
    times = {"timestamp": answered, "flow_start": records["first_ts_ns"], "flow_end": records["last_ts_ns"]}
    columns = {name: ts_ns.astype("datetime64[ns]") for name, ts_ns in times.items()}
    columns["flow_end"][records["end_reason"] == EndReason.OPEN] = "NaT"
    return columns
