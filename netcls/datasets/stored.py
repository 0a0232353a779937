"""A dataset on disk: labelled flows of many captures, read through memory maps.

    dataset.json    what is stored, of which options, with which labels; the split; counts
    captures.arrow  one row a capture: name, SHA-256, size, flows, what became of its flows and rows
    groups.arrow    values of the group columns, one row a group
    flows/*.arrow   one shard a capture: label, group, hashes, record, first packets of each flow
    split.arrow     part of each flow: 0 train, 1 validation, 2 calibration, 3 test, -1 left out
    unused.arrow    flows and rows that are not in the dataset, with the reason

A flow's *row* is its place in the dataset: all flows of the first capture, then of the second. What is stored is
decided by one `KeepSpec`; every representation that needs no more can be made from it. See
docs/decisions/0009-dataset-on-disk.md. N is the number of flows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from capture.errors import CheckpointError, DataError
from capture.flow_batch import FLOW_DTYPE, PACKET_DTYPE, FlowBatch, KeepSpec
from models.bounded_json import read_json
from models.checkpoint_files import check_labels
from netcls.arrow import require_pyarrow
from netcls.datasets.files import file_digest
from netcls.datasets.sources import DATASET_FILE
from netcls.datasets.stored_flows import (
    ADDRESSES,
    address_column,
    beginnings_of,
    covers,
    records_of,
    shard_schema,
)

FORMAT: Final = 1
INFO_FILE: Final = DATASET_FILE
CAPTURES_FILE: Final = "captures.arrow"
GROUPS_FILE: Final = "groups.arrow"
SPLIT_FILE: Final = "split.arrow"
UNUSED_FILE: Final = "unused.arrow"
SHARDS_FOLDER: Final = "flows"

_BATCH_COLUMNS: Final = ("label", "group", "input_hash", "shape_hash")
_CAPTURE_COLUMNS: Final = {
    "name": "string",
    "path": "string",
    "sha256": "string",
    "rows": "int64",
    "shard_bytes": "int64",
    "shard_sha256": "string",
    "host": "string",
    "time_s": "double",
}
_INFO_KEYS: Final = {
    "format": int,
    "flows": int,
    "keep": dict,
    "flow_fields": list,
    "packet_fields": list,
    "labels": list,
    "label_flows": list,
    "label_column": str,
    "group_columns": list,
    "options": dict,
    "report": dict,
    "split": dict,
    "hashes": str,
    "code": dict,
}


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """Some flows of one capture, in the order of their rows.

    Attributes:
        first_row: of the first of them, in the dataset.
        capture: its number.
        labels, groups: int64 (F,), as stored.
        input_hash, shape_hash: uint64 (F,); see `netcls.datasets.shard.FlowHashes`.
        batch: pyarrow.RecordBatch with everything else.
    """

    first_row: int
    capture: int
    labels: NDArray[np.int64]
    groups: NDArray[np.int64]
    input_hash: NDArray[np.uint64]
    shape_hash: NDArray[np.uint64]
    batch: Any

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class StoredDataset:
    """A dataset that was opened; nothing of its flows is read yet.

    Attributes:
        path: the folder.
        info: the value of ``dataset.json``, checked.
        captures: pyarrow.Table, one row a capture.
        groups: values of the group columns of each group.
    """

    path: Path
    info: dict[str, Any]
    captures: Any
    groups: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return int(self.info["flows"])

    @property
    def keep(self) -> KeepSpec:
        """What is stored of each flow."""
        return KeepSpec(**self.info["keep"])

    @property
    def labels(self) -> tuple[str, ...]:
        """Names by stored number; some may have no flow."""
        return tuple(self.info["labels"])

    @cached_property
    def first_rows(self) -> NDArray[np.int64]:
        """Row of the first flow of each capture, and N behind them: int64 (captures + 1,)."""
        counts = self.captures.column("rows").to_numpy()
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    def batches(self) -> Iterator[StoredBatch]:
        """All flows in order of their rows, some thousand at a time; a shard is mapped while it is read.

        Raises:
            DataError: a shard is damaged or missing.
        """
        for capture, n_rows in enumerate(self.captures.column("rows").to_pylist()):
            if n_rows:
                yield from self.batches_of(capture)

    def batches_of(self, capture: int) -> Iterator[StoredBatch]:
        """The flows of one capture, as :meth:`batches`."""
        n_rows = int(self.first_rows[capture + 1] - self.first_rows[capture])
        return self._shard(capture, n_rows) if n_rows else iter(())

    def columns_of(self, capture: int, names: tuple[str, ...]) -> dict[str, NDArray[Any]]:
        """Plain columns of one capture's flows, by name; the pages of their packets are not read.

        Raises:
            DataError: the shard is damaged or missing.
        """
        parts = [[plain_column(stored.batch, name) for name in names] for stored in self.batches_of(capture)]
        parts = parts or [[plain_column(empty_batch(), name) for name in names]]
        return {
            name: np.concatenate(columns)
            for name, columns in zip(names, zip(*parts, strict=True), strict=True)
        }

    def flows_of(
        self, stored: StoredBatch, wanted: KeepSpec, chosen: NDArray[np.bool_] | None = None
    ) -> FlowBatch:
        """*Ready* flows with final records, as a flow table with ``wanted`` would have given them.

        Args:
            stored: a batch of this dataset.
            wanted: at most what the dataset keeps.
            chosen: bool (F,), which flows; None: all.

        Raises:
            DataError: the dataset stores less than is wanted, or is damaged.
        """
        self.need(wanted)
        batch = stored.batch if chosen is None else stored.batch.filter(require_pyarrow().array(chosen))
        try:
            packets, data = beginnings_of(batch, self.keep, wanted)
        except DataError as error:
            raise self._damaged(stored.capture, str(error)) from None
        records = records_of(batch)
        records["n_kept"] = np.minimum(records["n_kept"], wanted.n_packets)
        return FlowBatch(records, packets, data)

    def need(self, wanted: KeepSpec) -> None:
        """Refuse a dataset that stores too little.

        Raises:
            DataError: says what is stored, what is needed, and with which options to build.
        """
        if not covers(self.keep, wanted):
            raise DataError(
                f"{self.path}: stores {keep_text(self.keep)} of each flow, but the model's input needs "
                f"{keep_text(wanted)}; build the dataset again with {keep_flags(wanted)}"
            )

    def split_parts(self) -> NDArray[np.int8]:
        """Part of each flow, int8 (N,), mapped.

        Raises:
            DataError: the file is damaged, or of other flows.
        """
        table = read_table(self.path / SPLIT_FILE, {"part": "int8"})
        part: NDArray[np.int8] = table.column("part").to_numpy()
        if len(part) != len(self) or (len(part) and not -1 <= part.min() <= part.max() <= 3):
            raise DataError(
                f"{self.path / SPLIT_FILE}: does not fit the {len(self)} flows of the dataset; build it again"
            )
        return part

    def verify(self) -> None:
        """Read every shard's bytes and compare their SHA-256 with the one written down.

        Raises:
            DataError: names the first that differs.
        """
        digests = self.captures.column("shard_sha256").to_pylist()
        for capture, n_rows in enumerate(self.captures.column("rows").to_pylist()):
            if n_rows and file_digest(self.shard_path(capture)) != digests[capture]:
                raise self._damaged(capture, "its SHA-256 is not the one of the build")

    def shard_path(self, capture: int) -> Path:
        """The file of one capture's flows."""
        from netcls.datasets.shard import shard_name

        return self.path / SHARDS_FOLDER / shard_name(capture)

    def _shard(self, capture: int, n_rows: int) -> Iterator[StoredBatch]:
        pa = require_pyarrow()
        row = int(self.first_rows[capture])
        n_read = 0
        try:
            with pa.memory_map(str(self.shard_path(capture))) as source:
                reader = pa.ipc.open_file(source)
                if not reader.schema.equals(shard_schema()):
                    raise self._damaged(capture, "its columns are not those of this version")
                for number in range(reader.num_record_batches):
                    batch = reader.get_batch(number)
                    # Offsets that point elsewhere would be read as they are.
                    batch.validate(full=True)
                    n_read += len(batch)
                    if n_read > n_rows:
                        break
                    yield self._checked(capture, row, batch)
                    row += len(batch)
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(capture, str(error).partition("\n")[0]) from None
        if n_read != n_rows:
            raise self._damaged(capture, f"it holds other than the {n_rows} flows of {CAPTURES_FILE}")

    def _checked(self, capture: int, row: int, batch: Any) -> StoredBatch:
        if any(column.null_count for column in batch.columns):
            raise self._damaged(capture, "values are missing")
        label, group, inputs, shapes = (batch.column(name).to_numpy() for name in _BATCH_COLUMNS)
        for what, values, n in (("label", label, len(self.labels)), ("group", group, len(self.groups))):
            if len(values) and not 0 <= values.min() <= values.max() < n:
                raise self._damaged(capture, f"a {what} is outside 0 to {n - 1}")
        return StoredBatch(
            row, capture, label.astype(np.int64), group.astype(np.int64), inputs, shapes, batch
        )

    def _damaged(self, capture: int, reason: str) -> DataError:
        return DataError(f"{self.shard_path(capture)}: is damaged ({reason}); build the dataset again")


