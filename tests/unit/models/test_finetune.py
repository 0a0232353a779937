"""Fine-tuning: it learns, it can be stopped and goes on as if it had not been, it refuses what does not fit."""

from __future__ import annotations

import dataclasses
import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from capture.errors import CheckpointError, DataError, TrainingError, UsageError
from models.learning.batches import LabelledTokens
from models.learning.finetune import FinetuneResult, FinetuneSettings, finetune
from models.learning.objectives import macro_f1
from tests.unit.models.tiny_family import TINY, TinyConfig, TinyPretrainer, labelled

SETTINGS = FinetuneSettings(epochs=4, batch=16, learning_rate=2e-2, threads=1, device="cpu", seed=3)
TRAIN, VALIDATION = labelled(100, seed=1), labelled(40, seed=2)


def run(run_dir: Path, settings: FinetuneSettings = SETTINGS, **more: Any) -> FinetuneResult:
    return finetune(TINY, TinyConfig(), TRAIN, VALIDATION, 3, settings, run_dir=run_dir, **more)


def same_state(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def without_time(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in entry.items() if name != "elapsed_s"} for entry in history]


def interrupt_at(step: int) -> Any:
    def on_progress(at: dict[str, Any]) -> None:
        if at["step"] == step:
            signal.raise_signal(signal.SIGINT)

    return on_progress


def test_it_learns_what_the_bytes_say(tmp_path: Path) -> None:
    result = run(tmp_path, dataclasses.replace(SETTINGS, epochs=15))
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert max(entry["val_macro_f1"] for entry in result.history) > 0.8


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    first, second = run(tmp_path / "1"), run(tmp_path / "2")
    other = run(tmp_path / "3", dataclasses.replace(SETTINGS, seed=4))
    assert same_state(first.state, second.state)
    assert not same_state(first.state, other.state)


def test_training_leaves_torchs_random_state_and_threads_alone(tmp_path: Path) -> None:
    torch.manual_seed(11)
    expected, threads = torch.rand(4), torch.get_num_threads()
    torch.manual_seed(11)
    run(tmp_path)
    assert torch.equal(torch.rand(4), expected)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("step", [1, 7, 10, 28])  # first, in an epoch, end of an epoch (7 steps each), last
def test_an_interrupted_run_resumes_to_the_result_of_an_uninterrupted_one(tmp_path: Path, step: int) -> None:
    whole = run(tmp_path / "whole")
    assert whole.history[-1]["step"] == 28
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", on_progress=interrupt_at(step))
    resumed = run(tmp_path / "cut", resume=True)
    assert same_state(whole.state, resumed.state)
    assert without_time(whole.history) == without_time(resumed.history)
    assert whole.best_epoch == resumed.best_epoch


def test_a_run_that_died_resumes_from_the_last_saved_state(tmp_path: Path) -> None:
    def die(at: dict[str, Any]) -> None:
        if at["step"] == 12:
            raise RuntimeError("power cut")

    whole = run(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="power cut"):
        run(tmp_path / "cut", on_progress=die)
    assert json.loads((tmp_path / "cut" / "state.json").read_text())["position"]["step"] == 7
    assert same_state(whole.state, run(tmp_path / "cut", resume=True).state)


def test_a_finished_run_resumes_to_its_result_without_a_step(tmp_path: Path) -> None:
    first = run(tmp_path)
    steps: list[int] = []
    again = run(tmp_path, resume=True, on_progress=lambda at: steps.append(at["step"]))
    assert steps == []
    assert same_state(first.state, again.state)
    assert first.history == again.history


