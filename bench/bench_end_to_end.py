"""netcls against what there is today, end to end, in CPU seconds. Prints Markdown.

python bench/bench_end_to_end.py [--packets 500000] [--rounds 3] [--only packets|model|answers|start_up] [--json FILE]

Every baseline is run in turn with netcls, in the same minutes on the same machine; the ratios are the result, and the
absolute numbers belong to this machine. bench/README.md says what is compared with what.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cpu_rounds import Road, ratio_of, run, run_in_turn
from make_captures import Capture, make
from report import markdown

from netcls.bench import machine_facts
from netcls.bench_traffic import SNAPLEN_BYTES, Traffic

HERE = Path(__file__).parent
NETCLS = str(Path(sys.executable).with_name("netcls"))
SECTIONS = ("packets", "model", "answers", "start_up")


def netcls_counts(said: str) -> tuple[int, int]:
    """From the books that ``--verbose`` prints."""
    books = dict(re.findall(r"^([a-z_.]+) (\d+)$", said, re.MULTILINE))
    return int(books["packets.seen"]), int(books["flows.started"])


def peer_counts(said: str) -> tuple[int, int]:
    """From a peer's line of JSON."""
    counted = json.loads(said.splitlines()[-1])
    return counted["packets"], counted["flows"]


def peer(name: str, *arguments: str) -> Callable[[str], list[str]]:
    """The command of a script in bench/peers."""
    return lambda capture: [sys.executable, str(HERE / "peers" / f"{name}.py"), capture, *arguments]


def packets_section(mix: Capture, one: Capture, rounds: int, folder: Path) -> dict[str, Any]:
    """Packets to flow records, and packets to model input."""
    tokens = str(folder / "tokens.npz")

    def token_counts(_said: str) -> tuple[None, int]:
        import numpy as np

        with np.load(tokens) as arrays:
            return None, len(arrays["flow_id"])

    roads = [
        Road("netcls flows", lambda c: [NETCLS, "flows", c, "-f", "none", "-v"], netcls_counts),
        Road(
            "netcls tokens",
            lambda c: [NETCLS, "tokens", c, "--representation", "netmamba", "-f", "npz", "-o", tokens],
            token_counts,
        ),
        Road("dpkt tokens", peer("dpkt_tokens"), peer_counts),
    ]
    if importlib.util.find_spec("nfstream"):
        roads.insert(1, Road("nfstream", peer("nfstream_flows"), peer_counts))
        roads.insert(3, Road("nfstream tokens", peer("nfstream_tokens"), peer_counts))
    run_in_turn(roads, str(mix.path), str(one.path), rounds)
    cost = {road.name: road for road in roads}
    compared = [("netcls flows", "nfstream"), ("netcls tokens", "nfstream tokens")]
    compared += [("netcls tokens", "dpkt tokens"), ("netcls tokens", "nfstream")]
    return {
        "packets": mix.packets,
        "flows": mix.flows,
        "roads": [road.as_dict() for road in roads],
        "ratios": [
            {
                "ours": ours,
                "theirs": theirs,
                "work": ratio_of(cost[ours].work_cpu_s(), cost[theirs].work_cpu_s()),
                "whole": ratio_of([c.cpu_s for c in cost[ours].whole], [c.cpu_s for c in cost[theirs].whole]),
            }
            for ours, theirs in compared
            if theirs in cost
        ],
    }


def model_section(rounds: int, seed: int) -> dict[str, Any]:
    """One network in two ways: same weights, same flows, batch 16, one thread, float32."""
    command = [sys.executable, str(HERE / "model_rounds.py"), "--rounds", str(rounds), "--seed", str(seed)]
    measured: dict[str, Any] = json.loads(run(command).said.splitlines()[-1])
    measured["ratio"] = ratio_of(measured["ours_cpu_s"], measured["plain_cpu_s"])
    return measured


def answers_section(few: Capture, one: Capture, mix: Capture, rounds: int, checkpoint: str) -> dict[str, Any]:
    """Packets to answers, on few flows; both sides have the same network and the same weights."""

    def classify(model: str, precision: str) -> Callable[[str], list[str]]:
        return lambda c: [
            *(NETCLS, "classify", c, "-m", model, "-f", "jsonl", "-o", "/dev/null"),
            *("--threads", "1", "--device", "cpu", "--precision", precision, "-v"),
        ]

    ours = Road("netcls classify", classify(checkpoint, "fp32"), netcls_counts)
    plain = Road("dpkt + plain PyTorch", peer("plain_classify", checkpoint), peer_counts)
    roads = [ours, plain]
    if default_ships():
        roads.append(Road("netcls classify, default model", classify("default", "auto"), netcls_counts))
    run_in_turn(roads, str(few.path), str(one.path), rounds)
    per_flow = {
        road.name: statistics.median(work_s) / few.flows for road in roads if (work_s := road.work_cpu_s())
    }
    return {
        "packets": few.packets,
        "flows": few.flows,
        "roads": [road.as_dict() for road in roads],
        "ratios": [
            {
                "ours": ours.name,
                "theirs": plain.name,
                "work": ratio_of(ours.work_cpu_s(), plain.work_cpu_s()),
                "whole": ratio_of([c.cpu_s for c in ours.whole], [c.cpu_s for c in plain.whole]),
            }
        ],
        "extrapolated_flows": mix.flows,
        "extrapolated_cpu_s": {name: s * mix.flows for name, s in per_flow.items()},
    }


