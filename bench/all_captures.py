"""Run netcls over every capture below some folders, one source a sub-folder, and print totals as a markdown table.

    python bench/all_captures.py DIR... [--classify]

Fails (exit 1) if a capture cannot be read, if the books of one do not balance, or if there are not as many events as
flows. Equal flow ids are counted: flows of one five-tuple that begin at the same time have them.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from pathlib import Path

from capture.errors import NetclsError
from netcls.counters import Counters
from netcls.inputs import find_captures
from netcls.pipeline import Run


def source_of(root: Path, path: Path) -> str:
    """The sub-folder of ``root`` that holds the capture; the root itself for captures in many class folders."""
    first = path.relative_to(root).parts[0]
    return first if (root / "MANIFEST.csv").exists() else root.name


def run_one(path: Path, checkpoint: object | None) -> tuple[Counters, int, list[str]]:
    """Counters of one capture, how many flow ids are not the only ones, and what is wrong with it."""
    going = Run([str(path)], classify=checkpoint is not None, checkpoint=checkpoint)  # type: ignore[arg-type]
    flow_ids: list[int] = []
    wrong: list[str] = []
    try:
        for batch in going:
            flow_ids += batch.records["flow_id"].tolist()
    except NetclsError as error:
        wrong.append(str(error))
    if not going.counters.books_balance():
        wrong.append(f"{path}: books do not balance: {going.counters.as_dict()}")
    if len(flow_ids) != going.counters.flows_started:
        wrong.append(f"{path}: {len(flow_ids)} events of {going.counters.flows_started} flows")
    return going.counters, len(flow_ids) - len(set(flow_ids)), wrong


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--classify", action="store_true", help="with the default model")
    options = parser.parse_args()
    checkpoint = None
    if options.classify:
        from models.checkpoint import load_checkpoint

        checkpoint = load_checkpoint("default")
    rows: dict[str, list[float]] = defaultdict(lambda: [0.0] * 8)
    reasons: dict[str, int] = defaultdict(int)
    wrong: list[str] = []
    n_equal_ids = 0
    for root in options.folders:
        for name in find_captures(str(root)):
            started = time.process_time()
            counters, n_equal, faults = run_one(Path(name), checkpoint)
            n_equal_ids += n_equal
            wrong += faults
            rejected, ignored = counters.rejected(), counters.ignored()
            for reason, n_packets in {**rejected, **ignored}.items():
                reasons[reason] += n_packets
            row = rows[source_of(root, Path(name))]
            values = (
                1,
                counters.packets_seen,
                counters.packets_in_flows,
                sum(rejected.values()),
                sum(ignored.values()),
                counters.flows_started,
                counters.predictions,
                time.process_time() - started,
            )
            for place, value in enumerate(values):
                row[place] += value
    print("| source | captures | packets | in flows | rejected | ignored | flows | answers | CPU s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for source, row in [
        *sorted(rows.items()),
        ("all", [sum(column) for column in zip(*rows.values(), strict=True)]),
    ]:
        print(f"| {source} | " + " | ".join(f"{value:,.0f}" for value in row[:7]) + f" | {row[7]:.1f} |")
    print(
        "\nNot in flows, by reason: "
        + ", ".join(f"{name} {n:,}" for name, n in sorted(reasons.items()))
        + "."
    )
    print(f"\nFlow ids that another flow of the capture has too: {n_equal_ids}.")
    for fault in wrong:
        print(fault, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
