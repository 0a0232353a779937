"""Mutated captures and frames through readers, decoder, handshake tracker and flow table.

    python -m bench.fuzz --seconds 60                 # both targets, compiled
    python -m bench.fuzz --seconds 60 --bounds        # the same with checked indices (slower)
    python -m bench.fuzz captures --seconds 600 --seed 7

An execution is one mutated frame (target ``frames``) or one mutated file (target ``captures``). What must hold: nothing
is raised but the capture errors that an operator sees; every packet is decoded, rejected or ignored by name; every
decoded one is in a flow; every flow that started has ended; what a row says lies inside its packet. An input that
breaks one of these is saved and named. Random, seeded mutation without coverage: atheris sees no compiled kernel.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from capture.block import PacketBlock

DATA = Path(__file__).parents[1] / "tests" / "data"
SEED_FOLDERS = ("fuzz", "captures", "readers")
MAX_SEED_BYTES = 60_000
FRAMES_OF_BLOCK = 512
LINK_TYPES = (0, 1, 9, 50, 51, 101, 104, 105, 108, 113, 127, 204, 228, 229, 276)


def seeds() -> list[bytes]:
    """The files that are mutated: small captures of all kinds, plain."""
    import zstandard

    found = []
    for folder in SEED_FOLDERS:
        for path in sorted((DATA / folder).glob("*")):
            data = path.read_bytes()
            if path.suffix == ".zst":
                data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
            if data[:4] in (b"\xd4\xc3\xb2\xa1", b"\n\r\r\n", b"\x1f\x8b\x08\x08", b"\xa1\xb2\xc3\xd4"):
                found.append(data[:MAX_SEED_BYTES])
    return found


def mutated(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """One to four of: flip, set, cut, repeat, remove, insert, splice, a length that lies."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        if not out:
            break
        at = rng.randrange(len(out))
        kind = rng.randrange(8)
        size = rng.choice((1, 2, 4, 16, 100))
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 2:
            del out[at:]
        elif kind == 3:
            out[at:at] = out[at : at + size]
        elif kind == 4:
            del out[at : at + size]
        elif kind == 5:
            out[at:at] = rng.randbytes(size)
        elif kind == 6:
            other = rng.choice(others)
            start = rng.randrange(len(other)) if other else 0
            out[at : at + size] = other[start : start + size]
        else:
            value = rng.choice((0, 1, 0xFFFF, 2**31, 2**32 - 1, len(out)))
            out[at : at + 4] = value.to_bytes(4, rng.choice(("big", "little")))
    return bytes(out)


class BrokenError(AssertionError):
    """Something that must hold did not."""


def run_capture(data: bytes, counts: Counter[str] | None = None) -> None:
    """One capture file through everything.

    Raises:
        BrokenError: if the books do not balance. Whatever else comes out is a defect, too.
    """
    from capture.errors import CaptureError
    from capture.readers import open_capture

    blocks = []
    try:
        with open_capture(io.BytesIO(data), max_decompressed_bytes=16 << 20) as reader:
            run_blocks(reader, counts)
    except CaptureError as error:
        blocks.append(error)
    if counts is not None:
        counts["refused" if blocks else "read"] += 1


def run_blocks(blocks: Iterator[PacketBlock], counts: Counter[str] | None = None) -> None:
    """Blocks of packets through decoder, tracker and flow table; see :func:`run_capture`."""
    import numpy as np

    from capture.decode import DecodeOptions, Decoder, count_rejects
    from capture.flow_batch import KeepSpec
    from capture.flow_table import FlowTable, FlowTableConfig, TableSizes
    from capture.handshake import HandshakeTracker

    decoder, tracker = Decoder(DecodeOptions(check_checksums=False)), HandshakeTracker()
    table = FlowTable(FlowTableConfig(), KeepSpec(4, 2, 48, 16), sizes=TableSizes(256, 64))
    n_seen = n_decoded = 0
    ended = 0
    for block in blocks:
        decoded = decoder.decode(block)
        books = count_rejects(decoded)
        n_seen += len(block)
        n_decoded += books.n_decoded
        if books.n_decoded + books.rejected.total() + books.ignored.total() != len(block):
            raise BrokenError("a packet is neither decoded, rejected nor ignored")
        rows = decoded.reject == 0
        columns = ("l3_offset", "l4_offset", "payload_offset")
        l3, l4, payload = (getattr(decoded, name)[rows].astype(np.int64) for name in columns)
        inside = (l3 < l4) & (l4 <= payload) & (l4 <= block.captured_len[rows])
        if not inside.all():
            raise BrokenError("a header of a decoded packet lies outside of it")
        tracker.see(block, decoded)
        for step in table.push(block, decoded):
            ended += len(step.ended)
            tracker.take(step.ended.records)
        if counts is not None:
            counts.update({f"reject {name}": n for name, n in (books.rejected + books.ignored).items()})
    for step in table.flush():
        ended += len(step.ended)
        tracker.take(step.ended.records)
    state = table.counters
    if state.packets != n_decoded or state.flows_started != ended or state.flows_open:
        raise BrokenError(
            f"{n_decoded} packets and {state.flows_started} flows began, {state.packets} and {ended} came out"
        )


