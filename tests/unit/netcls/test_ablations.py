"""The paper's ablations, each asked for with one flag, in pretrain and in finetune."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.checkpoint import load_checkpoint
from models.predictor import Predictor
from netcls.cli.main import main
from tests.pcap_writer import START_S, udp_flow, write_pcap

SHAPE = ("n_packets=3", "header_bytes=28", "payload_bytes=12")
SIZES = ("d_model=16", "n_layers=1", "d_state=4", "decoder_d_model=16", "decoder_layers=1", "mask_ratio=0.5")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for label, fill in (("zeros", 1), ("ones", 200)):
        for capture in range(4):
            packets: list[Any] = []
            for flow in range(3):
                sizes = rng.integers(8, 400, 4).tolist()
                packets += udp_flow(
                    "10.0.0.1", 3000 + flow, sizes, start_s=START_S + flow, fill=fill + 3 * capture + flow
                )
            write_pcap(folder / label / f"{capture}.pcap", packets)
    return folder


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("--representation=header_bytes=0", {"header_bytes": 0, "n_bytes": 36}),
        ("--representation=payload_bytes=0", {"payload_bytes": 0, "n_bytes": 84}),
        ("--size=bidirectional=true", {"bidirectional": True, "n_bytes": 120}),
        ("--size=positions=false", {"positions": False, "n_bytes": 120}),
    ],
)
def test_one_flag_asks_for_an_ablation_and_the_checkpoints_carry_it(
    data: Path, tmp_path: Path, flag: str, expected: dict[str, Any]
) -> None:
    shape = [f"--representation={text}" for text in SHAPE] + [f"--size={text}" for text in SIZES]
    base, out = str(tmp_path / "base"), str(tmp_path / "model")
    common = ["--threads", "1", "--device", "cpu", "--quiet", "--batch", "8"]
    assert main(["pretrain", str(data), "--out", base, "--steps", "2", *shape, flag, *common]) == 0
    tuned = ["--base", base, "--out", out, "--epochs", "1", "--no-baselines", *common]
    assert main(["finetune", str(data), *tuned]) == 0
    for folder in (base, out):
        checkpoint = load_checkpoint(folder)
        facts = checkpoint.representation_settings | checkpoint.model_config
        assert {name: facts[name] for name in expected} == expected
    with Predictor(load_checkpoint(out), threads=1, device="cpu") as predictor:
        assert predictor.checkpoint.kind == "classifier"


def test_a_base_with_an_ablation_is_not_taken_for_one_without(data: Path, tmp_path: Path, capfd: Any) -> None:
    sizes = [f"--size={text}" for text in SIZES]
    shape = [f"--representation={text}" for text in SHAPE]
    base = str(tmp_path / "base")
    pretrain = ["pretrain", str(data), "--out", base, "--steps", "1", "--batch", "8", "--quiet"]
    assert main([*pretrain, *shape, *sizes, "--size=positions=false"]) == 0
    assert main(["finetune", str(data), "--base", base, "--out", "m", "--size=positions=true"]) == 2
    assert "sizes positions are given, but they follow from base" in capfd.readouterr().err
    assert main(["pretrain", str(data), "--out", "b", "--steps", "1", "--size=positions=flase"]) == 2
    assert "sizes: positions is 'flase'; expected true or false" in capfd.readouterr().err
