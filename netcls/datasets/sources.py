"""What ``DATA`` may be: a directory of classes, a table of captures, or a table of flows.

Form 1 is a directory with one sub-folder per class and captures at any depth below it. Form 2 is a
table (CSV or Parquet) with ``path`` and ``label``. Form 3 is a table of flows: five-tuple and
label, optionally with the time of the flow. Form 4 is a dataset that was built before
(:mod:`netcls.datasets.stored`). Which one it is follows from what is there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from capture.errors import DataError, UsageError
from netcls.datasets.files import file_digest
from netcls.datasets.tables import Row, Table, open_table
from netcls.inputs import CAPTURE_SUFFIXES, COMPRESSED_SUFFIXES, find_captures
from netcls.store.schema import is_store

if TYPE_CHECKING:
    from netcls.datasets.stored import StoredDataset

FIVE_TUPLE: Final = ("src_ip", "src_port", "dest_ip", "dest_port", "proto")
MAX_SKIPPED: Final = 1000  # places of rows without a label that are remembered
_ROWS_IN_LISTS: Final = 8192  # of a table of flows, before they are packed into columns
MAX_LABEL_CHARS: Final = 200  # what a checkpoint accepts
DATASET_FILE: Final = "dataset.json"
FOREVER_NS: Final = np.int64(2**62)

# One row of a table of flows. Addresses and ports as written, not yet in canonical order.
FLOW_ROW_DTYPE: Final = np.dtype(
    [
        ("src", "u1", (16,)),
        ("dst", "u1", (16,)),
        ("src_port", "<u2"),
        ("dst_port", "<u2"),
        ("protocol", "u1"),
        ("label", "<i4"),  # index into DataSource.labels; -1: listed, but of a dropped label
        ("group", "<i4"),  # index into DataSource.groups
        ("first_ts_ns", "<i8"),  # 0 where the table has no time
        ("last_ts_ns", "<i8"),  # FOREVER_NS where the table has no time
    ]
)


@dataclass(frozen=True, slots=True)
class DataOptions:
    """How a table is read.

    Attributes:
        label: column that holds the label. Forms 2 and 3 only.
        group: columns whose values together are a flow's group; empty: ``group`` if the table has it, else the
            capture file. Forms 2 and 3 only.
        drop_labels: rows or folders with such a label are left out (counted). Also looked for in the column
            ``label`` when another column is chosen, because a finer label names background traffic differently.
    """

    label: str = "label"
    group: tuple[str, ...] = ()
    drop_labels: tuple[str, ...] = ("background",)


@dataclass(frozen=True, slots=True)
class LabelledCapture:
    """One capture file with its label, or with the rows that label its flows.

    Attributes:
        path: where the file is.
        name: as the user wrote it; for reports.
        label: index into ``DataSource.labels``; -1 where ``rows`` label flow by flow.
        group: index into ``DataSource.groups``; with ``rows``, the group of each row counts instead.
        host: who was captured, from the table; empty: the client address of each flow stands for it.
        time_s: when it was captured, seconds since the epoch; None: the first packet of each flow says it.
        rows: ``FLOW_ROW_DTYPE`` (R,), or None.
        sha256: of the file when a dataset was built of it, which may be gone since; empty: look at the file.
    """

    path: Path
    name: str
    label: int
    group: int
    host: str = ""
    time_s: float | None = None
    rows: NDArray[Any] | None = None
    sha256: str = ""

    def digest(self) -> str:
        """SHA-256 of the capture, 64 hex digits."""
        return self.sha256 or file_digest(self.path)


@dataclass(frozen=True, slots=True)
class DataSource:
    """Labelled captures, read but not opened.

    Attributes:
        path: DATA as given.
        form: 1 directory, 2 table of captures, 3 table of flows, 4 built dataset, 5 store with an operator's labels.
        captures: by name.
        labels: class names, sorted.
        groups: each the values of the group columns, or the capture's name.
        group_columns: what the values of a group are called.
        n_dropped: rows or captures left out because of their label.
        n_unlabelled: rows without a label, or captures outside any class folder.
        warnings: one line each.
        dataset: form 4 only.
        drop_labels: labels of the dataset that are left out now.
        skipped: where the rows without a label stand, the first thousand of them.
    """

    path: Path
    form: int
    captures: tuple[LabelledCapture, ...]
    labels: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...]
    group_columns: tuple[str, ...]
    n_dropped: int = 0
    n_unlabelled: int = 0
    warnings: tuple[str, ...] = ()
    dataset: StoredDataset | None = None
    drop_labels: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()


def read_source(path: str | os.PathLike[str], options: DataOptions | None = None) -> DataSource:
    """Find the captures and labels of ``path``.

    Raises:
        DataError: nothing usable is there; the message says what was expected.
    """
    options = options or DataOptions()
    place = Path(path)
    if (place / DATASET_FILE).is_file():
        from netcls.datasets.stored_use import dataset_source

        source = dataset_source(place, options)
    elif place.is_dir():
        source = _read_directory(place, options)
    elif is_store(place):
        from netcls.store.feedback import feedback_source

        source = feedback_source(place, options)
    elif place.exists():
        if is_capture_name(place.name):
            raise DataError(
                f"{place}: is one capture without labels; give a folder of class folders or a table of labels"
            )
        with open_table(place) as table:
            flows = all(column in table.columns for column in FIVE_TUPLE)
            source = _read_flow_table(table, options) if flows else _read_capture_table(table, options)
    else:
        raise DataError(f"{place}: does not exist; expected a folder of class folders or a table of labels")
    if len(source.labels) < 2:
        only = source.labels[0] if source.labels else "none"
        raise DataError(f"{place}: {len(source.labels)} class ({only}); expected at least two to tell apart")
    return source


def is_capture_name(name: str) -> bool:
    """True for names such as ``a.pcap``, ``b.pcapng.gz``, ``c.cap.zst``."""
    lower = name.lower()
    for suffix in filter(None, COMPRESSED_SUFFIXES):
        lower = lower.removesuffix(suffix)
    return lower.endswith(CAPTURE_SUFFIXES)


@dataclass(slots=True)
class _Names:
    """Numbers given to names in the order in which they are met."""

    index: dict[Any, int] = field(default_factory=dict)

    def of(self, name: Any) -> int:
        return self.index.setdefault(name, len(self.index))

    def names(self) -> tuple[Any, ...]:
        return tuple(self.index)


def _read_directory(folder: Path, options: DataOptions) -> DataSource:
    warnings: list[str] = []
    captures: list[LabelledCapture] = []
    labels: list[str] = []
    n_dropped = 0
    for sub in sorted(entry for entry in folder.iterdir() if entry.is_dir()):
        try:
            paths = [Path(name) for name in find_captures(str(sub))]
        except UsageError:
            warnings.append(f"{sub}: holds no capture; left out")
            continue
        if sub.name in options.drop_labels:
            n_dropped += len(paths)
            continue
        for path in paths:
            name = path.relative_to(folder).as_posix()
            captures.append(LabelledCapture(path, name, len(labels), len(captures)))
        labels.append(_checked_label(sub.name, str(sub)))
    loose = sum(1 for entry in folder.iterdir() if entry.is_file() and is_capture_name(entry.name))
    if loose:
        warnings.append(
            f"{folder}: {loose} captures lie beside the class folders and have no label; left out"
        )
    if not captures:
        raise DataError(
            f"{folder}: no capture in any sub-folder; expected one folder per class "
            f"with {', '.join(CAPTURE_SUFFIXES)} files, plain or compressed"
        )
    groups = tuple((capture.name,) for capture in captures)
    return DataSource(
        folder, 1, tuple(captures), tuple(labels), groups, ("capture",), n_dropped, loose, tuple(warnings)
    )


def _read_capture_table(table: Table, options: DataOptions) -> DataSource:
    table.need(("path", options.label, *options.group))
    columns = _group_columns(table, options)
    labels, groups = _Names(), _Names()
    captures: dict[str, LabelledCapture] = {}
    n_dropped = n_unlabelled = 0
    skipped: list[str] = []
    for row in table.rows:
        label = row.text(options.label)
        if not label:
            n_unlabelled += 1
            _note_skipped(skipped, row)
            continue
        if _is_dropped(row, label, options):
            n_dropped += 1
            continue
        name = _path_cell(row)
        capture = LabelledCapture(
            table.path.parent / name,
            name,
            labels.of(_checked_label(label, row.where)),
            groups.of(_group_of(row, columns, name)),
            row.text("host"),
            row.epoch_s("time"),
        )
        before = captures.setdefault(name, capture)
        if before.label != capture.label:
            both = f"{labels.names()[before.label]!r} and {label!r}"
            raise DataError(
                f"{row.where}: {name} is labelled {both}; label its flows in a table of flows instead"
            )
    found = tuple(sorted(captures.values(), key=lambda capture: capture.name))
    source = _with_sorted_labels(table.path, 2, found, labels, groups, columns, n_dropped, n_unlabelled)
    _need_files(source)
    return replace(source, skipped=tuple(skipped))


def _read_flow_table(table: Table, options: DataOptions) -> DataSource:
    table.need(("path", options.label, *options.group))
    columns = _group_columns(table, options)
    labels, groups = _Names(), _Names()
    rows = _FlowRows()
    hosts: dict[str, str] = {}
    n_dropped = n_unlabelled = 0
    skipped: list[str] = []
    for row in table.rows:
        label = row.text(options.label)
        if not label:
            n_unlabelled += 1
            _note_skipped(skipped, row)
            continue
        name = _path_cell(row)
        if _is_dropped(row, label, options):
            n_dropped += 1
            number = -1
        else:
            number = labels.of(_checked_label(label, row.where))
        group = groups.of(_group_of(row, columns, name))
        rows.add(name, _flow_row(row, number, group))
        hosts.setdefault(name, row.text("host"))
    captures = tuple(
        LabelledCapture(table.path.parent / name, name, -1, -1, hosts[name], None, of_capture)
        for name, of_capture in rows.by_capture()
    )
    source = _with_sorted_labels(table.path, 3, captures, labels, groups, columns, n_dropped, n_unlabelled)
    _need_files(source)
    return replace(source, skipped=tuple(skipped))


class _FlowRows:
    """Rows of a table of flows by capture, in columns but for the latest few thousand."""

    def __init__(self) -> None:
        self._blocks: dict[str, list[NDArray[Any]]] = {}
        self._latest: dict[str, list[tuple[Any, ...]]] = {}
        self._n_latest = 0

    def add(self, name: str, row: tuple[Any, ...]) -> None:
        """Take one row, as :func:`_flow_row` gives it."""
        self._latest.setdefault(name, []).append(row)
        self._n_latest += 1
        if self._n_latest >= _ROWS_IN_LISTS:
            self._pack()

    def by_capture(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """Names, sorted, with ``FLOW_ROW_DTYPE`` (R,)."""
        self._pack()
        for name in sorted(self._blocks):
            yield name, np.concatenate(self._blocks[name])

    def _pack(self) -> None:
        for name, rows in self._latest.items():
            self._blocks.setdefault(name, []).append(np.array(rows, FLOW_ROW_DTYPE))
        self._latest, self._n_latest = {}, 0


def _note_skipped(skipped: list[str], row: Row) -> None:
    if len(skipped) < MAX_SKIPPED:
        skipped.append(row.where)


def _flow_row(row: Row, label: int, group: int) -> tuple[Any, ...]:
    first_s, last_s = row.epoch_s("first_ts"), row.epoch_s("last_ts")
    first_ns = 0 if first_s is None else round(first_s * 1e9)
    last_ns = FOREVER_NS if last_s is None else round(last_s * 1e9)
    if last_ns < first_ns:
        raise DataError(
            f"{row.where}: last_ts {last_s} is before first_ts {first_s}; expected the end of the flow"
        )
    return (
        np.frombuffer(row.address("src_ip"), np.uint8),
        np.frombuffer(row.address("dest_ip"), np.uint8),
        row.port("src_port"),
        row.port("dest_port"),
        row.protocol("proto"),
        label,
        group,
        first_ns,
        last_ns,
    )


def _with_sorted_labels(
    path: Path,
    form: int,
    captures: tuple[LabelledCapture, ...],
    labels: _Names,
    groups: _Names,
    columns: tuple[str, ...],
    n_dropped: int,
    n_unlabelled: int,
) -> DataSource:
    """Number the labels by name, so that the order of a table's rows never changes a model."""
    old = labels.names()
    new = sorted(old)
    number = np.array([new.index(name) for name in old] + [-1], np.int32)
    renumbered = []
    for capture in captures:
        rows = capture.rows
        if rows is not None:
            rows = rows.copy()
            rows["label"] = number[rows["label"]]
        label = int(number[capture.label])
        renumbered.append(
            LabelledCapture(
                capture.path, capture.name, label, capture.group, capture.host, capture.time_s, rows
            )
        )
    warnings = [f"{path}: {n_unlabelled} rows without a label; left out"] if n_unlabelled else []
    return DataSource(
        path,
        form,
        tuple(renumbered),
        tuple(new),
        groups.names(),
        columns,
        n_dropped,
        n_unlabelled,
        tuple(warnings),
    )


