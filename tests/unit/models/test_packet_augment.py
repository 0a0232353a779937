"""Augmentation of packets tokens: what it may change, what it keeps, and what a lost packet does to the gaps."""

from __future__ import annotations

import numpy as np

from models.learning.packet_augment import Strength, augment_packets, without

NOTHING = Strength(*[0.0] * 13)


def flow(gaps, directions):
    n = len(gaps)
    numbers, flags = np.zeros((1, n + 1, 5), np.int32), np.zeros((1, n + 1, 10), np.uint8)
    numbers[0, :n, 0], numbers[0, :n, 1], numbers[0, :n, 2], numbers[0, :n, 4] = 140, 100, gaps, 1000
    flags[0, :n, 0], flags[0, :n, 1], flags[0, :n, 9] = directions, 6, 4
    flags[0, :n, 3:5] = 7
    payload = np.zeros((1, n + 1, 4), np.uint8)
    payload[0, :n] = np.arange(n)[:, None] + 1
    times, same = np.cumsum(gaps), []
    for k in range(n):
        earlier = [times[j] for j in range(k) if directions[j] == directions[k]] or [times[0]]
        same.append(times[k] - earlier[-1])
    numbers[0, :n, 3] = same
    return {"numbers": numbers, "flags": flags, "payload": payload}


def test_no_strength_changes_nothing():
    arrays = flow([0, 10, 20, 30], [1, 2, 2, 1])
    out = augment_packets(arrays, np.random.default_rng(0), NOTHING)
    for name in arrays:
        assert out[name].dtype == arrays[name].dtype
        assert np.array_equal(arrays[name], out[name]), name


def test_a_lost_packet_s_gap_goes_to_the_next_one_of_the_flow_and_of_its_direction():
    arrays = flow([0, 10, 20, 30, 40], [1, 2, 1, 2, 1])
    lost = np.zeros((1, 6), bool)
    lost[0, 2] = True
    out = without(arrays, lost)
    assert out["flags"][0, :, 0].tolist() == [1, 2, 2, 1, 0, 0]
    assert out["numbers"][0, :, 2].tolist() == [0, 10, 50, 40, 0, 0]
    assert out["numbers"][0, :, 3].tolist() == [0, 10, 50, 100, 0, 0]
    assert out["payload"][0, :, 0].tolist() == [1, 2, 4, 5, 0, 0]


def test_a_start_in_the_middle_begins_at_time_zero_and_a_flow_is_never_empty():
    arrays = flow([0, 10, 20], [1, 2, 1])
    first_gone = np.array([[True, False, False, False]])
    assert without(arrays, first_gone)["numbers"][0, :, 2].tolist() == [0, 20, 0, 0]
    out = without(arrays, np.ones((1, 4), bool))
    assert out["flags"][0, :, 0].tolist() == [1, 0, 0, 0]
    assert out["payload"][0, 0, 0] == 1


def test_defaults_change_sizes_gaps_and_fields_within_their_ranges_and_never_the_input():
    one = flow([0, 10, 2_000_000_000, 30], [1, 2, 2, 1])
    arrays = {name: np.repeat(array, 400, axis=0) for name, array in one.items()}
    before = {name: array.copy() for name, array in arrays.items()}
    out = augment_packets(arrays, np.random.default_rng(1))
    assert all(np.array_equal(arrays[name], before[name]) for name in arrays)
    n = (out["flags"][..., 0] > 0).sum(axis=1)
    assert n.min() >= 1
    assert n.max() == 4
    assert (n < 4).mean() > 0.1
    present = out["flags"][..., 0] > 0
    sizes = out["numbers"][..., 1][present]
    assert sizes.min() >= 92
    assert sizes.max() <= 116
    assert len(np.unique(sizes)) > 10
    assert (out["numbers"][..., 0] - out["numbers"][..., 1])[present].tolist() == [40] * present.sum()
    assert (out["numbers"] >= 0).all()
    assert not out["numbers"][~present].any()
    for column, share in ((3, 0.3), (4, 0.3)):
        assert abs((out["flags"][:, 0, column] == 0).mean() - share) < 0.08


def test_the_same_generator_gives_the_same_batch():
    arrays = {name: np.repeat(array, 20, axis=0) for name, array in flow([0, 5, 9], [1, 1, 2]).items()}
    a, b, c = (augment_packets(arrays, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert all(np.array_equal(a[name], b[name]) for name in a)
    assert not all(np.array_equal(a[name], c[name]) for name in a)
