"""Pre-training: the loss falls, a budget holds, an interrupted run goes on as if it had not been."""

from __future__ import annotations

import dataclasses
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from capture.errors import CheckpointError, DataError, UsageError
from models.families import FAMILIES
from models.learning.batches import step_rows
from models.learning.pretrain import PretrainResult, PretrainSettings, pretrain
from tests.unit.models.tiny_family import TINY, TinyConfig, labelled

TOKENS = labelled(50, seed=1).tokens
SETTINGS = PretrainSettings(
    steps=30, batch=16, base_learning_rate=0.1, history_every_steps=10, threads=1, device="cpu"
)


def run(run_dir: Path, settings: PretrainSettings = SETTINGS, **more: Any) -> PretrainResult:
    return pretrain(TINY, TinyConfig(), TOKENS, settings, run_dir=run_dir, **more)


def test_the_loss_falls(tmp_path: Path) -> None:
    history = run(tmp_path, dataclasses.replace(SETTINGS, steps=200)).history
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]


@pytest.mark.parametrize("step", [1, 10, 17, 30])
def test_an_interrupted_run_resumes_to_the_result_of_an_uninterrupted_one(tmp_path: Path, step: int) -> None:
    def interrupt(at: dict[str, Any]) -> None:
        if at["step"] == step:
            signal.raise_signal(signal.SIGINT)

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", on_progress=interrupt)
    resumed = run(tmp_path / "cut", resume=True)
    assert all(torch.equal(whole.state[name], resumed.state[name]) for name in whole.state)
    assert [(e["step"], e["loss"], e["lr"]) for e in whole.history] == [
        (e["step"], e["loss"], e["lr"]) for e in resumed.history
    ]
    assert [e["step"] for e in whole.history] == [10, 20, 30]


def test_another_seed_gives_other_weights(tmp_path: Path) -> None:
    first, other = run(tmp_path / "1"), run(tmp_path / "2", dataclasses.replace(SETTINGS, seed=1))
    assert not torch.equal(first.state["embed.weight"], other.state["embed.weight"])


def test_a_time_budget_ends_the_run_with_its_schedule_at_the_end(tmp_path: Path) -> None:
    result = run(tmp_path, dataclasses.replace(SETTINGS, steps=None, max_seconds=0.4))
    assert result.history[-1]["elapsed_s"] < 5.0
    assert result.history[-1]["lr"] < 0.1 * max(entry["lr"] for entry in result.history)
    assert result.samples_per_s > 0


def test_steps_and_time_together_end_with_the_first_of_them(tmp_path: Path) -> None:
    assert run(tmp_path, dataclasses.replace(SETTINGS, max_seconds=1000.0)).steps == 30


def test_a_resumed_run_must_have_the_same_sizes(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(CheckpointError, match="model = "):
        pretrain(TINY, TinyConfig(width=9), TOKENS, SETTINGS, run_dir=tmp_path, resume=True)


def test_an_epoch_of_steps_shows_no_flow_twice() -> None:
    rows = np.concatenate([step_rows(50, 16, 0, step) for step in range(3)])
    assert len(set(rows.tolist())) == 48
    again = np.concatenate([step_rows(50, 16, 0, step) for step in range(3, 6)])
    assert rows.tolist() != again.tolist()


def test_fewer_flows_than_a_batch_are_one_batch(tmp_path: Path) -> None:
    few = TOKENS.take(slice(0, 5))
    assert pretrain(TINY, TinyConfig(), few, SETTINGS, run_dir=tmp_path).steps == 30


def test_no_flows_and_no_budget_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="pre-training: got 0 flows, expected at least one"):
        pretrain(TINY, TinyConfig(), TOKENS.take(slice(0, 0)), SETTINGS, run_dir=tmp_path)
    with pytest.raises(UsageError, match="got neither steps nor max_seconds"):
        PretrainSettings()


def test_netmamba_itself_pretrains_and_resumes(tmp_path: Path) -> None:
    family = FAMILIES["netmamba"]
    config = family.config_type(
        n_bytes=16,
        stride=2,
        d_model=16,
        n_layers=1,
        d_state=4,
        decoder_d_model=16,
        decoder_layers=1,
        mask_ratio=0.5,
    )
    settings = dataclasses.replace(SETTINGS, steps=3)

    def interrupt(at: dict[str, Any]) -> None:
        if at["step"] == 2:
            signal.raise_signal(signal.SIGINT)

    whole = pretrain(family, config, TOKENS, settings, run_dir=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        pretrain(family, config, TOKENS, settings, run_dir=tmp_path / "cut", on_progress=interrupt)
    resumed = pretrain(family, config, TOKENS, settings, run_dir=tmp_path / "cut", resume=True)
    assert all(torch.equal(whole.state[name], resumed.state[name]) for name in whole.state)
