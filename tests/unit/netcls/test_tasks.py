"""Heads that answer a number or several labels: learnt, calibrated, scored beside baselines, told in the event."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import netcls
from capture.errors import CheckpointError, DataError, UsageError
from capture.representations import build
from models.checkpoint import load_checkpoint
from models.learning.objectives import label_f1, pinball_loss
from models.tasks import QUANTILE_NAMES, Task, from_log, read_task, to_log
from netcls.cli import train as cli
from netcls.cli.main import main
from netcls.datasets.capture_flows import process_capture
from netcls.datasets.targets import UNITS, label_sets, target_values
from netcls.evaluating import EvaluateOptions, run_evaluate
from netcls.explaining import explain_flow
from netcls.finetuning import FinetuneOptions, run_finetune
from netcls.flow_choice import FlowChoice
from netcls.goals import fit_label_temperature, widening
from tests.pcap_writer import START_S, udp_flow, write_pcap

REPRESENTATION = {"n_packets": 3, "header_bytes": 28, "payload_bytes": 12}
SIZES = {"d_model": 16, "n_layers": 1, "d_state": 4, "decoder_d_model": 16, "decoder_layers": 1}
CAPTURES, FLOWS = 10, 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What follows the first three packets is told by their payload: 1 means about 100 bytes, 200 about 10,000.

    Each capture also has a flow that three packets show whole.
    """
    place = tmp_path_factory.mktemp("numbers")
    rng = np.random.default_rng(0)
    for kind, fill, more in (("short", 1, 60), ("long", 200, 1200)):
        for capture in range(CAPTURES):
            packets = udp_flow("10.0.0.9", 99, [9, 9, 9], fill=7)
            for flow in range(FLOWS):
                tail = [int(more * rng.uniform(0.8, 1.2)) for _ in range(2 if kind == "short" else 8)]
                sizes = [*rng.integers(8, 400, 3).tolist(), *tail]
                packets += udp_flow("10.0.0.1", 3000 + flow, sizes, start_s=START_S + flow, fill=fill)
            write_pcap(place / kind / f"{capture}.pcap", packets)
    return place


@pytest.fixture
def options(folder: Path, tmp_path: Path) -> FinetuneOptions:
    return FinetuneOptions(
        str(folder),
        str(tmp_path / "model"),
        epochs=12,
        batch=8,
        learning_rate=1e-2,
        threads=1,
        device="cpu",
        representation=REPRESENTATION,
        sizes=SIZES,
    )


def test_the_number_of_a_flow_is_what_the_flow_table_counted(folder: Path, tmp_path: Path) -> None:
    path = write_pcap(tmp_path / "one.pcap", udp_flow("10.0.0.1", 1, [10, 20, 30, 40, 50], gap_s=0.5))
    flows = process_capture(path, build("netmamba", REPRESENTATION))
    assert target_values(flows.records, flows.packets, "bytes_left", 3).tolist() == [40 + 50 + 2 * 28]
    assert target_values(flows.records, flows.packets, "bytes_left", 9).tolist() == [0]
    assert target_values(flows.records, flows.packets, "duration_s", 3).tolist() == [2.0]
    with pytest.raises(DataError, match="keeps 20 packets of a flow, the model sees 32"):
        target_values(flows.records, flows.packets, "bytes_left", 32)


