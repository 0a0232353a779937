"""``finetune`` and ``pretrain``: every option arrives, the report leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import netcls.finetuning
import netcls.pretraining
from capture.errors import DataError
from netcls.cli.main import main
from netcls.finetuning import FinetuneOptions
from netcls.pretraining import PretrainOptions

Capfd = pytest.CaptureFixture[str]

ROW = {"name": "model", "sees": "bytes", "macro_f1": 0.51234, "macro_f1_low": 0.4, "macro_f1_high": 0.6}
FINETUNED = {
    "out": "my-model",
    "checkpoint": "3f9c1a7be204",
    "verdict": "The model is better.",
    "warnings": ["class 'chat' has one capture"],
    "baselines": [
        ROW | {"accuracy": 0.7, "note": ""},
        {"name": "lightgbm", "sees": "sizes", "note": "lightgbm is not installed"}
        | dict.fromkeys(("macro_f1", "macro_f1_low", "macro_f1_high", "accuracy")),
    ],
}


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The options that the runs were asked for."""
    asked: list[Any] = []

    def finetune(options: FinetuneOptions, on_progress: Any) -> dict[str, Any]:
        asked.append(options)
        if options.data == "empty":
            raise DataError("empty: no flow has a label")
        on_progress("read", {"done": 1, "total": 2})
        for step in range(3):
            details = {"epoch": 1, "step": step, "loss": 0.51234567, "samples_per_s": 149.4, "eta_s": 3725.2}
            on_progress("train", {**details, "val_macro_f1": None})
        return FINETUNED

    def pretrain(options: PretrainOptions, on_progress: Any) -> dict[str, Any]:
        asked.append(options)
        return {"out": "b", "checkpoint": "0123456789ab", "corpus": {"captures": 3}, "warnings": []}

    monkeypatch.setattr(netcls.finetuning, "run_finetune", finetune)
    monkeypatch.setattr(netcls.pretraining, "run_pretrain", pretrain)
    return asked


def test_the_defaults_of_the_commands_are_those_of_the_runs(given: list[Any]) -> None:
    assert main(["finetune", "labelled", "--out", "my-model"]) == 0
    assert main(["pretrain", "a.pcap", "folder", "--out", "b", "--steps", "9"]) == 0
    assert given == [
        FinetuneOptions("labelled", "my-model"),
        PretrainOptions(("a.pcap", "folder"), "b", steps=9),
    ]


def test_every_flag_of_finetune_arrives(given: list[Any]) -> None:
    flags = (
        "--out o --base netmamba --method lora --rank 4 --alpha 12 --keep-adapter --shots 5 --loss ldam "
        "--label label2 --group client,server --drop-label x --drop-label y --split group "
        "--group-rule each --leave-out a,b --leave-out c,d --epochs 3 --batch 8 --learning-rate 0.001 --balance 1 "
        "--patience-epochs 2 --max-seconds 60 --seed 7 --split-seed 8 --max-flows-per-capture 5 "
        "--tolerance-s 2 --clock-offset auto "
        "--unknown-quantile 0.9 --threads 1 --device cpu --representation payload_bytes=0 "
        "--representation field_policy=paper --no-baselines --cache-dir cache --resume --licence MIT"
    )
    assert main(["finetune", "data", *flags.split()]) == 0
    assert given == [
        FinetuneOptions(
            data="data",
            out="o",
            base="netmamba",
            method="lora",
            rank=4,
            alpha=12.0,
            keep_adapter=True,
            shots=5,
            loss="ldam",
            label="label2",
            group=("client", "server"),
            drop_labels=("x", "y"),
            split="group",
            group_rule="each",
            leave_out=(("a", "b"), ("c", "d")),
            epochs=3,
            batch=8,
            learning_rate=0.001,
            balance=1.0,
            patience_epochs=2,
            max_seconds=60.0,
            seed=7,
            split_seed=8,
            max_flows_per_capture=5,
            tolerance_s=2.0,
            clock_offset="auto",
            unknown_quantile=0.9,
            threads=1,
            device="cpu",
            representation={"payload_bytes": 0, "field_policy": "paper"},
            baselines=False,
            cache_dir=Path("cache"),
            resume=True,
            licence="MIT",
        )
    ]


def test_flags_of_pretrain_arrive(given: list[Any]) -> None:
    flags = "--steps 9 --accumulate 4 --precision bf16 --tensorboard curves --size positions=false"
    assert main(["pretrain", "a.pcap", "--out", "b", *flags.split()]) == 0
    assert given == [
        PretrainOptions(
            ("a.pcap",),
            "b",
            steps=9,
            accumulate=4,
            precision="bf16",
            tensorboard=Path("curves"),
            sizes={"positions": False},
        )
    ]


def test_sizes_of_the_network_arrive(given: list[Any]) -> None:
    assert main(["pretrain", "a.pcap", "--out", "b", "--max-seconds", "5", "--size", "d_model=64"]) == 0
    assert given == [PretrainOptions(("a.pcap",), "b", max_seconds=5.0, sizes={"d_model": 64})]


def test_the_report_is_a_table_a_verdict_and_where_the_checkpoint_lies(
    given: list[Any], capfd: Capfd
) -> None:
    assert main(["finetune", "labelled", "--out", "my-model"]) == 0
    out, err = capfd.readouterr()
    assert out == (
        "name      macro-F1    low   high  accuracy  sees\n"
        "model        0.512  0.400  0.600     0.700  bytes\n"
        "lightgbm                                    lightgbm is not installed\n"
        "\n"
        "The model is better.\n"
        "checkpoint 3f9c1a7be204 in my-model\n"
    )
    assert err == "netcls: warning: class 'chat' has one capture\n"


def test_json_is_the_whole_report(given: list[Any], capfd: Capfd) -> None:
    assert main(["finetune", "labelled", "--out", "my-model", "--json", "-q"]) == 0
    out, err = capfd.readouterr()
    assert (json.loads(out), err) == (FINETUNED, "")


def test_verbose_tells_each_stage_once_without_a_terminal(given: list[Any], capfd: Capfd) -> None:
    assert main(["finetune", "labelled", "--out", "my-model", "-v"]) == 0
    told = capfd.readouterr().err.splitlines()
    assert told[:2] == [
        "read · done 1 · total 2",
        "train · epoch 1 · step 0 · loss 0.5123 · 149 flows/s · 1:02:05 left",
    ]
    assert len(told) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["finetune", "empty", "--out", "o"], "empty: no flow has a label"),
        (["finetune", "data"], "Missing option '--out'"),
        (
            ["finetune", "data", "--out", "o", "--representation", "x"],
            "--representation got 'x', expected KEY=VALUE",
        ),
        (["finetune", "data", "--out", "o", "--size", "=3"], "--size got '=3', expected KEY=VALUE"),
        (
            ["finetune", "data", "--out", "o", "--split", "day"],
            "'day' is not one of 'capture', 'group', 'host', 'time'",
        ),
        (["pretrain", "data", "--out", "o"], "neither steps nor max_seconds is given"),
    ],
)
def test_a_mistake_is_one_line(given: list[Any], capfd: Capfd, arguments: list[str], message: str) -> None:
    assert main(arguments) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert message in line
