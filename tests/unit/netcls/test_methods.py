"""``--method``, ``--shots`` and ``--loss``: from labelled captures to a checkpoint that says how it was trained."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from capture.errors import UsageError
from capture.representations import build
from models.adapter_files import load_adapter, merged_checkpoint
from models.checkpoint import Calibration, Checkpoint, load_checkpoint, save_checkpoint
from models.families import family
from models.learning.losses import LOSSES
from models.learning.methods import METHODS
from netcls import recipes
from netcls.cli import train as cli
from netcls.datasets.shots import choose_shots
from netcls.finetuning import FinetuneOptions, run_finetune
from netcls.recipes import FEW_FLOWS, batch_for, recipe
from tests.pcap_writer import START_S, udp_flow, write_pcap

CAPTURES, FLOWS = 8, 6


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes that differ by their payload bytes, eight captures of six flows each."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for label, fill in (("zeros", 1), ("ones", 200)):
        for capture in range(CAPTURES):
            packets = []
            for flow in range(FLOWS):
                sizes = rng.integers(8, 400, 4).tolist()
                packets += udp_flow("10.0.0.1", 3000 + flow, sizes, start_s=START_S + flow, fill=fill)
            write_pcap(folder / label / f"{capture}.pcap", packets)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A backbone with random weights; its file stands where pre-training would put one."""
    settings = build("netmamba", {"n_packets": 3, "header_bytes": 28, "payload_bytes": 12}).settings()
    kind = family("netmamba")
    config = kind.config_for(
        settings, d_model=16, n_layers=1, d_state=4, decoder_d_model=16, decoder_layers=1
    )
    torch.manual_seed(1)
    return save_checkpoint(
        tmp_path_factory.mktemp("base") / "backbone",
        kind="backbone",
        family="netmamba",
        model_config=dataclasses.asdict(config),
        representation="netmamba",
        representation_settings=settings,
        labels=[],
        calibration=Calibration(),
        card={},
        state=kind.build_pretrainer(config).state_dict(),
    )


@pytest.fixture
def options(data: Path, base: Checkpoint, tmp_path: Path) -> FinetuneOptions:
    return FinetuneOptions(
        str(data),
        str(tmp_path / "model"),
        base=str(base.path),
        epochs=6,
        batch=16,
        threads=1,
        device="cpu",
        baselines=False,
    )


def test_head_gives_a_classifier_on_the_untouched_backbone(
    options: FinetuneOptions, base: Checkpoint
) -> None:
    report = run_finetune(dataclasses.replace(options, method="head", epochs=40, learning_rate=5e-3))
    made = load_checkpoint(options.out)
    body = [name for name in made.state if not name.startswith("head.")]
    assert len(body) > 10
    assert all(torch.equal(made.state[name], base.state[name]) for name in body)
    assert report["training"]["method"] == "head"
    assert report["test"]["macro_f1"] > 0.9
    assert made.card["training"]["method"] == "head"


def test_lora_gives_a_plain_classifier_and_on_request_its_adapter(
    options: FinetuneOptions, base: Checkpoint
) -> None:
    report = run_finetune(
        dataclasses.replace(options, method="lora", rank=2, keep_adapter=True, learning_rate=0.02)
    )
    out = Path(options.out)
    assert (report["training"]["rank"], report["training"]["alpha"]) == (2, 4.0)
    made, saved = load_checkpoint(out), load_adapter(out, base)
    assert (saved.labels, saved.calibration) == (made.labels, made.calibration)
    merged = merged_checkpoint(base, saved)
    assert all(torch.equal(merged.state[name], made.state[name]) for name in made.state)
    assert not torch.equal(
        made.state["blocks.0.mixer.x_proj.weight"], base.state["blocks.0.mixer.x_proj.weight"]
    )
    assert json.loads((out / "adapter.json").read_text())["base"] == {
        "name": "backbone",
        "digest": base.digest,
    }


def test_without_the_request_no_adapter_is_written(options: FinetuneOptions) -> None:
    run_finetune(dataclasses.replace(options, method="lora", epochs=1))
    assert not list(Path(options.out).glob("adapter*"))


def test_a_few_shot_run_trains_on_n_flows_of_each_class_and_says_so(options: FinetuneOptions) -> None:
    report = run_finetune(dataclasses.replace(options, method="head", shots=3))
    parts, shots = report["split"]["parts"], report["training"]["shots"]
    assert (parts["train"]["flows"], parts["train"]["captures"]) == (6, 6)
    assert (shots["per_class"], shots["flows"], shots["captures"], shots["fewer"]) == (3, 6, 6, {})
    everything = sum(part["flows"] for part in parts.values()) + shots["left_out"]
    assert everything == 2 * CAPTURES * FLOWS
    held = parts["validation"]["flows"] + parts["calibration"]["flows"]
    sentence = (
        f"Few-shot: trained on 3 flows of each class (6 flows of 6 captures; {shots['left_out']} other training "
        f"flows were left out). {held} further labelled flows judged the epochs and fitted the temperature."
    )
    assert sentence in report["warnings"]
    assert sentence in load_checkpoint(options.out).card["known_limits"]


