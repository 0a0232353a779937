"""A built dataset as DATA: labelled flows for any representation that it holds enough for.

The flows, their order and their numbers are those that the captures themselves would have given, so that a model
trained on a dataset is the same, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capture.errors import DataError
from capture.representations.base import Representation
from netcls.datasets.build import BuildOptions, BuildReport, LabelledFlows, within_cap, without_empty_labels
from netcls.datasets.capture_flows import concatenate_tokens, keep_for
from netcls.datasets.sources import DataOptions, DataSource, LabelledCapture
from netcls.datasets.splits import Split, SplitInput, SplitOptions, check_split
from netcls.datasets.stored import StoredDataset, open_dataset


def dataset_source(path: Path, options: DataOptions) -> DataSource:
    """A built dataset as form 4 of labelled data.

    Raises:
        DataError: it cannot be used, or was built with another label or without a group column that is asked for.
    """
    dataset = open_dataset(path)
    info = dataset.info
    if options.label not in ("label", info["label_column"]):
        raise DataError(
            f"{path}: its labels are those of column {info['label_column']!r}, not of {options.label!r}; "
            f"build a dataset with --label {options.label}"
        )
    columns = tuple(info["group_columns"])
    for column in options.group:
        if column not in columns:
            raise DataError(
                f"{path}: has no group column {column!r}, but {', '.join(columns)}; "
                f"build a dataset with --group {','.join(options.group)}"
            )
    chosen = options.group or columns
    names = [tuple(values[columns.index(column)] for column in chosen) for values in dataset.groups]
    table = dataset.captures
    captures = tuple(
        LabelledCapture(Path(place), name, -1, -1, host, time_s, sha256=sha256)
        for place, name, host, time_s, sha256 in zip(
            *(table.column(column).to_pylist() for column in ("path", "name", "host", "time_s", "sha256")),
            strict=True,
        )
    )
    # What the default leaves out was left out, or kept on purpose, when the dataset was built.
    drop_labels = () if options.drop_labels == DataOptions().drop_labels else options.drop_labels
    return DataSource(
        path,
        4,
        captures,
        dataset.labels,
        tuple(dict.fromkeys(names)),
        chosen,
        dataset=dataset,
        drop_labels=drop_labels,
    )


def flows_of_dataset(
    source: DataSource,
    representation: Representation,
    options: BuildOptions,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[LabelledFlows, BuildReport]:
    """All flows of a dataset, or of each capture as many of a class as ``options`` allow.

    Raises:
        DataError: the dataset holds too little of each flow, is damaged, or fewer than two classes have flows.
    """
    dataset = _dataset_of(source)
    keep = keep_for(representation)
    dataset.need(keep)
    report = _stored_report(dataset)
    cap = options.max_flows_per_capture or 0
    dropped = np.isin(np.array(dataset.labels, object), np.array(source.drop_labels, object))
    parts = []
    records, packets, rows = [], [], []
    for capture in range(len(source.captures)):
        columns = dataset.columns_of(capture, ("label", "flow_id", "serial"))
        leaves = dropped[columns["label"]]
        stay = np.flatnonzero(~leaves)
        if cap:
            stay = stay[within_cap(columns["flow_id"][stay], columns["label"][stay], options)]
        report.flows_dropped_label += int(np.count_nonzero(leaves))
        report.flows_capped += len(columns["label"]) - int(np.count_nonzero(leaves)) - len(stay)
        chosen = np.zeros(len(columns["label"]), bool)
        chosen[stay] = True
        first = int(dataset.first_rows[capture])
        for stored in dataset.batches_of(capture):
            here = chosen[stored.first_row - first :][: len(stored)]
            if here.any():
                flows = dataset.flows_of(stored, keep, here)
                parts.append(representation.tokenize(flows))
                records.append(flows.records)
                packets.append(flows.packets)
                rows.append(stored.first_row + np.flatnonzero(here))
        if on_progress is not None:
            on_progress(capture + 1, len(source.captures))
    if not rows:
        raise DataError(f"{source.path}: no flow is left; expected flows of at least two classes")
    return _joined(source, report, concatenate_tokens(parts), records, packets, np.concatenate(rows))


def _joined(
    source: DataSource, report: BuildReport, tokens: Any, records: Any, packets: Any, rows: NDArray[np.int64]
) -> tuple[LabelledFlows, BuildReport]:
    dataset = _dataset_of(source)
    where = dataset_columns(dataset, source, rows)
    record = np.concatenate(records)
    order = np.lexsort((record["serial"], where.capture))
    flows = LabelledFlows(
        tokens.take(order),
        np.concatenate(packets)[order],
        record[order],
        where.labels[order],
        where.capture[order],
        where.group[order],
        where.host[order],
        where.time_s[order],
        source.labels,
        tuple(capture.name for capture in source.captures),
        source.groups,
        source.group_columns,
        rows[order],
    )
    report.flows = len(flows)
    report.labels_without_flow = []
    return without_empty_labels(flows, source, report), report


def dataset_columns(
    dataset: StoredDataset,
    source: DataSource,
    rows: NDArray[np.int64] | None = None,
) -> SplitInput:
    """What a split looks at, of all flows or of the given rows, in order of rows; 40 bytes a flow.

    Args:
        dataset: opened.
        source: of `dataset_source`; its groups are counted.
        rows: int64, ascending; None: all.
    """
    labels, groups, times, clients, captures = [], [], [], [], []
    for capture, told in enumerate(source.captures):
        columns = dataset.columns_of(capture, ("label", "group", "first_ts_ns", "client"))
        first, last = dataset.first_rows[capture : capture + 2]
        inside = slice(None)
        if rows is not None:
            inside = rows[np.searchsorted(rows, first) : np.searchsorted(rows, last)] - first
        labels.append(columns["label"][inside].astype(np.int64))
        groups.append(columns["group"][inside].astype(np.int64))
        n = len(labels[-1])
        started_s = columns["first_ts_ns"][inside].astype(np.float64) / 1e9
        times.append(started_s if told.time_s is None else np.full(n, told.time_s))
        clients.append(columns["client"][inside])
        captures.append(np.full(n, capture, np.int64))
    capture_of = np.concatenate(captures)
    renumbered = group_numbers(dataset, source)
    return SplitInput(
        np.concatenate(labels),
        capture_of,
        renumbered[np.concatenate(groups)],
        _hosts(source, capture_of, np.concatenate(clients)),
        np.concatenate(times),
        source.labels,
        source.groups,
        source.group_columns,
    )


def group_numbers(dataset: StoredDataset, source: DataSource) -> NDArray[np.int64]:
    """The source's number of each stored group, which may be of fewer columns: int64 (groups,)."""
    stored = tuple(dataset.info["group_columns"])
    numbers = {name: number for number, name in enumerate(source.groups)}
    return np.array(
        [
            numbers[tuple(values[stored.index(column)] for column in source.group_columns)]
            for values in dataset.groups
        ],
        np.int64,
    )


