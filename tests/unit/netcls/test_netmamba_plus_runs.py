"""NetMamba+ through the commands: pre-train, fine-tune from that, classify; only short times tell the classes apart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from models.checkpoint import load_checkpoint
from netcls.cli.main import main
from tests.pcap_writer import START_S, udp_flow, write_pcap

SIZES = ("d_model=16", "n_layers=1", "d_state=4", "decoder_d_model=16", "decoder_layers=1")
INPUT = ("n_packets=2", "header_bytes=28", "payload_bytes=0", "n_sequence_packets=6")
GAPS_S = {"hasty": 20e-6, "calm": 600e-6}

Capfd = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of the same bytes and sizes, whose packets are 20 or 600 microseconds apart, more or less."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for label, gap_s in GAPS_S.items():
        for capture in range(8):
            packets = []
            for flow in range(6):
                sizes = rng.integers(8, 400, 5).tolist()
                gaps_s = gap_s * rng.uniform(0.7, 1.3)
                start_s = START_S + flow
                packets += udp_flow("10.0.0.1", 3000 + flow, sizes, start_s=start_s, gap_s=gaps_s)
            write_pcap(folder / label / f"{capture}.pcap", packets)
    return folder


def options_of(**values: tuple[str, ...]) -> list[str]:
    return [part for flag, given in values.items() for value in given for part in (f"--{flag}", value)]


def test_a_backbone_becomes_a_classifier_that_tells_times_below_a_millisecond_apart(
    data: Path, tmp_path: Path, capfd: Capfd
) -> None:
    backbone, model = str(tmp_path / "backbone"), str(tmp_path / "model")
    common = ["--threads", "1", "--device", "cpu", "--json"]
    family = ["--family", "netmamba-plus", *options_of(size=SIZES, representation=INPUT)]
    assert (
        main(["pretrain", str(data), "--out", backbone, "--steps", "4", "--batch", "8", *family, *common])
        == 0
    )
    pretraining = json.loads(capfd.readouterr().out)["training"]
    (entry,) = pretraining["history"]
    parts = [entry[name] for name in ("byte_loss", "size_loss", "iat_loss")]
    assert entry["loss"] == pytest.approx(sum(parts), rel=1e-5)
    assert entry["size_loss"] > 5.0, "3003 numbers, hardly trained"
    assert [pretraining[f"{name}_loss"] for name in ("byte", "size", "iat")] == parts
    card = load_checkpoint(backbone).card
    names = {"step", "loss", "byte_loss", "size_loss", "iat_loss"}
    assert [set(point) for point in card["loss_curve"]] == [names]
    tuning = [
        "--epochs",
        "12",
        "--batch",
        "16",
        "--learning-rate",
        "1e-2",
        "--no-baselines",
        "--loss",
        "ldam",
    ]
    assert main(["finetune", str(data), "--base", backbone, "--out", model, *tuning, *common]) == 0
    report = json.loads(capfd.readouterr().out)
    assert report["test"]["macro_f1"] > 0.9
    assert report["training"]["loss"] == "ldam"
    checkpoint = load_checkpoint(model)
    assert (checkpoint.family, checkpoint.representation_id) == ("netmamba-plus", "netmamba_plus-1")
    assert checkpoint.representation_settings["n_sequence_packets"] == 6
    assert main(["classify", str(data / "hasty" / "0.pcap"), "-m", model, "--threads", "1"]) == 0
    events = [json.loads(line)["netcls"] for line in capfd.readouterr().out.splitlines()]
    assert [event["packets_used"] for event in events] == [5] * 6
    assert [event.get("nearest", event["label"]) for event in events] == ["hasty"] * 6


def test_tokens_of_netmamba_plus_can_be_looked_at_and_exported(
    data: Path, tmp_path: Path, capfd: Capfd
) -> None:
    capture, target = str(data / "calm" / "0.pcap"), tmp_path / "tokens.npz"
    assert main(["tokens", capture, "--representation", "netmamba_plus"]) == 0
    shown = [json.loads(line)["tokens"] for line in capfd.readouterr().out.splitlines()]
    assert [len(tokens["sizes"]) for tokens in shown] == [20] * 6
    assert shown[0]["iats_present"] == [False, *[True] * 4, *[False] * 15]
    assert main(["tokens", capture, "--representation", "netmamba_plus", "-f", "npz", "-o", str(target)]) == 0
    with np.load(target) as arrays:
        assert arrays["sizes"].tolist() == [tokens["sizes"] for tokens in shown]
        assert arrays["iats"].dtype == np.float32
        assert arrays["sizes_present"].dtype == np.bool_
