"""``netcls bench``: how a rate comes about, what is measured, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import netcls.bench
import netcls.bench_models
from capture.errors import CheckpointError
from netcls.bench import STAGES, BenchOptions, BenchReport, Result, Task, measure, run_bench
from netcls.bench_capture import tasks as capture_tasks
from netcls.cli import bench as bench_command
from netcls.cli.main import main

Capfd = pytest.CaptureFixture[str]

RESULT = Result("model", "netmamba", "fp32", 16, 1, "flows", 93.14, 90.0, 95.0, 3)
REPORT = BenchReport(
    {"cpu": "Z80", "cores": 1, "system": "CP/M", "python": "3.11"}
    | dict.fromkeys(("netcls", "numpy", "numba", "torch"), "1.0"),
    {"packets": 1000, "seed": 0},
    [RESULT, Result("read", "pcap", None, None, 1, "packets", 41_234_567.0, 4e7, 5e7, 3)],
    [{"name": "default", "reason": "it is not there"}],
)


class Clock:
    """Seconds that pass only while work is done."""

    def __init__(self, *took_s: float) -> None:
        self.now_s = 0.0
        self.took: Iterator[float] = iter(took_s)
        self.n_started = 0

    def __call__(self) -> float:
        return self.now_s

    def start(self) -> Any:
        self.n_started += 1
        self.now_s += 1000.0  # what is made ready is not timed

        def work() -> int:
            self.now_s += next(self.took)
            return 12

        return work

    def task(self) -> Task:
        return Task("model", "netmamba", "flows", self.start, "fp32", 12, 2)


def test_a_rate_is_the_median_of_the_repeats_after_one_that_is_not_counted() -> None:
    clock = Clock(500.0, 3.0, 1.0, 2.0)
    result = measure(clock.task(), 0.0, clock)
    assert (result.per_cpu_s, result.per_cpu_s_min, result.per_cpu_s_max) == (6.0, 4.0, 12.0)
    assert (result.repeats, clock.n_started) == (3, 4)
    assert (result.stage, result.unit, result.precision, result.batch, result.threads) == (
        *("model", "flows", "fp32", 12),
        2,
    )


def test_short_work_is_repeated_until_its_seconds_are_spent() -> None:
    clock = Clock(*[0.5] * 20)
    assert measure(clock.task(), 4.0, clock).repeats == 8


def test_work_too_short_for_the_clock_does_not_repeat_for_ever() -> None:
    clock = Clock(*[0.0] * 1000)
    assert measure(clock.task(), 4.0, clock).repeats == 99


def test_the_command_offers_the_stages_that_there_are() -> None:
    assert bench_command.STAGES == STAGES


def test_every_stage_of_the_capture_side_works_on_every_packet(tmp_path: Path) -> None:
    tasks = capture_tasks(BenchOptions(n_packets=2000), tmp_path)
    done = {(task.stage, task.name): (task.unit, task.start()()) for task in tasks}
    assert done == dict.fromkeys(
        [
            ("read", "pcap"),
            ("decode", "headers"),
            ("flows", "records"),
            ("flows", "tokens"),
            ("flows", "netfound"),
            ("tokens", "netmamba"),
            ("tokens", "netfound"),
            ("end_to_end", "records"),
            ("end_to_end", "tokens"),
            ("end_to_end", "netfound"),
        ],
        ("packets", 2000),
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"stages": ("decode", "flows")},
            ["decode headers", "flows records", "flows tokens", "flows netfound"],
        ),
        ({"names": ("records",)}, ["flows records", "end_to_end records"]),
        ({"stages": ("flows", "read"), "names": ("tokens", "pcap")}, ["read pcap", "flows tokens"]),
    ],
)
def test_stage_and_name_limit_what_is_measured(options: dict[str, Any], expected: list[str]) -> None:
    report = run_bench(BenchOptions(**options, n_packets=1000, seconds=0.0))
    assert [f"{row.stage} {row.name}" for row in report.results] == expected
    assert all(0 < row.per_cpu_s_min <= row.per_cpu_s <= row.per_cpu_s_max for row in report.results)


def models_that_are_there(*names: str) -> Any:
    """In place of ``bench_models.tasks``: instant tasks of these models."""

    def tasks(name: str, options: BenchOptions, _folder: Path) -> list[Task]:
        if name not in names:
            raise CheckpointError(f"checkpoint {name!r} is not known")
        stages = ("model", "train", "end_to_end")
        return [
            Task(s, name, "flows", lambda: lambda: 1, "fp32", 16) for s in stages if options.wants(s, name)
        ]

    return tasks


def test_results_come_in_the_order_of_the_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netcls.bench_models, "tasks", models_that_are_there("netmamba", "default"))
    report = run_bench(BenchOptions(n_packets=1000, seconds=0.0))
    stages = [row.stage for row in report.results]
    assert stages == sorted(stages, key=STAGES.index)
    assert set(stages) == set(STAGES)
    assert [row.name for row in report.results if row.stage == "model"] == ["netmamba", "default"]


def test_a_default_model_that_is_not_there_is_told_and_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netcls.bench_models, "tasks", models_that_are_there("netmamba"))
    report = run_bench(BenchOptions(stages=("model",), seconds=0.0))
    assert [row.name for row in report.results] == ["netmamba"]
    assert report.skipped == [{"name": "default", "reason": "checkpoint 'default' is not known"}]


def test_a_model_that_was_asked_for_must_be_there(capfd: Capfd) -> None:
    assert main(["bench", "--stage", "model", "--name", "nosuch"]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("netcls: error: checkpoint 'nosuch' is not known")


def test_a_stage_that_does_not_exist_is_refused_with_those_that_do(capfd: Capfd) -> None:
    assert main(["bench", "--stage", "lex"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("netcls: error: Invalid value for '--stage': 'lex' is not one of 'read', 'decode'")
    assert line.endswith("see netcls bench --help")


def test_stages_and_names_that_have_nothing_in_common_are_refused(capfd: Capfd) -> None:
    assert main(["bench", "--stage", "read", "--name", "headers"]) == 2
    assert capfd.readouterr().err == (
        "netcls: error: nothing to measure: no stage of read has a name of headers; see `netcls bench --help`\n"
    )


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[BenchOptions]:
    """The options that the bench was asked for; it gives ``REPORT``."""
    asked: list[BenchOptions] = []

    def fake(options: BenchOptions, _on_progress: Any) -> BenchReport:
        asked.append(options)
        return REPORT

    monkeypatch.setattr(netcls.bench, "run_bench", fake)
    return asked


def test_the_defaults_of_the_command_are_those_of_the_bench(reported: list[BenchOptions]) -> None:
    assert main(["bench"]) == 0
    assert reported == [BenchOptions()]


def test_json_has_the_fields_that_were_promised(capfd: Capfd, reported: list[BenchOptions]) -> None:
    assert main(["bench", "--json", "--stage", "model", "--threads", "2", "--seconds", "3", "-q"]) == 0
    out, err = capfd.readouterr()
    printed = json.loads(out)
    assert err == ""
    assert printed["machine"]["cpu"] == "Z80"
    assert {"stage", "name", "precision", "batch", "threads", "unit", "per_cpu_s"} <= set(
        printed["results"][0]
    )
    assert printed["results"][0]["per_cpu_s"] == 93.14
    assert printed["results"][1]["precision"] is None
    assert reported == [BenchOptions(stages=("model",), threads=2, seconds=3.0)]


def test_the_table_shows_rates_in_three_digits_and_warns_of_what_is_missing(
    capfd: Capfd, reported: list[BenchOptions]
) -> None:
    assert main(["bench"]) == 0
    out, err = capfd.readouterr()
    lines = [line.split() for line in out.splitlines()]
    assert lines[3] == ["model", "netmamba", "fp32", "16", "1", "93.1", "90", "95", "flows"]
    assert lines[4] == ["read", "pcap", "1", "41,200,000", "40,000,000", "50,000,000", "packets"]
    assert err == "netcls: warning: default was not measured: it is not there\n"


def test_the_machine_is_named() -> None:
    facts = netcls.bench.machine_facts()
    assert facts["cores"] >= 1
    assert all(facts[name] for name in ("cpu", "system", "python", "netcls", "numpy", "numba", "torch"))