@pytest.fixture(scope="module")
def regression(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("regression") / "bytes"
    made = FinetuneOptions(
        str(folder), str(out), task="regression", target="bytes_left", epochs=12, batch=8, learning_rate=1e-2,
        threads=1, device="cpu", representation=REPRESENTATION, sizes=SIZES,
    )  # fmt: skip
    return out, run_finetune(made)


def test_a_regression_beats_the_median_and_its_card_says_what_was_measured(
    regression: tuple[Path, dict[str, Any]],
) -> None:
    out, report = regression
    rows = {row["name"]: row for row in report["baselines"]}
    assert rows.keys() == {"model", "median", "lightgbm"}
    assert rows["model"]["mae_log10"] < 0.5 * rows["median"]["mae_log10"]
    assert rows["model"]["r2"] > 0.7 > rows["median"]["r2"]
    assert rows["model"]["mae_log10_low"] <= rows["model"]["mae_log10"] <= rows["model"]["mae_log10_high"]
    assert report["task"] == {"kind": "regression", "target": "bytes_left", "unit": "bytes"}
    (said,) = [text for text in report["warnings"] if "sees from first to last packet are left out" in text]
    assert (
        1 <= int(said.split()[0]) <= 2 * CAPTURES
    )  # some were repeats of each other and had been left out before
    made = load_checkpoint(out)
    assert (made.task, made.labels) == (Task("regression", "bytes_left", "bytes"), list(QUANTILE_NAMES))
    assert made.card["metrics"]["mae_log10"] == rows["model"]["mae_log10"]
    assert "Predicts bytes_left (bytes)" in made.card["summary"]
    assert report["interval"]["fitted_on_flows"] == report["split"]["parts"]["calibration"]["flows"]
    assert json.loads((out / "report.json").read_text()) == report
    assert "| task |" in (out / "README.md").read_text()


def test_a_number_comes_as_one_field_of_the_event_in_every_format(
    regression: tuple[Path, dict[str, Any]], folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out, _ = regression
    model = load_checkpoint(out)
    for kind, low, high in (("short", 60, 600), ("long", 3000, 30000)):
        events = list(netcls.classify(folder / kind / "0.pcap", model=model))
        ours = [event["netcls"] for event in events if event["src_port"] >= 3000]
        assert len(ours) == FLOWS
        for part in ours:
            number = part["number"]
            assert (number["name"], number["unit"]) == ("bytes_left", "bytes")
            assert number["low"] <= number["estimate"] <= number["high"]
            assert not {"label", "probability", "unknown", "runner_up", "top"} & part.keys()
            assert part["checkpoint"] == model.digest
        assert low < np.median([part["number"]["estimate"] for part in ours]) < high
    frame = netcls.classify(folder / "long" / "0.pcap", model=model).to_pandas()
    assert frame["netcls_number_estimate"].notna().all()
    where = [str(folder / "long" / "0.pcap"), "--model", str(out), "--threads", "1", "-q"]
    assert main(["classify", *where, "--format", "csv"]) == 0
    rows = list(csv.DictReader(capfd.readouterr().out.splitlines()))
    assert {row["netcls_number_unit"] for row in rows} == {"bytes"}
    assert main(["classify", *where, "--format", "table"]) == 0
    assert "bytes_left " in capfd.readouterr().out
    assert main(["classify", *where, "--summary", "--format", "csv"]) == 0
    assert capfd.readouterr().out.splitlines()[1].startswith("bytes_left,")


def test_the_duration_of_a_flow_is_learnt_too_and_only_the_head_if_so_wished(
    options: FinetuneOptions, regression: tuple[Path, dict[str, Any]]
) -> None:
    base = {"base": str(regression[0]), "sizes": {}, "representation": {}}
    report = run_finetune(
        replace(
            options, task="regression", target="duration_s", method="head", baselines=False, epochs=20, **base
        )
    )
    rows = {row["name"]: row for row in report["baselines"]}
    assert rows.keys() == {"model", "median"}
    assert rows["model"]["mae_log10"] < rows["median"]["mae_log10"]
    made, before = load_checkpoint(options.out), load_checkpoint(regression[0])
    assert made.task.unit == "s"
    assert all(torch.equal(made.state[name], before.state[name]) for name in made.state if "head" not in name)


def test_several_labels_at_once(folder: Path, options: FinetuneOptions, tmp_path: Path) -> None:
    table = tmp_path / "sets.csv"
    with table.open("w") as file:
        file.write("path,label\n")
        for kind, labels in (("short", "udp; small"), ("long", "udp;big")):
            for capture in range(CAPTURES):
                file.write(f"{folder / kind / f'{capture}.pcap'},{labels}\n")
    report = run_finetune(replace(options, data=str(table), task="multilabel"))
    rows = {row["name"]: row for row in report["baselines"]}
    assert rows.keys() == {"model", "majority", "random_forest"}
    assert rows["model"]["exact"] > 0.8 > rows["majority"]["exact"]
    assert [row["label"] for row in report["per_label"]] == ["big", "small", "udp"]
    assert report["per_label"][2]["f1"] == 1.0
    made = load_checkpoint(options.out)
    assert (made.task, made.labels) == (Task("multilabel"), ["big", "small", "udp"])
    events = [event["netcls"] for event in netcls.classify(folder / "long" / "0.pcap", model=made)]
    said = [{part["label"] for part in event["labels"]} for event in events]
    assert said.count({"udp", "big"}) >= FLOWS - 1
    assert all("label" not in event and "probability" not in event for event in events)
    assert all(p["probability"] >= 0.5 for event in events for p in event["labels"])
    with pytest.raises(UsageError, match="its task is multilabel, expected a model of one label a flow"):
        run_evaluate(EvaluateOptions(str(folder), models=(options.out,)))
    with pytest.raises(UsageError, match="its task is multilabel, expected a model of one label a flow"):
        explain_flow(str(folder / "long" / "0.pcap"), FlowChoice(index=0), model=made)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "ranking"}, "task 'ranking' is not available; choose class, regression, multilabel"),
        ({"task": "regression"}, "target is None, but a regression needs one; choose bytes_left, duration_s"),
        ({"task": "regression", "target": "ttl"}, "target is 'ttl', but a regression needs one"),
        (
            {"target": "duration_s"},
            "target 'duration_s' is given, but task 'class' has none; use task regression",
        ),
        ({"task": "multilabel", "loss": "ldam"}, "loss 'ldam' is for task class; leave it out"),
    ],
)
def test_options_of_tasks_that_contradict_each_other_are_refused(
    options: FinetuneOptions, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        replace(options, **change)


def test_data_that_no_head_can_learn_from_is_refused(options: FinetuneOptions, tmp_path: Path) -> None:
    for kind in ("a", "b"):
        for capture in range(6):
            packets = [
                p
                for port in range(9)
                for p in udp_flow("10.0.0.1", port, [port * 9 + capture, 4], fill=capture)
            ]
            write_pcap(tmp_path / "brief" / kind / f"{capture}.pcap", packets)
    brief = replace(
        options, data=str(tmp_path / "brief"), split="flow", task="regression", target="bytes_left"
    )
    with pytest.raises(DataError, match="the train part has no flow of more than 3 packets"):
        run_finetune(brief)
    assert not Path(options.out).exists()
    with pytest.raises(DataError, match="label 'web;;dns' has an empty part"):
        label_sets(("web;;dns", "web"))
    with pytest.raises(DataError, match="the data has only the label 'web'; expected at least two"):
        label_sets(("web", "web;web"))


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("class", "got task 'class', expected an object with kind, target, unit"),
        ({"kind": "rank", "target": "", "unit": ""}, "got task 'rank', expected one of class, regression"),
        ({"kind": "regression", "target": "", "unit": "s"}, "got task.target '', expected 1 to 40 printable"),
        ({"kind": "regression", "target": "a\x1b[2J", "unit": "s"}, "got task.target"),
        ({"kind": "multilabel", "target": "x", "unit": ""}, "got task.target 'x', expected nothing"),
    ],
)
def test_a_hostile_task_in_a_checkpoint_is_refused(
    regression: tuple[Path, dict[str, Any]], task: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError) as refused:
        read_task(task, list(QUANTILE_NAMES), "config.json")
    assert message in str(refused.value)
    with pytest.raises(
        CheckpointError, match="got a regression with 2 labels, expected the labels q10, q50, q90"
    ):
        read_task({"kind": "regression", "target": "x", "unit": "s"}, ["a", "b"], "config.json")


