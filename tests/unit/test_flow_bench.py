"""The benches of flows and wire do what they say, on little traffic; no figure is asserted that a clock gives."""

from __future__ import annotations

import numpy as np

from bench.flow_frames import SYN, TCP, frames
from bench.flow_load import day, flood, open_flows
from capture.decode import decode


def test_equal_numbers_are_one_flow_and_others_never() -> None:
    numbers = np.array([0, 5, 5, 1 << 23, (1 << 24) + 5, 1 << 30])
    heads = decode(frames(numbers, np.zeros(6, np.int64), protocol=TCP, size=60, flags=SYN))
    assert heads.reject.tolist() == [0] * 6
    keys = [(heads.src[i].tobytes(), int(heads.src_port[i])) for i in range(6)]
    assert keys[1] == keys[2]
    assert len(set(keys)) == 5
    assert set(heads.tcp_flags.tolist()) == {SYN}


def test_a_small_flood_leaves_the_dialogues_their_answers() -> None:
    result = flood(30_000, seconds=10, ceiling_mib=16)
    assert result["evicted"] > 10_000
    assert result["same_model_input"] == result["dialogues"] > 90
    assert result["packets_balance"]


def test_the_other_loads_count_what_they_made() -> None:
    result = open_flows([100, 3000], n_packets=3000, rounds=1, burst=3)
    assert set(result["ns_per_packet"]) == {"100", "3000"}
    result = day(30_000, ceiling_mib=16)
    assert result["packets"] >= 30_000
    assert result["hours"] > 20
