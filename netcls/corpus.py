"""What a backbone learns from: the distinct model inputs of captures and of built datasets, test captures kept out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from capture.errors import DataError, UsageError
from netcls.datasets.build import token_hashes
from netcls.datasets.files import file_digest
from netcls.datasets.sources import DATASET_FILE
from netcls.datasets.splits import TRAIN, VALIDATION
from netcls.inputs import STDIN, find_captures

if TYPE_CHECKING:
    from capture.representations.base import Representation, TokenBatch
    from netcls.datasets.stored import StoredDataset

OnRead = Callable[[int, int], None]

_MAX_WARNINGS: Final = 20
_LEARNT_FROM: Final = (TRAIN, VALIDATION)


@dataclass(frozen=True, slots=True)
class CorpusOptions:
    """What is read. The fields are those of the same name of :class:`netcls.pretraining.PretrainOptions`."""

    data: tuple[str, ...]
    exclude: tuple[str, ...] = ()
    max_flows_per_capture: int = 500
    min_packets: int = 1
    all_parts: bool = False
    seed: int = 0
    threads: int = 2
    cache_dir: Path | None = None


@dataclass(frozen=True, slots=True)
class Corpus:
    """Model input to learn from, and where it came from.

    Attributes:
        tokens: one row a distinct input, in the order in which they were met.
        captures: (SHA-256, name) of each capture that gave flows.
        facts: counts, as JSON values.
        warnings: one line each.
    """

    tokens: TokenBatch
    captures: tuple[tuple[str, str], ...]
    facts: dict[str, int]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Read:
    """What one capture gave.

    Attributes:
        digest, name: of the capture.
        tokens: of the flows that were sampled and are long enough.
        n_flows: in the capture, or in the parts of a dataset that are learnt from.
        error: why nothing could be read; empty: something was.
    """

    digest: str
    name: str
    tokens: TokenBatch
    n_flows: int
    error: str = ""


def collect_corpus(
    options: CorpusOptions, representation: Representation, on_read: OnRead | None = None
) -> Corpus:
    """The distinct model inputs of all captures and datasets that are not excluded.

    Args:
        options: what to read.
        representation: makes the model input.
        on_read: called with captures done and captures in all.

    Raises:
        DataError: nothing is left to learn from, or a dataset keeps too little of each flow.
    """
    from netcls.datasets.capture_flows import concatenate_tokens
    from netcls.datasets.stored import open_dataset

    is_dataset = [(Path(place) / DATASET_FILE).is_file() for place in options.data]
    places = list(zip(options.data, is_dataset, strict=True))
    datasets = [open_dataset(Path(place)) for place, is_one in places if is_one]
    for dataset in datasets:
        dataset.need(representation.keep)
    paths = sorted({Path(name) for place, is_one in places if not is_one for name in _captures_of(place)})
    excluded = _excluded_digests(options.exclude)
    of_files = [(path, file_digest(path)) for path in paths]
    files = [(path, digest) for path, digest in of_files if digest not in excluded]
    stored = [
        (dataset, number)
        for dataset in datasets
        for number, digest in enumerate(dataset.captures.column("sha256").to_pylist())
        if digest not in excluded
    ]
    total = len(files) + len(stored)
    n_all = len(paths) + sum(dataset.captures.num_rows for dataset in datasets)
    counts = {"captures_excluded": n_all - total, "captures_unreadable": 0, "flows": 0, "flows_sampled": 0}
    seen: set[bytes] = set()
    parts, captures, warnings = [], [], []
    for done, read in enumerate(_all_read(options, representation, files, stored), 1):
        if on_read is not None:
            on_read(done, total)
        if read.error:
            counts["captures_unreadable"] += 1
            warnings.append(read.error)
            continue
        counts["flows"] += read.n_flows
        counts["flows_sampled"] += len(read.tokens)
        captures.append((read.digest, read.name))
        parts.append(read.tokens.take(_unseen(read.tokens, seen)))
    if not seen:
        raise DataError(
            f"{', '.join(options.data)}: no flow to learn from in {total} captures; give captures with IP traffic"
        )
    facts = {"captures": len(captures), **counts, "distinct_inputs": len(seen)}
    return Corpus(concatenate_tokens(parts), tuple(captures), facts, tuple(warnings[:_MAX_WARNINGS]))


def _all_read(
    options: CorpusOptions,
    representation: Representation,
    files: Sequence[tuple[Path, str]],
    stored: Sequence[tuple[StoredDataset, int]],
) -> Iterator[_Read]:
    from netcls.datasets.capture_flows import process_captures

    flows_of = process_captures(
        [path for path, _ in files],
        representation,
        at_most=options.max_flows_per_capture or None,
        seed=options.seed,
        threads=options.threads,
        cache_dir=options.cache_dir,
    )
    for (path, digest), flows in zip(files, flows_of, strict=True):
        enough = np.flatnonzero(flows.records["packets"].sum(axis=1) >= options.min_packets)
        error = "" if flows.n_packets else flows.error
        yield _Read(digest, path.name, flows.tokens.take(enough), flows.n_flows, error)
    part_of: dict[Path, NDArray[np.int8]] = {}
    for dataset, number in stored:
        if dataset.path not in part_of:
            part_of[dataset.path] = _parts(dataset)
        read = _stored_capture(options, representation, dataset, number, part_of[dataset.path])
        if read is not None:
            yield read


def _parts(dataset: StoredDataset) -> NDArray[np.int8]:
    from netcls.datasets.stored import SPLIT_FILE, read_table

    part: NDArray[np.int8] = read_table(dataset.path / SPLIT_FILE, {"part": "int8"}).column("part").to_numpy()
    if len(part) != len(dataset):
        raise DataError(
            f"{dataset.path}: {SPLIT_FILE} has {len(part)} rows, expected {len(dataset)}; build the dataset again"
        )
    return part


def _stored_capture(
    options: CorpusOptions,
    representation: Representation,
    dataset: StoredDataset,
    number: int,
    part: NDArray[np.int8],
) -> _Read | None:
    """The flows of one capture of a dataset as the capture itself would have given them; None: none is learnt from."""
    from netcls.datasets.capture_flows import concatenate_tokens, sample_order

    first, last = (int(row) for row in dataset.first_rows[number : number + 2])
    may = np.ones(last - first, bool) if options.all_parts else np.isin(part[first:last], _LEARNT_FROM)
    if not may.any():
        return None
    flow_id = dataset.columns_of(number, ("flow_id",))["flow_id"]
    rows = np.flatnonzero(may)
    if options.max_flows_per_capture:
        order = np.argsort(sample_order(flow_id[rows], options.seed), kind="stable")
        rows = rows[order[: options.max_flows_per_capture]]
    chosen = np.zeros(len(may), bool)
    chosen[rows] = True
    tokens, serial, n_packets = [], [], []
    for batch in dataset.batches_of(number):
        here = chosen[batch.first_row - first :][: len(batch)]
        if here.any():
            flows = dataset.flows_of(batch, representation.keep, here)
            tokens.append(representation.tokenize(flows))
            serial.append(flows.records["serial"])
            n_packets.append(flows.records["packets"].sum(axis=1))
    order = np.argsort(np.concatenate(serial), kind="stable")
    order = order[np.concatenate(n_packets)[order] >= options.min_packets]
    sha256, name = (dataset.captures.column(column)[number].as_py() for column in ("sha256", "name"))
    return _Read(sha256, Path(name).name, concatenate_tokens(tokens).take(order), int(np.count_nonzero(may)))


def _unseen(tokens: TokenBatch, seen: set[bytes]) -> NDArray[np.intp]:
    """Rows whose input was not met before, each once; ``seen`` grows by them."""
    rows = []
    for row, digest in enumerate(token_hashes(tokens)):
        if digest not in seen:
            seen.add(digest)
            rows.append(row)
    return np.array(rows, np.intp)


def _captures_of(place: str) -> list[str]:
    if place == STDIN:
        raise UsageError("pre-training reads captures more than once; give files or folders, not '-'")
    found = find_captures(place)
    for name in found:
        if not Path(name).is_file():
            raise DataError(f"{name}: does not exist; expected a capture or a folder of captures")
    return found


def _excluded_digests(exclude: Sequence[str]) -> set[str]:
    """SHA-256 of every excluded capture.

    Raises:
        DataError: one is not there; to leave it in by mistake would spoil a test.
    """
    digests: set[str] = set()
    for place in exclude:
        path = Path(place)
        if path.suffix in (".txt", ".sha256") and path.is_file():
            for line in filter(None, path.read_text(encoding="utf-8").splitlines()):
                digests.add(_listed_digest(line, path))
        else:
            digests.update(file_digest(Path(name)) for name in _captures_of(place))
    return digests


def _listed_digest(line: str, listing: Path) -> str:
    first = line.split()[0] if line.split() else ""
    if len(first) == 64 and all(character in "0123456789abcdef" for character in first):
        return first
    path = listing.parent / line.strip()
    if not path.is_file():
        raise DataError(
            f"{listing}: lists {line.strip()[:80]!r}; expected a SHA-256 or the path of a capture that is there"
        )
    return file_digest(path)
