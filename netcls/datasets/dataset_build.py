"""``netcls dataset build``: labelled captures to a dataset folder, by several processes, resumable.

    read DATA -> one shard a capture (workers) -> captures, groups, unused -> split -> dataset.json -> rename

Everything is written into ``OUT.run``, which becomes ``OUT`` when it is whole. A capture whose facts lie in
``OUT.run/build`` is done: the same command goes on where it was stopped, however it was.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from capture.errors import DataError, UsageError
from capture.flow_batch import FLOW_DTYPE, PACKET_DTYPE, KeepSpec
from netcls.arrow import require_pyarrow
from netcls.datasets.build import BuildOptions, BuildReport, check_report
from netcls.datasets.files import write_then_rename
from netcls.datasets.repeats import DropRepeats, drop_repeats, repeat_facts
from netcls.datasets.shard import ShardFacts, ShardTask, load_facts, task_key, write_table
from netcls.datasets.shard_workers import write_shards
from netcls.datasets.sources import DATASET_FILE, DataOptions, DataSource, read_source
from netcls.datasets.splits import PARTS, Split, SplitOptions
from netcls.datasets.stored import (
    CAPTURES_FILE,
    FORMAT,
    GROUPS_FILE,
    SHARDS_FOLDER,
    SPLIT_FILE,
    UNUSED_FILE,
    fields_of,
)
from netcls.datasets.stored_split import divided, stored_repeats
from netcls.datasets.unused import NO_LABEL, skipped_table, unused_schema

if TYPE_CHECKING:
    from capture.flow_table import FlowTableConfig

HASHES: Final = ("input_hash", "shape_hash")
STATE_FOLDER: Final = "build"
STATE_FILE: Final = "state.json"
LOCK_FILE: Final = "lock"
# Enough for every representation that ships: 20 packets of the baselines, 32 of packet-mamba, 5 of NetMamba.
KEEP: Final = KeepSpec(n_packets=32, n_byte_packets=12, header_bytes=80, payload_bytes=240)


@dataclass(frozen=True, slots=True)
class DatasetOptions:
    """How a dataset is built.

    Attributes:
        data: forms 1 to 3 of labelled data.
        out: folder to make; must not exist or be empty.
        data_options: how labels are read.
        build_options: how flows are labelled and chosen.
        split_options: how they are divided.
        drop_repeats: flows that an earlier part of the split has already are left out: none, those with the same
            model input (``exact``), or those with the same sizes too (``near``).
        keep: what is stored of each flow.
        flow_config: time-outs and memory; None: the defaults.
        workers: processes; 1: this one alone.
    """

    data: str
    out: str
    data_options: DataOptions = field(default_factory=DataOptions)
    build_options: BuildOptions = field(default_factory=BuildOptions)
    split_options: SplitOptions = field(default_factory=SplitOptions)
    drop_repeats: DropRepeats = "none"
    keep: KeepSpec = KEEP
    flow_config: FlowTableConfig | None = None
    workers: int = 1

    def __post_init__(self) -> None:
        if self.keep.n_byte_packets < 1 or self.keep.row_bytes < 1:
            raise UsageError(
                "the dataset would hold no bytes of any packet; keep at least one packet with at least one byte"
            )


def build_dataset(
    options: DatasetOptions, on_progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Build a dataset, or go on with a build that was stopped.

    Returns:
        The value of ``dataset.json``, with ``out``, ``bytes`` (of the folder), ``resumed_captures`` and ``warnings``.

    Raises:
        DataError: the data cannot be used, or the dataset cannot be written.
        UsageError: ``out`` or what is left of another build is in the way.
    """
    out = Path(options.out)
    run = _run_folder(out)
    source = read_source(options.data, options.data_options)
    if source.dataset is not None:
        raise UsageError(
            f"{options.data}: is a built dataset already; give the captures that it was built of"
        )
    require_pyarrow()
    with _locked_state(run, _state_key(options, source)) as state:
        tasks = _tasks(options, source, run, state)
        facts: list[ShardFacts | None] = [load_facts(task) for task in tasks]
        missing = [task for task, done in zip(tasks, facts, strict=True) if done is None]
        n_resumed = len(tasks) - len(missing)
        try:
            for number, made in write_shards(missing, options.workers):
                facts[number] = made
                if on_progress is not None:
                    on_progress(sum(done is not None for done in facts), len(tasks))
            info = _finish(options, source, run, tasks, [done for done in facts if done is not None])
        except DataError as error:
            raise DataError(f"{error} ({_kept_text(facts, run)})") from None
        run.replace(out)
    shutil.rmtree(out / STATE_FOLDER, ignore_errors=True)
    n_bytes = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return {"out": str(out), "bytes": n_bytes, "resumed_captures": n_resumed, **info}


