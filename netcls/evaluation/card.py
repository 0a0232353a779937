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


def card_of_run(
    title: str,
    data_name: str,
    report: Mapping[str, Any],
    comparison: Comparison | None,
    *,
    licence: str,
    limits: Sequence[str],
) -> dict[str, Any]:
    """The card of what a fine-tuning run made, from its report.

    Args:
        title: of the page.
        data_name: what the data is called.
        report: as ``report.json``.
        comparison: of a classifier; None for other tasks.
        licence: of the weights.
        limits: sentences for the list of limits.
    """
    data = {key: value for key, value in report["data"].items() if key not in ("path", "warnings")}
    about: dict[str, Any] = {
        "split": report["split"],
        "training": {key: value for key, value in report["training"].items() if key != "history"},
        "code": report["code"],
        "licence": licence,
        "limits": limits,
    }
    if comparison is None:
        return other_card(title=title, report=report, data={"name": data_name, **data}, **about)
    card = classifier_card(
        title=f"{title} on {len(report['labels'])} classes",
        comparison=comparison,
        all_flows=report["test_with_repeated_inputs"],
        calibration=report["calibration"],
        data={"name": data_name, "classes": len(report["labels"]), **data},
        **about,
    )
    if "confusion_matrix" in report:
        card["confusion"] = {"labels": list(report["labels"]), "matrix": report["confusion_matrix"]}
    return card


def other_card(
    *,
    title: str,
    report: Mapping[str, Any],
    data: Mapping[str, Any],
    split: Mapping[str, Any],
    training: Mapping[str, Any],
    code: Mapping[str, Any],
    licence: str,
    limits: Sequence[str],
) -> dict[str, Any]:
    """Card of a regression or multi-label checkpoint.

    Args:
        title: of the page.
        report: from `netcls.goals.measure_goal`.
        data: as for a classifier; so are all below.
        split: as there.
        training: as there.
        code: as there.
        licence: as there.
        limits: as there.
    """
    task, test = report["task"], report["test"]
    if task["kind"] == "regression":
        interval = report["interval"]
        scores = (
            f"Predicts {task['target']} ({task['unit']}) of flows longer than what it sees: mean error "
            f"{test['mae_log10']:.3f} powers of ten [{test['mae_log10_low']:.3f}, {test['mae_log10_high']:.3f}], "
            f"within a factor of 2 for {test['within_factor_2']:.0%} of {test['flows']} test flows; its interval of "
            f"{interval['wanted']:.0%} holds {interval['coverage']:.0%}."
        )
    else:
        scores = (
            f"Several labels at once: macro-F1 {test['macro_f1']:.3f} over the labels, all labels right for "
            f"{test['exact']:.0%} [{test['exact_low']:.0%}, {test['exact_high']:.0%}] of {test['flows']} test flows."
        )
    more = {key: report[key] for key in ("interval", "per_label", "calibration") if key in report}
    return {
        "title": title,
        "summary": f"{report['verdict']} {scores} Split: {split['description']}.",
        "task": dict(task),
        "metrics": {key: value for key, value in test.items() if key not in ("name", "note")},
        "baselines": list(report["baselines"]),
        **more,
        "split": _flat(split),
        "data": dict(data),
        "training": dict(training),
        "code": dict(code),
        "licence": licence,
        "known_limits": [
            *limits,
            *_limits_of_split(split),
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
