"""Where trees win, and what helps a packet-mamba against them: one row a remedy, the same split and test flows.

    python bench/against_trees.py --data DIR --work runs --out against_trees.jsonl --generative BACKBONE

Rows: the trees; packet-mamba from random weights, from the shipped classifier, from a next-packet backbone, without
augmentation, with five times the flows; the mean of its seeds; the mean of network and forest; a forest that is also
given the network's features. Everything trains to its end, none is cut by the clock. Means of the seeds; intervals are
bootstrap over the units of the split. One JSON line a task and seed is appended to --out.
"""

import argparse
import json
import sys
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from results_tasks import Task, tasks

from capture.representations import build
from models.checkpoint import load_checkpoint
from models.learning.calibration import softmax
from netcls.datasets.splits import TEST, TRAIN, VALIDATION
from netcls.evaluating import EvaluateOptions
from netcls.evaluation.baselines import BaselineInput, run_baselines
from netcls.evaluation.comparison_data import ComparisonData, read_comparison_data
from netcls.evaluation.features import header_features
from netcls.evaluation.metrics import score
from netcls.evaluation.trained_rows import RowChoice, RowTrainer
from netcls.provenance import code_version

BASE = "packet-mamba-small"
N_PACKETS = 20


def read(given: argparse.Namespace, task: Task, max_flows: int) -> ComparisonData:
    """The flows of a task as `make results` sees them."""
    table = task.table(Path(given.data), Path(given.work) / "tables")
    more = {key: value for key, value in task.options.items() if key != "checks"}
    options = EvaluateOptions(
        str(table), base=BASE, max_flows_per_capture=max_flows, cache_dir=Path(given.work) / "cache", **more
    )
    base = load_checkpoint(BASE)
    return read_comparison_data(
        str(table),
        options.data_options(),
        options.build_options(),
        options.split_options(),
        [build(base.representation, base.representation_settings)],
        unknown_labels=options.unknown_labels,
    )


def network(
    given: argparse.Namespace, data: ComparisonData, base: str, row: str, seed: int, *, augmented: bool = True
) -> tuple[Any, float]:
    """A trained row of ``netcls evaluate``, and its CPU seconds."""
    from models import families

    began_s = time.process_time()
    known = dict(families.FAMILIES)
    if not augmented:
        families.FAMILIES["packet-mamba"] = replace(known["packet-mamba"], augment=None)
    try:
        trainer = RowTrainer(
            load_checkpoint(base),
            data,
            max_seconds=3600.0,
            threads=given.threads,
            device="cpu",
            on_progress=lambda _: None,
        )
        classifier = trainer.contender(RowChoice(row), [seed]).classifiers[0]
    finally:
        families.FAMILIES.update(known)
    return classifier, time.process_time() - began_s


