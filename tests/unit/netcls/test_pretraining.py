"""A pre-training run as its user sees it: the card, TensorBoard, a stop, a kill, torchrun."""

from __future__ import annotations

import builtins
import json
import os
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from capture.errors import CheckpointError, DataError, UsageError
from capture.flow_batch import KeepSpec
from capture.representations import build
from capture.representations.base import TokenBatch
from models.checkpoint import load_checkpoint
from models.surprise import Surprise
from netcls.corpus import CorpusOptions, collect_corpus
from netcls.datasets.build import BuildOptions
from netcls.datasets.capture_flows import process_capture
from netcls.datasets.dataset_build import DatasetOptions, build_dataset
from netcls.datasets.prepare import prepare
from netcls.datasets.sources import DataOptions
from netcls.datasets.splits import TEST, SplitOptions
from netcls.pretraining import PretrainOptions, loss_curve, run_pretrain
from netcls.tensorboard import EventLog
from tests.pcap_writer import START_S, udp_flow, write_pcap

REPRESENTATION = {"n_packets": 3, "header_bytes": 28, "payload_bytes": 12}
SIZES = {"d_model": 16, "n_layers": 1, "d_state": 4, "decoder_d_model": 16, "decoder_layers": 1}


@pytest.fixture(scope="module")
def captures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("captures")
    rng = np.random.default_rng(0)
    for capture in range(2):
        packets: list[Any] = []
        for flow in range(10):
            sizes = rng.integers(8, 400, 4).tolist()
            packets += udp_flow("10.0.0.1", 3000 + flow, sizes, start_s=START_S + flow, fill=capture + flow)
        write_pcap(folder / f"{capture}.pcap", packets)
    return folder


@pytest.fixture
def options(captures: Path, tmp_path: Path) -> PretrainOptions:
    return PretrainOptions(
        (str(captures),),
        str(tmp_path / "backbone"),
        representation=REPRESENTATION,
        sizes=SIZES,
        steps=21,
        batch=4,
        accumulate=2,
        threads=1,
        device="cpu",
    )


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Curves of all event files below a folder; the records' framing (TFRecord) is read by hand."""
    from tensorboardX.proto.event_pb2 import Event

    curves: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(folder.iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + length])
            at += 16 + length
            for value in event.summary.value:
                curves.setdefault(value.tag, []).append((event.step, value.simple_value))
    return curves


def test_the_card_tells_the_loss_curve_the_speed_and_the_share_of_the_published_schedule(
    options: PretrainOptions, tmp_path: Path
) -> None:
    report = run_pretrain(replace(options, tensorboard=tmp_path / "curves"))
    card = load_checkpoint(options.out).card
    training = card["training"]
    assert (training["steps"], training["flows_per_step"], training["flow_passes"]) == (21, 8, 168)
    assert training["share_of_published_schedule"] == 168 / 19_200_000
    assert (training["device"], training["processes"], training["precision"]) == ("cpu", 1, "fp32")
    assert training["samples_per_s_per_process"] == training["samples_per_s"] > 0
    assert card["loss_curve"] == [{"step": 21, "loss": report["training"]["loss"]}]
    curves = scalars(tmp_path / "curves")
    assert sorted(curves) == ["train/loss", "train/lr", "train/samples_per_s"]
    assert [step for step, _ in curves["train/loss"]] == [1, 10, 20]
    assert all(0.001 < loss < 10 for _, loss in curves["train/loss"])


def test_a_long_history_is_a_short_curve_with_its_end() -> None:
    history = [{"step": 50 * (i + 1), "loss": 1 / (i + 1), "lr": 0.1} for i in range(1234)]
    curve = loss_curve(history)
    assert len(curve) == 50
    assert curve[-1] == {"step": 61700, "loss": 1 / 1234}
    assert loss_curve(history[:3]) == [{"step": e["step"], "loss": e["loss"]} for e in history[:3]]
    assert loss_curve([]) == []


