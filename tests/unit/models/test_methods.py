"""What learns and what stays: full, head, lora; which loss; and what an adapter's files promise."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from capture.errors import CheckpointError, UsageError
from models.adapter_files import load_adapter, merged_checkpoint, network_for_adapters, save_adapter
from models.checkpoint import Calibration, Checkpoint, save_checkpoint
from models.learning.batches import LabelledTokens
from models.learning.finetune import FinetuneResult, FinetuneSettings, finetune
from models.learning.losses import MAX_MARGIN, ldam_margins, training_loss
from models.learning.methods import logistic_regression
from models.learning.objectives import macro_f1
from models.nets.adapters import AdapterSlot
from tests.unit.models.tiny_family import (
    TINY,
    TinyClassifier,
    TinyConfig,
    TinyPretrainer,
    checkpoint_arguments,
    labelled,
    registered,
)

TRAIN, VALIDATION = labelled(120, seed=1), labelled(60, seed=2)
SETTINGS = FinetuneSettings(
    epochs=6, batch=16, learning_rate=2e-2, layer_decay=1.0, rank=3, threads=1, device="cpu", seed=3
)
BODY = ("embed.weight", "embed.bias", "blocks.0.weight", "blocks.0.bias", "pos_embed")
CPU = torch.device("cpu")


def base_state() -> dict[str, torch.Tensor]:
    torch.manual_seed(8)
    return TinyPretrainer(TinyConfig()).state_dict()


def run(run_dir: Path, method: str, train: LabelledTokens = TRAIN, **changes: Any) -> FinetuneResult:
    more = {name: changes.pop(name) for name in ("resume", "on_progress", "augment") if name in changes}
    settings = dataclasses.replace(SETTINGS, method=method, **changes)
    return finetune(
        TINY, TinyConfig(), train, VALIDATION, 3, settings, init_state=base_state(), run_dir=run_dir, **more
    )


def answers(state: dict[str, torch.Tensor]) -> Any:
    model = TINY.build_classifier(TinyConfig(), 3).eval()
    model.load_state_dict(state)
    with torch.inference_mode():
        return model(torch.from_numpy(VALIDATION.tokens.arrays["bytes"])).argmax(1).numpy()


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Checkpoint]:
    with registered():
        arguments = checkpoint_arguments("backbone", state=base_state())
        yield save_checkpoint(tmp_path / "backbone", **arguments)


@pytest.mark.parametrize("method", ["full", "head", "lora"])
def test_each_method_learns_and_gives_the_weights_of_its_best_epoch(tmp_path: Path, method: str) -> None:
    result = run(tmp_path, method, epochs=15)
    scores = [entry["val_macro_f1"] for entry in result.history]
    assert max(scores) > 0.6
    assert macro_f1(answers(result.state), VALIDATION.labels) == scores[result.best_epoch - 1]
    assert result.state.keys() == TINY.build_classifier(TinyConfig(), 3).state_dict().keys()


def test_head_leaves_the_backbone_bit_identical(tmp_path: Path) -> None:
    before, result = base_state(), run(tmp_path, "head")
    assert all(torch.equal(result.state[name], before[name]) for name in BODY)
    assert result.adapter is None


def test_the_head_starts_from_the_logistic_regression_of_the_features(tmp_path: Path) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200) * (rng.random(200) < 0.6)  # class 0 is most of them
    features = (rng.normal(0, 1, (200, 6)) + np.eye(6)[labels] * 1.5).astype(np.float32)
    weight, bias = logistic_regression(features, labels, 4)
    peer = linear_model.LogisticRegression(C=1.0, class_weight="balanced", max_iter=1000, tol=1e-8)
    peer.fit(features, labels)
    assert np.abs(weight.numpy()[:3] - peer.coef_).max() < 2e-3
    answers = features @ weight.numpy().T + bias.numpy()
    assert np.array_equal(
        answers.argmax(1), peer.predict(features)
    )  # the label without flows is never answered
    first = run(tmp_path, "head", epochs=1, learning_rate=1e-9)
    assert first.history[0]["val_macro_f1"] > 0.6


def test_lora_changes_dense_weights_alone_and_by_no_more_than_its_rank(tmp_path: Path) -> None:
    before, result = base_state(), run(tmp_path, "lora")
    same = {name for name in BODY if torch.equal(result.state[name], before[name])}
    assert same == {"embed.bias", "blocks.0.bias", "pos_embed"}
    change = result.state["blocks.0.weight"] - before["blocks.0.weight"]
    assert int(torch.linalg.matrix_rank(change, atol=1e-5)) == 3


def test_full_changes_every_weight(tmp_path: Path) -> None:
    before, result = base_state(), run(tmp_path, "full")
    assert not any(torch.equal(result.state[name], before[name]) for name in BODY)


def test_the_head_s_features_are_computed_once_and_without_dropout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flows: list[int] = []
    features = TinyClassifier.features

    def counted(self: TinyClassifier, bytes: torch.Tensor) -> torch.Tensor:
        assert not self.training
        assert torch.is_inference_mode_enabled()
        flows.append(len(bytes))
        return features(self, bytes)

    monkeypatch.setattr(TinyClassifier, "features", counted)
    run(tmp_path, "head", epochs=9)
    assert sum(flows) == len(TRAIN) + len(VALIDATION)


def test_a_feature_that_never_varies_does_no_harm(tmp_path: Path) -> None:
    state = base_state()
    for name in ("embed.weight", "blocks.0.weight", "embed.bias", "blocks.0.bias"):
        state[name][0] = 0.0
    settings = dataclasses.replace(SETTINGS, method="head", epochs=15)
    result = finetune(TINY, TinyConfig(), TRAIN, VALIDATION, 3, settings, init_state=state, run_dir=tmp_path)
    assert macro_f1(answers(result.state), VALIDATION.labels) > 0.6


@pytest.mark.parametrize("method", ["head", "lora"])
def test_an_interrupted_run_resumes_to_the_result_of_an_uninterrupted_one(
    tmp_path: Path, method: str
) -> None:
    def stop(at: dict[str, Any]) -> None:
        if at["step"] == 20:
            raise RuntimeError("power cut")

    whole = run(tmp_path / "whole", method)
    with pytest.raises(RuntimeError, match="power cut"):
        run(tmp_path / "cut", method, on_progress=stop)
    resumed = run(tmp_path / "cut", method, resume=True)
    assert all(torch.equal(whole.state[name], resumed.state[name]) for name in whole.state)


def test_a_run_of_another_method_is_not_resumed(tmp_path: Path) -> None:
    run(tmp_path, "head", epochs=1)
    with pytest.raises(CheckpointError, match="got method = 'lora', expected 'head' as when the run began"):
        run(tmp_path, "lora", epochs=1, resume=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "heads"}, "method: got 'heads', expected one of full, head, lora"),
        ({"loss": "focal"}, "loss: got 'focal', expected one of ce, ldam"),
        ({"rank": 0}, "rank: got 0, expected 1 or more"),
        ({"alpha": 0.0}, r"alpha: got 0\.0, expected more than 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(SETTINGS, **change)


def test_augmentation_that_the_head_would_never_see_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="got one with method 'head', whose features are computed once"):
        run(tmp_path, "head", augment=lambda arrays, rng: arrays)


def test_margins_grow_as_classes_shrink_by_the_fourth_root() -> None:
    margins = ldam_margins(np.array([1600, 100, 0, 1]))
    np.testing.assert_allclose(margins, MAX_MARGIN * np.array([1600**-0.25, 100**-0.25, 1, 1]), rtol=1e-6)


def test_ldam_is_cross_entropy_with_the_own_class_lowered_by_its_margin() -> None:
    labels = np.array([0] * 16 + [1])
    loss = training_loss("ldam", labels, 2, 0.1, CPU)
    logits, truth = torch.tensor([[1.0, 0.0], [0.5, 0.5]]), torch.tensor([0, 1])
    lowered = [(1.0 - MAX_MARGIN / 2, 0.0), (0.5 - MAX_MARGIN, 0.5)]  # 16 ** -1/4 = 1/2
    expected = np.mean([np.log1p(np.exp(other - own)) for own, other in lowered])
    assert float(loss(logits, truth)) == pytest.approx(expected)
    smoothed = training_loss("ce", labels, 2, 0.1, CPU)
    assert float(smoothed(logits, truth)) == pytest.approx(
        float(torch.nn.functional.cross_entropy(logits, truth, label_smoothing=0.1))
    )


def test_the_loss_that_is_asked_for_is_the_one_that_trains(tmp_path: Path) -> None:
    rare = np.flatnonzero((TRAIN.labels != 2) | (np.arange(len(TRAIN)) < 20))
    train = LabelledTokens(TRAIN.tokens.take(rare), TRAIN.labels[rare], TRAIN.groups[rare])
    ce = run(tmp_path / "ce", "full", train, epochs=1, label_smoothing=0.0)
    ldam = run(tmp_path / "ldam", "full", train, epochs=1, label_smoothing=0.0, loss="ldam")
    assert ldam.history[0]["loss"] > ce.history[0]["loss"] + 0.3
    assert not torch.equal(ldam.state["head.bias"], ce.state["head.bias"])


def save(folder: Path, result: FinetuneResult, base: Checkpoint) -> None:
    folder.mkdir()
    assert result.adapter is not None
    save_adapter(folder, result.adapter, base, ["x", "y", "z"], Calibration(1.25, 0.5))


def test_a_saved_adapter_on_its_base_answers_as_the_merged_classifier(
    tmp_path: Path, base: Checkpoint
) -> None:
    result = run(tmp_path / "run", "lora")
    save(tmp_path / "customer", result, base)
    loaded = load_adapter(tmp_path / "customer", base)
    assert (loaded.labels, loaded.calibration) == (["x", "y", "z"], Calibration(1.25, 0.5))
    model = network_for_adapters(base)
    AdapterSlot(model).apply(loaded.adapter)
    with torch.inference_mode():
        logits = model(torch.from_numpy(VALIDATION.tokens.arrays["bytes"]))
    assert np.array_equal(logits.argmax(1).numpy(), answers(result.state))
    merged = merged_checkpoint(base, loaded)
    assert all(torch.equal(merged.state[name], result.state[name]) for name in result.state)
    assert merged.save(tmp_path / "full").labels == ["x", "y", "z"]


def test_an_adapter_on_another_base_is_refused_naming_both_digests(tmp_path: Path, base: Checkpoint) -> None:
    save(tmp_path / "customer", run(tmp_path / "run", "lora", epochs=1), base)
    torch.manual_seed(99)
    state = TinyPretrainer(TinyConfig()).state_dict()
    other = save_checkpoint(tmp_path / "other", **checkpoint_arguments("backbone", state=state))
    assert other.digest != base.digest
    with pytest.raises(CheckpointError) as error:
        load_adapter(tmp_path / "customer", other)
    assert f"got base 'other' (tiny, digest {other.digest})" in str(error.value)
    assert f"expected 'backbone' (tiny, digest {base.digest})" in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 9}, "got format 9, expected 1"),
        ({"rank": True}, "got rank True, expected a whole number"),
        (
            {"labels": ["x", "y"]},
            r"got a head\.bias of \[3\] elements, expected one for each of the 2 labels",
        ),
        ({"labels": ["x", "y", "y"]}, "got label 'y' twice"),
        ({"alpha": -1}, "got alpha -1, expected a number above 0"),
        ({"extra": 1}, "got unknown key 'extra'"),
    ],
)
def test_a_description_that_cannot_be_is_refused(
    tmp_path: Path, base: Checkpoint, change: dict[str, Any], message: str
) -> None:
    save(tmp_path / "customer", run(tmp_path / "run", "lora", epochs=1), base)
    path = tmp_path / "customer" / "adapter.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        load_adapter(tmp_path / "customer", base)


def test_a_missing_or_cut_adapter_is_refused(tmp_path: Path, base: Checkpoint) -> None:
    save(tmp_path / "customer", run(tmp_path / "run", "lora", epochs=1), base)
    weights = tmp_path / "customer" / "adapter.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="cut off or damaged"):
        load_adapter(tmp_path / "customer", base)
    with pytest.raises(CheckpointError, match=r"adapter\.json: got no such file, expected an adapter"):
        load_adapter(tmp_path, base)
