"""Contenders on the same flows: what is scored, what is warned of, what the page lets through."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from capture.errors import CheckpointError, DataError, UsageError
from capture.flow_batch import FlowBatch, KeepSpec
from capture.representations import build
from models.checkpoint import load_checkpoint
from netcls.cli.main import main
from netcls.datasets.build import BuildOptions
from netcls.datasets.capture_flows import process_capture
from netcls.datasets.sources import DataOptions
from netcls.datasets.splits import SplitOptions
from netcls.evaluating import EvaluateOptions, run_evaluate
from netcls.evaluation.baseline_rows import baseline_input, few_shot_trees
from netcls.evaluation.comparison_data import read_comparison_data
from netcls.evaluation.page import page_of
from netcls.evaluation.raw_flows import RawFlows, first_packets
from netcls.evaluation.retraining import Retrainer
from netcls.evaluation.shortcuts import check_shortcuts
from netcls.finetuning import FinetuneOptions, run_finetune
from netcls.pretraining import PretrainOptions, run_pretrain
from tests.pcap_writer import START_S, udp_flow, write_pcap

HOSTILE = '<img src=x onerror="alert(1)">&amp;\u202e'
LABELS = ("zeros", "ones", "third")
FILLS = {"zeros": 1, "ones": 200, "third": 90}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Three classes that differ by their payload bytes, eight captures of six flows each."""
    folder = tmp_path_factory.mktemp("evaluate") / "data"
    rng = np.random.default_rng(0)
    for label, fill in FILLS.items():
        for capture in range(8):
            packets = []
            for flow in range(6):
                sizes = rng.integers(8, 400, 4).tolist()
                packets += udp_flow("10.0.0.1", 3000 + flow, sizes, start_s=START_S + flow, fill=fill)
            write_pcap(folder / label / f"{capture}.pcap", packets)
    return folder


@pytest.fixture(scope="module")
def model(data) -> str:
    """A model that knows the first two classes."""
    out = data.parent / "two-labels"
    run_finetune(
        FinetuneOptions(
            str(data),
            str(out),
            epochs=8,
            batch=16,
            learning_rate=5e-3,
            threads=1,
            device="cpu",
            representation={"n_packets": 3, "header_bytes": 28, "payload_bytes": 12},
            sizes={"d_model": 16, "n_layers": 1, "d_state": 4, "decoder_d_model": 16, "decoder_layers": 1},
            baselines=False,
            drop_labels=("third",),
        )
    )
    return str(out)


@pytest.fixture
def options(data, model) -> EvaluateOptions:
    return EvaluateOptions(str(data), (model,), seeds=(0,), threads=1, device="cpu", baselines=False)


@pytest.fixture(scope="module")
def whole(data, model):
    """One evaluation with everything in it."""
    pytest.importorskip("lightgbm")
    return run_evaluate(EvaluateOptions(str(data), (model,), seeds=(0, 1), threads=1, device="cpu"))


def test_a_model_is_scored_beside_the_baselines_on_its_own_split(whole):
    rows = {row["name"]: row for row in whole["rows"]}
    assert list(rows) == [
        "two-labels",
        "majority",
        "ports",
        "sizes",
        "lightgbm",
        "lightgbm_3_packets",
        "random_forest",
    ]
    assert rows["two-labels"]["macro_f1"] == 1.0
    assert rows["two-labels"]["seen"] == {
        "tested": 4,
        "trained_on": 0,
        "pretrained_on": 0,
        "warning": "",
    }
    assert rows["sizes"]["macro_f1"] < 0.9  # the sizes say nothing here
    assert whole["labels"] == ["ones", "zeros"]
    assert whole["unknown_labels"] == ["third"]
    assert whole["verdict"].startswith("two-labels ")
    assert "Split by capture: optimistic for new hosts" in whole["verdict"]
    assert {row["test_flows"] for row in whole["rows"]} == {24}