def _need_files(source: DataSource) -> None:
    missing = [capture.name for capture in source.captures if not capture.path.is_file()]
    if missing:
        raise DataError(
            f"{source.path}: {len(missing)} of {len(source.captures)} captures are not there, "
            f"the first is {missing[0]!r}; paths are relative to the table's folder"
        )


def _group_columns(table: Table, options: DataOptions) -> tuple[str, ...]:
    if options.group:
        return options.group
    return ("group",) if "group" in table.columns else ("capture",)


def _group_of(row: Row, columns: tuple[str, ...], name: str) -> tuple[str, ...]:
    if columns == ("capture",):
        return (row.text("capture") or name,)
    return tuple(row.text(column) for column in columns)


def _is_dropped(row: Row, label: str, options: DataOptions) -> bool:
    return label in options.drop_labels or row.text("label") in options.drop_labels


def _path_cell(row: Row) -> str:
    name = row.text("path")
    if not name or "\0" in name:
        raise DataError(f"{row.where}: path is {name!r}; expected the capture's path, relative to the table")
    return name


def _checked_label(label: str, where: str) -> str:
    if len(label) > MAX_LABEL_CHARS or not label.isprintable():
        raise DataError(
            f"{where}: label {label[:40]!r}; expected at most {MAX_LABEL_CHARS} printable characters"
        )
    return label