def test_a_classifier_s_files_are_what_they_were(options: FinetuneOptions) -> None:
    run_finetune(replace(options, epochs=1, baselines=False))
    config = json.loads((Path(options.out) / "config.json").read_text())
    assert config.keys() == {"format", "kind", "family", "model", "representation"}


def test_the_losses_and_calibrations_are_what_their_names_say() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(3.0, 1.0, 20_000)
    best = np.quantile(truth, (0.1, 0.5, 0.9))

    def loss(shift: tuple[float, float, float]) -> float:
        outputs = torch.from_numpy(np.tile(best + shift, (len(truth), 1)))
        return float(pinball_loss(outputs, torch.from_numpy(truth)))

    least = loss((0.0, 0.0, 0.0))
    assert all(loss(tuple(0.3 * sign * row)) > least for row in np.eye(3) for sign in (-1, 1))
    narrow = np.tile(best * [1, 1, 1] + [0.5, 0.0, -0.5], (len(truth), 1)).astype(np.float32)
    assert widening(narrow, truth) == pytest.approx(0.5, abs=0.03)
    logits = rng.normal(0, 2, (20_000, 3))
    held = (rng.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(np.float32)
    assert fit_label_temperature((3 * logits).astype(np.float32), held) == pytest.approx(3.0, rel=0.08)
    f1 = label_f1(np.array([[1, 0, 0], [1, 1, 0]], bool), np.array([[1, 0, 0], [0, 1, 0]], bool))
    assert f1[:2].tolist() == [pytest.approx(2 / 3), 1.0]
    assert np.isnan(f1[2])
    numbers = np.array([[0.0, 9.0, 999.0]])
    assert from_log(to_log(numbers)[:, ::-1])[0] == pytest.approx(numbers[0])
    assert from_log(np.array([[-3.0, 2.0, 400.0]]))[0] == pytest.approx([0.0, 99.0, 1e18])


def test_the_command_and_the_run_know_the_same_tasks_and_targets() -> None:
    from models.tasks import TASKS

    assert cli.TASKS == TASKS
    assert tuple(UNITS) == cli.TARGETS