def test_what_is_trained_here_is_the_mean_over_seeds(whole):
    forest = next(row for row in whole["rows"] if row["name"] == "random_forest")
    assert forest["seeds"] == [0, 1]
    assert forest["macro_f1"] == pytest.approx(np.mean(forest["macro_f1_of_seeds"]))
    assert np.sum(forest["confusion_matrix"]) == 2 * forest["test_flows"]
    assert sum(of_class["support"] for of_class in forest["per_class"]) == forest["test_flows"]


def test_the_result_is_json_and_the_page_is_one_file_without_network(whole):
    page = page_of(json.loads(json.dumps(whole)))
    assert "http" not in page.replace('http-equiv="Content-Security-Policy"', "")
    assert "<script" not in page
    assert "default-src 'none'" in page
    for name in ("Who does best", "Can its percentages be believed?", "How this was made"):
        assert name in page


def test_nothing_that_a_label_holds_reaches_the_page_unescaped(data, model, tmp_path, whole):
    result = json.loads(json.dumps(whole).replace("two-labels", "m"))
    result["labels"] = [HOSTILE, "zeros"]
    result["data"]["name"] = HOSTILE
    for row in result["rows"]:
        for of_class in row["per_class"]:
            of_class["label"] = HOSTILE if of_class["label"] == "ones" else of_class["label"]
    result["warnings"], result["command"] = [HOSTILE], HOSTILE
    page = page_of(result)
    assert "<img" not in page
    assert "\u202e" not in page
    assert page.count("&lt;img src=x onerror=&quot;alert(1)&quot;&gt;&amp;amp;") >= 5


def test_a_capture_that_trained_the_model_voids_its_score(options):
    result = run_evaluate(replace(options, split="none"))
    model, majority = result["rows"]
    assert model["seen"]["tested"] == 16
    assert model["seen"]["trained_on"] == 12
    assert any(
        "was trained on 12 of 16 test captures: its score is void" in line for line in result["warnings"]
    )
    assert result["verdict"].startswith(
        "Void, because trained on captures that are tested here: two-labels. "
    )
    assert "VOID" in page_of(result)
    assert "for want of a training part" in majority["sees"]
    assert "No split: all of DATA is tested" in result["verdict"]
    assert result["split"]["parts"]["test"]["flows"] == 96


def test_a_model_without_a_list_may_have_seen_everything(options, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(options.models[0], copy)
    (copy / "training.sha256").unlink()
    result = run_evaluate(replace(options, models=(str(copy),)))
    assert "model 'copy' has no list of its training captures" in result["warnings"][0]
    (copy / "training.sha256").write_text("nonsense\n")
    with pytest.raises(DataError, match=r"training\.sha256:1: got 'nonsense', expected a SHA-256"):
        run_evaluate(replace(options, models=(str(copy),)))


def test_labels_that_do_not_meet_are_refused_with_both_sides_named(options, tmp_path):
    for label in ("a", "b"):
        for capture in range(3):
            write_pcap(tmp_path / "other" / label / f"{capture}.pcap", udp_flow("10.0.0.1", 1, [9, 9]))
    with pytest.raises(
        DataError,
        match=r"0 of its 2 labels \(a, b, \.\.\.\) is a label of every model \(two-labels: ones, zeros",
    ):
        run_evaluate(replace(options, data=str(tmp_path / "other")))
    with pytest.raises(DataError, match="has no label 'fourth' to leave out as unknown"):
        run_evaluate(replace(options, unknown_labels=("fourth",)))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"models": ("netmamba",)}, CheckpointError, "got a backbone, expected a classifier"),
        ({"models": ("default", "default")}, UsageError, "model 'default' is given twice"),
        ({"split": "none", "leave_out": (("a",),)}, UsageError, "split none tests everything"),
    ],
)
def test_what_cannot_work_is_refused(options, change, error, message):
    with pytest.raises(error, match=message):
        run_evaluate(replace(options, **change))


