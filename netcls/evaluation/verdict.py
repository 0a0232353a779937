"""The first line of an evaluation: what won, by how much, under which split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from netcls.datasets.splits import TEST
from netcls.evaluation.comparison_data import ComparisonData
from netcls.evaluation.measures import Answers
from netcls.evaluation.metrics import macro_f1_difference


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an evaluation comes to.

    Attributes:
        text: two sentences or three.
        best: name of the best network.
        best_baseline: name of the best baseline.
        difference: macro-F1 of the one minus that of the other, and its interval.
    """

    text: str
    best: str
    best_baseline: str
    difference: tuple[float, float, float]


def best_network(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The network with the highest macro-F1; one that was trained on test captures only where there is no other."""
    return max(_that_count(rows)[0], key=lambda row: row["macro_f1"])


def _that_count(rows: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], list[str]]:
    """Networks that were run and are not void (all, if all are), and the names of the void ones."""
    run = [row for row in rows if row["kind"] != "baseline" and not row["skipped"]]
    void = [row["name"] for row in run if row.get("is_void")]
    return [row for row in run if not row.get("is_void")] or run, void


def verdict_of(
    rows: Sequence[Mapping[str, Any]],
    answers: Mapping[str, Answers],
    data: ComparisonData,
    split: Mapping[str, Any],
    *,
    seed: int,
) -> Verdict:
    """Compare the best network with the best baseline on the same draws of groups.

    A network that was trained on test captures is void: it is not the best while there is another.

    Args:
        rows: of the result; at least one network and one baseline were run.
        answers: to the test part, by the rows' names.
        data: flows and split.
        split: its facts, with ``optimism``.
        seed: of the bootstrap.
    """
    networks, void = _that_count(rows)
    baselines = [row for row in rows if row["kind"] == "baseline" and not row["skipped"]]
    ours = best_network(rows)
    theirs = max(baselines, key=lambda row: row["macro_f1"])
    test = data.rows(TEST)
    difference = macro_f1_difference(
        data.labels[test],
        answers[ours["name"]].predicted,
        answers[theirs["name"]].predicted,
        data.units(test),
        len(data.label_names) + 1,
        seed=seed,
    )
    gap, low, high = difference
    numbers = (
        f"macro-F1 {ours['macro_f1']:.3f} against {theirs['macro_f1']:.3f}, "
        f"difference {gap:+.3f} [{low:+.3f}, {high:+.3f}]"
    )
    baseline, best = f"baseline {theirs['name']} ({theirs['sees']})", ours["name"]
    several = f"every network here, the best of which is {best}" if len(networks) > 1 else best
    if high < 0:
        text = f"The {baseline} beats {several}: {numbers}."
    elif gap < 0:
        text = f"The {baseline} scores higher than {several}, within the uncertainty: {numbers}."
    elif theirs["name"] == "majority" and len(baselines) == 1:
        text = f"No baseline but the majority class was run beside {best}: {numbers}."
    elif low <= 0:
        text = f"{best} does not clearly beat the {baseline}: {numbers}."
    else:
        text = f"{best} beats every baseline that was run, the best is {theirs['name']}: {numbers}."
    text = f"{text} {split['optimism'][0].upper()}{split['optimism'][1:]}."
    if void:
        text = f"Void, because trained on captures that are tested here: {', '.join(void)}. {text}"
    not_run = [row["name"] for row in rows if row["skipped"]]
    if not_run:
        text += f" Not run: {', '.join(not_run)}."
    return Verdict(text, best, theirs["name"], difference)
