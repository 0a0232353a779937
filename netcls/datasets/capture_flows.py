"""One capture to columns: reader, decoder, flow table and representation, joined by flow.

F is the number of flows, K the packets whose fields are kept.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from capture.errors import CaptureError
from capture.flow_batch import FLOW_DTYPE, PACKET_DTYPE, FlowBatch, KeepSpec
from capture.representations.base import Representation, TokenBatch
from netcls.datasets.files import write_then_rename

if TYPE_CHECKING:
    from capture.flow_table import FlowTableConfig

BASELINE_PACKETS: Final = 20  # packets whose fields the baselines see
CACHE_VERSION: Final = 2  # 2: what is inside tunnels, and later fragments


@dataclass(frozen=True, slots=True)
class CaptureFlows:
    """The flows of one capture, each with its model input and its final record.

    Attributes:
        tokens: model input, F rows.
        packets: ``PACKET_DTYPE`` (F, K), the first packets' fields.
        records: ``FLOW_DTYPE`` (F,), as they were at the end of each flow.
        n_flows: flows of the capture; more than F where ``at_most`` sampled them.
        n_packets: packets of the capture.
        n_rejected: packets that are in no flow, for any reason.
        error: why the capture could not be read (then F is 0), or how it was cut; empty: neither.
    """

    tokens: TokenBatch
    packets: NDArray[Any]
    records: NDArray[Any]
    n_flows: int = 0
    n_packets: int = 0
    n_rejected: int = 0
    error: str = ""

    def __len__(self) -> int:
        return len(self.records)

    def take(self, rows: NDArray[np.intp]) -> CaptureFlows:
        """The given flows, in the given order."""
        return CaptureFlows(
            self.tokens.take(rows),
            self.packets[rows],
            self.records[rows],
            self.n_flows,
            self.n_packets,
            self.n_rejected,
            self.error,
        )


def keep_for(representation: Representation, n_packets: int = BASELINE_PACKETS) -> KeepSpec:
    """What the flow table keeps: the representation's bytes, and the fields of at least ``n_packets`` packets."""
    need = representation.keep
    return KeepSpec(
        max(need.n_packets, n_packets), need.n_byte_packets, need.header_bytes, need.payload_bytes
    )


