"""How fast this machine is, stage by stage: what ``netcls bench`` measures.

Every stage is timed alone, over what the stage before it made, in CPU seconds of this process (user and system, all its
threads): wall time says more about the neighbours than about the program. A rate is the median of several repeats
after one that is not counted and compiles what has to be compiled.

========== ========= ======= ==========================================================================================
stage      name      unit    what is timed
========== ========= ======= ==========================================================================================
read       pcap      packets a capture file to blocks
decode     headers   packets blocks to columns
flows      records   packets columns to flow records, nothing kept of the packets
flows      tokens    packets the same, with the first bytes that NetMamba wants
flows      netfound  packets the same, with the headers that netFound wants
tokens     netmamba  packets the first packets of all flows to model input, for each packet of the capture
tokens     netfound  packets the same, to bursts of field tokens
model      MODEL     flows   model input to logits; in fp32, and in bf16 where the CPU has it
train      MODEL     flows   one step of AdamW, forward and backward
end_to_end records   packets a capture file to flow records: ``netcls flows``
end_to_end tokens    packets a capture file to model input: ``netcls tokens``
end_to_end netfound  packets the same with netFound's input
end_to_end MODEL     flows   a capture file to answers, in the precision of choice: ``netcls classify``
========== ========= ======= ==========================================================================================

MODEL is ``netmamba`` (the paper's sizes, random weights: they do not change the speed), ``default`` (the checkpoint
that ships), or any other checkpoint that is named.
"""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from capture.errors import CheckpointError, UsageError

STAGES: Final = ("read", "decode", "flows", "tokens", "model", "train", "end_to_end")
CAPTURE_NAMES: Final = ("pcap", "headers", "records", "tokens")
RANDOM_MODEL: Final = "netmamba"
SHIPPED_MODEL: Final = "default"

_FEWEST_REPEATS: Final = 3
_MOST_REPEATS: Final = 99

Work = Callable[[], int]


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """What to measure, and on how much.

    Attributes:
        stages: of ``STAGES``; empty: all.
        names: only these; empty: all, with both models.
        n_packets: of the made-up capture.
        batch: flows given to a model at once.
        threads: of models.
        seconds: CPU seconds that each measurement lasts at least; three repeats are made in any case.
        seed: of the traffic and of random weights.
    """

    stages: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    n_packets: int = 200_000
    batch: int = 16
    threads: int = 1
    seconds: float = 1.0
    seed: int = 0

    def wants(self, stage: str, name: str) -> bool:
        """Whether this measurement is asked for."""
        return (not self.stages or stage in self.stages) and (not self.names or name in self.names)

    def models(self) -> list[str]:
        """Names of the models to measure."""
        return [name for name in self.names or (RANDOM_MODEL, SHIPPED_MODEL) if name not in CAPTURE_NAMES]


@dataclass(frozen=True, slots=True)
class Task:
    """One thing to measure.

    Attributes:
        stage, name, unit: see the module.
        start: called before every repeat, not timed; gives the work to time, which returns how many units it did.
        precision: of a model's matrix products, ``fp32``, ``bf16`` or ``int8``; None without a model.
        batch: flows at once; None without a model.
        threads: that may work.
    """

    stage: str
    name: str
    unit: str
    start: Callable[[], Work]
    precision: str | None = None
    batch: int | None = None
    threads: int = 1


@dataclass(frozen=True, slots=True)
class Result:
    """One rate.

    Attributes:
        stage, name, precision, batch, threads, unit: of the task.
        per_cpu_s: units per CPU second, the median of the repeats.
        per_cpu_s_min, per_cpu_s_max: slowest and fastest repeat.
        repeats: that were counted.
    """

    stage: str
    name: str
    precision: str | None
    batch: int | None
    threads: int
    unit: str
    per_cpu_s: float
    per_cpu_s_min: float
    per_cpu_s_max: float
    repeats: int


