"""Commands run in turn, A B C A B C ..., and what they cost: CPU seconds of the whole process tree."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

LEAST_WORK_S = 0.05
"""CPU seconds; less is not told apart from the noise of a start-up."""

# One thread everywhere, and none that spins while it waits: a CPU second is then a second of work.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}


@dataclass(frozen=True)
class Cost:
    """Of one run of a command.

    Attributes:
        cpu_s: user and system, of the process and of all below it that were waited for.
        wall_s: from start to end.
        peak_mib: memory of the largest of these processes.
        said: its standard output, then its standard error.
    """

    cpu_s: float
    wall_s: float
    peak_mib: float
    said: str


@dataclass
class Road:
    """A command over a big and an empty capture, run several times.

    Attributes:
        name: in the table.
        command: without the capture, of which it is told where.
        count: what it said -> (packets or None, flows) that it counted itself.
        whole: costs on the big capture, one a round.
        start_up: costs on a capture of one packet.
    """

    name: str
    command: Callable[[str], list[str]]
    count: Callable[[str], tuple[int | None, int]]
    whole: list[Cost] = field(default_factory=list)
    start_up: list[Cost] = field(default_factory=list)

    @property
    def start_up_cpu_s(self) -> float:
        """Median."""
        return statistics.median(cost.cpu_s for cost in self.start_up)

    def work_cpu_s(self) -> list[float]:
        """Of each round, without the start-up; empty where a round had too little work to tell."""
        work_s = [cost.cpu_s - self.start_up_cpu_s for cost in self.whole]
        return work_s if min(work_s) >= LEAST_WORK_S else []

    def as_dict(self) -> dict[str, Any]:
        """Everything measured, as JSON values."""
        packets, flows = self.count(self.whole[0].said)
        return {
            "name": self.name,
            "packets_counted": packets,
            "flows_counted": flows,
            "cpu_s": [cost.cpu_s for cost in self.whole],
            "start_up_cpu_s": [cost.cpu_s for cost in self.start_up],
            "work_cpu_s": self.work_cpu_s(),
            "wall_s": [cost.wall_s for cost in self.whole],
            "peak_mib": max(cost.peak_mib for cost in self.whole),
        }


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Cost:
    """Run a command to its end. The whole program stops, with the command's words, if it fails."""
    with tempfile.TemporaryFile("w+") as said:
        began = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=said, stderr=subprocess.STDOUT, env={**ENVIRONMENT, **(environment or {})}
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        text = said.read()
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}: {text.strip()[-500:]}")
    return Cost(usage.ru_utime + usage.ru_stime, wall_s, usage.ru_maxrss / 1024, text)


def run_in_turn(roads: Sequence[Road], capture: str, one_packet: str, rounds: int) -> None:
    """Every road once uncounted on one packet (caches fill), then ``rounds`` times everything in turn."""
    for road in roads:
        run(road.command(one_packet))
    for _ in range(rounds):
        for road in roads:
            road.start_up.append(run(road.command(one_packet)))
            road.whole.append(run(road.command(capture)))


def ratio_of(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float] | None:
    """How many times theirs costs ours, round by round: median, least, most. None where one of them is empty."""
    if not ours or not theirs:
        return None
    ratios = [their / our for our, their in zip(ours, theirs, strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