def test_a_planted_ttl_is_found_as_a_shortcut_and_a_clean_model_is_not_accused(tmp_path, options, whole):
    """The class is the TTL and nothing else: a model that sees it learns it, and the check says so."""
    rng = np.random.default_rng(1)
    for label, ttl in (("near", 64), ("far", 200)):
        for capture in range(10):
            packets = []
            for flow in range(6):
                frames = udp_flow(
                    "10.0.0.1", 3000 + flow, rng.integers(8, 400, 3).tolist(), start_s=START_S + flow
                )
                packets += [(at, frame[:22] + bytes([ttl]) + frame[23:]) for at, frame in frames]
            write_pcap(tmp_path / "ttl" / label / f"{capture}.pcap", packets)
    out = tmp_path / "sees-ttl"
    run_finetune(
        FinetuneOptions(
            str(tmp_path / "ttl"),
            str(out),
            epochs=25,
            batch=16,
            learning_rate=1e-2,
            threads=1,
            device="cpu",
            representation={"n_packets": 2, "header_bytes": 28, "payload_bytes": 0, "field_policy": "paper"},
            sizes={"d_model": 16, "n_layers": 1, "d_state": 4, "decoder_d_model": 16, "decoder_layers": 1},
            baselines=False,
        )
    )
    result = run_evaluate(replace(options, data=str(tmp_path / "ttl"), models=(str(out),)))
    row = result["rows"][0]
    assert row["macro_f1"] == 1.0
    found = [check["group"] for check in row["shortcuts"] if check["is_shortcut"]]
    assert found == ["ttl"]
    assert row["shortcut_verdict"].startswith("Shortcut: ttl costs")
    ttl = next(check for check in row["shortcuts"] if check["group"] == "ttl")
    assert ttl["retrained"]["drop"] > 0.2  # it was all there was
    assert row["retrained_verdict"].startswith("Trained without ttl, it loses")
    assert ": so much of the number is the shortcut." in row["retrained_verdict"]
    assert [check["group"] for check in row["shortcuts"] if "retrained" in check] == ["ttl"]
    assert ">trained without it</text>" in page_of(result)
    clean = whole["rows"][0]
    assert not any(check["is_shortcut"] for check in clean["shortcuts"])
    assert next(check for check in clean["shortcuts"] if check["group"] == "payload")["drop"] > 0.3
    assert "Of what the traffic does, it uses payload" in clean["shortcut_verdict"]
    assert "Does it take a shortcut?" in page_of(result)


def test_flows_of_a_class_that_the_model_lacks_are_scored_as_unknowns(whole):
    unknown = whole["rows"][0]["unknown"]
    assert (unknown["flows"], unknown["classes"]) == (48, ["third"])
    scores = {score["score"]: score for score in unknown["scores"]}
    assert list(scores) == ["doubt", "energy", "cosine", "mahalanobis"]
    assert scores["mahalanobis"]["auroc"] > 0.9
    assert [point["packets"] for point in whole["rows"][0]["after_packets"]] == [1, 2, 4]


def test_rows_of_a_generative_backbone_have_its_surprise_beside_the_other_unknown_scores(data, options):
    backbone = str(data.parent / "backbone")
    run_pretrain(
        PretrainOptions(
            (str(data / "zeros"), str(data / "ones")),
            backbone,
            representation={"n_packets": 3, "header_bytes": 28, "payload_bytes": 12},
            sizes={"d_model": 16, "n_layers": 1, "d_state": 4, "decoder_d_model": 16, "decoder_layers": 1},
            steps=30,
            batch=16,
            threads=1,
            device="cpu",
        )
    )
    given = {"models": (), "base": backbone, "rows": ("frozen",), "checks": False}
    row = run_evaluate(replace(options, unknown_labels=("third",), **given))["rows"][0]
    scores = [score["score"] for score in row["unknown"]["scores"]]
    assert scores == ["doubt", "energy", "cosine", "mahalanobis", "surprise"]


def test_a_label_that_the_model_has_learnt_is_no_unknown_for_it(data, model, tmp_path, options):
    result = run_evaluate(replace(options, unknown_labels=("third",)))
    assert result["rows"][0]["unknown"] is not None
    out = tmp_path / "three"
    run_finetune(
        FinetuneOptions(
            str(data), str(out), base=model, method="head", epochs=2, threads=1, device="cpu", baselines=False
        )
    )
    result = run_evaluate(replace(options, models=(str(out),), unknown_labels=("third",)))
    assert result["rows"][0]["unknown"] is None
    assert any(
        "three was trained on third, so these are no unknowns for it" in line for line in result["warnings"]
    )


