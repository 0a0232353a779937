"""Two names of one length: however the ClientHello is cut, ordered and repeated, the leak-free input is the same."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from capture.decode import decode
from capture.flow_table import FlowTable, FlowTableConfig
from capture.representations import build
from tests import frames as f
from tests import handshakes as h
from tests.packets import block_of

ROOT = Path(__file__).parents[2]


def tokens_of(frames: list[bytes], payload_bytes: int, policy: str = "leak_free") -> NDArray[np.uint8]:
    settings = {
        "field_policy": policy,
        "n_packets": 8,
        "header_bytes": 40,
        "payload_bytes": payload_bytes,
        "stride": 1,
    }
    representation = build("netmamba", settings)
    table = FlowTable(FlowTableConfig(), representation.keep)
    block = block_of(frames)
    steps = [*table.push(block, decode(block)), *table.flush()]
    return np.concatenate([representation.tokenize(step.ready).arrays["bytes"] for step in steps])


def dialogue(name: bytes, seed: int) -> list[bytes]:
    """A flow's first packets; all but the name depends on the seed alone."""
    rng = random.Random(seed)
    hello = h.client_hello(
        name,
        before=rng.choice([0, 10, 300, 1500]),
        behind=rng.choice([0, 100, 1200]),
        session_id=rng.choice([0, 32]),
    )
    stream = h.tls_records(hello, rng.choice([1 << 14, 200])) + rng.randbytes(rng.choice([0, 80]))
    start = rng.choice([1000, 2**32 - 60])
    cuts = sorted(rng.sample(range(1, len(stream)), rng.choice([0, 1, 2, 3])))
    pieces = list(zip([0, *cuts], [*cuts, len(stream)], strict=True))
    if rng.random() < 0.3:
        rng.shuffle(pieces)
    if rng.random() < 0.4:  # a retransmission that is cut elsewhere
        a, b = sorted(rng.sample(range(len(stream)), 2))
        pieces.append((a, b))
    if rng.random() < 0.3:  # after a HelloRetryRequest the hello comes again
        pieces = [(0, len(stream)), (0, len(stream)), *pieces]
    return [
        f.ethernet(f.ipv4(f.tcp(stream[a:b], seq=(start + a) % 2**32), f.TCP)) for a, b in pieces if b > a
    ]


def check(seeds: range) -> None:
    n_shown = 0
    for seed in seeds:
        payload_bytes = random.Random(seed).choice([8, 9, 60, 100, 240, 400, 2000])
        one, other = (
            tokens_of(dialogue(name, seed), payload_bytes)
            for name in (b"one.example.org", b"two.example.com")
        )
        assert np.array_equal(one, other), seed
        shown = [
            tokens_of(dialogue(name, seed), payload_bytes, "paper")
            for name in (b"one.example.org", b"two.example.com")
        ]
        n_shown += not np.array_equal(*shown)
    assert n_shown > len(seeds) // 3, "the names are hardly ever in what is kept"


def test_the_name_never_reaches_leak_free_input() -> None:
    check(range(300))


def test_only_the_name_is_hidden_where_all_of_the_hello_is_seen() -> None:
    frames = dialogue(b"one.example.org", 0)
    assert len(frames) >= 1
    stream = h.tls_records(h.client_hello(b"one.example.org"))
    frame = f.ethernet(f.ipv4(f.tcp(stream), f.TCP))
    hidden, shown = tokens_of([frame], 400)[0], tokens_of([frame], 400, "none")[0]
    payload = slice(40, 440)
    different = np.flatnonzero(hidden[payload] != shown[payload])
    at = stream.index(b"one.example.org")
    # The length of the extension, that of the list, the kind, the length of the name, the name.
    assert different.min() >= at - 7
    assert different.max() == at + len(b"one.example.org") - 1
    assert len(different) <= 7 + len(b"one.example.org")


@pytest.mark.parametrize("setting", [{"NUMBA_BOUNDSCHECK": "1"}, {"NUMBA_DISABLE_JIT": "1"}])
def test_no_index_runs_past_a_row_and_uncompiled_python_agrees(
    setting: dict[str, str], tmp_path: Path
) -> None:
    environment = {**os.environ, **setting, "NUMBA_CACHE_DIR": str(tmp_path)}
    code = "from tests.property.test_server_name import fuzz; fuzz(range(200))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def fuzz(seeds: range) -> None:
    """Damaged ClientHellos: whatever their lengths say, the kernel stays inside."""
    from capture.flow_batch import PACKET_DTYPE
    from capture.kernels.server_name import hide_server_names

    for seed in seeds:
        rng = random.Random(seed)
        n, width, header_bytes = 4, 120, 20
        packets = np.zeros(n, PACKET_DTYPE)
        rows = bytearray()
        for k in range(n):
            stream = bytearray(h.tls_records(h.client_hello(rng.randbytes(rng.randrange(1, 90)))))
            for _ in range(rng.randrange(4)):
                stream[rng.randrange(9, len(stream))] = rng.choice([0, 255, rng.randrange(256)])
            rows += bytes(header_bytes) + bytes(stream[: width - header_bytes]).ljust(
                width - header_bytes, b"\0"
            )
            packets[k]["payload_len"] = rng.choice([len(stream), 50, 5, 0, 60_000])
            packets[k]["tcp_seq"] = rng.choice([0, 10, 2**32 - 10, 2**31])
            packets[k]["direction"] = rng.randrange(2)
        out = np.frombuffer(rows, np.uint8).copy()
        hide_server_names(packets, n, header_bytes, width, out)
        assert not out.reshape(n, width)[:, :header_bytes].any()


def test_damaged_hellos_do_no_harm() -> None:
    fuzz(range(500))
