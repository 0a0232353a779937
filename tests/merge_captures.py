"""Merge captures into one, each begins a second after the one before: python -m tests.merge_captures OUT IN ...

Made `data/captures/demo.pcap.zst` from lab episodes (see data/README.md). Ethernet, microseconds, zstd level 19.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import zstandard

from capture.readers import open_capture

GAP_NS = 1_000_000_000


def packets_of(path: str) -> list[tuple[int, int, bytes]]:
    """(nanoseconds since the first packet, length on the wire, captured bytes) of each packet."""
    packets = []
    with open_capture(path) as reader:
        for block in reader:
            for row in range(len(block)):
                start = int(block.offset[row])
                data = block.data[start : start + int(block.captured_len[row])].tobytes()
                packets.append((int(block.ts_ns[row]), int(block.wire_len[row]), data))
    first = min(ts_ns for ts_ns, _, _ in packets)
    return [(ts_ns - first, wire_len, data) for ts_ns, wire_len, data in packets]


def main() -> None:
    """Merge."""
    out, *sources = sys.argv[1:]
    start_ns = 1_790_000_000 * 1_000_000_000
    merged = [
        (start_ns + place * GAP_NS + offset_ns, wire_len, data)
        for place, source in enumerate(sources)
        for offset_ns, wire_len, data in packets_of(source)
    ]
    merged.sort(key=lambda packet: packet[0])
    parts = [struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)]
    for ts_ns, wire_len, data in merged:
        us = ts_ns // 1000
        parts.append(struct.pack("<IIII", us // 1_000_000, us % 1_000_000, len(data), wire_len) + data)
    Path(out).write_bytes(zstandard.ZstdCompressor(level=19).compress(b"".join(parts)))


if __name__ == "__main__":
    main()
