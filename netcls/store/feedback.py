"""The operator's labels as labelled data: form 5 of ``DATA``, a store that ``netcls serve`` keeps.

The flows are those whose first packets were kept when the label was given. What stands for a capture, and for a group,
is one client on one day (UTC): flows of one conversation never lie on two sides of the split.

F: labelled flows whose packets are kept.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capture.errors import DataError
from capture.flow_batch import PACKET_DTYPE, FlowBatch, KeepSpec
from capture.representations.base import Representation
from netcls.datasets.build import BuildOptions, BuildReport, LabelledFlows, within_cap, without_empty_labels
from netcls.datasets.capture_flows import keep_for
from netcls.datasets.sources import DataOptions, DataSource, LabelledCapture
from netcls.store.kept import KeptFlow
from netcls.store.schema import StoreError, open_reader


def feedback_source(path: Path, options: DataOptions) -> DataSource:
    """The labels of a store.

    Raises:
        DataError: if it cannot be read, or no label has packets.
    """
    rows, n_bare = _labelled(path)
    rows = [(label, kept) for label, kept in rows if label not in options.drop_labels]
    if not rows:
        raise DataError(
            f"{path}: no labelled flow has its packets ({n_bare} labels without); give flows their right label on the "
            "page while netcls serve runs, soon after they were seen"
        )
    names = sorted({_capture_of(kept) for _, kept in rows})
    captures = tuple(
        LabelledCapture(
            path, name, -1, number, name.partition(" ")[0], sha256=hashlib.sha256(name.encode()).hexdigest()
        )
        for number, name in enumerate(names)
    )
    warnings = (f"{path}: {n_bare} labels without packets; left out",) if n_bare else ()
    return DataSource(
        path,
        5,
        captures,
        tuple(sorted({label for label, _ in rows})),
        tuple((name,) for name in names),
        ("client_day",),
        n_unlabelled=n_bare,
        warnings=warnings,
        drop_labels=options.drop_labels,
    )


def flows_of_feedback(
    source: DataSource, representation: Representation, options: BuildOptions
) -> tuple[LabelledFlows, BuildReport]:
    """All labelled flows, for a representation that their kept packets are enough for.

    Raises:
        DataError: if they were kept for another representation, or fewer than two classes have flows.
    """
    rows = [row for row in _labelled(source.path)[0] if row[0] not in source.drop_labels]
    keep = keep_for(representation)
    for _, kept in rows:
        _need(source.path, kept.keep, representation.keep)
    records = np.concatenate([kept.flow.records for _, kept in rows])
    flows = FlowBatch(records, np.zeros((len(rows), keep.n_packets), PACKET_DTYPE), _data(rows, keep))
    for row, (_, kept) in enumerate(rows):
        n = min(kept.keep.n_packets, keep.n_packets)
        flows.packets[row, :n] = kept.flow.packets[0, :n]
    records["n_kept"] = np.minimum(records["n_kept"], keep.n_packets)
    number = {capture.name: place for place, capture in enumerate(source.captures)}
    labels = np.array([source.labels.index(label) for label, _ in rows], np.int64)
    captures = np.array([number[_capture_of(kept)] for _, kept in rows], np.int64)
    chosen = _capped(records["flow_id"], labels, captures, options)
    hosts = [_client(kept) for _, kept in rows]
    found = flows.take(chosen)
    labelled = LabelledFlows(
        representation.tokenize(found),
        found.packets,
        found.records,
        labels[chosen],
        captures[chosen],
        captures[chosen],
        np.unique(hosts, return_inverse=True)[1].astype(np.int64)[chosen],
        found.records["first_ts_ns"].astype(np.float64) / 1e9,
        source.labels,
        tuple(capture.name for capture in source.captures),
        source.groups,
        source.group_columns,
    )
    report = BuildReport(
        captures=len(source.captures),
        packets=int(records["packets"].sum()),
        flows_seen=len(rows),
        flows_labelled=len(rows),
        flows_capped=len(rows) - int(chosen.sum()),
        flows=int(chosen.sum()),
        rows_unlabelled=source.n_unlabelled,
        warnings=list(source.warnings),
    )
    return without_empty_labels(labelled, source, report), report


def _labelled(path: Path) -> tuple[list[tuple[str, KeptFlow]], int]:
    """Labels with their flows, in the order of the flows' numbers, and how many labels have no packets."""
    try:
        database = open_reader(path)
    except StoreError as error:
        raise DataError(str(error)) from None
    try:
        stored = database.execute("SELECT label, kept FROM labels ORDER BY flow_id").fetchall()
    finally:
        database.close()
    unpacked = [(str(label), None if kept is None else KeptFlow.unpack(kept)) for label, kept in stored]
    rows = [(label, kept) for label, kept in unpacked if kept is not None]
    return rows, len(stored) - len(rows)


def _need(path: Path, has: KeepSpec, needs: KeepSpec) -> None:
    wanted = ("n_packets", "n_byte_packets", "header_bytes", "payload_bytes")
    if any(getattr(has, name) < getattr(needs, name) for name in wanted):
        raise DataError(
            f"{path}: its flows were kept for another model ({has}), and this one needs more ({needs}); fine-tune "
            "with --base of the model that netcls serve ran with"
        )


def _data(rows: list[tuple[str, KeptFlow]], keep: KeepSpec) -> NDArray[np.uint8]:
    data = np.zeros((len(rows), keep.n_byte_packets, keep.row_bytes), np.uint8)
    for row, (_, kept) in enumerate(rows):
        has, old = kept.keep, kept.flow.data[0, : keep.n_byte_packets]
        data[row, :, : keep.header_bytes] = old[:, : keep.header_bytes]
        data[row, :, keep.header_bytes :] = old[:, has.header_bytes : has.header_bytes + keep.payload_bytes]
    return data


def _capped(
    flow_ids: NDArray[np.uint64],
    labels: NDArray[np.int64],
    captures: NDArray[np.int64],
    options: BuildOptions,
) -> NDArray[np.bool_]:
    """All flows, unless the caller asks for fewer of each capture."""
    chosen = np.ones(len(labels), np.bool_)
    if not options.max_flows_per_capture:
        return chosen
    chosen[:] = False
    for capture in np.unique(captures):
        rows = np.flatnonzero(captures == capture)
        chosen[rows[within_cap(flow_ids[rows], labels[rows], options)]] = True
    return chosen


def _client(kept: KeptFlow) -> str:
    record: Any = kept.flow.records[0]
    return str(record["client"].tobytes().hex())


def _capture_of(kept: KeptFlow) -> str:
    first_ns = int(kept.flow.records["first_ts_ns"][0])
    day = time.strftime("%Y-%m-%d", time.gmtime(first_ns // 10**9))
    return f"{_client(kept)} {day}"
