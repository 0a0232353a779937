"""The card of a checkpoint: what was measured, on what, and what it does not say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from netcls.evaluation.report import Comparison


def classifier_card(
    *,
    title: str,
    comparison: Comparison,
    all_flows: Mapping[str, Any],
    calibration: Mapping[str, Any],
    data: Mapping[str, Any],
    split: Mapping[str, Any],
    training: Mapping[str, Any],
    code: Mapping[str, Any],
    licence: str,
    limits: Sequence[str],
) -> dict[str, Any]:
    """Card of a fine-tuned classifier. Its first sentence says whether a baseline is better.

    Args:
        title: of the page.
        comparison: model and baselines on the test part.
        all_flows: scores of the model on the test part with the repeated model inputs.
        calibration: error before and after, on test flows.
        data: counts of flows and captures.
        split: from `Prepared.split_summary`.
        training: how it was trained.
        code: version and commit.
        licence: of the weights, as far as the trainer knows.
        limits: further sentences for the list of limits.
    """
    model = comparison.model
    low, high = model.macro_f1_interval
    summary = (
        f"{comparison.verdict} Macro-F1 on test flows {model.macro_f1:.3f} "
        f"({model.confidence:.0%} interval {low:.3f} to {high:.3f}, bootstrap over {model.n_groups} groups), "
        f"accuracy {model.accuracy:.3f}, {model.n} flows; "
        f"with the test flows whose input was seen before, macro-F1 {all_flows['macro_f1']:.3f} on "
        f"{all_flows['flows']} flows. Split: {split['description']}."
    )
    return {
        "title": title,
        "summary": summary,
        "metrics": {
            "macro_f1": model.macro_f1,
            "macro_f1_interval": list(model.macro_f1_interval),
            "accuracy": model.accuracy,
            "accuracy_interval": list(model.accuracy_interval),
            "weighted_f1": model.weighted_f1,
            "confidence": model.confidence,
            "test_flows": model.n,
            "bootstrap_groups": model.n_groups,
            "with_repeated_inputs": dict(all_flows),
        },
        "baselines": comparison.rows,
        "per_class": [asdict(of_class) for of_class in model.per_class],
        "calibration": dict(calibration),
        "split": _flat(split),
        "data": dict(data),
        "training": dict(training),
        "code": dict(code),
        "licence": licence,
        "known_limits": [
            *limits,
            *_limits_of_split(split),
            "Labels say what traffic looks like, not what anyone intends.",
            "Measured on the data named here; other networks, systems and years will give other numbers.",
        ],
    }


def _flat(split: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in split.items() if value not in ([], None)}


def _limits_of_split(split: Mapping[str, Any]) -> list[str]:
    limits = []
    if split["kind"] == "flow":
        limits.append("Flows of one capture are on both sides of the split: the numbers are optimistic.")
    untested = split["untested_classes"]
    if untested:
        limits.append(f"Trained but not tested: {', '.join(untested)}.")
    fallback = split["classes_where_only_the_combination_is_unseen"]
    if fallback:
        limits.append(f"Only the combination of group columns is unseen in: {', '.join(fallback)}.")
    removed = split["parts"]["test"]["duplicates_removed"]
    if removed:
        limits.append(
            f"{removed} test flows whose model input equals one of an earlier part are not in the headline number."
        )
    return limits