@dataclass(frozen=True, slots=True)
class BenchReport:
    """What ``netcls bench --json`` prints.

    Attributes:
        machine: processor, usable cores, versions.
        traffic: of the capture that was measured on.
        results: in the order of the stages.
        skipped: name and reason of what could not be measured.
    """

    machine: dict[str, Any]
    traffic: dict[str, int]
    results: list[Result] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def run_bench(options: BenchOptions, on_progress: Callable[[str], None] | None = None) -> BenchReport:
    """Measure everything that is asked for.

    Args:
        options: what.
        on_progress: called with stage and name of what is measured next.

    Raises:
        UsageError: if stages and names have nothing in common, or the traffic cannot be.
        CheckpointError: if a model that was asked for by name cannot be loaded.
    """
    traffic = {"packets": options.n_packets, "seed": options.seed}
    report = BenchReport(machine_facts(), traffic)
    with tempfile.TemporaryDirectory(prefix="netcls-bench-") as folder:
        for task in _tasks(options, Path(folder), report.skipped):
            if on_progress:
                on_progress(f"measuring {task.stage} {task.name}")
            report.results.append(measure(task, options.seconds))
    if not report.results and not report.skipped:
        stages, names = ", ".join(options.stages or STAGES), ", ".join(options.names)
        raise UsageError(
            f"nothing to measure: no stage of {stages} has a name of {names}; see `netcls bench --help`"
        )
    return report


def measure(task: Task, seconds: float, clock: Callable[[], float] = time.process_time) -> Result:
    """Repeat a task and take the median rate.

    Args:
        task: what; its first repeat is not counted.
        seconds: that the counted repeats take together at least, on ``clock``.
        clock: in seconds.
    """
    task.start()()
    rates: list[float] = []
    spent = 0.0
    while len(rates) < _FEWEST_REPEATS or (spent < seconds and len(rates) < _MOST_REPEATS):
        work = task.start()
        before = clock()
        n_done = work()
        took = max(clock() - before, 1e-9)
        spent += took
        rates.append(n_done / took)
    return Result(
        task.stage,
        task.name,
        task.precision,
        task.batch,
        task.threads,
        task.unit,
        statistics.median(rates),
        min(rates),
        max(rates),
        len(rates),
    )


def _tasks(options: BenchOptions, folder: Path, skipped: list[dict[str, str]]) -> Iterator[Task]:
    """In the order of the stages. What a stage needs is made when the first of its tasks is taken."""
    from netcls import bench_capture

    models = [name for name in options.models() if _wants_model(options, name)]
    made_of_captures = bench_capture.tasks(options, folder)
    at_the_end = [task for task in made_of_captures if task.stage == "end_to_end"]
    yield from (task for task in made_of_captures if task.stage != "end_to_end")
    if models:
        from netcls import bench_models

        tasks: list[Task] = []
        for name in models:
            try:
                tasks += bench_models.tasks(name, options, folder)
            except CheckpointError as error:
                if name in options.names:
                    raise
                skipped.append({"name": name, "reason": str(error)})
        at_the_end += [task for task in tasks if task.stage == "end_to_end"]
        for stage in ("model", "train"):
            yield from (task for task in tasks if task.stage == stage)
    yield from at_the_end


def _wants_model(options: BenchOptions, name: str) -> bool:
    return any(options.wants(stage, name) for stage in ("model", "train", "end_to_end"))


def machine_facts() -> dict[str, Any]:
    """What a rate depends on: processor, usable cores, system, versions. Imports nothing heavy."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    facts: dict[str, Any] = {"cpu": _cpu_model(), "cores": cores, "system": platform.platform(terse=True)}
    facts["python"] = platform.python_version()
    for distribution in ("netcls", "numpy", "numba", "torch"):
        try:
            facts[distribution] = version(distribution)
        except PackageNotFoundError:
            facts[distribution] = None
    return facts


def _cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    for line in text.splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