def _run_folder(out: Path) -> Path:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: is already there; expected a new or empty folder, give another --out")
    if not out.absolute().parent.is_dir():
        raise UsageError(f"{out}: the folder {out.absolute().parent} does not exist; make it first")
    return out.with_name(out.name + ".run")


def _kept_text(facts: list[ShardFacts | None], run: Path) -> str:
    done = sum(made is not None for made in facts)
    return f"{done} of {len(facts)} captures are done and stay in {run}; the same command goes on from there"


def _decides(options: DatasetOptions) -> dict[str, Any]:
    """Everything but the data that a shard depends on, as JSON values."""
    build = options.build_options
    return {
        "format": FORMAT,
        "keep": _keep_facts(options.keep),
        "label": options.data_options.label,
        "group": list(options.data_options.group),
        "drop_labels": list(options.data_options.drop_labels),
        "max_flows_per_capture": build.capture_cap,
        "seed": build.seed,
        "tolerance_s": build.tolerance_s,
        "clock_offset": build.clock_offset,
        "flow_config": repr(options.flow_config),
        "fields": [fields_of(FLOW_DTYPE), fields_of(PACKET_DTYPE)],
    }


def _state_key(options: DatasetOptions, source: DataSource) -> str:
    plain = [
        _decides(options),
        source.labels,
        source.groups,
        source.group_columns,
        str(source.path.resolve()),
    ]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode(errors="surrogateescape")).hexdigest()


@contextmanager
def _locked_state(run: Path, key: str) -> Iterator[Path]:
    """The folder of the build's state, made or found again; nobody else builds there meanwhile.

    Raises:
        UsageError: another build runs there, or another one was stopped there.
        DataError: it cannot be written.
    """
    state = run / STATE_FOLDER
    try:
        (run / SHARDS_FOLDER).mkdir(parents=True, exist_ok=True)
        state.mkdir(exist_ok=True)
        lock = (state / LOCK_FILE).open("wb")
    except OSError as error:
        raise DataError(f"{run}: cannot be written ({error.strerror}); choose another place") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(
                f"{run}: another build writes there; wait for it, or give another --out"
            ) from None
        _check_state(run, state / STATE_FILE, key)
        yield state


def _check_state(run: Path, path: Path, key: str) -> None:
    try:
        before = json.loads(path.read_bytes())["key"]
    except FileNotFoundError:
        before = key
    except (OSError, ValueError, KeyError, TypeError):
        before = ""
    if before != key:
        raise UsageError(
            f"{run}: a build of other data or options was stopped there; remove it to start anew, or give its options"
        )
    with write_then_rename(path) as file:
        file.write(json.dumps({"key": key}).encode())


def _tasks(options: DatasetOptions, source: DataSource, run: Path, state: Path) -> list[ShardTask]:
    decides = _state_key(options, source)
    return [
        ShardTask(
            number,
            capture,
            source.labels,
            options.build_options,
            options.keep,
            options.flow_config,
            run / SHARDS_FOLDER,
            state,
            task_key(capture, decides),
        )
        for number, capture in enumerate(source.captures)
    ]


def _finish(
    options: DatasetOptions, source: DataSource, run: Path, tasks: list[ShardTask], facts: list[ShardFacts]
) -> dict[str, Any]:
    """Write everything but the shards; ``dataset.json`` last."""
    report = _report(source, facts)
    check_report(source, report)
    label_flows = [0] * len(source.labels)
    for made in facts:
        for label, count in made.label_counts.items():
            label_flows[int(label)] += count
    present = [name for name, count in zip(source.labels, label_flows, strict=True) if count]
    if len(present) < 2:
        raise DataError(
            f"{source.path}: every labelled flow is of class {present[0]!r}; expected at least two classes"
        )
    write_table(run / CAPTURES_FILE, _captures_table(source, facts))
    write_table(run / GROUPS_FILE, _groups_table(source))
    unused = _write_unused(run / UNUSED_FILE, tasks, source)
    from netcls.provenance import code_version

    info: dict[str, Any] = {
        "format": FORMAT,
        "flows": report.flows,
        "keep": _keep_facts(options.keep),
        "flow_fields": fields_of(FLOW_DTYPE),
        "packet_fields": fields_of(PACKET_DTYPE),
        "labels": list(source.labels),
        "label_flows": label_flows,
        "label_column": options.data_options.label,
        "group_columns": list(source.group_columns),
        "options": _decides(options) | {"data": str(source.path), "form": source.form},
        "report": report.as_dict(),
        "unused": unused,
        "split": {},
        "hashes": "blake2b-64 of netmamba-1, leak_free",
        "code": code_version(),
    }
    _write_info(run, info)
    info["split"] = _write_split(run, options)
    _write_info(run, info)
    return info


