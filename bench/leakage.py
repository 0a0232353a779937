"""The price of leakage: one network, two field policies, an honest split and the optimistic one, in one table.

    python bench/leakage.py --data DIR --work runs --out leakage.jsonl

``leak_free`` hides what names an endpoint or a capture, ``paper`` shows what NetMamba's paper shows (ports, and what is
left of identifiers; addresses are masked by both). The honest split is that of ``docs/results.md``; the other draws
flows at random, so that flows of one capture stand on both sides. The difference between the columns is what a leak
would have been worth. One JSON line a run is appended to --out; runs that are there are not done again.
"""

import argparse
import json
import shutil
import sys
import time
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from ablations import SHAPE, SIZES, small_table
from results_tasks import tasks

from netcls.finetuning import FinetuneOptions, run_finetune
from netcls.provenance import code_version

POLICIES = ("leak_free", "paper")
SPLITS = ("honest", "flow")
LAB_GROUPS = "client_impl,server_impl"


def task_table(given: argparse.Namespace, name: str) -> tuple[Path, dict[str, Any]]:
    """The table of labels of a task and its honest split."""
    data, work = Path(given.data), Path(given.work)
    if name == "T1.ten":
        lab = argparse.Namespace(
            data=str(data / "lab" / "flows.csv"), work=given.work, group=LAB_GROUPS, classes=10
        )
        return small_table(lab), {"split": "group", "group": tuple(LAB_GROUPS.split(","))}
    (task,) = [task for task in tasks() if task.name == name]
    keys = ("split", "group", "leave_out")
    dropped = {"drop_labels": ("background", *task.options.get("unknown_labels", ()))}
    chosen = {key: task.options[key] for key in keys if key in task.options}
    return task.table(data, work / "tables"), chosen | dropped


def run(given: argparse.Namespace, name: str, policy: str, split: str, seed: int) -> dict[str, Any]:
    """One line of the results."""
    table, honest = task_table(given, name)
    how = honest | ({"split": "flow", "leave_out": ()} if split == "flow" else {})
    for ending in ("model", "model.run"):
        shutil.rmtree(Path(given.work) / ending, ignore_errors=True)
    began_s = time.process_time()
    report = run_finetune(
        FinetuneOptions(
            str(table),
            str(Path(given.work) / "model"),
            base=given.base,
            split_seed=0,
            seed=seed,
            epochs=given.epochs,
            max_flows_per_capture=given.max_flows,
            threads=given.threads,
            device="cpu",
            representation={"field_policy": policy} | ({} if given.base else SHAPE),
            sizes={} if given.base else SIZES,
            baselines=policy == "leak_free",
            cache_dir=Path(given.work) / "cache",
            **how,
        )
    )
    return {
        "task": name,
        "policy": policy,
        "split": split,
        "seed": seed,
        "base": given.base or "random weights",
        "rows": report["baselines"],
        "sizes": report["split"],
        "code": code_version(),
        "cpu_s": time.process_time() - began_s,
    }


def markdown(results: list[dict[str, Any]]) -> str:
    """A row per task; LightGBM and ports, which no policy of ours concerns, beside the network."""
    by_key: dict[tuple[str, str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        for place, row in enumerate(result["rows"]):
            who = f"network, {result['policy']}" if place == 0 else row["name"]
            if row["macro_f1"] is not None and (place == 0 or who in ("lightgbm", "ports")):
                by_key[result["task"], result["base"], who, result["split"]].append(row)
    lines = [
        "| task | base | row | honest split | random flows | gap |",
        "|---|---|---|---|---|---|",
    ]
    for task, base, who in dict.fromkeys(key[:3] for key in by_key):
        cells = [by_key[task, base, who, split] for split in SPLITS]
        means = [mean(row["macro_f1"] for row in rows) if rows else None for rows in cells]
        gap = f"{means[1] - means[0]:+.3f}" if None not in means else ""
        texts = [_cell(rows) if rows else "" for rows in cells]
        lines.append(f"| {task} | {base} | {who} | {texts[0]} | {texts[1]} | {gap} |")
    return "\n".join(lines)


def _cell(rows: list[dict[str, Any]]) -> str:
    low, high = (mean(row[f"macro_f1_{end}"] for row in rows) for end in ("low", "high"))
    seeds = f", {len(rows)} seeds" if len(rows) > 1 else ""
    return f"{mean(row['macro_f1'] for row in rows):.3f} [{low:.3f}, {high:.3f}]{seeds}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="folder with lab/ and public/")
    parser.add_argument("--work", required=True, metavar="DIR")
    parser.add_argument("--out", required=True, metavar="FILE.jsonl")
    parser.add_argument("--tasks", nargs="+", default=["T1.ten", "T5.stack", "T3.android", "T6.suricata"])
    parser.add_argument("--splits", nargs="+", default=list(SPLITS), choices=SPLITS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--base", help="backbone; default: the small network of bench/ablations.py, random weights"
    )
    parser.add_argument("--max-flows", type=int, default=6, help="of each class from each capture")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="print the table of --out, run nothing")
    given = parser.parse_args()
    out = Path(given.out)
    results = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    done = {(r["task"], r["policy"], r["split"], r["seed"], r["base"]) for r in results}
    wanted = [
        (name, policy, split, seed)
        for seed in given.seeds
        for name in given.tasks
        for split in given.splits
        for policy in POLICIES
    ]
    for key in [] if given.table else wanted:
        if (*key, given.base or "random weights") not in done:
            Path(given.work).mkdir(parents=True, exist_ok=True)
            results.append(run(given, *key))
            with out.open("a") as file:
                file.write(json.dumps(results[-1]) + "\n")
    print(markdown(results))


if __name__ == "__main__":
    main()
