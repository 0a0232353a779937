"""One labelled capture to one Arrow file: read, label, choose, write.

While a capture is read only the flows' records stay in memory (144 bytes each); first packets go to an unnamed
file on disk when there are many. Labels need the records at the end of each flow, so the flows that got one are
copied into the shard afterwards.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from capture.errors import CaptureError, DataError
from capture.flow_batch import FLOW_DTYPE, EndReason, FlowBatch, KeepSpec
from capture.representations.base import TokenBatch
from netcls.arrow import require_pyarrow
from netcls.datasets.build import BuildOptions, label_flows, token_hashes, within_cap
from netcls.datasets.files import file_digest, write_then_rename
from netcls.datasets.sources import LabelledCapture
from netcls.datasets.stored_flows import beginning_columns, narrowed, record_columns
from netcls.datasets.unused import unused_table

if TYPE_CHECKING:
    from capture.flow_table import FlowTableConfig

SHARD_ROWS: Final = 2048  # flows of a record batch
SPOOL_BYTES: Final = 64 << 20  # first packets held in memory before they go to disk
HASH_PACKETS: Final = 5  # the bytes by which repeated inputs are found: NetMamba's
HASH_HEADER_BYTES: Final = 80
HASH_PAYLOAD_BYTES: Final = 240
SHAPE_PACKETS: Final = 20  # the sizes by which similar flows are found
SHAPE_LEAST: Final = 4  # data packets a flow must have to be called similar to another


@dataclass(frozen=True, slots=True)
class ShardTask:
    """What a worker is told.

    Attributes:
        number: of the capture, and of the shard.
        capture: with its label or rows.
        labels: names, for the table of what is not used.
        options: how flows are labelled and chosen.
        keep: what is stored of each flow.
        flow_config: time-outs and memory; None: the defaults.
        folder: of the shards.
        state: folder of the facts, one JSON file a capture; a capture whose facts are there is done.
        key: of the capture and what decides its shard.
    """

    number: int
    capture: LabelledCapture
    labels: tuple[str, ...]
    options: BuildOptions
    keep: KeepSpec
    flow_config: FlowTableConfig | None
    folder: Path
    state: Path
    key: str

    @property
    def name(self) -> str:
        """Of the shard's file."""
        return shard_name(self.number)

    @property
    def facts_path(self) -> Path:
        """Where the facts go."""
        return self.state / f"{self.number:06}.json"

    @property
    def unused_path(self) -> Path:
        """Where the flows and rows that are not used go until the build ends."""
        return self.state / f"{self.number:06}.arrow"


@dataclass(slots=True)
class ShardFacts:
    """What became of one capture; the counts are those of `BuildReport`.

    Attributes:
        key: of the task.
        sha256: of the capture, 64 hex digits; empty where it cannot be read.
        size_bytes: of the capture.
        rows: flows of the shard; 0: there is no file.
        shard_bytes, shard_sha256: of the file.
        label_counts: flows of the shard by label.
        clock_offset_s: applied to the table's rows; clock_offset_seen_s: estimated; None: none.
        evicted: flows that ended because the flow table was full.
        error: why it was not read, or how it is cut.
    """

    key: str = ""
    sha256: str = ""
    size_bytes: int = 0
    rows: int = 0
    shard_bytes: int = 0
    shard_sha256: str = ""
    label_counts: dict[str, int] = field(default_factory=dict)
    packets: int = 0
    packets_rejected: int = 0
    flows_seen: int = 0
    flows_labelled: int = 0
    flows_unlabelled: int = 0
    flows_dropped_label: int = 0
    flows_contradictory: int = 0
    flows_capped: int = 0
    label_rows: int = 0
    rows_unmatched: int = 0
    evicted: int = 0
    clock_offset_s: float | None = None
    clock_offset_seen_s: float | None = None
    error: str = ""


def shard_name(number: int) -> str:
    """File name of the shard of a capture, inside the folder of shards."""
    return f"{number:06}.arrow"


