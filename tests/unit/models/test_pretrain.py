"""Pre-training: the loss falls, a budget holds, an interrupted run goes on as if it had not been."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from capture.errors import CheckpointError, DataError, UsageError
from models.families import FAMILIES
from models.learning.batches import step_rows
from models.learning.pretrain import PretrainResult, PretrainSettings, pretrain
from models.precision import cpu_multiplies_bf16
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


@pytest.mark.parametrize(
    ("step", "number"),
    [(1, signal.SIGINT), (10, signal.SIGTERM), (17, signal.SIGINT), (30, signal.SIGTERM)],
)
def test_an_interrupted_run_resumes_to_the_result_of_an_uninterrupted_one(
    tmp_path: Path, step: int, number: int
) -> None:
    def interrupt(at: dict[str, Any]) -> None:
        if at["step"] == step:
            signal.raise_signal(number)

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


NETMAMBA = FAMILIES["netmamba"]
SMALL = NETMAMBA.config_type(
    n_bytes=16,
    stride=2,
    d_model=16,
    n_layers=1,
    d_state=4,
    decoder_d_model=16,
    decoder_layers=1,
    mask_ratio=0.5,
)


def run_netmamba(run_dir: Path, **changes: Any) -> PretrainResult:
    """Without drop path, which is drawn for each part of a step."""
    settings = dataclasses.replace(SETTINGS, steps=4, history_every_steps=1, **changes)
    config = dataclasses.replace(SMALL, drop_path=0.0)
    return pretrain(NETMAMBA, config, TOKENS, settings, run_dir=run_dir)


def losses(result: PretrainResult) -> list[float]:
    return [entry["loss"] for entry in result.history]


def test_accumulated_batches_learn_what_one_large_batch_learns(tmp_path: Path) -> None:
    whole = run_netmamba(tmp_path / "whole", batch=48)
    parts = run_netmamba(tmp_path / "parts", batch=12, accumulate=4)
    assert (whole.flows_per_step, parts.flows_per_step) == (48, 48)
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-5)
    for name, weight in whole.state.items():
        assert torch.allclose(parts.state[name], weight, rtol=1e-3, atol=1e-5), name
    assert losses(run_netmamba(tmp_path / "small", batch=12)) != pytest.approx(losses(whole), rel=1e-3)


def test_accumulated_gradients_are_those_of_the_whole_batch() -> None:
    torch.manual_seed(0)
    model = NETMAMBA.build_pretrainer(dataclasses.replace(SMALL, drop_path=0.0))
    flows = torch.from_numpy(TOKENS.arrays["bytes"][:48])

    def gradients(n_parts: int) -> list[torch.Tensor]:
        model.zero_grad()
        generator = torch.Generator().manual_seed(3)
        for part in flows.chunk(n_parts):
            loss, _, _ = model(part, generator=generator)
            (loss / n_parts).backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    for whole, parts in zip(gradients(1), gradients(4), strict=True):
        assert (whole - parts).abs().max() < 1e-6


def test_a_later_part_of_a_batch_goes_on_with_the_masks() -> None:
    model = NETMAMBA.build_pretrainer(SMALL)
    flows = torch.from_numpy(TOKENS.arrays["bytes"][:10])
    whole = model(flows, generator=torch.Generator().manual_seed(3))[2]
    generator = torch.Generator().manual_seed(3)
    model.skip_draws(generator, 7)
    assert torch.equal(model(flows[7:], generator=generator)[2], whole[7:])


def test_more_parts_than_flows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"got 50 flows for 51 parts of a step \(51 batches in each of 1"):
        run_netmamba(tmp_path, accumulate=51)


@pytest.mark.skipif(not cpu_multiplies_bf16(), reason="this CPU has no bf16 products")
def test_bf16_learns_nearly_what_fp32_learns_and_keeps_its_weights_in_float32(tmp_path: Path) -> None:
    fp32 = run_netmamba(tmp_path / "fp32")
    bf16 = run_netmamba(tmp_path / "bf16", precision="bf16")
    assert losses(bf16) == pytest.approx(losses(fp32), rel=0.02)
    assert losses(bf16) != losses(fp32)
    assert {t.dtype for t in bf16.state.values()} == {torch.float32}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_bf16_learns_nearly_what_fp32_learns_on_a_gpu(tmp_path: Path) -> None:
    fp32 = run_netmamba(tmp_path / "fp32", device="cuda")
    bf16 = run_netmamba(tmp_path / "bf16", device="cuda", precision="bf16")
    assert losses(bf16) == pytest.approx(losses(fp32), rel=0.02)
    assert fp32.device == "cuda"


def test_bf16_is_refused_where_it_would_be_slower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.precision.cpu_multiplies_bf16", lambda: False)
    with pytest.raises(UsageError, match=r"got bf16, but this cpu device has no bf16 products .* use fp32"):
        run_netmamba(tmp_path, precision="bf16")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match="precision: got 'int4', expected one of fp32, bf16"):
        dataclasses.replace(SETTINGS, precision="int4")


KILLED = """
import dataclasses, os, signal, sys
from pathlib import Path
import models.learning.run_state as run_state
from tests.unit.models.test_pretrain import SETTINGS, run

place, folder = sys.argv[1], Path(sys.argv[2])
replace_file, n_files = run_state.replace_file, 0

def killed(target, data):
    global n_files
    n_files += 1
    if n_files == 3:  # the second save: its weights
        if place == "weights":
            Path(target).with_name(f".{target.name}.x1").write_bytes(data[: len(data) // 2])
        else:
            replace_file(target, data)
        os.kill(os.getpid(), signal.SIGKILL)
    replace_file(target, data)

run_state.replace_file = killed
run(folder, dataclasses.replace(SETTINGS, save_every_s=1e-9))
"""


@pytest.mark.parametrize("place", ["weights", "between"])
def test_a_run_killed_in_the_middle_of_saving_resumes_from_the_state_before(
    tmp_path: Path, place: str
) -> None:
    cut = tmp_path / "cut"
    process = subprocess.run(
        [sys.executable, "-c", KILLED, place, str(cut)], cwd=Path(__file__).parents[3], check=False
    )
    assert process.returncode == -signal.SIGKILL
    assert len(list(cut.iterdir())) == 3, "the whole state of step 1, and what was left of step 2"
    steps: list[int] = []
    resumed = run(cut, resume=True, on_progress=lambda at: steps.append(at["step"]))
    assert steps[0] == 2
    whole = run(tmp_path / "whole")
    assert all(torch.equal(whole.state[name], resumed.state[name]) for name in whole.state)
    assert sorted(path.name for path in cut.iterdir()) == ["state-000000030.safetensors", "state.json"]


def test_netmamba_itself_pretrains_and_resumes(tmp_path: Path) -> None:
    family, config = NETMAMBA, SMALL
    settings = dataclasses.replace(SETTINGS, steps=3)

    def interrupt(at: dict[str, Any]) -> None:
        if at["step"] == 2:
            signal.raise_signal(signal.SIGINT)

    whole = pretrain(family, config, TOKENS, settings, run_dir=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        pretrain(family, config, TOKENS, settings, run_dir=tmp_path / "cut", on_progress=interrupt)
    resumed = pretrain(family, config, TOKENS, settings, run_dir=tmp_path / "cut", resume=True)
    assert all(torch.equal(whole.state[name], resumed.state[name]) for name in whole.state)
