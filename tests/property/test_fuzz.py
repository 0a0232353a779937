"""bench/fuzz.py on its small corpus, and a thousand damaged captures: no exception, and the books balance."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from bench import fuzz

SEEDS = fuzz.seeds()
CORPUS = sorted((fuzz.DATA / "fuzz").iterdir())


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_every_input_that_was_interesting_once_does_no_harm(path) -> None:
    counts: Counter[str] = Counter()
    fuzz.run_capture(path.read_bytes(), counts)
    assert counts["read"] == 1


def test_a_thousand_captures_flipped_cut_and_repeated() -> None:
    rng, counts = random.Random(11), Counter[str]()
    for _ in range(1000):
        fuzz.run_capture(fuzz.mutated(rng, rng.choice(SEEDS), SEEDS), counts)
    assert counts["read"] + counts["refused"] == 1000
    assert counts["refused"] > 20
    assert len(counts) > 15


def test_mutated_frames_keep_their_promises() -> None:
    counts: Counter[str] = Counter()
    rng = random.Random(12)
    frames = [frame for data in SEEDS for frame in fuzz.frames_of(data)[:50]]
    others = [frame for frame, _ in frames]
    packets = [(fuzz.mutated(rng, frame, others), link) for frame, link in rng.choices(frames, k=5000)]
    fuzz.run_blocks(iter([fuzz.block_of(packets, rng)]), counts)
    assert len(counts) > 15


def test_a_packet_lost_on_the_way_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from capture.flow_table import FlowTable

    monkeypatch.setattr(FlowTable, "push", lambda *_: iter(()))
    with pytest.raises(fuzz.BrokenError):
        fuzz.run_capture(CORPUS[0].read_bytes())
