"""The scripts of bench/: CPU time of whole process trees, and a report that claims no more than was measured."""

from __future__ import annotations

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
