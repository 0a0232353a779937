"""Flows and a classifier that scikit-learn's own tools can use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import netcls
from capture.errors import CaptureError, UsageError
from models.checkpoint import load_checkpoint
from tests.pcap_writer import START_S, udp_flow, write_pcap

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def captures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Six captures of four flows: small and large datagrams in turn."""
    folder, paths = tmp_path_factory.mktemp("sklearn"), []
    rng = np.random.default_rng(0)
    for capture in range(6):
        packets = []
        for flow in range(4):
            sizes = (rng.integers(0, 20, 5) + (40 if capture % 2 else 900)).tolist()
            packets += udp_flow("10.0.0.1", 3000 + flow, sizes, start_s=START_S + flow)
        paths.append(write_pcap(folder / f"{capture}.pcap", packets))
    return paths


@pytest.fixture(scope="module")
def flows(captures: list[Path]) -> netcls.Flows:
    return netcls.Flows.read(captures)


@pytest.fixture(scope="module")
def labels(flows: netcls.Flows) -> np.ndarray:
    return np.where(flows.capture % 2 == 0, "bulk", "chat")


def test_a_classifier_learns_from_some_captures_and_answers_for_others(flows, labels):
    train = flows.capture < 4
    model = netcls.TrafficClassifier(threads=1, device="cpu").fit(flows[train], labels[train])
    assert model.classes_.tolist() == ["bulk", "chat"]
    assert model.predict(flows[~train]).tolist() == labels[~train].tolist()
    chances = model.predict_proba(flows[~train])
    assert chances.shape == (8, 2)
    assert np.allclose(chances.sum(axis=1), 1)
    assert model.score(flows[~train], labels[~train]) == 1.0


def test_cross_validation_by_capture_and_cloning_are_scikit_learns_own(flows, labels):
    from sklearn.base import clone
    from sklearn.model_selection import GroupKFold, cross_val_score

    model = netcls.TrafficClassifier(threads=1, device="cpu")
    scores = cross_val_score(model, flows, labels, groups=flows.capture, cv=GroupKFold(3))
    assert scores.tolist() == [1.0, 1.0, 1.0]
    assert clone(model).get_params()["base"] == "default"


def test_a_classifier_of_ones_own_sees_the_tokens(flows, labels):
    from sklearn.tree import DecisionTreeClassifier

    model = netcls.TrafficClassifier(estimator=DecisionTreeClassifier(random_state=0), sees="tokens")
    assert model.fit(flows, labels).score(flows, labels) == 1.0
    assert model.estimator_.n_features_in_ == sum(a[0].size for a in flows.tokens.arrays.values())


def test_flows_are_cut_like_a_sequence(flows):
    assert (len(flows), len(flows[2:5]), len(flows[-1])) == (24, 3, 1)
    assert flows[-1].flow_id[0] == flows.flow_id[-1]
    assert flows[flows.capture == 1].capture.tolist() == [1] * 4
    with pytest.raises(IndexError):
        flows[24]


def test_what_cannot_work_is_refused(flows, labels, captures, tmp_path):
    model = netcls.TrafficClassifier(threads=1, device="cpu")
    with pytest.raises(UsageError, match="call fit first"):
        model.predict(flows)
    with pytest.raises(UsageError, match="got 24 flows and labels of shape"):
        model.fit(flows, labels[:3])
    with pytest.raises(UsageError, match="every label is the same"):
        model.fit(flows, np.zeros(24))
    other = netcls.Flows.read(captures[0], base=load_checkpoint("netmamba-lab"))
    with pytest.raises(UsageError, match=r"the flows are netmamba-1 .* base 'default' sees packets-1"):
        model.fit(other, [0, 1, 0, 1])
    with pytest.raises(UsageError, match="sees is 'bytes'"):
        netcls.TrafficClassifier(sees="bytes").fit(flows, labels)
    (tmp_path / "no.pcap").write_bytes(b"nothing of the kind")
    with pytest.raises(CaptureError, match=r"no\.pcap"):
        netcls.Flows.read(tmp_path / "no.pcap")