def open_dataset(path: Path) -> StoredDataset:
    """Open a dataset and check that its files fit together; no flow is read.

    Raises:
        DataError: something is missing, damaged, or of another version.
    """
    try:
        info = read_json(path / INFO_FILE)
    except CheckpointError as error:
        raise DataError(str(error)) from None
    except OSError as error:
        raise DataError(f"{path / INFO_FILE}: cannot be read: {error.strerror or error}") from None
    _check_info(path / INFO_FILE, info)
    captures = read_table(path / CAPTURES_FILE, _CAPTURE_COLUMNS)
    groups = read_table(path / GROUPS_FILE, dict.fromkeys(info["group_columns"], "string"))
    if captures.num_rows and min(captures.column("rows").to_pylist()) < 0:
        raise DataError(
            f"{path / CAPTURES_FILE}: is damaged (a number of flows below 0); build the dataset again"
        )
    names = tuple(zip(*(column.to_pylist() for column in groups.columns), strict=True))
    dataset = StoredDataset(path, info, captures, names)
    if int(dataset.first_rows[-1]) != len(dataset):
        raise DataError(
            f"{path}: {INFO_FILE} counts {len(dataset)} flows and {CAPTURES_FILE} {dataset.first_rows[-1]}; "
            "build it again"
        )
    _check_shards(dataset)
    return dataset