def test_rows_are_trained_on_the_same_split_with_their_budget_in_the_table(data, model, options):
    pytest.importorskip("lightgbm")
    result = run_evaluate(
        replace(
            options,
            models=(),
            base=model,
            rows=("random:1", "frozen", "head", "lora:1", "full:1"),
            shots=(1, 4),
            seeds=(0, 1),
            max_seconds_per_row=2.0,
            checks=False,
            baselines=True,
        )
    )
    rows = {row["name"]: row for row in result["rows"]}
    assert list(rows)[:5] == ["random", "frozen", "head", "lora", "full"]
    assert rows["head"]["seeds"] == [0, 1]
    assert rows["random"]["seeds"] == [0]
    assert rows["head"]["macro_f1"] > 0.9
    assert rows["frozen"]["macro_f1"] > 0.9
    assert rows["full"]["training"]["budget"].startswith("1 seed, at most 2 s each")
    assert rows["frozen"]["training"]["budget"] == "not trained"
    assert result["base"]["seen"]["tested"] == 6
    curves = {
        curve["name"]: [point["shots"] for point in curve["points"]] for curve in result["learning_curve"]
    }
    assert curves == {"random": [1, 4], "frozen": [1, 4], "head": [1, 4], "lightgbm": [1, 4]}
    page = page_of(result)
    assert "How many labels does it need?" in page
    assert (
        "every network here, the best of which is" in result["verdict"]
        or "beats every baseline" in result["verdict"]
    )


@pytest.mark.parametrize("sizes_differ", [True, False])
def test_trees_trained_without_a_field_lose_what_no_other_field_tells(tmp_path, sizes_differ):
    """TOS tells the classes; where the sizes do too, trees that never saw it are as good, otherwise they guess."""
    pytest.importorskip("lightgbm")
    rng = np.random.default_rng(0)
    for label, tos, size in (("low", 4, 40), ("high", 96, 400)):
        for capture in range(8):
            packets = []
            for flow in range(6):
                sizes = (rng.integers(0, 9, 4) + (size if sizes_differ else 40)).tolist()
                frames = udp_flow("10.0.0.1", 3000 + flow, sizes, start_s=START_S + flow)
                packets += [(at, frame[:15] + bytes([tos]) + frame[16:]) for at, frame in frames]
            write_pcap(tmp_path / label / f"{capture}.pcap", packets)
    representation = build("netmamba", {"n_packets": 3, "header_bytes": 28, "payload_bytes": 12})
    data = read_comparison_data(
        str(tmp_path), DataOptions(), BuildOptions(), SplitOptions(), [representation]
    )
    trees = few_shot_trees("lightgbm", baseline_input([], data), data, (0,), None, threads=1)
    checks = check_shortcuts(trees, data, seed=0, max_flows=100)["shortcuts"]
    tos = next(check for check in checks if check["group"] == "tos")
    # Whatever the trees happened to lean on, the question is what they learn without.
    tos |= {"drop": 0.5, "drop_interval": [0.4, 0.6]}
    again = Retrainer(None, lambda *_: None, lambda changed: baseline_input([], changed), seed=0, threads=1)
    facts = again.check(trees, checks, data, max_flows=100, at_most=5)
    if sizes_differ:
        assert tos["retrained"]["drop"] == 0
        assert (
            "Trained without tos, it loses 0 points (lost: [0, 0]): other fields tell the same."
            in facts["retrained_verdict"]
        )
    else:
        assert tos["retrained"]["drop"] > 0.3
        assert "Trained without tos, it loses" in facts["retrained_verdict"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base": "netmamba", "split": "none"}, "split none leaves nothing to train on"),
        ({"shots": (5,)}, "shots are given, but no base"),
        ({"base": "netmamba", "shots": (0,)}, "shots: got 0, expected 1 or more"),
        ({"shot_rows": ("tuned",)}, "shot_rows: row 'tuned' is not known; choose from random, frozen"),
        ({"base": "netmamba", "rows": ("tuned",)}, "row 'tuned' is not known; choose from random, frozen"),
    ],
)
def test_rows_that_cannot_be_trained_are_refused(options, change, message):
    with pytest.raises(UsageError, match=message):
        replace(options, **change)