def write_shard(task: ShardTask) -> ShardFacts:
    """Make the shard of one capture, and its facts last.

    Raises:
        DataError: it cannot be written, for example because the disk is full; then neither file is there.
    """
    facts = ShardFacts(key=task.key)
    with _Spool(task.state) as spool:
        records = np.empty(0, FLOW_DTYPE)
        try:
            facts.size_bytes, facts.sha256 = _fingerprint(task.capture.path)
            records = _read(task, spool, facts)
        except CaptureError as error:
            facts = ShardFacts(task.key, facts.sha256, facts.size_bytes, error=str(error))
            spool.clear()
        except _GoneError as error:
            facts = ShardFacts(task.key, error=f"{task.capture.path}: cannot be read: {error}")
        labels, groups = _label(task, records, facts)
        _write(task, spool, records, labels, groups, facts)
    with write_then_rename(task.facts_path) as file:
        file.write(json.dumps(asdict(facts), ensure_ascii=False).encode(errors="backslashreplace"))
    return facts


def load_facts(task: ShardTask) -> ShardFacts | None:
    """The facts of a capture that is done; None: it is not, or they are of something else."""
    try:
        facts = ShardFacts(**json.loads(task.facts_path.read_bytes()))
        whole = not facts.rows or (task.folder / task.name).stat().st_size == facts.shard_bytes
    except (OSError, ValueError, TypeError):
        return None
    return facts if facts.key == task.key and whole else None


class _GoneError(Exception):
    """The capture cannot be opened any more."""


def _fingerprint(path: Path) -> tuple[int, str]:
    """Size in bytes and SHA-256 of a capture: its own step, because a full disk raises OSError too."""
    try:
        return path.stat().st_size, file_digest(path)
    except OSError as error:
        raise _GoneError(error.strerror or str(error)) from None


def _read(task: ShardTask, spool: _Spool, facts: ShardFacts) -> NDArray[Any]:
    """All flows' final records by serial; what came first of each is in the spool."""
    from capture.decode import Decoder
    from capture.flow_table import FlowTable, FlowTableConfig
    from capture.readers import open_capture

    table = FlowTable(task.flow_config or FlowTableConfig(), task.keep)
    decoder = Decoder()
    hashes = FlowHashes(task.keep)
    ended: list[NDArray[Any]] = []

    def take(ready: FlowBatch, over: FlowBatch) -> None:
        if len(ready):
            spool.add(_ready_batch(ready, task.keep, hashes))
        if len(over):
            ended.append(over.records)

    with open_capture(task.capture.path) as reader:
        for block in reader:
            decoded = decoder.decode(block)
            facts.packets += len(block)
            facts.packets_rejected += int(np.count_nonzero(decoded.reject))
            for step in table.push(block, decoded):
                take(step.ready, step.ended)
        for step in table.flush():
            take(step.ready, step.ended)
        facts.error = reader.counters.cut_message
    records = np.concatenate(ended) if ended else np.empty(0, FLOW_DTYPE)
    facts.flows_seen = len(records)
    facts.evicted = int(np.count_nonzero(records["end_reason"] == EndReason.LACK_OF_RESOURCES))
    return records[np.argsort(records["serial"], kind="stable")]