def _hosts(
    source: DataSource, capture_of: NDArray[np.int64], clients: NDArray[np.uint8]
) -> NDArray[np.int64]:
    """Number of each flow's host: the capture's, by the table, or its client's address."""
    plain = np.ascontiguousarray(clients).view("V16").reshape(-1)
    distinct, address = np.unique(plain, return_inverse=True)
    texts = [value.tobytes().hex() for value in distinct]
    names = [capture.host for capture in source.captures]
    _, number = np.unique([*texts, *names], return_inverse=True)
    named = np.array([bool(name) for name in names], bool)
    numbers = np.where(named[capture_of], number[len(texts) + capture_of], number[address.reshape(-1)])
    return np.unique(numbers, return_inverse=True)[1].astype(np.int64)


def stored_split(source: DataSource, flows: LabelledFlows) -> Split:
    """The split that was stored with the dataset, for the flows that are used.

    Raises:
        DataError: with these flows it measures nothing.
    """
    dataset = _dataset_of(source)
    if flows.rows is None:
        raise ValueError("the flows are not of a dataset")
    facts = dataset.info["split"]
    try:
        leave_out = tuple(tuple(group) for group in facts["leave_out"])
        options = SplitOptions(facts["kind"], facts["seed"], rule=facts["rule"], leave_out=leave_out)
        split = Split(
            dataset.split_parts()[flows.rows],
            options,
            str(facts["description"]),
            fallback=tuple(facts["fallback"]),
            calibration_unseen=bool(facts["calibration_unseen"]),
            n_left_out=int(facts["n_left_out"]),
            warnings=[*facts["warnings"]],
        )
    except (KeyError, TypeError, ValueError):
        raise DataError(
            f"{source.path}: has no whole split; build the dataset again, or choose a --split"
        ) from None
    check_split(flows.split_input(), split)
    split.warnings = list(dict.fromkeys(split.warnings))
    return split


def _stored_report(dataset: StoredDataset) -> BuildReport:
    try:
        return BuildReport(**dataset.info["report"])
    except TypeError:
        raise DataError(
            f"{dataset.path}: its report is not one of this version; build the dataset again"
        ) from None


def _dataset_of(source: DataSource) -> StoredDataset:
    if source.dataset is None:
        raise ValueError(f"{source.path} is not a built dataset")
    return source.dataset
