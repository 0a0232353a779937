"""The installed ``netcls bench`` and the comparison script, once and small; nothing depends on how fast it went."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from models.precision import cpu_multiplies_bf16, cpu_multiplies_int8

NETCLS = str(Path(sys.executable).with_name("netcls"))
BENCH = Path(__file__).parents[2] / "bench"


def run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout


def test_the_bench_measures_the_road_from_packets_to_answers() -> None:
    small = ["--packets", "1000", "--batch", "2", "--seconds", "0", "--json"]
    stages = [
        "--stage",
        "read",
        "--stage",
        "model",
        "--stage",
        "train",
        "--name",
        "pcap",
        "--name",
        "netmamba",
    ]
    printed = json.loads(run(NETCLS, "bench", *small, *stages))
    exists = {"fp32": True, "bf16": cpu_multiplies_bf16(), "int8": cpu_multiplies_int8()}
    precisions = tuple(name for name, is_there in exists.items() if is_there)
    rows = [
        (row["stage"], row["name"], row["precision"], row["batch"], row["unit"]) for row in printed["results"]
    ]
    assert rows == [
        ("read", "pcap", None, None, "packets"),
        *(("model", "netmamba", precision, 2, "flows") for precision in precisions),
        ("train", "netmamba", "fp32", 2, "flows"),
    ]
    assert all(row["per_cpu_s"] > 0 for row in printed["results"])
    assert printed["machine"]["cores"] >= 1


def test_the_plain_network_of_the_comparison_gives_the_same_logits() -> None:
    printed = json.loads(run(sys.executable, str(BENCH / "model_rounds.py"), "--batch", "1", "--rounds", "1"))
    assert printed["logit_difference"] < 1e-4


@pytest.mark.slow
def test_the_comparison_is_one_command_and_its_sides_see_the_same_flows(tmp_path: Path) -> None:
    small = ["--packets", "2000", "--rounds", "1", "--answer-flows", "4", "--answer-rounds", "1"]
    sections = ["--only", "packets", "--only", "answers"]
    written = tmp_path / "all.json"
    table = run(sys.executable, str(BENCH / "bench_end_to_end.py"), *small, *sections, "--json", str(written))
    measured = json.loads(written.read_text())
    counted = {road["name"]: road["flows_counted"] for road in measured["packets"]["roads"]}
    assert counted["netcls flows"] == counted["netcls tokens"] == counted["dpkt tokens"]
    assert counted["netcls flows"] == measured["packets"]["flows"]
    assert {road["flows_counted"] for road in measured["answers"]["roads"]} == {4}
    assert "| netcls classify against dpkt + plain PyTorch |" in table