def _report(source: DataSource, facts: list[ShardFacts]) -> BuildReport:
    report = BuildReport(
        rows=sum(0 if capture.rows is None else len(capture.rows) for capture in source.captures),
        rows_dropped_label=source.n_dropped,
        rows_unlabelled=source.n_unlabelled,
        warnings=list(source.warnings),
    )
    for capture, made in zip(source.captures, facts, strict=True):
        report.note_capture(made.packets, made.packets_rejected, made.flows_seen, made.error)
        report.note_clock(capture.name, made.clock_offset_s, made.clock_offset_seen_s)
        report.flows += made.rows
        for name in (
            "flows_labelled",
            "flows_unlabelled",
            "flows_dropped_label",
            "flows_contradictory",
            "flows_capped",
            "rows_unmatched",
        ):
            setattr(report, name, getattr(report, name) + getattr(made, name))
    evicted = sum(made.evicted for made in facts)
    if evicted:
        report.warnings.append(
            f"{evicted} flows were ended early because the flow table was full; give it more memory"
        )
    return report


def _captures_table(source: DataSource, facts: list[ShardFacts]) -> Any:
    pa = require_pyarrow()
    columns = {
        "name": pa.array([_text(capture.name) for capture in source.captures], pa.string()),
        "path": pa.array([_text(str(capture.path.absolute())) for capture in source.captures], pa.string()),
        "host": pa.array([_text(capture.host) for capture in source.captures], pa.string()),
        "time_s": pa.array([capture.time_s for capture in source.captures], pa.float64()),
    }
    kinds = {str: pa.string(), int: pa.int64()}
    for name, kind in ShardFacts.__annotations__.items():
        if name in ("key", "label_counts"):
            continue
        values = [getattr(made, name) for made in facts]
        columns[name] = pa.array(values, kinds.get({"str": str, "int": int}.get(kind, float), pa.float64()))
    return pa.table(columns)


def _groups_table(source: DataSource) -> Any:
    pa = require_pyarrow()
    return pa.table(
        {
            column: pa.array([_text(values[number]) for values in source.groups], pa.string())
            for number, column in enumerate(source.group_columns)
        }
    )


def _text(text: str) -> str:
    """Valid Unicode: bytes of a file name that are none become escapes."""
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _write_unused(path: Path, tasks: list[ShardTask], source: DataSource) -> dict[str, int]:
    """All captures' tables one behind the other, and how many rows each reason has."""
    pa = require_pyarrow()
    counts: dict[str, int] = {}
    with write_then_rename(path) as file, pa.ipc.new_file(file, unused_schema()) as writer:
        for task in tasks:
            if not task.unused_path.is_file():
                continue
            with pa.memory_map(str(task.unused_path)) as part:
                table = pa.ipc.open_file(part).read_all()
                for entry in table.column("reason").value_counts().to_pylist():
                    counts[entry["values"]] = counts.get(entry["values"], 0) + entry["counts"]
                writer.write_table(table)
        if source.skipped:
            writer.write_table(skipped_table(source.skipped))
            counts[NO_LABEL] = source.n_unlabelled
    return counts


def _write_split(run: Path, options: DatasetOptions) -> dict[str, Any]:
    """Divide the flows, find repeats across the parts, and write both.

    How much of each flow is held in memory meanwhile: :mod:`netcls.datasets.stored_split`.
    """
    from netcls.datasets.stored_use import dataset_source

    source = dataset_source(run, DataOptions())
    dataset = source.dataset
    assert dataset is not None
    split = divided(dataset, source, options.split_options)
    part = split.part
    repeats = stored_repeats(dataset, part)
    repeated = repeat_facts(part, repeats)
    drop_repeats(part, repeats, options.drop_repeats)
    pa = require_pyarrow()
    write_table(run / SPLIT_FILE, pa.table({"part": part, "repeat": repeats}))
    return _split_facts(split, part, repeated, options)


def _split_facts(
    split: Split, part: NDArray[np.int8], repeated: dict[str, Any], options: DatasetOptions
) -> dict[str, Any]:
    made = split.options
    return {
        "kind": made.kind,
        "seed": made.seed,
        "rule": made.rule,
        "leave_out": [list(group) for group in made.leave_out],
        "description": split.description,
        "untested": list(split.untested),
        "fallback": list(split.fallback),
        "calibration_unseen": split.calibration_unseen,
        "n_left_out": split.n_left_out,
        "warnings": split.warnings,
        "flows": {name: int(np.count_nonzero(part == number)) for number, name in enumerate(PARTS)},
        "repeats": repeated,
        "repeats_dropped": options.drop_repeats,
    }


def _write_info(run: Path, info: dict[str, Any]) -> None:
    with write_then_rename(run / DATASET_FILE) as file:
        file.write(json.dumps(info, indent=1, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")


def _keep_facts(keep: KeepSpec) -> dict[str, int]:
    return {
        "n_packets": keep.n_packets,
        "n_byte_packets": keep.n_byte_packets,
        "header_bytes": keep.header_bytes,
        "payload_bytes": keep.payload_bytes,
    }