def test_shots_beyond_what_there_is_take_all_and_name_the_class(options: FinetuneOptions) -> None:
    report = run_finetune(dataclasses.replace(options, method="head", shots=500, epochs=1))
    assert report["training"]["shots"]["left_out"] == 0
    assert any(text.startswith("Fewer than 500 training flows: 'ones' (") for text in report["warnings"])


def test_shots_come_from_as_many_captures_as_possible() -> None:
    rng = np.random.default_rng(3)
    labels, captures = rng.integers(0, 3, 300), rng.integers(0, 7, 300)
    for per_class in (1, 5, 7, 10, 1000):
        rows = choose_shots(labels, captures, per_class, seed=0)
        for label in range(3):
            mine, all_flows = captures[rows[labels[rows] == label]], captures[labels == label]
            assert len(mine) == min(per_class, len(all_flows))
            assert len(np.unique(mine)) == min(per_class, len(np.unique(all_flows)))
            taken, there = np.bincount(mine, minlength=7), np.bincount(all_flows, minlength=7)
            assert all(taken[c] + 1 >= taken.max() or taken[c] == there[c] for c in range(7))


def test_shots_are_a_function_of_the_seed() -> None:
    labels, captures = np.arange(200) % 2, np.arange(200) % 40
    first, second = (choose_shots(labels, captures, 5, seed=seed) for seed in (0, 1))
    assert np.array_equal(first, choose_shots(labels, captures, 5, seed=0))
    assert not np.array_equal(first, second)
    assert np.all(np.diff(first) > 0)


def test_the_loss_that_is_asked_for_stands_in_the_report_and_trains(
    options: FinetuneOptions, tmp_path: Path
) -> None:
    ce = run_finetune(dataclasses.replace(options, epochs=1))
    ldam = run_finetune(dataclasses.replace(options, epochs=1, loss="ldam", out=str(tmp_path / "ldam")))
    assert (ce["training"]["loss"], ldam["training"]["loss"]) == ("ce", "ldam")
    # Two classes of equal size: each margin is the largest, 2 logits.
    assert ldam["training"]["history"][0]["loss"] > ce["training"]["history"][0]["loss"] + 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"method": "head", "base": "none"},
            "method 'head' trains no backbone and would start from random weights; give --base",
        ),
        (
            {"method": "lora", "base": None, "representation": {"stride": 8}},
            "method 'lora' trains no backbone and would start from random weights",
        ),
        (
            {"base": None, "representation": {}, "method": "lora", "family": "packet-mamba"},
            "would start from random weights",
        ),
        ({"keep_adapter": True}, "keep_adapter is given, but method 'full' makes none; use method lora"),
        ({"loss": "focal"}, "loss 'focal' is not available; choose ce, ldam"),
        ({"shots": 0}, "shots: got 0, expected 1 or more"),
        ({"rank": 0}, "rank: got 0, expected 1 or more"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    options: FinetuneOptions, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(options, **change)


def test_few_flows_get_more_epochs_and_never_fewer_than_the_recipe_has() -> None:
    full = recipe("full", from_base=True)
    assert full.epochs_for(100_000, 64) == full.epochs
    assert full.epochs_for(10, 64) == full.min_steps
    assert full.epochs_for(0, 64) == full.min_steps
    assert recipe("full", from_base=False).layer_decay == 1.0


def test_few_flows_are_trained_in_small_steps_at_their_own_rate() -> None:
    lora = recipe("lora", from_base=True)
    assert (batch_for(100), batch_for(FEW_FLOWS)) == (16, 64)
    assert (
        lora.learning_rate_for(16) == lora.small_batch_rate < lora.learning_rate == lora.learning_rate_for(64)
    )


def test_a_run_without_a_base_starts_from_the_default_unless_the_network_is_described() -> None:
    def start(**given: Any) -> str | None:
        return FinetuneOptions("data", "out", **given).start

    assert start() == start(method="head") == "default"
    assert start(base="netmamba") == "netmamba"
    assert start(base="none") is None
    assert start(sizes={"d_model": 64}) is None
    assert start(representation={"payload_bytes": 0}) is None
    assert start(family="packet-mamba") is None


def test_what_is_given_goes_before_the_recipe(options: FinetuneOptions) -> None:
    report = run_finetune(dataclasses.replace(options, epochs=2, learning_rate=1e-4, batch=7))
    said = report["training"]
    assert (said["epochs"], said["learning_rate"], said["batch"]) == (2, 1e-4, 7)


def test_the_command_the_run_and_the_loop_know_the_same_methods_and_losses() -> None:
    assert cli.METHODS == recipes.METHODS == METHODS
    assert cli.LOSSES == recipes.LOSSES == LOSSES
