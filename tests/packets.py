"""Blocks of packets for tests: from frames given as bytes, or from a capture read without our readers."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Literal

import dpkt
import numpy as np
import zstandard

from capture.block import LINK_ETHERNET, PacketBlock

DATA = Path(__file__).parent / "data"


def block_of(
    frames: Sequence[bytes],
    link_type: int | Sequence[int] = LINK_ETHERNET,
    *,
    ts_ns: Sequence[int] | None = None,
    wire_len: Sequence[int] | None = None,
    gap: int = 0,
) -> PacketBlock:
    """A block that holds the frames in order.

    Args:
        frames: bytes of each packet as captured.
        link_type: one LINKTYPE number for all, or one a packet.
        ts_ns: times, nanoseconds; one millisecond apart from 0 when not given.
        wire_len: bytes on the wire; the captured bytes when not given.
        gap: bytes of 0xEE in front of, between and behind the packets, as record headers are in a file.
    """
    n = len(frames)
    filler = b"\xee" * gap
    captured_len = np.array([len(frame) for frame in frames], np.uint32)
    offset = np.zeros(n, np.int64)
    position = gap
    for i, frame in enumerate(frames):
        offset[i] = position
        position += len(frame) + gap
    data = np.frombuffer(filler + b"".join(frame + filler for frame in frames), np.uint8)
    link_types = (
        np.full(n, link_type, np.uint16) if isinstance(link_type, int) else np.array(link_type, np.uint16)
    )
    return PacketBlock(
        ts_ns=np.arange(n, dtype=np.int64) * 1_000_000 if ts_ns is None else np.array(ts_ns, np.int64),
        captured_len=captured_len,
        wire_len=captured_len.copy() if wire_len is None else np.array(wire_len, np.uint32),
        offset=offset,
        link_type=link_types,
        data=data,
    )


def frames_of(block: PacketBlock) -> list[bytes]:
    """The captured bytes of each packet of a block."""
    data = block.data.tobytes()
    return [
        data[start : start + length]
        for start, length in zip(block.offset.tolist(), block.captured_len.tolist(), strict=True)
    ]


def block_from_capture(path: Path) -> PacketBlock:
    """All packets of a pcap or pcapng (plain, .gz or .zst) as one block.

    A pcapng goes through dpkt (which gives no wire length, so it is the captured one);
    a classic pcap is walked here, in a plain loop.
    """
    frames, times, wire_lens, link_type = _read_capture(path)
    return block_of(frames, link_type, ts_ns=times, wire_len=wire_lens)


def blocks_of(block: PacketBlock, n_packets: int) -> Iterable[PacketBlock]:
    """The same packets in blocks of at most ``n_packets``; all share one buffer."""
    for start in range(0, len(block), n_packets):
        rows = slice(start, start + n_packets)
        yield PacketBlock(
            block.ts_ns[rows],
            block.captured_len[rows],
            block.wire_len[rows],
            block.offset[rows],
            block.link_type[rows],
            block.data,
        )


def _read_capture(path: Path) -> tuple[list[bytes], list[int], list[int], int]:
    raw = path.read_bytes()
    if path.suffix == ".gz":
        raw = gzip.decompress(raw)
    elif path.suffix == ".zst":
        raw = zstandard.ZstdDecompressor().decompressobj().decompress(raw)
    if raw[:4] == b"\n\r\r\n":
        reader = dpkt.pcapng.Reader(BytesIO(raw))
        records = [(float(ts), bytes(frame)) for ts, frame in reader]
        frames = [frame for _, frame in records]
        return frames, [round(ts * 1e9) for ts, _ in records], [len(f) for f in frames], reader.datalink()
    return _read_classic(raw)


def _read_classic(raw: bytes) -> tuple[list[bytes], list[int], list[int], int]:
    big = raw[:4] in (b"\xa1\xb2\xc3\xd4", b"\xa1\xb2\x3c\x4d")
    order: Literal["big", "little"] = "big" if big else "little"
    nanoseconds = 0xA1B23C4D in (int.from_bytes(raw[:4], "big"), int.from_bytes(raw[:4], "little"))
    unit_ns = 1 if nanoseconds else 1000

    def word(position: int) -> int:
        return int.from_bytes(raw[position : position + 4], order)

    frames, times, wire_lens = [], [], []
    position = 24
    while position + 16 <= len(raw):
        captured = word(position + 8)
        if position + 16 + captured > len(raw):
            break
        times.append(word(position) * 1_000_000_000 + word(position + 4) * unit_ns)
        wire_lens.append(word(position + 12))
        frames.append(raw[position + 16 : position + 16 + captured])
        position += 16 + captured
    return frames, times, wire_lens, word(20) & 0xFFFF