def test_ctrl_c_works_again_after_training(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    run(tmp_path)
    assert signal.getsignal(signal.SIGINT) is before


def test_one_state_is_kept_and_nothing_in_it_is_a_pickle(tmp_path: Path) -> None:
    run(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["state-000000028.safetensors", "state.json"]
    assert (tmp_path / names[0]).read_bytes()[8:9] == b"{"


def test_resuming_with_another_setting_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"got learning_rate = 0\.5, expected 0\.02 as when the run began"
    ):
        run(tmp_path, dataclasses.replace(SETTINGS, learning_rate=0.5), resume=True)


def test_resuming_with_other_flows_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(CheckpointError, match="training_flows"):
        finetune(
            TINY, TinyConfig(), labelled(100, seed=9), VALIDATION, 3, SETTINGS, run_dir=tmp_path, resume=True
        )


def test_resuming_nothing_is_an_error_and_never_a_fresh_start(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"got no such file, expected the state of a run; start without --resume"
    ):
        run(tmp_path, resume=True)


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    (weights,) = tmp_path.glob("state-*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="cut off or damaged"):
        run(tmp_path, resume=True)


def test_a_state_without_its_position_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    state = json.loads((tmp_path / "state.json").read_text())
    del state["position"]["best_epoch"]
    (tmp_path / "state.json").write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match=r"state\.json: position: got no key 'best_epoch'"):
        run(tmp_path, resume=True)


def test_the_best_epoch_is_given_back_and_not_the_last(tmp_path: Path) -> None:
    # A rate far too high: later epochs get worse.
    settings = dataclasses.replace(SETTINGS, epochs=12, learning_rate=1.0, warmup_share=0.9)
    result = run(tmp_path, settings)
    scores = [entry["val_macro_f1"] for entry in result.history]
    assert scores[result.best_epoch - 1] == max(scores)
    model = TINY.build_classifier(TinyConfig(), 3).eval()
    model.load_state_dict(result.state)
    with torch.inference_mode():
        answers = model(torch.from_numpy(VALIDATION.tokens.arrays["bytes"])).argmax(1).numpy()
    assert macro_f1(answers, VALIDATION.labels) == max(scores)


def test_patience_ends_a_run_that_gets_no_better(tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, epochs=40, learning_rate=1e-9, patience_epochs=2)
    result = run(tmp_path, settings)
    assert len(result.history) == result.best_epoch + 2 < 40


def test_a_time_budget_ends_the_run_with_its_schedule_at_the_end(tmp_path: Path) -> None:
    result = run(tmp_path, dataclasses.replace(SETTINGS, epochs=10**6, max_seconds=0.5))
    assert result.state
    assert 0.3 <= result.history[-1]["elapsed_s"] < 5.0
    assert result.history[-1]["lr"] < 0.2 * max(entry["lr"] for entry in result.history)


def test_without_validation_flows_the_last_epoch_is_the_result(tmp_path: Path) -> None:
    nothing = LabelledTokens(TRAIN.tokens.take(slice(0, 0)), TRAIN.labels[:0], TRAIN.groups[:0])
    result = finetune(TINY, TinyConfig(), TRAIN, nothing, 3, SETTINGS, run_dir=tmp_path)
    assert result.best_epoch == 4
    assert result.history[-1]["val_macro_f1"] is None


def test_progress_tells_all_that_a_bar_needs(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    run(tmp_path, on_progress=seen.append)
    keys = {"epoch", "epochs", "step", "steps", "loss", "lr", "samples_per_s", "eta_s", "val_macro_f1"}
    assert all(entry.keys() == keys for entry in seen)
    assert seen[0]["val_macro_f1"] is None
    assert seen[-1]["val_macro_f1"] is not None
    assert (seen[-1]["step"], seen[-1]["steps"], seen[-1]["eta_s"]) == (28, 28, 0.0)


def test_pretrained_weights_are_where_learning_starts(tmp_path: Path) -> None:
    torch.manual_seed(8)
    base = TinyPretrainer(TinyConfig())
    settings = dataclasses.replace(SETTINGS, epochs=1, learning_rate=1e-12, min_learning_rate=0.0)
    result = run(tmp_path, settings, init_state=base.state_dict())
    assert torch.allclose(result.state["embed.weight"], base.state_dict()["embed.weight"])
    assert "decoder.weight" not in result.state


def test_pretrained_weights_with_a_tensor_missing_never_stay_random(tmp_path: Path) -> None:
    state = TinyPretrainer(TinyConfig()).state_dict()
    del state["blocks.0.weight"]
    with pytest.raises(
        CheckpointError, match=r"got no tensor 'blocks\.0\.weight', expected a tiny checkpoint"
    ):
        run(tmp_path, init_state=state)


def test_pretrained_weights_of_other_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'pos_embed': got shape \[1, 7\], expected \[1, 12\]"):
        run(tmp_path, init_state=TinyPretrainer(TinyConfig(width=7)).state_dict())


def test_augmentation_sees_every_training_batch_and_no_validation_flow(tmp_path: Path) -> None:
    rows: list[int] = []

    def blank(arrays: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        rows.append(len(arrays["bytes"]))
        return {"bytes": np.zeros_like(arrays["bytes"])}

    result = run(tmp_path, augment=blank)
    assert sum(rows) == 400
    assert result.history[-1]["loss"] > 1.0  # nothing to learn from zeros: log 3


def test_a_loss_that_is_not_finite_stops_the_run_and_says_so(tmp_path: Path) -> None:
    state = TinyPretrainer(TinyConfig()).state_dict()
    state["embed.bias"][0] = float("nan")
    with pytest.raises(
        TrainingError, match=r"training diverged: got loss nan .* at step 1, .*lower the learning rate"
    ):
        run(tmp_path, init_state=state)


def test_labels_that_the_head_does_not_have_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="training flows: got labels 0 to 2, expected 0 to 1"):
        finetune(TINY, TinyConfig(), TRAIN, VALIDATION, 2, SETTINGS, run_dir=tmp_path)


def test_no_training_flows_are_refused(tmp_path: Path) -> None:
    nothing = LabelledTokens(TRAIN.tokens.take(slice(0, 0)), TRAIN.labels[:0], TRAIN.groups[:0])
    with pytest.raises(DataError, match="training flows: got 0 flows"):
        finetune(TINY, TinyConfig(), nothing, VALIDATION, 3, SETTINGS, run_dir=tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs: got 0, expected 1 or more"),
        ({"learning_rate": float("nan")}, "learning_rate: got nan, expected more than 0"),
        ({"label_smoothing": 1.0}, r"label_smoothing: got 1\.0, expected 0 to below 1"),
        ({"balance": 2.0}, r"balance: got 2\.0, expected 0 to 1"),
        ({"device": "tpu"}, "--device: got 'tpu', expected auto, cpu or cuda"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run(tmp_path, dataclasses.replace(SETTINGS, **change))


def test_macro_f1_equals_its_definition() -> None:
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 4, 200), rng.integers(0, 5, 200)
    scores = []
    for label in range(5):
        true_positive = sum(1 for a, b in zip(labels, predicted, strict=True) if a == b == label)
        precision = true_positive / max(sum(1 for b in predicted if b == label), 1)
        recall = true_positive / max(sum(1 for a in labels if a == label), 1)
        scores.append(2 * precision * recall / (precision + recall) if true_positive else 0.0)
    assert macro_f1(predicted, labels) == pytest.approx(np.mean(scores))


def test_with_few_validation_flows_the_last_epoch_is_kept_not_the_best(tmp_path: Path) -> None:
    best = run(tmp_path / "best", dataclasses.replace(SETTINGS, epochs=8, choose_from=1))
    last = run(tmp_path / "last", dataclasses.replace(SETTINGS, epochs=8, choose_from=10_000))
    assert last.best_epoch == len(last.history)
    scores = [entry["val_macro_f1"] for entry in best.history]
    assert scores[best.best_epoch - 1] == max(scores)
    assert [entry["val_macro_f1"] for entry in last.history] == scores
    patient = run(
        tmp_path / "patient", dataclasses.replace(SETTINGS, epochs=8, choose_from=10_000, patience_epochs=50)
    )
    assert patient.best_epoch == best.best_epoch
