"""Flows and rows that a dataset does not hold, each with its reason."""

from __future__ import annotations

import ipaddress
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from netcls.arrow import require_pyarrow
from netcls.datasets.labels import CONTRADICTORY, DROPPED, UNLABELLED, Matches

REASONS: Final = {
    UNLABELLED: "unlabelled",
    DROPPED: "dropped label",
    CONTRADICTORY: "contradictory labels",
}
NO_FLOW: Final = "no flow matches"
NO_LABEL: Final = "row without a label"
_WHAT: Final = ("flow", "row")
_WORDS: Final = (
    *REASONS.values(),
    NO_FLOW,
    NO_LABEL,
)  # the same dictionary in every batch: a file may hold one alone
_V4_PREFIX: Final = b"\0" * 10 + b"\xff\xff"


def unused_schema() -> Any:
    """pyarrow.Schema of the table: ``capture`` is a row number of the captures, ``what`` flow or row.

    ``where`` is the place in the table of labels of a row that names no flow; such a row has no capture.
    """
    pa = require_pyarrow()
    word = pa.dictionary(pa.int8(), pa.string())
    return pa.schema(
        [
            ("capture", pa.int32()),
            ("what", word),
            ("reason", word),
            ("label", pa.string()),
            ("src_ip", pa.string()),
            ("src_port", pa.uint16()),
            ("dest_ip", pa.string()),
            ("dest_port", pa.uint16()),
            ("proto", pa.uint8()),
            ("first_ts", pa.timestamp("ns", "UTC")),
            ("where", pa.string()),
        ]
    )


def unused_table(
    capture: int,
    records: NDArray[Any],
    labels: NDArray[np.int64],
    rows: NDArray[Any] | None,
    matches: Matches | None,
    label_names: tuple[str, ...],
) -> tuple[Any, dict[str, int]]:
    """The flows of one capture without a usable label, then the rows that no flow matched.

    Args:
        capture: its number.
        records: ``FLOW_DTYPE`` (F,).
        labels: int64 (F,), below 0 as in `netcls.datasets.labels`.
        rows: ``FLOW_ROW_DTYPE`` (R,), or None.
        matches: None where nothing was matched; then no row was.
        label_names: of the rows' labels.

    Returns:
        A pyarrow.Table of :func:`unused_schema`, and how many flows each of `REASONS` has.
    """
    pa = require_pyarrow()
    counts = {reason: int(np.count_nonzero(labels == code)) for code, reason in REASONS.items()}
    left = np.flatnonzero(labels < 0)
    parts = [
        _columns(
            capture,
            "flow",
            -1 - labels[left],  # REASONS are in the order of their codes
            pa.nulls(len(left), pa.string()),
            records[left],
            ("client", "client_port", "server", "server_port"),
        )
    ]
    if rows is not None:
        alone = rows[~matches.row_matched] if matches is not None else rows
        names = pa.array([*label_names, None], pa.string())  # a dropped label (-1) has no name here
        number = np.where(alone["label"] < 0, len(label_names), alone["label"])
        reason = np.full(len(alone), _WORDS.index(NO_FLOW))
        ends = ("src", "src_port", "dst", "dst_port")
        parts.append(_columns(capture, "row", reason, names.take(pa.array(number)), alone, ends))
    return pa.concat_tables(parts), counts


def skipped_table(places: tuple[str, ...]) -> Any:
    """The rows without a label, of :func:`unused_schema`."""
    pa = require_pyarrow()
    n = len(places)
    told = {
        "what": _words(np.full(n, _WHAT.index("row")), _WHAT),
        "reason": _words(np.full(n, _WORDS.index(NO_LABEL)), _WORDS),
        "where": pa.array(places, pa.string()),
    }
    schema = unused_schema()
    columns = [told.get(field.name, pa.nulls(n, field.type)) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def _columns(
    capture: int,
    what: str,
    reason: NDArray[np.int64],
    label: Any,
    rows: NDArray[Any],
    ends: tuple[str, str, str, str],
) -> Any:
    pa = require_pyarrow()
    src, src_port, dst, dst_port = ends
    schema = unused_schema()
    times = rows["first_ts_ns"].astype("datetime64[ns]")
    times[rows["first_ts_ns"] == 0] = "NaT"
    columns = [
        pa.array(np.full(len(rows), capture, np.int32)),
        _words(np.full(len(rows), _WHAT.index(what)), _WHAT),
        _words(reason, _WORDS),
        label,
        _address_texts(rows[src]),
        pa.array(np.ascontiguousarray(rows[src_port])),
        _address_texts(rows[dst]),
        pa.array(np.ascontiguousarray(rows[dst_port])),
        pa.array(np.ascontiguousarray(rows["protocol"])),
        pa.array(times),
    ]
    columns[-1] = columns[-1].cast(schema.field("first_ts").type)
    columns.append(pa.nulls(len(rows), pa.string()))
    return pa.Table.from_arrays(columns, schema=schema)


def _words(numbers: NDArray[np.int64], words: tuple[str, ...]) -> Any:
    pa = require_pyarrow()
    return pa.DictionaryArray.from_arrays(pa.array(numbers.astype(np.int8)), pa.array(words))


def _address_texts(addresses: NDArray[np.uint8]) -> Any:
    """uint8 (N, 16) as a pyarrow string array; each distinct address is written once."""
    pa = require_pyarrow()
    plain = np.ascontiguousarray(addresses).view("V16").reshape(-1)
    distinct, number = np.unique(plain, return_inverse=True)
    texts = pa.array([_text(address.tobytes()) for address in distinct], pa.string())
    return texts.take(pa.array(number.reshape(-1)))


def _text(address: bytes) -> str:
    if address.startswith(_V4_PREFIX):
        return str(ipaddress.IPv4Address(address[12:]))
    return str(ipaddress.IPv6Address(address))
