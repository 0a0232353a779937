"""The end of a build: all flows of a dataset divided, and repeats across the parts found, in little memory.

Columns are narrow and only those that the kind of split looks at; a split by host needs the flows' addresses and takes
several times as much. Hashes are written to a file without a name and mapped: the system may take their pages back.
Measured: docs/experiments.md. N is the number of flows.
"""

from __future__ import annotations

import tempfile
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from capture.errors import DataError
from netcls.datasets.repeats import find_repeats
from netcls.datasets.sources import DataSource
from netcls.datasets.splits import Split, SplitInput, SplitOptions, make_split
from netcls.datasets.stored import StoredDataset
from netcls.datasets.stored_use import dataset_columns, group_numbers

_HASHES: Final = ("input_hash", "shape_hash")


def divided(dataset: StoredDataset, source: DataSource, options: SplitOptions) -> Split:
    """The split that the captures themselves would get, its parts in order of rows.

    Raises:
        DataError: with these flows it measures nothing.
    """
    if options.kind == "host":
        flows = dataset_columns(dataset, source)
        flows = flows.take(np.concatenate([_by_serial(dataset, number) for number in _captures(dataset)]))
    else:
        flows = _narrow_columns(dataset, source, options)
    split = make_split(flows, options)
    del flows
    for number in _captures(dataset):
        first, last = dataset.first_rows[number : number + 2]
        in_order = split.part[first:last].copy()
        split.part[_by_serial(dataset, number)] = in_order
    return split


def _captures(dataset: StoredDataset) -> range:
    return range(dataset.captures.num_rows)


def _by_serial(dataset: StoredDataset, number: int) -> NDArray[np.int64]:
    """Rows of one capture's flows in the order in which the capture itself gives them."""
    serial = dataset.columns_of(number, ("serial",))["serial"]
    return np.asarray(dataset.first_rows[number] + np.argsort(serial, kind="stable"))


def _narrow_columns(dataset: StoredDataset, source: DataSource, options: SplitOptions) -> SplitInput:
    """What this split looks at and nothing else, in serial order within each capture."""
    n = len(dataset)
    nothing = np.broadcast_to(np.zeros(1, np.int32), (n,))
    labels, capture = np.empty(n, np.int32), np.empty(n, np.int32)
    group: NDArray[Any] = np.empty(n, np.int32) if options.kind == "group" else nothing
    is_by_time = options.kind == "time"
    time_s: NDArray[Any] = np.empty(n) if is_by_time else np.broadcast_to(np.zeros(1), (n,))
    number_of_group = group_numbers(dataset, source).astype(np.int32)
    for number in _captures(dataset):
        first, last = (int(row) for row in dataset.first_rows[number : number + 2])
        columns = dataset.columns_of(number, ("label", "group", "first_ts_ns", "serial"))
        order = np.argsort(columns["serial"], kind="stable")
        labels[first:last] = columns["label"][order]
        capture[first:last] = number
        if options.kind == "group":
            group[first:last] = number_of_group[columns["group"][order]]
        if is_by_time:
            told = source.captures[number].time_s
            time_s[first:last] = columns["first_ts_ns"][order] / 1e9 if told is None else told
    return SplitInput(
        labels, capture, group, nothing, time_s, source.labels, source.groups, source.group_columns
    )


def stored_repeats(dataset: StoredDataset, part: NDArray[np.int8]) -> NDArray[np.int8]:
    """Which flows an earlier part has already, see `find_repeats`: int8 (N,).

    Raises:
        DataError: there is no space for 16 bytes of each flow beside the dataset.
    """
    if not len(dataset):
        return np.zeros(0, np.int8)
    try:
        with (
            tempfile.TemporaryFile(dir=dataset.path) as inputs,
            tempfile.TemporaryFile(dir=dataset.path) as shapes,
        ):
            for number in _captures(dataset):
                columns = dataset.columns_of(number, _HASHES)
                for name, file in zip(_HASHES, (inputs, shapes), strict=True):
                    file.write(np.ascontiguousarray(columns[name]).data)
            mapped = []
            for file in (inputs, shapes):
                file.flush()
                mapped.append(np.memmap(file, np.uint64, "r", shape=(len(dataset),)))
            return find_repeats(part, mapped[0], mapped[1])
    except OSError as error:
        raise DataError(
            f"{dataset.path}: cannot be written ({error.strerror or error}); free some space or choose another place"
        ) from None
