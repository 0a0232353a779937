"""The paper's ablations of NetMamba once on one small honest task, with the baselines beside them.

python bench/ablations.py flows.csv --group client_impl,server_impl --work runs --out ablations.jsonl

The table of flows is cut down to the classes with the most groups (ties by name), so no score chooses the task. One
split for all, by group and seeded: test flows come from combinations that training never saw. Each variant and seed is
pre-trained for itself, on the training captures alone, then fine-tuned by the recipe of `netcls finetune`.

One JSON line per run is appended to --out; runs that are there are not done again. The Markdown table is printed at the
end, or at once with --table. With ten classes of the lab: 40 CPU minutes. Seeds can be run side by side, each with a
--work and an --out of its own; `cat` joins the results.
"""

import argparse
import csv
import json
import shutil
import time
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

from netcls.finetuning import FinetuneOptions, held_out_captures, run_finetune
from netcls.pretraining import PretrainOptions, run_pretrain
from netcls.provenance import code_version

SHAPE = {"n_packets": 16, "header_bytes": 56, "payload_bytes": 8, "stride": 8, "mark_direction": True}
SIZES = {"d_model": 64, "n_layers": 2, "decoder_d_model": 64, "decoder_layers": 1}

# Variant -> (is it pre-trained, its representation, its sizes); each is one flag of the command line.
VARIANTS: dict[str, tuple[bool, dict[str, Any], dict[str, Any]]] = {
    "full": (True, {}, {}),
    "no pre-training": (False, {}, {}),
    "no header": (True, {"header_bytes": 0}, {}),
    "no payload": (True, {"payload_bytes": 0}, {}),
    "bidirectional": (True, {}, {"bidirectional": True}),
    "no positions": (True, {}, {"positions": False}),
}


def small_table(given: argparse.Namespace) -> Path:
    """The rows of the classes with the most groups, with absolute paths, as a table of its own."""
    source, target = Path(given.data), Path(given.work) / "task.csv"
    columns = given.group.split(",")
    with source.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["label"] != "background"]
    groups: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for row in rows:
        groups[row["label"]].add(tuple(row[name] for name in columns))
    chosen = sorted(groups, key=lambda label: (-len(groups[label]), label))[: given.classes]
    with target.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            if row["label"] in chosen:
                writer.writerow(row | {"path": str((source.parent / row["path"]).resolve())})
    return target


def tuning(
    given: argparse.Namespace, table: Path, variant: str, seed: int, base: Path | None
) -> FinetuneOptions:
    _, shape, sizes = VARIANTS[variant]
    return FinetuneOptions(
        str(table),
        str(Path(given.work) / "model"),
        base=None if base is None else str(base),
        group=tuple(given.group.split(",")),
        split="group",
        split_seed=0,
        seed=seed,
        epochs=given.epochs,
        max_flows_per_capture=given.max_flows,
        threads=1,
        device="cpu",
        representation={} if base is not None else SHAPE | shape,
        sizes={} if base is not None else SIZES | sizes,
        baselines=variant == "full",
        cache_dir=Path(given.work) / "cache",
    )


def pretraining(given: argparse.Namespace, table: Path, variant: str, seed: int) -> PretrainOptions:
    _, shape, sizes = VARIANTS[variant]
    held_out = {path.resolve() for path in held_out_captures(tuning(given, table, variant, seed, None))}
    with table.open(newline="") as file:
        paths = {Path(row["path"]) for row in csv.DictReader(file)}
    return PretrainOptions(
        tuple(sorted(str(path) for path in paths if path.resolve() not in held_out)),
        str(Path(given.work) / "base"),
        representation=SHAPE | shape,
        sizes=SIZES | sizes,
        steps=given.pretrain_steps,
        max_flows_per_capture=20,
        seed=seed,
        threads=1,
        device="cpu",
        cache_dir=Path(given.work) / "cache",
    )


def run(given: argparse.Namespace, table: Path, variant: str, seed: int) -> dict[str, Any]:
    """One line of the results."""
    for name in ("base", "base.run", "model", "model.run"):
        shutil.rmtree(Path(given.work) / name, ignore_errors=True)
    began_s = time.process_time()
    facts: dict[str, Any] = {"variant": variant, "seed": seed, "code": code_version()}
    base = None
    if VARIANTS[variant][0]:
        asked = pretraining(given, table, variant, seed)
        report = run_pretrain(asked)
        base = Path(asked.out)
        facts["pretraining"] = {
            "captures": report["corpus"]["captures"],
            "flows": report["corpus"]["distinct_inputs"],
            "flow_passes": report["training"]["flow_passes"],
            "loss": report["training"]["loss"],
        }
    report = run_finetune(tuning(given, table, variant, seed, base))
    facts |= {
        "rows": report["baselines"],
        "split": report["split"],
        "best_epoch": report["training"]["best_epoch"],
        "warnings": report["warnings"],
        "cpu_s": time.process_time() - began_s,
    }
    return facts


def markdown(results: list[dict[str, Any]]) -> str:
    """A row per variant, the baselines of the first variant's runs below."""
    lines = [
        "| row | macro-F1, mean | each seed | 95 % interval, mean of the seeds' | accuracy, mean |",
        "|---|---|---|---|---|",
    ]
    for variant in VARIANTS:
        runs = [r["rows"][0] for r in results if r["variant"] == variant]
        lines += [_line(variant, runs)] if runs else []
    others: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        if result["variant"] == "full":
            for row in result["rows"][1:]:
                others[row["name"]].append(row)
    lines += [_line(name, rows) for name, rows in others.items() if rows[0]["macro_f1"] is not None]
    return "\n".join(lines)


def _line(name: str, rows: list[dict[str, Any]]) -> str:
    low, high = (mean(row[f"macro_f1_{end}"] for row in rows) for end in ("low", "high"))
    each = ", ".join(f"{row['macro_f1']:.3f}" for row in rows)
    return (
        f"| {name} | {mean(row['macro_f1'] for row in rows):.3f} | {each} | {low:.3f} .. {high:.3f} | "
        f"{mean(row['accuracy'] for row in rows):.3f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data")
    parser.add_argument("--group", required=True, metavar="COLUMN[,COLUMN]")
    parser.add_argument("--work", required=True, metavar="DIR")
    parser.add_argument("--out", required=True, metavar="FILE.jsonl")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--max-flows", type=int, default=6, help="of each class from each capture")
    parser.add_argument("--pretrain-steps", type=int, default=150, help="of 128 flows")
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    out = Path(given.out)
    results = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    if not given.table:
        Path(given.work).mkdir(parents=True, exist_ok=True)
        table = small_table(given)
        done = {(result["variant"], result["seed"]) for result in results}
        # All variants of a seed before the next seed: what is there when it is stopped can be compared.
        for seed in given.seeds:
            for variant in VARIANTS:
                if (variant, seed) not in done:
                    results.append(run(given, table, variant, seed))
                    with out.open("a") as file:
                        file.write(json.dumps(results[-1]) + "\n")
    print(markdown(results))


if __name__ == "__main__":
    main()
