"""Schedules and what an epoch is made of."""

from __future__ import annotations

import numpy as np
import pytest

from capture.errors import DataError
from models.learning.batches import LabelledTokens, check_labelled, epoch_rows, fingerprint, step_seed
from models.learning.schedules import cosine_with_warmup, parameter_groups, run_progress
from tests.unit.models.tiny_family import TINY, TinyClassifier, TinyConfig, labelled


def test_the_learning_rate_rises_in_a_line_and_falls_along_half_a_cosine() -> None:
    assert cosine_with_warmup(0.05, 0.2) == pytest.approx(0.25)
    assert cosine_with_warmup(0.2, 0.2) == 1.0
    assert cosine_with_warmup(0.6, 0.2, 0.1) == pytest.approx(0.55)
    assert cosine_with_warmup(1.0, 0.2, 0.1) == pytest.approx(0.1)
    assert cosine_with_warmup(1.7, 0.0) == pytest.approx(0.0)


def test_progress_follows_the_budget_that_is_nearer_to_its_end() -> None:
    assert run_progress(10, 100, 5.0, 10.0) == 0.5
    assert run_progress(90, 100, 5.0, 10.0) == 0.9
    assert run_progress(10, None, 20.0, 10.0) == 1.0
    assert run_progress(10, 100, 5.0, None) == 0.1


def test_each_parameter_learns_at_the_rate_of_its_depth_and_decays_only_if_it_may() -> None:
    config = TinyConfig(n_layers=2)
    model = TinyClassifier(config, 3)
    groups = parameter_groups(
        model,
        0.05,
        without_decay=["pos_embed"],
        layer_decay=0.5,
        depth_of=lambda name: TINY.layer_index(name, config),
    )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    got = {names[id(p)]: (group["weight_decay"], group["scale"]) for group in groups for p in group["params"]}
    assert got == {
        "pos_embed": (0.0, 0.125),
        "embed.weight": (0.05, 0.125),
        "embed.bias": (0.0, 0.125),
        "blocks.0.weight": (0.05, 0.25),
        "blocks.0.bias": (0.0, 0.25),
        "blocks.1.weight": (0.05, 0.5),
        "blocks.1.bias": (0.0, 0.5),
        "head.weight": (0.05, 1.0),
        "head.bias": (0.0, 1.0),
    }


LABELS = np.repeat(np.arange(3), [900, 90, 10]).astype(np.int64)


def test_without_balance_an_epoch_takes_every_flow_once() -> None:
    assert sorted(epoch_rows(LABELS, 0.0, 0, 0)) == list(range(1000))


def test_with_full_balance_all_classes_come_up_equally_often() -> None:
    counts = np.bincount(LABELS[epoch_rows(LABELS, 1.0, 0, 0)])
    assert counts.sum() == 1000
    assert counts.max() - counts.min() <= 1


def test_half_balance_draws_flows_by_the_root_of_their_class() -> None:
    counts = sum(np.bincount(LABELS[epoch_rows(LABELS, 0.5, 0, epoch)]) for epoch in range(40)) / 40
    roots = np.sqrt([900, 90, 10])
    assert counts == pytest.approx(1000 * roots / roots.sum(), abs=0.5)


def test_a_class_is_gone_through_evenly() -> None:
    rows = epoch_rows(LABELS, 1.0, 0, 0)
    times = np.bincount(rows, minlength=1000)[LABELS == 2]
    assert times.max() - times.min() <= 1
    assert np.bincount(rows, minlength=1000)[LABELS == 0].max() == 1


def test_a_rare_class_never_misses_an_epoch() -> None:
    labels = np.repeat(np.arange(2), [9999, 1]).astype(np.int64)
    assert all(1 in labels[epoch_rows(labels, 0.1, 0, epoch)] for epoch in range(20))


def test_epochs_differ_and_repeat_with_their_seed() -> None:
    assert epoch_rows(LABELS, 0.5, 1, 2).tolist() == epoch_rows(LABELS, 0.5, 1, 2).tolist()
    assert epoch_rows(LABELS, 0.5, 1, 2).tolist() != epoch_rows(LABELS, 0.5, 1, 3).tolist()
    assert len({step_seed(seed, step) for seed in range(3) for step in range(100)}) == 300


def test_a_fingerprint_sees_bytes_shape_and_dtype() -> None:
    a = np.arange(12, dtype=np.uint8)
    different = [a, a[::-1], a.reshape(3, 4), a.view(np.int8), a[:0]]
    assert len({fingerprint(array) for array in different}) == len(different)
    assert fingerprint(a.reshape(3, 4).T) == fingerprint(np.ascontiguousarray(a.reshape(3, 4).T))


def test_labels_flows_and_groups_must_be_as_many() -> None:
    data = labelled(4)
    with pytest.raises(
        DataError, match="got 4 flows, 3 labels and 4 groups, expected one label and one group"
    ):
        LabelledTokens(data.tokens, data.labels[:3], data.groups)
    with pytest.raises(DataError, match="training flows: got labels 0 to 2, expected 0 to 1"):
        check_labelled(labelled(50), 2, "training flows")
