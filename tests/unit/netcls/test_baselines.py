"""Baselines learn what is there, and see nothing that names a host."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest

from capture.flow_batch import FLOW_DTYPE, PACKET_DTYPE
from netcls.evaluation.baselines import BaselineInput, best_of, run_baselines, validation_score
from netcls.evaluation.features import header_features, port_features, size_features


def flows(n=300, k=8, seed=0):
    """Three classes that differ by the size of their second packet, behind equal ports."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    records = np.zeros(n, FLOW_DTYPE)
    records["protocol"], records["ip_version"], records["server_port"] = 6, 4, 443
    records["client_port"] = rng.integers(1024, 65535, n)
    records["n_kept"] = rng.integers(2, k + 1, n)
    packets = np.zeros((n, k), PACKET_DTYPE)
    packets["direction"] = np.arange(k) % 2
    packets["ip_len"] = rng.integers(40, 1500, (n, k))
    packets["ip_len"][:, 1] = 100 + 50 * labels
    packets["ts_ns"] = np.arange(k) * 1_000_000
    for field in ("ttl", "tcp_seq", "tcp_ack"):
        packets[field] = rng.integers(0, 255, (n, k))
    return records, packets, labels


def data_of(records, packets, labels, model_packets=5):
    rows = np.arange(len(labels))
    return BaselineInput(
        records,
        packets,
        labels,
        rows[rows % 3 == 0],
        rows[rows % 3 == 1],
        rows[rows % 3 == 2],
        3,
        model_packets,
    )


def test_sizes_are_learnt_where_ports_say_nothing():
    pytest.importorskip("lightgbm")
    data = data_of(*flows())
    answers = {answer.name: answer for answer in run_baselines(data)}
    assert list(answers) == ["majority", "ports", "sizes", "lightgbm", "lightgbm_5_packets", "random_forest"]
    truth = data.labels[data.test]
    right = {name: np.mean(answer.predicted == truth) for name, answer in answers.items()}
    for name in ("sizes", "lightgbm", "lightgbm_5_packets", "random_forest"):
        assert right[name] > 0.9
    assert right["ports"] < 0.6
    assert len(set(answers["majority"].predicted)) == 1


def test_the_same_seed_gives_the_same_answers():
    pytest.importorskip("lightgbm")
    data = data_of(*flows())
    first, second = run_baselines(data, seed=3), run_baselines(data, seed=3)
    assert all(np.array_equal(a.predicted, b.predicted) for a, b in zip(first, second, strict=True))


def test_a_class_missing_from_training_does_not_break_the_trees():
    pytest.importorskip("lightgbm")
    records, packets, labels = flows()
    labels[np.arange(len(labels)) % 3 == 0] %= 2  # class 2 never trains
    answers = run_baselines(data_of(records, packets, labels))
    assert all(set(answer.predicted) <= {0, 1} for answer in answers)


def test_without_the_extra_the_rows_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    answers = run_baselines(data_of(*flows(60)))
    assert answers[0].predicted is not None
    for answer in answers[1:]:
        assert answer.predicted is None
        assert "pip install 'netcls[train]'" in answer.skipped


def test_features_do_not_see_addresses_ports_ttl_sequence_numbers_or_absolute_time():
    records, packets, _ = flows()
    features, names = header_features(records, packets, 8)
    assert features.shape == (300, len(names))
    changed, moved = records.copy(), packets.copy()
    changed["client"], changed["server"], changed["client_port"], changed["server_port"] = 7, 8, 9, 10
    for field in ("ttl", "tcp_seq", "tcp_ack"):
        moved[field] = 1
    moved["ts_ns"] += 10**18
    assert np.array_equal(features, header_features(changed, moved, 8)[0], equal_nan=True)


def test_a_missing_packet_is_nan_and_sizes_are_signed_by_direction():
    records, packets, _ = flows()
    sizes, _ = size_features(records, packets, 8)
    row = int(np.argmin(records["n_kept"]))
    n_kept = int(records["n_kept"][row])
    assert np.isnan(sizes[row, n_kept:]).all()
    assert sizes[row, 0] > 0
    assert sizes[row, 1] < 0
    features, names = header_features(records, packets, 8)
    assert features[row, names.index("log_iat_0")] == 0
    assert features[row, names.index("log_iat_1")] == pytest.approx(np.log1p(1000))
    assert port_features(records)[0][0].tolist()[:2] == [6, 443]


def test_settings_are_picked_by_the_validation_part_and_nothing_else():
    assert best_of((1, 2, 3), lambda setting: 10 * setting, lambda model: -abs(model - 20)) == 20
    assert best_of((1, 2, 3), lambda setting: setting, lambda model: 0.0) == 1
    assert best_of((1, 2, 3), lambda setting: setting, None) == 1
    truth = np.array([0, 0, 1, 1])
    assert validation_score(np.array([0, 0, 1, 1]), truth, 5) == 1.0
    assert validation_score(np.array([0, 0, 0, 4]), truth, 5) == (0.8 + 0.0) / 2


def test_other_test_flows_leave_a_baseline_what_it_was():
    pytest.importorskip("lightgbm")
    data = data_of(*flows(seed=1))
    few = replace(data, test=data.test[:5])
    for name in ("lightgbm", "random_forest"):
        (whole,), (part,) = (run_baselines(d, only=[name], threads=1) for d in (data, few))
        assert np.array_equal(whole.predicted[:5], part.predicted)