def test_tensorboard_without_its_package_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "tensorboardX":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UsageError, match=r"tensorboardX is not installed; pip install 'netcls\[train\]'"):
        EventLog(tmp_path / "curves")
    assert not (tmp_path / "curves").exists()


def test_a_resumed_run_voids_the_steps_that_it_does_again(tmp_path: Path) -> None:
    details = {"loss": 1.0, "lr": 0.1, "samples_per_s": 5.0}
    with EventLog(tmp_path) as log:
        for step in (1, 10, 20):
            log.add({"step": step, **details})
    with EventLog(tmp_path, resume=True) as log:
        log.add({"step": 15, **details})
    from tensorboardX.proto.event_pb2 import SessionLog

    newest = max(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime_ns).read_bytes()
    assert SessionLog(status=SessionLog.START).SerializeToString() in newest


def test_a_run_killed_before_its_first_state_begins_anew(options: PretrainOptions, tmp_path: Path) -> None:
    run_dir = tmp_path / "backbone.run"
    run_dir.mkdir()
    (run_dir / ".state-000000009.safetensors.k2x").write_bytes(b"half")
    (run_dir / "state-000000009.safetensors").write_bytes(b"whole, but without state.json")
    with pytest.raises(UsageError, match="holds no state of an interrupted run; start without --resume"):
        run_pretrain(replace(options, resume=True))
    assert run_pretrain(options)["checkpoint"]
    assert not run_dir.exists()
    (tmp_path / "other.run").mkdir()
    (tmp_path / "other.run" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"other\.run: an interrupted run lies there"):
        run_pretrain(replace(options, out=str(tmp_path / "other")))