def chances(classifier: Any, data: ComparisonData, part: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Probabilities float64 (F, C) and features of one part."""
    logits, features = classifier.answer(data.batch(data.rows(part)))
    return softmax(logits), features


def run(given: argparse.Namespace, task: Task, seed: int) -> dict[str, Any]:
    """All rows of a task and seed."""
    data = read(given, task, 20)
    flows, truth = data.prepared.flows, data.labels[data.rows(TEST)]
    units = data.units(data.rows(TEST))
    found: dict[str, np.ndarray] = {}
    cpu_s: dict[str, float] = {}
    trees = BaselineInput(
        flows.records,
        flows.packets,
        flows.labels,
        data.rows(TRAIN),
        data.rows(VALIDATION),
        data.rows(TEST),
        len(data.label_names),
        0,
    )
    for answer in run_baselines(trees, seed=seed, threads=given.threads, only=("lightgbm", "random_forest")):
        assert answer.chances_of is not None
        found[answer.name] = answer.chances_of(flows.records[trees.test], flows.packets[trees.test])
    wanted: list[tuple[str, str, str, bool]] = [
        ("random weights", BASE, "random", True),
        ("shipped classifier, full", BASE, "full", True),
        ("shipped classifier, full, no augmentation", BASE, "full", False),
        ("shipped classifier, head", BASE, "head", True),
    ]
    if given.generative:
        wanted.append(("next-packet backbone, full", given.generative, "full", True))
    for name, base, row, augmented in wanted:
        classifier, cpu_s[name] = network(given, data, base, row, seed, augmented=augmented)
        found[name], features = chances(classifier, data, TEST)
        if name == "shipped classifier, full":
            found["network + forest, mean"] = (found[name] + found["random_forest"]) / 2
            found["forest given header fields and the network's features"] = forest_on_both(
                classifier, data, features, seed, given.threads
            )
    more = read(given, task, 100)
    same_test = set(map(int, flows.records["flow_id"][data.rows(TEST)]))
    rows = np.flatnonzero(np.isin(more.prepared.flows.records["flow_id"], list(same_test)))
    if len(more.rows(TRAIN)) > len(data.rows(TRAIN)) and set(map(int, more.prepared.split.part[rows])) == {
        TEST
    }:
        classifier, cpu_s["shipped classifier, full, up to 100 flows a capture"] = network(
            given, more, BASE, "full", seed
        )
        found["shipped classifier, full, up to 100 flows a capture"], _ = chances(classifier, data, TEST)
    result = {"task": task.name, "seed": seed, "code": code_version(), "train": len(data.rows(TRAIN))}
    result["more_train"] = len(more.rows(TRAIN))
    result["truth"], result["units"] = truth.tolist(), units.tolist()
    result["labels"] = list(data.label_names)
    result["chances"] = {name: np.round(p, 5).tolist() for name, p in found.items()}
    result["cpu_s"] = cpu_s
    return result


def forest_on_both(
    classifier: Any, data: ComparisonData, test_features: np.ndarray | None, seed: int, threads: int
) -> np.ndarray:
    """A forest on the baselines' columns and the features of the fine-tuned network beside them."""
    from sklearn.ensemble import RandomForestClassifier

    flows = data.prepared.flows
    assert test_features is not None

    def columns(part: int, features: np.ndarray | None) -> np.ndarray:
        rows = data.rows(part)
        header = np.nan_to_num(
            header_features(flows.records[rows], flows.packets[rows], N_PACKETS)[0], nan=-1e6
        )
        return np.concatenate([header, features], axis=1)

    train_features = chances(classifier, data, TRAIN)[1]
    forest = RandomForestClassifier(
        200, class_weight="balanced_subsample", random_state=seed, n_jobs=threads, min_samples_leaf=2
    )
    forest.fit(columns(TRAIN, train_features), data.labels[data.rows(TRAIN)])
    everywhere = np.zeros((len(test_features), len(data.label_names)))
    everywhere[:, forest.classes_] = forest.predict_proba(columns(TEST, test_features))
    return everywhere


def markdown(results: list[dict[str, Any]]) -> str:
    """A column a task, a row a remedy: macro-F1, mean of the seeds, and the interval (mean of the seeds' bounds)."""
    cells: dict[str, dict[str, str]] = defaultdict(dict)
    names = list(dict.fromkeys(result["task"] for result in results))
    for task in names:
        runs = [result for result in results if result["task"] == task]
        truth, units = np.array(runs[0]["truth"]), np.array(runs[0]["units"])
        for row in runs[0]["chances"]:
            of_seeds = [np.array(run["chances"][row]) for run in runs if row in run["chances"]]
            cells[row][task] = _cell(truth, units, runs[0]["labels"], of_seeds)
            if row == "shipped classifier, full" and len(runs) > 1:
                both = [np.mean(of_seeds, axis=0)]
                cells[f"mean of {len(runs)} seeds of it"][task] = _cell(truth, units, runs[0]["labels"], both)
    lines = ["| row | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    return "\n".join(
        lines
        + [f"| {row} | " + " | ".join(of.get(task, "") for task in names) + " |" for row, of in cells.items()]
    )


def _cell(truth: np.ndarray, units: np.ndarray, labels: list[str], of_seeds: list[np.ndarray]) -> str:
    scores = [score(truth, p.argmax(axis=1), units, labels) for p in of_seeds]
    low, high = (
        mean(one.macro_f1_interval[0] for one in scores),
        mean(one.macro_f1_interval[1] for one in scores),
    )
    return f"{mean(one.macro_f1 for one in scores):.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="folder with lab/ and public/")
    parser.add_argument("--work", required=True, metavar="DIR")
    parser.add_argument("--out", required=True, metavar="FILE.jsonl")
    parser.add_argument("--tasks", nargs="+", default=["T3.android", "T5.stack", "T2.capture", "T6.suricata"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--generative", help="a packet-mamba backbone, pre-trained by next packets")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="print the table of --out, run nothing")
    given = parser.parse_args()
    out = Path(given.out)
    results = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    done = {(result["task"], result["seed"]) for result in results}
    known = {task.name: task for task in tasks()}
    for seed in [] if given.table else given.seeds:
        for name in given.tasks:
            if (name, seed) not in done:
                results.append(run(given, known[name], seed))
                with out.open("a") as file:
                    file.write(json.dumps(results[-1]) + "\n")
                print(markdown(results), flush=True)
    print(markdown(results))


if __name__ == "__main__":
    main()
