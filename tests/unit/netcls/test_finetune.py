"""From labelled captures to a checkpoint that loads, tells the truth about itself, and leaves nothing half-made."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import netcls
from capture.errors import DataError, UsageError
from models.checkpoint import load_checkpoint
from models.predictor import Predictor
from netcls.datasets.capture_flows import process_capture
from netcls.datasets.dataset_build import DatasetOptions, build_dataset
from netcls.evaluation.drift import read_reference
from netcls.finetuning import FinetuneOptions, held_out_captures, run_finetune
from netcls.pretraining import PretrainOptions, run_pretrain
from tests.pcap_writer import START_S, udp_flow, write_pcap

REPRESENTATION = {"n_packets": 3, "header_bytes": 28, "payload_bytes": 12}
SIZES = {"d_model": 16, "n_layers": 1, "d_state": 4, "decoder_d_model": 16, "decoder_layers": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Two classes that differ by their payload bytes, eight captures of six flows each."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for label, fill in (("zeros", 1), ("ones", 200)):
        for capture in range(8):
            packets = []
            for flow in range(6):
                sizes = rng.integers(8, 400, 4).tolist()
                packets += udp_flow("10.0.0.1", 3000 + flow, sizes, start_s=START_S + flow, fill=fill)
            write_pcap(folder / label / f"{capture}.pcap", packets)
    return folder


@pytest.fixture
def options(data, tmp_path) -> FinetuneOptions:
    return FinetuneOptions(
        str(data),
        str(tmp_path / "model"),
        epochs=6,
        batch=16,
        learning_rate=5e-3,
        threads=1,
        device="cpu",
        representation=REPRESENTATION,
        sizes=SIZES,
        baselines=False,
        licence="MIT",
    )


def test_a_checkpoint_is_made_that_loads_and_says_how_it_was_measured(options, data):
    stages = []
    report = run_finetune(options, lambda stage, details: stages.append(stage))
    out = Path(options.out)
    assert list(dict.fromkeys(stages)) == ["read", "train", "test"]
    checkpoint = load_checkpoint(out)
    assert (checkpoint.kind, checkpoint.labels, checkpoint.digest) == (
        "classifier",
        ["ones", "zeros"],
        report["checkpoint"],
    )
    assert checkpoint.representation_settings["payload_bytes"] == 12
    assert json.loads((out / "report.json").read_text()) == report
    assert read_reference(out).fields["packets"].n_flows > 0
    assert not out.with_name("model.run").exists()
    assert sum(part["flows"] for part in report["split"]["parts"].values()) == 96
    assert report["test"]["macro_f1"] == 1.0
    assert report["baselines"][1]["name"] == "majority"
    card = checkpoint.card
    # Two captures of a class are few: the interval cannot exclude that they say nothing.
    assert card["summary"].startswith("This model does not clearly beat the baseline majority")
    assert "by capture file: no test capture was trained on (seed 0)" in card["summary"]
    assert card["licence"] == "MIT"
    assert card["metrics"]["macro_f1"] == 1.0
    assert str(data) not in json.dumps(card)
    with Predictor(checkpoint, threads=1, device="cpu") as predictor:
        from capture.representations import build

        flows = process_capture(
            data / "ones" / "0.pcap", build("netmamba", checkpoint.representation_settings)
        )
        answers = predictor.predict(flows.tokens)
    assert answers.probabilities.argmax(axis=1).tolist() == [0] * 6


def test_the_same_seed_gives_the_same_checkpoint(options, tmp_path):
    first = run_finetune(replace(options, epochs=2))
    second = run_finetune(replace(options, epochs=2, out=str(tmp_path / "again")))
    assert first["checkpoint"] == second["checkpoint"]
    assert first["test"] == second["test"]


def test_an_interrupted_run_leaves_no_checkpoint_and_resumes_to_the_same_one(options, tmp_path):
    whole = run_finetune(replace(options, epochs=3, out=str(tmp_path / "whole")))

    class StopError(Exception):
        pass

    def stop(stage, details):
        if stage == "train" and details["epoch"] == 3:
            raise StopError

    run = replace(options, epochs=3)
    with pytest.raises(StopError):
        run_finetune(run, stop)
    assert not Path(run.out).exists()
    with pytest.raises(UsageError, match=r"model\.run: an interrupted run lies there; give --resume"):
        run_finetune(run)
    assert run_finetune(replace(run, resume=True))["checkpoint"] == whole["checkpoint"]
    with pytest.raises(UsageError, match=r"model: is already there; expected a new or empty folder"):
        run_finetune(run)


def test_baselines_stand_in_the_report_and_a_better_one_is_the_first_sentence(options):
    pytest.importorskip("lightgbm")
    # An untrained model (learning rate ~ 0) against sizes that hold nothing and payload that trees do not see.
    report = run_finetune(replace(options, epochs=1, learning_rate=1e-9, baselines=True))
    names = [row["name"] for row in report["baselines"]]
    assert names == ["model", "majority", "ports", "sizes", "lightgbm", "lightgbm_3_packets", "random_forest"]
    best = max(report["baselines"][1:], key=lambda row: row["macro_f1"])
    gap = report["test"]["macro_f1"] - best["macro_f1"]
    assert report["difference_to_best_baseline"][0] == pytest.approx(gap)
    assert gap < 0
    summary = load_checkpoint(options.out).card["summary"]
    assert summary.startswith(f"The baseline {best['name']} (")


def test_a_backbone_is_pretrained_lists_its_captures_and_is_a_base(options, data, tmp_path):
    held = held_out_captures(options)
    assert held
    listing = tmp_path / "held.txt"
    listing.write_text("".join(f"{path}\n" for path in held))
    pretraining = PretrainOptions(
        (str(data),),
        str(tmp_path / "backbone"),
        exclude=(str(listing),),
        representation=REPRESENTATION,
        sizes=SIZES,
        steps=3,
        batch=8,
        threads=1,
        device="cpu",
    )
    report = run_pretrain(pretraining)
    assert report["corpus"]["captures"] == 16 - len(held)
    assert report["corpus"]["captures_excluded"] == len(held)
    backbone = load_checkpoint(pretraining.out)
    assert (backbone.kind, backbone.labels) == ("backbone", [])
    lines = (Path(pretraining.out) / "corpus.sha256").read_text().splitlines()
    assert len(lines) == 16 - len(held)
    from_base = replace(options, base=pretraining.out, representation={}, sizes={}, epochs=2)
    tuned = run_finetune(from_base)
    assert tuned["warnings"] == []
    assert tuned["training"]["base"] == {"name": "backbone", "checkpoint": backbone.digest}
    # The same with nothing excluded: the report says that the score is optimistic.
    run_pretrain(replace(pretraining, out=str(tmp_path / "leaky"), exclude=()))
    leaky = run_finetune(
        replace(from_base, base=str(tmp_path / "leaky"), out=str(tmp_path / "model2"), epochs=1)
    )
    assert any(
        "are in the corpus that base 'leaky' was pre-trained on" in warning for warning in leaky["warnings"]
    )


def test_a_classifier_is_a_base_too_and_its_input_may_not_be_contradicted(options, tmp_path):
    run_finetune(replace(options, epochs=1))
    again = replace(
        options, base=options.out, out=str(tmp_path / "second"), sizes={}, representation={}, epochs=1
    )
    report = run_finetune(again)
    assert report["warnings"] == []  # the same split: no test capture is in the base's list
    (Path(options.out) / "training.sha256").unlink()
    report = run_finetune(replace(again, out=str(tmp_path / "unlisted")))
    assert "base 'model' has no list of its training captures" in report["warnings"][0]
    assert not (tmp_path / "unlisted" / "training.sha256").exists()
    with pytest.raises(UsageError, match=r"contradicts base .* leave it out or choose another base"):
        run_finetune(replace(again, out=str(tmp_path / "third"), representation={"payload_bytes": 240}))
    with pytest.raises(UsageError, match=r"sizes d_model are given, but they follow from base"):
        replace(again, sizes={"d_model": 32})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resume": True}, r"model\.run: holds no state of an interrupted run; start without --resume"),
        ({"sizes": {"d_modl": 3}}, r"sizes: .*d_modl"),
        ({"sizes": {"d_model": 0}}, r"sizes: d_model is 0"),
        ({"family": "resnet"}, r"unknown model family 'resnet'"),
        ({"out": "/nowhere/at/all/model"}, r"the folder /nowhere/at/all does not exist; make it first"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_read(options, change, message):
    with pytest.raises(UsageError, match=message):
        run_finetune(replace(options, **change), lambda stage, details: pytest.fail("started to work"))


def test_a_method_that_is_not_there_is_refused_by_name(options):
    with pytest.raises(UsageError, match="method 'prompt' is not available; choose full, head, lora"):
        replace(options, method="prompt")


def test_one_capture_per_class_is_told_to_choose_another_split(options, tmp_path):
    for label, fill in (("a", 1), ("b", 9)):
        write_pcap(tmp_path / "few" / label / "x.pcap", udp_flow("10.0.0.1", 1, [9, 9], fill=fill))
    with pytest.raises(
        DataError, match=r"split by capture: 0 of 2 classes have two captures or more, .* --split flow"
    ):
        run_finetune(replace(options, data=str(tmp_path / "few")))
    assert not Path(options.out).exists()
    assert not Path(options.out).with_name("model.run").exists()


def test_an_excluded_capture_that_is_not_there_is_an_error(data, tmp_path):
    wanted = PretrainOptions(
        (str(data),), str(tmp_path / "b"), steps=1, exclude=(str(tmp_path / "typo.pcap"),)
    )
    with pytest.raises(DataError, match=r"typo\.pcap: does not exist"):
        run_pretrain(wanted)
    listing = tmp_path / "list.txt"
    listing.write_text("nothing.pcap\n")
    with pytest.raises(DataError, match=r"list\.txt: lists 'nothing\.pcap'; expected a SHA-256 or the path"):
        run_pretrain(replace(wanted, exclude=(str(listing),)))
    with pytest.raises(UsageError, match="neither steps nor max_seconds is given"):
        replace(wanted, steps=None)


def test_the_python_interface_gives_the_same_checkpoint_as_the_command(options, data, tmp_path):
    expected = run_finetune(replace(options, epochs=1))
    kept = {
        name: getattr(options, name)
        for name in (
            "batch",
            "learning_rate",
            "threads",
            "device",
            "representation",
            "sizes",
            "baselines",
            "licence",
        )
    }
    checkpoint = netcls.finetune(data, out=tmp_path / "mine", epochs=1, **kept)
    assert checkpoint.digest == expected["checkpoint"]
    events = list(netcls.classify(data / "ones" / "0.pcap", model=checkpoint))
    assert [event["netcls"]["checkpoint"] for event in events] == [checkpoint.digest] * 6
    with pytest.raises(UsageError, match=r"no option 'epoch'.*epochs"):
        netcls.finetune(data, out=tmp_path / "other", epoch=1)


def test_a_dataset_trains_the_model_that_its_captures_would(options, data, tmp_path):
    of_captures = run_finetune(replace(options, epochs=2))
    build_dataset(DatasetOptions(str(data), str(tmp_path / "set")))
    made = replace(options, epochs=2, data=str(tmp_path / "set"), out=str(tmp_path / "again"))
    of_dataset = run_finetune(made)
    assert of_dataset["checkpoint"] == of_captures["checkpoint"]
    assert of_dataset["test"] == of_captures["test"]
    assert of_dataset["split"] == of_captures["split"]
    with pytest.raises(
        DataError, match=r"stores 32 packets, 12 .* needs 40 packets, 40 with 80 .* --keep-packets 40"
    ):
        run_finetune(replace(made, out=str(tmp_path / "wide"), representation={"n_packets": 40}))
    assert not (tmp_path / "wide.run").exists()


def test_the_corpus_of_a_base_is_compared_with_the_digests_in_the_dataset(options, data, tmp_path):
    pretraining = PretrainOptions(
        (str(data),),
        str(tmp_path / "leaky"),
        representation=REPRESENTATION,
        sizes=SIZES,
        steps=2,
        batch=8,
        threads=1,
        device="cpu",
    )
    run_pretrain(pretraining)
    copied = shutil.copytree(data, tmp_path / "copy")
    build_dataset(DatasetOptions(str(copied), str(tmp_path / "set")))
    shutil.rmtree(copied)
    tuned = run_finetune(
        replace(
            options,
            data=str(tmp_path / "set"),
            base=str(tmp_path / "leaky"),
            representation={},
            sizes={},
            epochs=1,
        )
    )
    assert any("4 of 4 test captures are in the corpus" in warning for warning in tuned["warnings"])
