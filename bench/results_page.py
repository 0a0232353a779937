"""docs/results.md from the JSON files of ``results.py``: tables, and sentences that follow from the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from results_tasks import Task

Result = Mapping[str, Any]
Row = Mapping[str, Any]

HEAD = """# Results

Written by `make results` ([bench/results.py](../bench/results.py)); no number here is typed by hand. How to read
them, and what is measured how: [evaluation.md](evaluation.md). Every row of a table is scored on the same test flows;
intervals are 95 % bootstraps over captures or groups, never over flows. Where something is trained here its score is
the mean over its seeds. *ECE* is the calibration error after scaling, *capture* the accuracy of one vote for all flows
of a class in a capture. A number counts only with its split. `RUNS/tables` are the label tables that
`bench/results_tasks.py` makes.
"""


def page_of_runs(all_tasks: Sequence[Task], results: Mapping[str, Result]) -> str:
    """The page.

    Args:
        all_tasks: in the order of the sections.
        results: by the name of the job, ``TASK.SPLIT.quick`` or ``TASK.SPLIT.networks``.
    """
    sections, missing = [], []
    ordered = sorted(all_tasks, key=lambda task: (task.name.partition(".")[0], not task.is_main))
    for task in ordered:
        quick, networks = (results.get(f"{task.name}.{stage}") for stage in ("quick", "networks"))
        if quick is None:
            missing.append(task.name)
            continue
        sections.append(_section(task, quick, networks))
    parts = [HEAD, _overview(ordered, results), *sections]
    if missing:
        parts.append(f"## Not run\n\n{', '.join(missing)}: no file in the folder of runs.\n")
    return "\n".join(parts)


def _rows(quick: Result, networks: Result | None) -> list[Row]:
    rows = [*quick["rows"], *([] if networks is None else networks["rows"])]
    seen: dict[str, Row] = {}
    for row in rows:
        if not row["skipped"]:
            seen.setdefault(row["name"], row)
    return sorted(seen.values(), key=lambda row: row["macro_f1"], reverse=True)


def _best(rows: Sequence[Row], *, baseline: bool) -> Row | None:
    return next((row for row in rows if (row["kind"] == "baseline") == baseline), None)


def _overview(ordered: Sequence[Task], results: Mapping[str, Result]) -> str:
    lines = [
        "## In one table",
        "",
        "| task and split | flows | classes | best baseline | best network | who is ahead |",
        "|---|---:|---:|---|---|---|",
    ]
    for task in ordered:
        quick = results.get(f"{task.name}.quick")
        if quick is None:
            continue
        rows = _rows(quick, results.get(f"{task.name}.networks"))
        tree, network = _best(rows, baseline=True), _best(rows, baseline=False)
        if tree is None or network is None:
            continue
        lines.append(
            f"| {_safe(task.title)} | {tree['test_flows']} | {len(quick['labels'])} | {_cell(tree)} | {_cell(network)} "
            f"| {_ahead(tree, network)} |"
        )
    return "\n".join([*lines, ""])


def _cell(row: Row) -> str:
    low, high = row["macro_f1_interval"]
    return f"{_safe(row['name'])} {row['macro_f1']:.3f} [{low:.3f}, {high:.3f}]"


def _ahead(tree: Row, network: Row) -> str:
    above, below = (tree, network) if tree["macro_f1"] >= network["macro_f1"] else (network, tree)
    what = "the baseline" if above is tree else "the network"
    overlap = above["macro_f1_interval"][0] <= below["macro_f1_interval"][1]
    return f"{what}, intervals overlap" if overlap else what


def _section(task: Task, quick: Result, networks: Result | None) -> str:
    rows = _rows(quick, networks)
    split = quick["split"]
    test = split["parts"]["test"]
    lines = [f"## {_safe(task.title)}", "", f"{_safe(quick['verdict'])} {task.says}".strip(), ""]
    description = (
        f"Split: {_safe(split['description'])}. {test['flows']} test flows of {test['captures']} captures, "
        f"{test['groups']} groups, {test['classes']} classes; {split['parts']['train']['flows']} training flows; "
        f"{test['duplicates_removed']} test flows left out because their input repeats a training flow's."
    )
    lines += [description, ""]
    lines += _table(rows)
    lines += _checks(rows) + _unknowns(rows, quick) + _early(rows) + _curve(quick) + _calibration(rows)
    warnings = list(dict.fromkeys([*quick["warnings"], *([] if networks is None else networks["warnings"])]))
    lines += [f"- {_safe(warning)}" for warning in warnings] + ([""] if warnings else [])
    for result in filter(None, (quick, networks)):
        lines += ["```", result["command"], "```", ""]
        lines.append(
            f"Commit {(result['code']['commit'] or 'unknown')[:12]}, seeds {', '.join(map(str, result['seeds']))}, "
            f"{result['cpu_seconds']:.0f} CPU s on {_safe(result['machine']['cpu'])}; test captures "
            f"{result['data']['test_captures_sha256'][:12]}."
        )
        lines.append("")
    return "\n".join(lines)


def _table(rows: Sequence[Row]) -> list[str]:
    lines = [
        "| row | macro-F1 | 95 % interval | accuracy | capture | ECE | seeds | flows/s | |",
        "|---|---:|---|---:|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        low, high = row["macro_f1_interval"]
        note = row.get("training", {}).get("budget", "" if row["kind"] == "baseline" else "as it ships")
        lines.append(
            f"| {_safe(row['name'])} | {row['macro_f1']:.3f} | {low:.3f} .. {high:.3f} | {row['accuracy']:.3f} "
            f"| {row['vote_by_capture']['accuracy']:.3f} | {row['calibration']['ece_after']:.3f} "
            f"| {len(row['seeds']) or '-'} | {row['speed']['flows_per_s']:.0f} | {_safe(note)} |"
        )
    return [*lines, ""]


def _verdict(row: Row) -> str:
    return f"{row['shortcut_verdict']} {row.get('retrained_verdict', '')}".rstrip()


def _checks(rows: Sequence[Row]) -> list[str]:
    checked = [row for row in rows if row.get("shortcut_verdict")]
    return [f"- Shortcut check, {_safe(row['name'])}: {_safe(_verdict(row))}" for row in checked] + (
        [""] if checked else []
    )


def _unknowns(rows: Sequence[Row], quick: Result) -> list[str]:
    measured = [row for row in rows if row.get("unknown")]
    if not measured:
        return []
    lines = [
        f"Unknown classes: {_safe(', '.join(quick['unknown_labels']))} ({measured[0]['unknown']['flows']} flows).",
        "",
        "| row | score | AUROC | FPR at 95 % TPR | found at 5 % false alarms |",
        "|---|---|---:|---:|---:|",
    ]
    lines += [
        f"| {_safe(row['name'])} | {one['score']} | {one['auroc']:.3f} | {one['fpr_at_95_tpr']:.3f} "
        f"| {one['found_at_5_percent_false_alarms']:.3f} |"
        for row in measured
        for one in row["unknown"]["scores"]
    ]
    return [*lines, ""]


def _early(rows: Sequence[Row]) -> list[str]:
    measured = [row for row in rows if row.get("after_packets")]
    if not measured:
        return []
    steps = sorted({point["packets"] for row in measured for point in row["after_packets"]})
    lines = [f"| accuracy after packets | {' | '.join(map(str, steps))} |", f"|---|{'---:|' * len(steps)}"]
    for row in measured:
        at = {point["packets"]: f"{point['accuracy']:.3f}" for point in row["after_packets"]}
        lines.append(f"| {_safe(row['name'])} | {' | '.join(at.get(step, '') for step in steps)} |")
    return [*lines, ""]


def _curve(quick: Result) -> list[str]:
    curves = quick.get("learning_curve") or []
    if not curves:
        return []
    shots = [point["shots"] for point in curves[0]["points"]]
    lines = [f"| macro-F1 at flows a class | {' | '.join(map(str, shots))} |", f"|---|{'---|' * len(shots)}"]
    for curve in curves:
        cells = []
        for point in curve["points"]:
            low, high = point["macro_f1_interval"]
            cells.append(f"{point['macro_f1']:.3f} [{low:.3f}, {high:.3f}]")
        lines.append(f"| {_safe(curve['name'])} | {' | '.join(cells)} |")
    return [*lines, ""]


def _calibration(rows: Sequence[Row]) -> list[str]:
    network = _best(rows, baseline=False)
    comment = "" if network is None else network["calibration"].get("comment", "")
    return (
        []
        if network is None or not comment
        else [f"Calibration of {_safe(network['name'])}: {_safe(comment)}", ""]
    )


def _safe(words: str) -> str:
    """Fit for a Markdown table: no cell ends early, nothing becomes HTML."""
    for raw, written in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|"), ("`", "'"), ("\n", " ")):
        words = words.replace(raw, written)
    return words
