"""The scripts of bench/: CPU time of whole process trees, and a report that claims no more than was measured."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCH = Path(__file__).parents[2] / "bench"

BURN = "import time\nwhile time.process_time() < 0.3: pass\n"


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module(name)


def test_the_cpu_time_of_a_command_is_that_of_its_whole_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_rounds = script("cpu_rounds", monkeypatch)
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BURN!r}]); print('done')"
    cost = cpu_rounds.run([sys.executable, "-c", parent])
    assert cost.cpu_s >= 0.3
    assert cost.said == "done\n"
    assert cost.peak_mib > 1


def test_a_command_that_fails_ends_the_measurement_with_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_rounds = script("cpu_rounds", monkeypatch)
    with pytest.raises(SystemExit, match="ended with 3: no such thing"):
        cpu_rounds.run([sys.executable, "-c", "import sys; print('no such thing'); sys.exit(3)"])


def test_commands_are_run_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_rounds = script("cpu_rounds", monkeypatch)
    order: list[str] = []

    def run(command: list[str]) -> Any:
        order.append(" ".join(command))
        return cpu_rounds.Cost(2.0 if command[1] == "big" else 0.5, 1.0, 1.0, "")

    monkeypatch.setattr(cpu_rounds, "run", run)
    roads = [cpu_rounds.Road(name, lambda c, n=name: [n, c], lambda _: (None, 1)) for name in "ab"]
    cpu_rounds.run_in_turn(roads, "big", "one", 2)
    assert order == ["a one", "b one", *["a one", "a big", "b one", "b big"] * 2]
    assert roads[1].work_cpu_s() == [1.5, 1.5]


def test_a_ratio_is_taken_round_by_round(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_rounds = script("cpu_rounds", monkeypatch)
    assert cpu_rounds.ratio_of([1.0, 2.0, 1.0], [3.0, 10.0, 4.0]) == {"median": 4.0, "min": 3.0, "max": 5.0}


def test_work_that_the_start_up_hides_gives_no_rate_and_no_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_rounds, report = script("cpu_rounds", monkeypatch), script("report", monkeypatch)
    start_up = [cpu_rounds.Cost(1.0, 1.0, 10.0, "")]
    road = cpu_rounds.Road(
        "ours", lambda c: [c], lambda _: (100, 7), [cpu_rounds.Cost(1.01, 1.0, 20.0, "")], start_up
    )
    measured = {
        "packets": 100,
        "flows": 7,
        "roads": [road.as_dict()],
        "ratios": [
            {
                "ours": "ours",
                "theirs": "theirs",
                "work": cpu_rounds.ratio_of(road.work_cpu_s(), [5.0]),
                "whole": cpu_rounds.ratio_of([1.01], [5.05]),
            }
        ],
    }
    result = {
        "machine": dict.fromkeys(
            ("cpu", "cores", "system", "python", "netcls", "numpy", "numba", "torch"), "x"
        ),
        "settings": {"rounds": 1, "snaplen": 400, "seed": 0},
        "load_before": 0.0,
        "load_after": 0.0,
        "packets": measured,
    }
    rows = [line.split(" | ") for line in report.markdown(result).splitlines() if line.startswith("| ours")]
    assert [cell.strip(" |") for cell in rows[0]] == [
        *("ours", "100", "7", "1.01 (1.01..1.01)", "1.00", "99", "too short to tell", "6.93"),
        *("too short to tell", "20"),
    ]
    assert [cell.strip(" |") for cell in rows[1]] == [
        "ours against theirs",
        "too short to tell",
        "5.0 x (5.0..5.0)",
    ]


def test_the_table_of_ablations_has_a_row_per_variant_and_the_baselines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ablations = script("ablations", monkeypatch)

    def run(variant: str, seed: int, score: float) -> dict[str, Any]:
        numbers = {"macro_f1": score, "macro_f1_low": score - 0.1, "macro_f1_high": score + 0.1}
        model = {"name": "model", "accuracy": 0.5, **numbers}
        others = [
            {**model, "name": "sizes"},
            {"name": "lightgbm", "accuracy": None, **dict.fromkeys(numbers)},
        ]
        return {"variant": variant, "seed": seed, "rows": [model, *(others if variant == "full" else [])]}

    results = [run("full", 0, 0.6), run("full", 1, 0.7), run("no header", 0, 0.3)]
    assert ablations.markdown(results).splitlines()[2:] == [
        "| full | 0.650 | 0.600, 0.700 | 0.550 .. 0.750 | 0.500 |",
        "| no header | 0.300 | 0.300 | 0.200 .. 0.400 | 0.500 |",
        "| sizes | 0.650 | 0.600, 0.700 | 0.550 .. 0.750 | 0.500 |",
    ]


def test_a_task_is_made_of_the_classes_with_the_most_groups(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ablations = script("ablations", monkeypatch)
    table = tmp_path / "flows.csv"
    rows = ["web,a", "web,b", "web,b", "dns,a", "dns,c", "ntp,a", "background,x", "background,y"]
    table.write_text("path,label,client\n" + "".join(f"{i}.pcap,{row}\n" for i, row in enumerate(rows)))
    given = argparse.Namespace(data=str(table), work=str(tmp_path), group="client", classes=2)
    lines = ablations.small_table(given).read_text().splitlines()
    assert [line.split(",")[1] for line in lines] == ["label", "web", "web", "web", "dns", "dns"]
    assert lines[1].split(",")[0] == str(tmp_path / "0.pcap")


def test_the_bench_of_netmamba_times_networks_that_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    speed = script("netmamba_speed", monkeypatch)
    calls: list[str] = []
    works = {name: (lambda name=name: calls.append(name), 2) for name in "ab"}
    seconds = speed.in_turn(works, rounds=2)
    assert calls == ["a", "b", *["a", "a", "b", "b"] * 2]
    assert [len(rounds) for rounds in seconds.values()] == [2, 2]
    assert speed.ratio({"x": [1.0, 2.0, 1.0], "y": [3.0, 10.0, 4.0]}, "x", "y") == "4.00 (3.00..5.00)"


def test_a_large_dataset_is_made_of_a_small_one_and_read_to_its_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from netcls.datasets.dataset_build import DatasetOptions, build_dataset
    from netcls.datasets.stored import open_dataset
    from tests.pcap_writer import udp_flow, write_pcap

    for label in ("one", "two"):
        for number in range(4):
            write_pcap(tmp_path / "d" / label / f"{number}.pcap", udp_flow("10.0.0.1", 1, [number + 9, 20]))
    build_dataset(DatasetOptions(str(tmp_path / "d"), str(tmp_path / "small")))
    dataset_scale = script("dataset_scale", monkeypatch)
    arguments = [str(tmp_path / "small"), "--flows", "5000", "--per-capture", "200"]
    result = dataset_scale.main([*arguments, "--folder", str(tmp_path / "large")])
    assert (result["flows"], result["captures"]) == (5000, 25)
    large = open_dataset(tmp_path / "large")
    assert sum(len(batch) for batch in large.batches()) == 5000
    assert result["bytes_per_flow"] > 200
    assert '"flows": 5000' in capsys.readouterr().out
