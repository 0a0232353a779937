"""Does the default model say the same of a capture that is out of order, doubled or cut? Flows and labels, kept of all.

.venv/bin/python -m bench.disturbed [CAPTURE]     # the demonstration capture; half a minute
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import netcls
from capture.block import PacketBlock
from capture.live.pcap_writer import pcap_header, pcap_records
from capture.readers import open_capture

DEMO = Path(__file__).parent.parent / "tests" / "data" / "captures" / "demo.pcap.zst"
COLUMNS = ("ts_ns", "captured_len", "wire_len", "offset", "link_type")


def whole(path: Path) -> PacketBlock:
    """All packets of a capture as one block."""
    columns: dict[str, list[NDArray[np.generic]]] = {name: [] for name in COLUMNS}
    data, at = [], 0
    with open_capture(path) as reader:
        for block in reader:
            for name in COLUMNS:
                column = getattr(block, name)
                columns[name].append(column + at if name == "offset" else column.copy())
            data.append(block.data.copy())
            at += len(block.data)
    return PacketBlock(*(np.concatenate(columns[name]) for name in COLUMNS), np.concatenate(data))  # type: ignore[arg-type]


def in_order(block: PacketBlock, order: NDArray[np.intp]) -> PacketBlock:
    return replace(block, **{name: getattr(block, name)[order] for name in COLUMNS})


def labels(block: PacketBlock, folder: Path) -> dict[object, object]:
    path = folder / "disturbed.pcap"
    path.write_bytes(pcap_header(int(block.link_type[0])) + pcap_records(block))
    out: dict[object, object] = {}
    for event in netcls.classify(path):
        ends = [(event[f"{side}_ip"], event.get(f"{side}_port", 0)) for side in ("src", "dest")]
        out[(*sorted(ends), event["proto"])] = event["netcls"].get("label")
    return out


def disturbed(block: PacketBlock) -> Iterator[tuple[str, PacketBlock]]:
    n = len(block.ts_ns)
    for within in (3, 10, 100):
        moved = np.arange(n) + np.random.default_rng(within).uniform(0, within, n)
        yield f"shuffled within {within}", in_order(block, np.argsort(moved))
    yield "every packet twice", in_order(block, np.repeat(np.arange(n), 2))
    for snaplen in (64, 96, 128, 256):
        captured = np.minimum(block.captured_len, snaplen).astype(np.uint32)
        yield f"cut at {snaplen} bytes", replace(block, captured_len=captured)


def main() -> None:
    block = whole(Path(sys.argv[1]) if len(sys.argv) > 1 else DEMO)
    with tempfile.TemporaryDirectory() as folder:
        before = labels(block, Path(folder))
        for name, other in disturbed(block):
            now = labels(other, Path(folder))
            both = before.keys() & now.keys()
            same = sum(before[key] == now[key] for key in both)
            print(f"{name}: {len(both)} of {len(before)} flows, {same} with the same label")


if __name__ == "__main__":
    main()