def default_ships() -> bool:
    """Whether the default checkpoint is there."""
    names = {row["name"] for row in json.loads(run([NETCLS, "models", "list", "--json"]).said)}
    return "default" in names


def start_up_section(one: Capture, rounds: int, checkpoint: str) -> list[dict[str, Any]]:
    """Before there is work: help, a capture of one packet without a model, the first answer."""
    flows = [NETCLS, "flows", str(one.path), "-f", "none"]
    classify = [NETCLS, "classify", str(one.path), "-m", checkpoint, "-f", "jsonl", "--threads", "1"]
    commands = {"netcls --help": [NETCLS, "--help"], "netcls flows": flows, "netcls classify": classify}
    rows: list[dict[str, Any]] = []
    for name, command in commands.items():
        run(command)
        costs = [run(command) for _ in range(rounds)]
        rows.append(_start_up_row(name, "filled", costs))
    for name in ("netcls flows", "netcls classify"):
        with tempfile.TemporaryDirectory() as empty:
            rows.append(_start_up_row(name, "empty", [run(commands[name], {"NUMBA_CACHE_DIR": empty})]))
    return rows


def _start_up_row(name: str, kernel_cache: str, costs: list[Any]) -> dict[str, Any]:
    return {
        "name": name,
        "kernel_cache": kernel_cache,
        "cpu_s": statistics.median(cost.cpu_s for cost in costs),
        "wall_s": statistics.median(cost.wall_s for cost in costs),
        "peak_mib": max(cost.peak_mib for cost in costs),
        "runs": len(costs),
    }


def save_random_checkpoint(folder: Path, seed: int) -> str:
    """The paper's network with random weights; speed does not depend on them. A process of its own keeps torch out."""
    code = "import sys; from netcls.bench_models import random_checkpoint as r; r(int(sys.argv[1])).save(sys.argv[2])"
    target = folder / "netmamba-random"
    run([sys.executable, "-c", code, str(seed), str(target)])
    return str(target)


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """All sections that are asked for."""
    sections = given.only or SECTIONS
    result: dict[str, Any] = {
        "machine": machine_facts(),
        "settings": {
            "packets": given.packets,
            "snaplen": given.snaplen,
            "seed": given.seed,
            "rounds": given.rounds,
        },
        "load_before": os.getloadavg()[0],
    }
    with tempfile.TemporaryDirectory(prefix="netcls-bench-") as name:
        folder = Path(name)
        say("captures")
        traffic = Traffic(given.packets, snaplen_bytes=given.snaplen, seed=given.seed)
        mix, few, one = make(folder, traffic, given.answer_flows)
        checkpoint = save_random_checkpoint(folder, given.seed)
        work: dict[str, Callable[[], Any]] = {
            "packets": lambda: packets_section(mix, one, given.rounds, folder),
            "model": lambda: model_section(given.rounds, given.seed),
            "answers": lambda: answers_section(few, one, mix, given.answer_rounds, checkpoint),
            "start_up": lambda: start_up_section(one, given.rounds, checkpoint),
        }
        for section in SECTIONS:
            if section in sections:
                say(section)
                result[section] = work[section]()
    result["load_after"] = os.getloadavg()[0]
    return result


def say(what: str) -> None:
    """On standard error, so that standard output is the table."""
    print(f"measuring: {what}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--packets", type=int, default=500_000)
    parser.add_argument(
        "--snaplen", type=int, default=SNAPLEN_BYTES, help="bytes of a frame that the capture keeps"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--answer-flows", type=int, default=200, help="flows that both roads to an answer are given"
    )
    parser.add_argument("--answer-rounds", type=int, default=2)
    parser.add_argument("--only", action="append", choices=SECTIONS, help="may repeat")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every single measurement")
    given = parser.parse_args()
    result = measure(given)
    if given.json:
        given.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(markdown(result), end="")


if __name__ == "__main__":
    main()