def _label(
    task: ShardTask, records: NDArray[Any], facts: ShardFacts
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Label and group of each flow of the shard, below 0 for those that are left out; those are listed."""
    labels, groups, matches = label_flows(task.capture, records, task.options)
    if matches is not None:
        facts.label_rows = len(matches.row_matched)
        facts.rows_unmatched = matches.n_rows_unmatched
        facts.clock_offset_s, facts.clock_offset_seen_s = matches.clock_offset_s, matches.clock_offset_seen_s
    elif task.capture.rows is not None:
        facts.label_rows = facts.rows_unmatched = len(task.capture.rows)
    table, counts = unused_table(task.number, records, labels, task.capture.rows, matches, task.labels)
    facts.flows_unlabelled = counts["unlabelled"]
    facts.flows_dropped_label = counts["dropped label"]
    facts.flows_contradictory = counts["contradictory labels"]
    if len(table):
        write_table(task.unused_path, table)
    labelled = np.flatnonzero(labels >= 0)
    chosen = labelled[within_cap(records["flow_id"][labelled], labels[labelled], task.options)]
    facts.flows_labelled = len(labelled)
    facts.flows_capped = len(labelled) - len(chosen)
    kept = np.full(len(labels), -1, np.int64)
    kept[chosen] = labels[chosen]
    return kept, groups


def _write(
    task: ShardTask,
    spool: _Spool,
    records: NDArray[Any],
    labels: NDArray[np.int64],
    groups: NDArray[np.int64],
    facts: ShardFacts,
) -> None:
    pa = require_pyarrow()
    facts.rows = int(np.count_nonzero(labels >= 0))
    counts = np.bincount(labels[labels >= 0]).tolist()
    facts.label_counts = {str(label): count for label, count in enumerate(counts) if count}
    path = task.folder / task.name
    if not facts.rows:
        return
    with write_then_rename(path) as file:
        writer = None
        for batch in spool.batches():
            serials = batch.column("serial").to_numpy()
            at = np.searchsorted(records["serial"], serials)
            chosen = labels[at] >= 0
            if not chosen.any():
                continue
            at = at[chosen]
            kept = batch.filter(pa.array(chosen))
            final = records[at]
            final["n_kept"] = kept.column("n_kept").to_numpy()
            columns = {
                "label": pa.array(labels[at].astype(np.int32)),
                "group": pa.array(groups[at].astype(np.int32)),
                **record_columns(final),
                **{name: kept.column(name) for name in kept.schema.names if name not in _READY_ONLY},
            }
            row_batch = pa.RecordBatch.from_pydict(columns)
            writer = writer or pa.ipc.new_file(file, row_batch.schema)
            writer.write_batch(row_batch)
        if writer is not None:
            writer.close()
    facts.shard_bytes = path.stat().st_size
    facts.shard_sha256 = file_digest(path)


_READY_ONLY: Final = ("serial", "n_kept")


def _ready_batch(ready: FlowBatch, keep: KeepSpec, hashes: FlowHashes) -> Any:
    pa = require_pyarrow()
    inputs, shapes = hashes.of(ready)
    columns = {
        "serial": pa.array(np.ascontiguousarray(ready.records["serial"])),
        "n_kept": pa.array(np.ascontiguousarray(ready.records["n_kept"])),
        "input_hash": pa.array(inputs),
        "shape_hash": pa.array(shapes),
        **beginning_columns(ready, keep),
    }
    return pa.RecordBatch.from_pydict(columns)


class FlowHashes:
    """Two 64-bit hashes of each flow, by which repeats are found without looking at the flows.

    ``input_hash``: of the default model input (NetMamba's bytes with every identity field hidden). ``shape_hash``: of
    the protocol and the signed payload sizes of the data packets among the first 20; 0 where there are fewer than 4 of
    them, because short dialogues are alike without being copies.

    Args:
        keep: of the flows.
    """

    def __init__(self, keep: KeepSpec) -> None:
        from capture.representations import build

        self._keep = keep
        wanted = KeepSpec(
            min(keep.n_packets, HASH_PACKETS),
            min(keep.n_byte_packets, HASH_PACKETS),
            min(keep.header_bytes, HASH_HEADER_BYTES),
            min(keep.payload_bytes, HASH_PAYLOAD_BYTES),
        )
        self._wanted = replace(wanted, n_packets=wanted.n_byte_packets)
        self._representation = build(
            "netmamba",
            {
                "n_packets": self._wanted.n_packets,
                "header_bytes": wanted.header_bytes,
                "payload_bytes": wanted.payload_bytes,
                "stride": 1,
                "field_policy": "leak_free",
            },
        )

    def of(self, ready: FlowBatch) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """``input_hash`` and ``shape_hash`` of ready flows: uint64 (F,) each."""
        tokens = self._representation.tokenize(narrowed(ready, self._keep, self._wanted))
        return _hash64(tokens), self._shapes(ready)

    def _shapes(self, ready: FlowBatch) -> NDArray[np.uint64]:
        first = ready.packets[:, :SHAPE_PACKETS]
        sign = np.where(first["direction"] == 0, 1, -1)
        sizes = first["payload_len"].astype(np.int64) * sign
        # Data packets move to the front in their order: acknowledgements come and go with the network.
        order = np.argsort(sizes == 0, axis=1, kind="stable")
        sizes = np.take_along_axis(sizes, order, axis=1).astype(np.int32)
        protocol = ready.records["protocol"].astype(np.int32)[:, None]
        shapes = TokenBatch(
            {"sizes": np.concatenate([protocol, sizes], axis=1)}, np.zeros(len(ready), np.uint16)
        )
        hashes = _hash64(shapes)
        hashes[np.count_nonzero(sizes, axis=1) < SHAPE_LEAST] = 0
        return hashes


def _hash64(tokens: TokenBatch) -> NDArray[np.uint64]:
    whole = b"".join(token_hashes(tokens))
    hashes: NDArray[np.uint64] = np.maximum(np.frombuffer(whole, "<u8")[::2], np.uint64(1))
    return hashes


class _Spool:
    """Record batches in their order: in memory while they are few, then in an unnamed file.

    Args:
        folder: on the disk that is to be used.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: list[Any] = []
        self._n_bytes = 0
        self._file: Any = None
        self._writer: Any = None

    def __enter__(self) -> _Spool:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.clear()

    def add(self, batch: Any) -> None:
        """Take a pyarrow.RecordBatch.

        Raises:
            DataError: the disk is full.
        """
        self._held.append(batch)
        self._n_bytes += batch.nbytes
        if self._n_bytes > SPOOL_BYTES:
            try:
                self._spill()
            except OSError as error:
                raise self._failed(error) from None

    def batches(self) -> Iterator[Any]:
        """All batches, small ones joined to about `SHARD_ROWS` rows."""
        pending: list[Any] = []
        n_rows = 0
        for batch in self._all():
            pending.append(batch)
            n_rows += len(batch)
            if n_rows >= SHARD_ROWS:
                yield _joined(pending)
                pending, n_rows = [], 0
        if pending:
            yield _joined(pending)

    def clear(self) -> None:
        """Forget everything."""
        self._held, self._n_bytes, self._writer = [], 0, None
        if self._file is not None:
            self._file.close()
            self._file = None

    def _failed(self, error: OSError) -> DataError:
        return DataError(
            f"{self._folder}: cannot be written ({error.strerror or error}); free some space or choose another place"
        )

    def _spill(self) -> None:
        pa = require_pyarrow()
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - closed by clear()
            self._writer = pa.ipc.new_stream(self._file, self._held[0].schema)
        for batch in self._held:
            self._writer.write_batch(batch)
        self._held, self._n_bytes = [], 0

    def _all(self) -> Iterator[Any]:
        if self._file is not None:
            pa = require_pyarrow()
            try:
                if self._writer is not None:
                    self._writer.close()
                    self._writer = None
                self._file.seek(0)
            except OSError as error:
                raise self._failed(error) from None
            yield from pa.ipc.open_stream(self._file)
        yield from self._held


def _joined(batches: list[Any]) -> Any:
    return batches[0] if len(batches) == 1 else require_pyarrow().concat_batches(batches)


def write_table(path: Path, table: Any) -> None:
    """A pyarrow.Table or RecordBatch as an Arrow file, whole or not at all.

    Raises:
        DataError: it cannot be written.
    """
    pa = require_pyarrow()
    with write_then_rename(path) as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write(table)


def task_key(capture: LabelledCapture, decides: str) -> str:
    """What a capture's shard depends on: the file (size and time of change), its labels, and ``decides``."""
    hasher = hashlib.sha256(decides.encode(errors="surrogateescape"))
    try:
        stat = capture.path.stat()
        file: tuple[int, ...] = (stat.st_size, stat.st_mtime_ns)
    except OSError:
        file = ()
    plain = [str(capture.path), capture.label, capture.group, capture.host, capture.time_s, file]
    hasher.update(json.dumps(plain).encode(errors="surrogateescape"))
    if capture.rows is not None:
        hasher.update(np.ascontiguousarray(capture.rows).tobytes())
    return hasher.hexdigest()
