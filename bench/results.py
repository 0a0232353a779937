"""``make results``: every number of docs/results.md, from a folder of labelled captures.

    make results DATA=/path/to/data            # or NETCLS_RESULTS_DATA; about an hour of one core
    .venv/bin/python bench/results.py --data DIR --only T2 --only T4.group
    .venv/bin/python bench/results.py --page-only

Each task is evaluated in two jobs: ``quick`` (trees, sizes, ports, majority, frozen and head, learning curve, checks,
three seeds) and ``networks`` (LoRA with three seeds, full and random weights with one, each training within a bound). A
job leaves one JSON file in the folder of runs and is not run again; the page is written from the files that are there.
Quick jobs come first, so that an early end leaves every task with its baselines.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from results_page import page_of_runs
from results_tasks import LAB, Task, tasks

from capture.errors import NetclsError
from models.atomic_write import replace_file
from netcls.evaluating import EvaluateOptions, run_evaluate

ROOT = Path(__file__).parents[1]
VARIABLE = "NETCLS_RESULTS_DATA"
# Trained on the training part of one split of the lab: the public tasks start from it, other splits of the lab do not.
BASE = "packet-mamba-small"
SHOTS = (1, 5, 10, 50)
MAX_SECONDS_PER_ROW = 60.0


@dataclass(frozen=True, slots=True)
class Job:
    """One evaluation; its name is that of its file."""

    task: Task
    stage: str

    @property
    def name(self) -> str:
        """Of the file, without its ending."""
        return f"{self.task.name}.{self.stage}"


def jobs(wanted: list[str]) -> list[Job]:
    """In the order in which they are run: the quick ones of the main splits, of the other splits, then the networks."""
    chosen = [task for task in tasks() if not wanted or any(task.name.startswith(name) for name in wanted)]
    main, others = [task for task in chosen if task.is_main], [task for task in chosen if not task.is_main]
    quick = [Job(task, "quick") for task in (*main, *others)]
    return [*quick, *(Job(task, "networks") for task in main if task.needs != LAB)]


def options_of(job: Job, data: str, cache: Path, threads: int) -> EvaluateOptions:
    """What the job evaluates."""
    given: dict[str, Any] = {
        "max_flows_per_capture": 20,
        "max_checked_flows": 500,
        "retrained_fields": 1
        if job.task.needs == LAB
        else 2,  # of 90 s each where networks are retrained whole
        "max_seconds_per_row": MAX_SECONDS_PER_ROW,
        **job.task.options,
    }
    if job.task.needs == LAB:
        given |= {"rows": ("random",) if job.task.is_main else ("random:1",), "max_seconds_per_row": 90.0}
        if job.task.name == "T1.implementations":
            given["models"] = ("default", "netmamba-lab")
    elif job.stage == "networks":
        given |= {"rows": ("full", "random", "lora:1"), "baselines": False, "checks": False}
    elif job.task.is_main:
        given |= {"rows": ("frozen", "head"), "shots": SHOTS}
    else:
        given["rows"] = ("frozen", "head")
    return EvaluateOptions(data, base=BASE, threads=threads, cache_dir=cache, **given)


def command_of(options: EvaluateOptions, table: str) -> str:
    """The command that does the same."""
    words = ["netcls", "evaluate", table]
    for model in options.models:
        words += ["--model", model]
    words += ["--base", str(options.base), "--rows", ",".join(options.rows)]
    if options.shots:
        words += ["--shots", ",".join(map(str, options.shots))]
    words += [
        "--split",
        options.split or "capture",
        "--max-flows-per-capture",
        str(options.max_flows_per_capture),
    ]
    if options.label != "label":
        words += ["--label", options.label]
    if options.group:
        words += ["--group", ",".join(options.group)]
    if options.group_rule != "tuple":
        words += ["--group-rule", options.group_rule]
    for group in options.leave_out:
        words += ["--leave-out", ",".join(group)]
    for label in options.unknown_labels:
        words += ["--unknown-label", label]
    if options.max_seconds_per_row != MAX_SECONDS_PER_ROW:
        words += ["--max-seconds-per-row", f"{options.max_seconds_per_row:g}"]
    words += ["--retrained-fields", str(options.retrained_fields)] if options.checks else []
    words += [] if options.baselines else ["--no-baselines"]
    words += [] if options.checks else ["--no-checks"]
    return shlex.join(words)


def run(job: Job, data: Path, runs: Path, threads: int) -> None:
    """Evaluate one job and leave its file."""
    place = runs / f"{job.name}.json"
    if place.is_file():
        print(f"{job.name}: done before", flush=True)
        return
    if not (data / job.task.needs).is_file():
        print(f"{job.name}: skipped, {data / job.task.needs} is not there", flush=True)
        return
    start_s, start_cpu_s = time.monotonic(), time.process_time()
    table = job.task.table(data, runs / "tables")
    options = options_of(job, str(table), runs / "cache", threads)
    try:
        result = run_evaluate(options)
    except NetclsError as error:
        print(f"{job.name}: cannot be evaluated: {error}", flush=True)
        return
    shown = "DATA/lab/flows.csv" if table.name == "flows.csv" else f"RUNS/tables/{table.name}"
    result["command"] = command_of(options, shown)
    result["data"]["path"] = shown
    result["cpu_seconds"] = time.process_time() - start_cpu_s
    runs.mkdir(parents=True, exist_ok=True)
    replace_file(place, json.dumps(result, indent=1, ensure_ascii=False).encode(errors="surrogateescape"))
    print(
        f"{job.name}: {time.monotonic() - start_s:.0f} s, {result['cpu_seconds']:.0f} CPU s: {result['verdict']}",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Regenerate docs/results.md.")
    parser.add_argument(
        "--data", default=os.environ.get(VARIABLE, ""), help=f"folder with lab/ and public/; or {VARIABLE}"
    )
    parser.add_argument(
        "--runs",
        type=Path,
        default=ROOT / "runs" / "results",
        help="one JSON file a job; default: %(default)s",
    )
    parser.add_argument(
        "--page", type=Path, default=ROOT / "docs" / "results.md", help="default: %(default)s"
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="TASK", help="such as T2 or T2.operator; may repeat"
    )
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument(
        "--page-only", action="store_true", help="run nothing, write the page from the files that are there"
    )
    given = parser.parse_args()
    if not given.page_only:
        if not given.data or not Path(given.data).is_dir():
            print(
                f"results: got data folder {given.data!r}, expected a folder with lab/ and public/; "
                f"give --data DIR or set {VARIABLE}. Nothing was run.",
                file=sys.stderr,
            )
            return 2
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        for job in jobs(given.only):
            run(job, Path(given.data), given.runs, given.threads)
            write_page(given.page, given.runs)
    write_page(given.page, given.runs)
    return 0


def write_page(page: Path, runs: Path) -> None:
    """The page from every file of the runs."""
    results = {
        path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(runs.glob("*.json"))
    }
    if results:
        page.write_text(page_of_runs(tasks(), results), encoding="utf-8", errors="backslashreplace")


if __name__ == "__main__":
    sys.exit(main())
