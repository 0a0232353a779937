"""The predictor: calibrated answers in order, each flow as if it were alone, at any number of threads."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from capture.errors import CheckpointError, UsageError
from models.checkpoint import Calibration, Checkpoint, save_checkpoint
from models.families import FAMILIES
from models.predictor import MICRO_BATCH, Predictor
from tests.unit.models.tiny_family import (
    SETTINGS,
    TINY,
    TinyConfig,
    checkpoint_arguments,
    labelled,
    registered,
)

TOKENS = labelled(37, seed=4).tokens


@pytest.fixture(autouse=True)
def _tiny_family() -> Iterator[None]:
    with registered():
        yield


def make(folder: Path, **changes: Any) -> Checkpoint:
    return save_checkpoint(folder / "tiny", **checkpoint_arguments(**changes))


def netmamba(folder: Path) -> Checkpoint:
    """A small NetMamba with random weights."""
    from dataclasses import asdict

    torch.manual_seed(6)
    family = FAMILIES["netmamba"]
    config = family.config_for(SETTINGS, d_model=16, n_layers=2, d_state=4, mask_ratio=0.5)
    state = family.build_classifier(config, 3).state_dict()
    state["head.weight"] *= 50  # answers that differ
    return make(folder, family="netmamba", model_config=asdict(config), state=state)


def test_answers_are_the_networks_softmax_at_the_checkpoints_temperature(tmp_path: Path) -> None:
    checkpoint = make(tmp_path)
    model = TINY.build_classifier(TinyConfig(), 3).eval()
    model.load_state_dict(checkpoint.state)
    with torch.inference_mode():
        logits = model(torch.from_numpy(TOKENS.arrays["bytes"])).double()
    expected = torch.softmax(logits / 1.5, dim=1).numpy()
    with Predictor(checkpoint, threads=2, device="cpu") as predictor:
        said = predictor.predict(TOKENS)
    assert said.probabilities.dtype == said.unknown_score.dtype == np.float32
    assert np.allclose(said.probabilities, expected, atol=1e-6)
    assert np.allclose(said.probabilities.sum(axis=1), 1.0, atol=1e-6)
    assert np.allclose(said.unknown_score, 1.0 - expected.max(axis=1), atol=1e-6)


@pytest.mark.parametrize("make_checkpoint", [make, netmamba])
def test_a_flow_is_answered_as_if_it_were_alone(tmp_path: Path, make_checkpoint: Any) -> None:
    with Predictor(make_checkpoint(tmp_path), threads=2, device="cpu") as predictor:
        together = predictor.logits(TOKENS)
        alone = np.concatenate([predictor.logits(TOKENS.take(slice(i, i + 1))) for i in range(len(TOKENS))])
        order = np.random.default_rng(0).permutation(len(TOKENS))
        shuffled = predictor.logits(TOKENS.take(order))
    assert np.ptp(together) > 0.1
    assert np.abs(together - alone).max() < 1e-5
    assert np.abs(together[order] - shuffled).max() < 1e-5


def test_the_number_of_threads_changes_no_answer(tmp_path: Path) -> None:
    checkpoint = netmamba(tmp_path)
    answers = []
    for threads in (1, 3):
        with Predictor(checkpoint, threads=threads, device="cpu") as predictor:
            answers.append(predictor.logits(TOKENS))
    assert np.array_equal(answers[0], answers[1])


def test_two_callers_at_once_get_their_own_answers(tmp_path: Path) -> None:
    with Predictor(make(tmp_path), threads=2, device="cpu") as predictor:
        parts = [TOKENS.take(slice(i, None)) for i in range(16)]
        expected = [predictor.logits(part) for part in parts]
        with ThreadPoolExecutor(4) as callers:
            got = list(callers.map(predictor.logits, parts))
    assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(expected, got, strict=True))


@pytest.mark.parametrize("n_flows", [0, 1, MICRO_BATCH, MICRO_BATCH + 1])
def test_any_number_of_flows_has_as_many_answers(tmp_path: Path, n_flows: int) -> None:
    with Predictor(make(tmp_path), threads=2, device="cpu") as predictor:
        said = predictor.predict(TOKENS.take(slice(0, n_flows)))
    assert said.probabilities.shape == (n_flows, 3)
    assert said.unknown.shape == said.unknown_score.shape == (n_flows,)


def test_a_score_above_the_threshold_is_unknown_and_none_is_without_one(tmp_path: Path) -> None:
    with Predictor(make(tmp_path, calibration=Calibration(1.0, None)), device="cpu") as predictor:
        said = predictor.predict(TOKENS)
        assert not said.unknown.any()
    middle = float(np.median(said.unknown_score))
    with Predictor(make(tmp_path, calibration=Calibration(1.0, middle)), device="cpu") as predictor:
        said = predictor.predict(TOKENS)
    assert said.unknown.tolist() == (said.unknown_score > middle).tolist()
    assert 0 < said.unknown.sum() < len(said)


def test_warming_up_answers_made_up_flows_of_the_representation(tmp_path: Path) -> None:
    with Predictor(netmamba(tmp_path), threads=2, device="cpu") as predictor:
        predictor.warm_up()
        assert predictor.predict(TOKENS).probabilities.shape == (37, 3)


def test_read_only_and_strided_tokens_are_taken_as_they_are(tmp_path: Path) -> None:
    with Predictor(make(tmp_path), threads=1, device="cpu") as predictor:
        expected = predictor.logits(TOKENS)
        data = np.ascontiguousarray(TOKENS.arrays["bytes"].T).T
        data.flags.writeable = False
        tokens = type(TOKENS)({"bytes": data}, TOKENS.packets_used)
        assert np.array_equal(predictor.logits(tokens), expected)


def test_the_callers_torch_threads_stay_as_they_are(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with Predictor(make(tmp_path), threads=2, device="cpu") as predictor:
            predictor.predict(TOKENS)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_backbone_cannot_answer(tmp_path: Path) -> None:
    backbone = save_checkpoint(tmp_path / "base", **checkpoint_arguments("backbone"))
    with pytest.raises(CheckpointError, match="got a backbone, expected a classifier; fine-tune it with"):
        Predictor(backbone)


def test_threads_and_devices_that_cannot_be_are_refused(tmp_path: Path) -> None:
    checkpoint = make(tmp_path)
    with pytest.raises(UsageError, match="--threads: got 0, expected 1 or more"):
        Predictor(checkpoint, threads=0)
    with pytest.raises(UsageError, match="--device: got 'tpu', expected auto, cpu or cuda"):
        Predictor(checkpoint, device="tpu")
