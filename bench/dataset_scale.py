"""How large a dataset may be: bytes a flow on disk, and memory while it is read, measured on millions of rows.

    .venv/bin/python -m bench.dataset_scale SMALL --flows 3000000 --folder /tmp/scale

SMALL is a dataset that `netcls dataset build` made. Its flows are written again and again, in a random order and under
new numbers, until there are enough; then the large dataset is opened, made into tokens from beginning to end, and
split. Memory is told apart: *anonymous* is what a machine must have, *mapped* is the file's pages, which the
system takes back when it wants them. Prints JSON; leaves the large dataset where it is.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pyarrow as pa

from capture.representations import build
from netcls.datasets.shard import SHARD_ROWS, shard_name, write_table
from netcls.datasets.sources import DATASET_FILE, DataOptions
from netcls.datasets.splits import SplitOptions
from netcls.datasets.stored import (
    CAPTURES_FILE,
    GROUPS_FILE,
    SHARDS_FOLDER,
    SPLIT_FILE,
    StoredDataset,
    open_dataset,
)
from netcls.datasets.stored_split import divided, stored_repeats
from netcls.datasets.stored_use import dataset_source


def enlarge(small: StoredDataset, out: Path, n_flows: int, per_capture: int, seed: int = 0) -> None:
    """Write a dataset of about ``n_flows`` flows, each a copy of one of ``small`` with its own number and id."""
    rng = np.random.default_rng(seed)
    batches = [stored.batch for stored in small.batches()]
    n_captures = max(2, n_flows // per_capture)
    (out / SHARDS_FOLDER).mkdir(parents=True)
    rows, sizes = [], []
    for capture in range(n_captures):
        path = out / SHARDS_FOLDER / shard_name(capture)
        n_written = 0
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, batches[0].schema) as writer:
            while n_written < per_capture:
                # A batch at a time is drawn from, so that nothing large is held.
                source = batches[int(rng.integers(len(batches)))]
                n = min(SHARD_ROWS, per_capture - n_written)
                taken = source.take(pa.array(rng.integers(0, len(source), n)))
                writer.write_batch(_renumbered(taken, n_written, rng))
                n_written += n
        rows.append(n_written)
        sizes.append(path.stat().st_size)
    picked = small.captures.take(pa.array(rng.integers(0, small.captures.num_rows, n_captures)))
    changes = {
        "name": pa.array([f"{number}.pcap" for number in range(n_captures)]),
        "rows": pa.array(rows, pa.int64()),
        "shard_bytes": pa.array(sizes, pa.int64()),
    }
    for name, column in changes.items():
        picked = picked.set_column(picked.schema.get_field_index(name), name, column)
    write_table(out / CAPTURES_FILE, picked)
    shutil.copy(small.path / GROUPS_FILE, out / GROUPS_FILE)
    part = rng.integers(0, 4, sum(rows)).astype(np.int8)
    write_table(out / SPLIT_FILE, pa.table({"part": part, "repeat": np.zeros(len(part), np.int8)}))
    info = small.info | {"flows": sum(rows)}
    (out / DATASET_FILE).write_text(json.dumps(info))


def _renumbered(batch: Any, first: int, rng: np.random.Generator) -> Any:
    columns = {
        "serial": pa.array(np.arange(first, first + len(batch)).astype(np.uint64)),
        "flow_id": pa.array(rng.integers(0, 2**51, len(batch)).astype(np.uint64)),
        "input_hash": pa.array(rng.integers(1, 2**64, len(batch), np.uint64)),
        "shape_hash": pa.array(rng.integers(1, 2**64, len(batch), np.uint64)),
    }
    for name, column in columns.items():
        batch = batch.set_column(batch.schema.get_field_index(name), name, column)
    return batch


def memory_mib() -> tuple[float, float]:
    """Anonymous and file-backed memory of this process, in MiB."""
    found = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("RssAnon", "RssFile"):
            found[name] = int(value.split()[0]) / 1024
    return found["RssAnon"], found["RssFile"]


@contextmanager
def watched() -> Iterator[dict[str, float]]:
    """The most memory that was in use, looked at twenty times a second, and the time it took."""
    peak = dict(zip(("anonymous_mib", "mapped_mib"), memory_mib(), strict=True))
    before = peak["anonymous_mib"]
    over = Event()

    def look() -> None:
        while not over.wait(0.05):
            for name, value in zip(("anonymous_mib", "mapped_mib"), memory_mib(), strict=True):
                peak[name] = max(peak[name], value)

    thread = Thread(target=look)
    thread.start()
    cpu_s, wall_s = time.process_time(), time.monotonic()
    try:
        yield peak
    finally:
        over.set()
        thread.join()
        peak["anonymous_growth_mib"] = peak["anonymous_mib"] - before
        peak["cpu_s"], peak["wall_s"] = time.process_time() - cpu_s, time.monotonic() - wall_s


def stream(dataset: StoredDataset) -> int:
    """NetMamba's tokens of every flow, one batch after the other; a sum, so that nothing is skipped."""
    representation = build("netmamba")
    total = 0
    for stored in dataset.batches():
        tokens = representation.tokenize(dataset.flows_of(stored, representation.keep))
        total += int(tokens.packets_used.sum())
    return total


def split(dataset: StoredDataset) -> int:
    """What the end of a build does with all flows at once: divide them, and find repeats."""
    source = dataset_source(dataset.path, DataOptions())
    made = divided(dataset, source, SplitOptions("capture"))
    return int(np.count_nonzero(stored_repeats(dataset, made.part)))


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("small", type=Path, help="a built dataset")
    parser.add_argument("--flows", type=int, default=3_000_000)
    parser.add_argument("--per-capture", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, required=True, help="where the large one is written; is made")
    parser.add_argument(
        "--split-only", action="store_true", help="make no tokens; SMALL may keep hardly anything"
    )
    given = parser.parse_args(arguments)
    with watched() as writing:
        enlarge(open_dataset(given.small), given.folder, given.flows, given.per_capture)
    with watched() as opening:
        dataset = open_dataset(given.folder)
    with watched() as streaming:
        if not given.split_only:
            stream(dataset)
    with watched() as splitting:
        split(dataset)
    n_bytes = sum(path.stat().st_size for path in given.folder.rglob("*") if path.is_file())
    result = {
        "flows": len(dataset),
        "captures": dataset.captures.num_rows,
        "bytes": n_bytes,
        "bytes_per_flow": n_bytes / len(dataset),
        "split_bytes_per_flow": splitting["anonymous_growth_mib"] * 2**20 / len(dataset),
        "write": writing,
        "open": opening,
        "stream": streaming | {"flows_per_cpu_s": len(dataset) / streaming["cpu_s"]},
        "split": splitting,
    }
    print(json.dumps(result, indent=1))
    return result


if __name__ == "__main__":
    main()