def test_a_run_killed_while_it_wrote_its_checkpoint_writes_it_again(
    options: PretrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("netcls.pretraining.write_then_rename", killed)
        with pytest.raises(KeyboardInterrupt):
            run_pretrain(options)
    out = Path(options.out)
    assert (out / "config.json").exists()
    assert not (out / "corpus.sha256").exists()
    with pytest.raises(UsageError, match="is already there"):
        run_pretrain(options)
    report = run_pretrain(replace(options, resume=True))
    assert report["checkpoint"] == load_checkpoint(out).digest
    assert len((out / "corpus.sha256").read_text().splitlines()) == 2
    assert not out.with_name("backbone.run").exists()


def test_captures_without_a_flow_are_a_clear_error(
    options: PretrainOptions, captures: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    write_pcap(tmp_path / "empty" / "a.pcap", [])
    with pytest.raises(DataError, match="no flow to learn from in 1 captures; give captures with IP traffic"):
        run_pretrain(replace(options, data=(str(tmp_path / "empty"),)))
    with pytest.raises(DataError, match="no flow to learn from in 2 captures"):
        run_pretrain(replace(options, min_packets=1000))
    assert not Path(options.out).exists()
    assert not Path(options.out).with_name("backbone.run").exists()


@pytest.mark.slow
def test_torchrun_starts_the_command_and_one_process_writes(captures: Path, tmp_path: Path) -> None:
    bin_dir = Path(sys.executable).parent
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python"),
        *(str(bin_dir / "netcls"), "pretrain", str(captures), "--out", str(tmp_path / "backbone")),
        *("--steps", "3", "--batch", "4", "--device", "cpu", "--threads", "1", "--json"),
        *(f"--size={key}={value}" for key, value in SIZES.items()),
        *(f"--representation={key}={value}" for key, value in REPRESENTATION.items()),
    ]
    done = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    report = json.loads(done.stdout)
    assert (report["training"]["processes"], report["training"]["flows_per_step"]) == (2, 8)
    assert load_checkpoint(tmp_path / "backbone").digest == report["checkpoint"]


def test_a_built_dataset_gives_the_corpus_of_its_captures_or_of_its_training_side_only(
    tmp_path: Path,
) -> None:
    """With all parts the same inputs in the same order; without, no capture that is tested or calibrated on."""
    rng = np.random.default_rng(1)
    for label in ("web", "mail"):
        for capture in range(6):
            packets: list[Any] = []
            for flow in range(5):
                sizes = rng.integers(8, 400, 4).tolist()
                packets += udp_flow(
                    "10.0.0.1", 3000 + flow, sizes, start_s=START_S + flow, fill=flow + capture
                )
            write_pcap(tmp_path / "data" / label / f"{label}{capture}.pcap", packets)
    made = build_dataset(DatasetOptions(str(tmp_path / "data"), str(tmp_path / "set")))
    representation = build("netmamba", REPRESENTATION)
    for most, min_packets in ((0, 1), (3, 4)):
        limits: dict[str, Any] = {"max_flows_per_capture": most, "min_packets": min_packets}
        of_captures = collect_corpus(CorpusOptions((str(tmp_path / "data"),), **limits), representation)
        stored = (str(tmp_path / "set"),)
        whole = collect_corpus(CorpusOptions(stored, all_parts=True, **limits), representation)
        assert sorted(whole.captures) == sorted(of_captures.captures)
        assert whole.facts == of_captures.facts
        rows = [
            sorted(row.tobytes() for row in corpus.tokens.arrays["bytes"]) for corpus in (whole, of_captures)
        ]
        assert rows[0] == rows[1]
    training = collect_corpus(CorpusOptions(stored, max_flows_per_capture=0), representation)
    kept = made["split"]["flows"]
    assert training.facts["flows"] == kept["train"] + kept["validation"] < made["flows"]
    split = SplitOptions(prefer_stored=True)
    prepared = prepare(stored[0], representation, DataOptions(), BuildOptions(), split)
    held = {capture.digest() for capture in prepared.captures_of(TEST)}
    assert held
    assert not held & {digest for digest, _ in training.captures}
    without = training.captures[0][0]
    (tmp_path / "no.sha256").write_text(f"{without}  x.pcap\n")
    fewer = collect_corpus(CorpusOptions(stored, (str(tmp_path / "no.sha256"),)), representation)
    assert without not in {digest for digest, _ in fewer.captures}
    assert fewer.facts["captures_excluded"] == 1


def test_a_dataset_that_keeps_too_little_is_refused(tmp_path: Path) -> None:
    for label in ("web", "mail"):
        for capture in range(4):
            packets = udp_flow("10.0.0.1", 3000 + capture, [8, 9, 10], fill=capture)
            write_pcap(tmp_path / "data" / label / f"{capture}.pcap", packets)
    build_dataset(DatasetOptions(str(tmp_path / "data"), str(tmp_path / "set"), keep=KeepSpec(2, 2, 28, 4)))
    with pytest.raises(DataError, match="--keep-packets"):
        collect_corpus(CorpusOptions((str(tmp_path / "set"),)), build("netmamba", REPRESENTATION))


def test_a_backbone_is_surprised_by_bytes_unlike_its_corpus(options: PretrainOptions, captures: Path) -> None:
    run_pretrain(replace(options, steps=60, learning_rate=5e-3))
    backbone = load_checkpoint(options.out)
    surprise = Surprise(backbone, device="cpu")
    seen = process_capture(captures / "0.pcap", build("netmamba", REPRESENTATION)).tokens
    rng = np.random.default_rng(0)
    noise = TokenBatch(
        {"bytes": rng.integers(0, 256, seen.arrays["bytes"].shape).astype(np.uint8)}, seen.packets_used
    )
    known, strange = surprise.of(seen), surprise.of(noise)
    assert (known.shape, known.dtype) == ((len(seen),), np.float32)
    assert known.max() < strange.min()
    assert np.array_equal(known, surprise.of(seen))
    nothing = TokenBatch({"bytes": np.zeros_like(seen.arrays["bytes"])}, seen.packets_used)
    assert not surprise.of(nothing).any()  # padding is no evidence
    with pytest.raises(CheckpointError, match="expected a backbone"):
        Surprise(load_checkpoint("default"))