def test_seeds_must_be_different(options):
    with pytest.raises(UsageError, match=r"seeds are \[1, 1\]"):
        replace(options, seeds=(1, 1))


def test_raw_flows_give_every_model_its_own_input():
    capture = "tests/data/captures/demo.pcap.zst"
    small = build(
        "netmamba", {"n_packets": 3, "header_bytes": 40, "payload_bytes": 8, "mark_direction": True}
    )
    large = build("netmamba", {"field_policy": "none"})
    raw = RawFlows.for_all([small, large])
    assert raw.keep == KeepSpec(5, 5, 80, 240)
    flows = process_capture(capture, raw)
    batch = FlowBatch(flows.records, flows.packets, flows.tokens.arrays["data"])
    for representation in (small, large):
        expected = process_capture(capture, representation).tokens
        made = raw.tokens(batch, representation)
        assert np.array_equal(made.arrays["bytes"], expected.arrays["bytes"])
        assert np.array_equal(made.packets_used, expected.packets_used)
    one = raw.tokens(first_packets(batch, 1), small)
    assert one.packets_used.max() == 1
    assert np.array_equal(one.arrays["bytes"][:, :48], raw.tokens(batch, small).arrays["bytes"][:, :48])
    assert not one.arrays["bytes"][:, 48:].any()


def test_the_command_writes_the_table_the_json_and_the_page(data, model, tmp_path, capfd):
    page = tmp_path / "report.html"
    flags = ["--model", model, "--no-baselines", "--seed", "0", "--threads", "1", "--device", "cpu"]
    assert main(["evaluate", str(data), *flags, "--report", str(page), "-q"]) == 0
    out = capfd.readouterr().out.splitlines()
    assert out[0].startswith("No baseline but the majority class was run beside two-labels")
    assert out[3].split()[:4] == ["two-labels", "model", "1.000", "1.000"]
    assert out[-1] == f"report in {page}"
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert main(["evaluate", str(data), *flags, "--json", "-q"]) == 0
    assert json.loads(capfd.readouterr().out)["best"] == "two-labels"


def test_the_card_gets_the_same_numbers_and_no_void_ones(data, model, tmp_path, capfd):
    import shutil

    copy = tmp_path / "carded"
    shutil.copytree(model, copy)
    digest = load_checkpoint(copy).digest
    flags = [
        "--model",
        str(copy),
        "--no-baselines",
        "--seed",
        "0",
        "--threads",
        "1",
        "--device",
        "cpu",
        "-q",
        "--json",
    ]
    for _ in range(2):  # the second replaces the first
        assert main(["evaluate", str(data), *flags, "--update-card"]) == 0
        result = json.loads(capfd.readouterr().out)
    after = load_checkpoint(copy)
    (entry,) = after.card["evaluations"]
    assert after.digest == digest
    assert entry["macro_f1"] == result["rows"][0]["macro_f1"]
    assert entry["best_baseline"] == "majority"
    assert entry["seen"] == "no test capture is in its lists"
    assert "## Evaluations" in (copy / "README.md").read_text()
    before = (copy / "card.json").read_bytes()
    assert main(["evaluate", str(data), *flags, "--update-card", "--split", "none"]) == 2
    assert "its card is not changed" in capfd.readouterr().err
    assert (copy / "card.json").read_bytes() == before
    assert main(["evaluate", str(data), "--update-card"]) == 2
    assert "--update-card needs a checkpoint folder" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--report", "/nowhere/at/all.html"], "the folder /nowhere/at does not exist; make it first"),
        (["--report", "."], "--report got the folder '.', expected a file"),
        (["--model", "no-such"], "checkpoint 'no-such' is not known"),
        (["--split", "day"], "'day' is not one of"),
    ],
)
def test_a_mistake_is_one_line(data, capfd, flags, message):
    assert main(["evaluate", str(data), *flags]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert message in line