def sample_order(flow_ids: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """A seeded random number for each flow id; the smallest k of them are a uniform sample of k flows.

    It depends on the flow alone, so what is chosen depends neither on threads nor on the order of captures.
    (The finaliser of SplitMix64, Steele et al. 2014.)
    """
    with np.errstate(over="ignore"):
        z = flow_ids.astype(np.uint64) + np.uint64(seed % 2**63 + 1) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def process_capture(
    path: str | os.PathLike[str],
    representation: Representation,
    *,
    flow_config: FlowTableConfig | None = None,
    n_packets: int = BASELINE_PACKETS,
    at_most: int | None = None,
    seed: int = 0,
) -> CaptureFlows:
    """Flows of one capture, by their first packet's place in it.

    Args:
        path: a capture file.
        representation: makes the model input.
        flow_config: time-outs and memory; None: the defaults.
        n_packets: K, or the representation's own number where that is larger.
        at_most: keep a seeded sample of this many flows, so that a large capture does not fill the memory.
        seed: of that sample.

    Raises:
        CaptureError: the file is not a capture. One that is cut gives the flows before the cut.
    """
    from capture.decode import Decoder
    from capture.flow_table import FlowTable, FlowTableConfig
    from capture.readers import open_capture

    table = FlowTable(flow_config or FlowTableConfig(), keep_for(representation, n_packets))
    decoder = Decoder()
    found = _Collected(representation, at_most, seed)
    n_seen = n_rejected = 0
    with open_capture(path) as reader:
        for block in reader:
            decoded = decoder.decode(block)
            n_seen += len(block)
            n_rejected += int(np.count_nonzero(decoded.reject))
            for step in table.push(block, decoded):
                found.add(step.ready, step.ended)
        for step in table.flush():
            found.add(step.ready, step.ended)
        cut = reader.counters.cut_message
    return found.result(n_seen, n_rejected, cut)


@dataclass(slots=True)
class _Collected:
    """Parts of ready and ended flows, until they are joined by serial."""

    representation: Representation
    at_most: int | None
    seed: int
    tokens: list[TokenBatch] = field(default_factory=list)
    packets: list[NDArray[Any]] = field(default_factory=list)
    ready: list[NDArray[Any]] = field(default_factory=list)
    ended: list[NDArray[Any]] = field(default_factory=list)
    n_ready: int = 0
    n_flows: int = 0

    def add(self, ready: FlowBatch, ended: FlowBatch) -> None:
        if len(ready):
            # The flow table may reuse its buffers for the next step.
            self.tokens.append(self.representation.tokenize(ready))
            self.packets.append(ready.packets.copy())
            self.ready.append(ready.records.copy())
            self.n_ready += len(ready)
            self.n_flows += len(ready)
        if len(ended):
            self.ended.append(ended.records.copy())
        if self.at_most is not None and self.n_ready > 2 * self.at_most + 4096:
            self._keep(self.at_most)

    def _join(self) -> tuple[TokenBatch, NDArray[Any], NDArray[Any]]:
        if not self.ready:
            empty = FlowBatch(
                np.empty(0, FLOW_DTYPE),
                np.empty((0, keep_for(self.representation).n_packets), PACKET_DTYPE),
                np.empty(
                    (0, self.representation.keep.n_byte_packets, self.representation.keep.row_bytes), np.uint8
                ),
            )
            return self.representation.tokenize(empty), empty.packets, empty.records
        return concatenate_tokens(self.tokens), np.concatenate(self.packets), np.concatenate(self.ready)

    def _keep(self, n: int) -> None:
        """Keep the ``n`` ready flows that come first in sample order."""
        tokens, packets, ready = self._join()
        order = sample_order(ready["flow_id"], self.seed)
        rows = np.sort(np.argsort(order, kind="stable")[:n])
        self.tokens, self.packets, self.ready = [tokens.take(rows)], [packets[rows]], [ready[rows]]
        self.n_ready = len(rows)

    def result(self, n_packets: int, n_rejected: int, error: str) -> CaptureFlows:
        if self.at_most is not None and self.n_ready > self.at_most:
            self._keep(self.at_most)
        tokens, packets, ready = self._join()
        by_serial = np.argsort(ready["serial"], kind="stable")
        records = ready[by_serial]
        if self.ended:
            ended = np.concatenate(self.ended)
            ended = ended[np.argsort(ended["serial"], kind="stable")]
            at = np.searchsorted(ended["serial"], records["serial"])
            records = ended[at]
            records["n_kept"] = ready["n_kept"][by_serial]
        return CaptureFlows(
            tokens.take(by_serial), packets[by_serial], records, self.n_flows, n_packets, n_rejected, error
        )


def concatenate_tokens(parts: Sequence[TokenBatch]) -> TokenBatch:
    """Token batches of one representation, one behind the other."""
    arrays = {name: np.concatenate([part.arrays[name] for part in parts]) for name in parts[0].arrays}
    return TokenBatch(arrays, np.concatenate([part.packets_used for part in parts]))


def process_captures(
    paths: Sequence[Path],
    representation: Representation,
    *,
    flow_config: FlowTableConfig | None = None,
    at_most: int | None = None,
    seed: int = 0,
    threads: int = 2,
    cache_dir: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[CaptureFlows]:
    """The captures' flows, in the order of ``paths``; several are read at once.

    A capture that cannot be read gives no flows and says why in ``error``.

    Args:
        paths: capture files.
        representation: makes the model input.
        flow_config: as in `process_capture`.
        at_most: as in `process_capture`, for each capture.
        seed: of the sample.
        threads: captures read at once.
        cache_dir: where results are kept for the next run; made if missing. None: nothing is kept.
        on_progress: called with captures done and captures in all.
    """

    def one(path: Path) -> CaptureFlows:
        kept = _cache_path(cache_dir, path, representation, flow_config, at_most, seed)
        try:
            if kept is not None and kept.is_file():
                return _load_flows(kept)
            flows = process_capture(path, representation, flow_config=flow_config, at_most=at_most, seed=seed)
        except CaptureError as error:
            return _Collected(representation, None, seed).result(0, 0, str(error))
        if kept is not None:
            _save_flows(kept, flows)
        return flows

    with ThreadPoolExecutor(max(1, threads), thread_name_prefix="capture") as pool:
        # A bounded number is under way, so that results do not pile up before a slow consumer.
        waiting = []
        numbers = iter(paths)
        done = 0
        for path in numbers:
            waiting.append(pool.submit(one, path))
            if len(waiting) < 4 * max(1, threads):
                continue
            yield waiting.pop(0).result()
            done += 1
            if on_progress is not None:
                on_progress(done, len(paths))
        for future in waiting:
            yield future.result()
            done += 1
            if on_progress is not None:
                on_progress(done, len(paths))


def _cache_path(
    cache_dir: Path | None,
    path: Path,
    representation: Representation,
    flow_config: FlowTableConfig | None,
    at_most: int | None,
    seed: int,
) -> Path | None:
    """Where this capture's flows would lie: everything that decides what they are is in the name."""
    if cache_dir is None or not path.is_file():
        return None
    stat = path.stat()
    decides = {
        "cache": CACHE_VERSION,
        "path": str(path.resolve()),
        "size": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "representation": [representation.name, representation.version, representation.settings()],
        "flow_config": repr(flow_config),
        "sample": None if at_most is None else [at_most, seed],
        "dtypes": [str(FLOW_DTYPE), str(PACKET_DTYPE)],
    }
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
    return cache_dir / f"{digest[:32]}.npz"


def _save_flows(path: Path, flows: CaptureFlows) -> None:
    numbers = np.array([flows.n_flows, flows.n_packets, flows.n_rejected], np.int64)
    arrays: dict[str, Any] = {
        "packets": flows.packets,
        "records": flows.records,
        "numbers": numbers,
        "error": np.array(flows.error),
        "packets_used": flows.tokens.packets_used,
    }
    arrays |= {f"token_{name}": array for name, array in flows.tokens.arrays.items()}
    with write_then_rename(path) as file:
        np.savez(file, **arrays)


def _load_flows(path: Path) -> CaptureFlows:
    with np.load(path, allow_pickle=False) as kept:
        arrays = {name.removeprefix("token_"): kept[name] for name in kept.files if name.startswith("token_")}
        n_flows, n_packets, n_rejected = (int(number) for number in kept["numbers"])
        return CaptureFlows(
            TokenBatch(arrays, kept["packets_used"]),
            kept["packets"],
            kept["records"],
            n_flows,
            n_packets,
            n_rejected,
            str(kept["error"]),
        )