def frames_of(data: bytes) -> list[tuple[bytes, int]]:
    """Frames of a capture, and their link type."""
    from capture.errors import CaptureError
    from capture.readers import open_capture

    found: list[tuple[bytes, int]] = []
    try:
        with open_capture(io.BytesIO(data)) as reader:
            for block in reader:
                columns = (block.offset.tolist(), block.captured_len.tolist(), block.link_type.tolist())
                for at, length, link in zip(*columns, strict=True):
                    found.append((block.data[at : at + length].tobytes(), link))
    except CaptureError:
        pass
    return found


def block_of(packets: list[tuple[bytes, int]], rng: random.Random) -> PacketBlock:
    """Frames as one block; each is followed by the next, so a read past its end is seen as another result only."""
    import numpy as np

    from capture.block import PacketBlock

    lengths = np.array([len(frame) for frame, _ in packets], np.int64)
    return PacketBlock(
        ts_ns=np.cumsum([rng.choice((0, 1000, 10**9, -(10**9), 10**13)) for _ in packets]).astype(np.int64),
        captured_len=lengths.astype(np.uint32),
        wire_len=np.array([len(frame) + rng.choice((0, 0, 0, 1, 5000)) for frame, _ in packets], np.uint32),
        offset=np.cumsum(lengths) - lengths,
        link_type=np.array([link for _, link in packets], np.uint16),
        data=np.frombuffer(b"".join(frame for frame, _ in packets), np.uint8),
    )


def fuzz_captures(seconds: float, seed: int, counts: Counter[str]) -> int:
    """Whole files; returns the executions."""
    rng, files = random.Random(seed), seeds()
    end_s, n = time.monotonic() + seconds, 0
    while time.monotonic() < end_s:
        base = rng.choice(files)
        if rng.random() < 0.7:
            base = base[: rng.choice((200, 1000, 4000))]
        data = mutated(rng, base, files)
        try:
            run_capture(data, counts)
        except Exception:
            save(data, f"captures-{seed}-{n}")
            raise
        n += 1
    return n


def fuzz_frames(seconds: float, seed: int, counts: Counter[str]) -> int:
    """Single frames in blocks; returns the executions."""
    rng = random.Random(seed)
    frames = [frame for data in seeds() for frame in frames_of(data)[:400] if len(frame[0]) <= 2000]
    others = [frame for frame, _ in frames]
    end_s, n = time.monotonic() + seconds, 0
    while time.monotonic() < end_s:
        packets = []
        for _ in range(FRAMES_OF_BLOCK):
            frame, link = rng.choice(frames)
            packets.append(
                (mutated(rng, frame, others), link if rng.random() < 0.95 else rng.choice(LINK_TYPES))
            )
        try:
            run_blocks(iter([block_of(packets, rng)]), counts)
        except Exception:
            save(
                b"".join(len(f).to_bytes(4, "big") + k.to_bytes(2, "big") + f for f, k in packets),
                f"frames-{seed}-{n}",
            )
            raise
        n += len(packets)
    return n


def save(data: bytes, name: str) -> None:
    """Keep an input that broke something."""
    path = Path(f"fuzz-{name}.bin")
    path.write_bytes(data)
    print(f"saved {path} ({len(data)} bytes)", file=sys.stderr)


TARGETS = {"captures": fuzz_captures, "frames": fuzz_frames}


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("targets", nargs="*", choices=[*TARGETS, []], help="both unless named")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bounds", action="store_true", help="kernels with checked indices")
    given = parser.parse_args()
    if given.bounds:
        os.environ["NUMBA_BOUNDSCHECK"] = "1"
    for name in given.targets or TARGETS:
        counts: Counter[str] = Counter()
        began_s = time.process_time()
        n = TARGETS[name](given.seconds, given.seed, counts)
        print(
            f"{name}: {n:,} executions in {time.process_time() - began_s:.0f} CPU s, seed {given.seed}, no failure"
        )
        for what, times in sorted(counts.items()):
            print(f"  {what}: {times:,}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