def read_table(path: Path, columns: dict[str, str]) -> Any:
    """An Arrow file as a pyarrow.Table, mapped.

    Args:
        path: the file.
        columns: what it must have: name and type. Only ``time_s`` may lack values.

    Raises:
        DataError: it is not there, damaged, or lacks one of the columns.
    """
    pa = require_pyarrow()
    try:
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
            table.validate(full=True)
    except FileNotFoundError:
        raise DataError(f"{path}: is not there; the dataset is not whole, build it again") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{path}: is damaged ({str(error).partition(chr(10))[0]}); build the dataset again"
        ) from None
    for name, kind in columns.items():
        found = table.schema.field(name).type if table.column_names.count(name) == 1 else "no such column"
        if str(found) != kind or (name != "time_s" and table.column(name).null_count):
            raise DataError(
                f"{path}: column {name!r} is {found} or lacks values, expected {kind}; build the dataset again"
            )
    return table


def fields_of(dtype: np.dtype[Any]) -> list[list[Any]]:
    """Name, type and length of each field of a record, as JSON values: what two versions must agree on."""
    return [
        [name, dtype[name].base.str, int(np.prod(dtype[name].shape, dtype=int))] for name in dtype.names or ()
    ]


def _check_info(path: Path, info: Any) -> None:
    if not isinstance(info, dict) or "format" not in info:
        raise DataError(
            f"{path}: is no description of a dataset; expected the folder of 'netcls dataset build'"
        )
    if info["format"] != FORMAT:
        raise DataError(
            f"{path}: format {str(info['format'])[:40]}, expected {FORMAT}; "
            "build the dataset again, or install the netcls that wrote it"
        )
    for key, kind in _INFO_KEYS.items():
        if type(info.get(key)) is not kind:
            raise DataError(f"{path}: {key!r} is missing or no {kind.__name__}; build the dataset again")
    for key, dtype in (("flow_fields", FLOW_DTYPE), ("packet_fields", PACKET_DTYPE)):
        if info[key] != fields_of(dtype):
            raise DataError(
                f"{path}: written by netcls {info['code'].get('netcls')} with other {key.replace('_', ' ')} than "
                "this version has; build the dataset again"
            )
    try:
        KeepSpec(**info["keep"])
        check_labels(info["labels"], "classifier", str(path))
    except (TypeError, ValueError, CheckpointError) as error:
        raise DataError(f"{path}: {error}; build the dataset again") from None
    plain = {"keep": (info["keep"].values(), int), "group_columns": (info["group_columns"], str)}
    for key, (values, kind) in plain.items():
        if not values or not all(type(value) is kind for value in values):
            raise DataError(f"{path}: {key} is {str(info[key])[:60]}; build the dataset again")


def _check_shards(dataset: StoredDataset) -> None:
    sizes = dataset.captures.column("shard_bytes").to_pylist()
    for capture, n_rows in enumerate(dataset.captures.column("rows").to_pylist()):
        if not n_rows:
            continue
        path = dataset.shard_path(capture)
        try:
            size = path.stat().st_size
        except OSError:
            raise DataError(f"{path}: is not there; the dataset is not whole, build it again") from None
        if size != sizes[capture]:
            raise DataError(f"{path}: has {size} bytes, expected {sizes[capture]}; build the dataset again")


def plain_column(batch: Any, name: str) -> NDArray[Any]:
    """One column of a shard's batch that is no list; addresses as uint8 (F, 16)."""
    column = batch.column(name)
    return address_column(column) if name in ADDRESSES else column.to_numpy()


def empty_batch() -> Any:
    """A shard's batch without flows."""
    pa = require_pyarrow()
    schema = shard_schema()
    return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)


def keep_flags(keep: KeepSpec) -> str:
    """The options of ``netcls dataset build`` that store this much."""
    return (
        f"--keep-packets {keep.n_packets} --keep-byte-packets {keep.n_byte_packets} "
        f"--keep-header-bytes {keep.header_bytes} --keep-payload-bytes {keep.payload_bytes}"
    )


def keep_text(keep: KeepSpec) -> str:
    """In words."""
    return (
        f"{keep.n_packets} packets, {keep.n_byte_packets} with {keep.header_bytes} header and "
        f"{keep.payload_bytes} payload bytes"
    )
