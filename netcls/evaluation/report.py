"""A model and its baselines in one table, and the sentence that says which is better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from netcls.evaluation.baselines import BaselineAnswer
from netcls.evaluation.metrics import Scores, macro_f1_difference, score

MODEL_ROW = "model"


@dataclass(frozen=True, slots=True)
class Comparison:
    """One model beside its baselines, on the same test flows.

    Attributes:
        model: scores of the model.
        rows: the table, model first: name, sees, macro_f1, macro_f1_low, macro_f1_high, accuracy, note; numbers are
            None for a row that was skipped.
        best_baseline: name of the row with the highest macro-F1 beside the model's.
        difference: macro-F1 of the model minus that of the best baseline, with its interval.
        verdict: one sentence.
    """

    model: Scores
    rows: list[dict[str, Any]]
    best_baseline: str
    difference: tuple[float, float, float]
    verdict: str


def compare(
    truth: NDArray[np.int64],
    predicted: NDArray[np.int64],
    baselines: Sequence[BaselineAnswer],
    groups: NDArray[np.int64],
    label_names: Sequence[str],
    *,
    model_sees: str,
    seed: int = 0,
) -> Comparison:
    """Score a model and its baselines.

    Args:
        truth: int64 (N,), class of each test flow.
        predicted: int64 (N,), the model's answers.
        baselines: from `run_baselines`; at least the majority class.
        groups: int64 (N,), units of the bootstrap.
        label_names: C names.
        model_sees: what the model is given, in words.
        seed: of the bootstrap.
    """
    model = score(truth, predicted, groups, label_names, seed=seed)
    rows = [_row(MODEL_ROW, model_sees, model, "")]
    best: BaselineAnswer | None = None
    best_f1 = -1.0
    for answer in baselines:
        if answer.predicted is None:
            rows.append(_row(answer.name, answer.sees, None, answer.skipped))
            continue
        scores = score(truth, answer.predicted, groups, label_names, seed=seed)
        rows.append(_row(answer.name, answer.sees, scores, ""))
        if scores.macro_f1 > best_f1:
            best, best_f1 = answer, scores.macro_f1
    if best is None or best.predicted is None:
        raise ValueError("no baseline to compare with; expected at least the majority class")
    difference = macro_f1_difference(truth, predicted, best.predicted, groups, len(label_names), seed=seed)
    skipped = [row["name"] for row in rows if row["note"]]
    verdict = _verdict(model.macro_f1, best, best_f1, difference, skipped)
    return Comparison(model, rows, best.name, difference, verdict)


def _row(name: str, sees: str, scores: Scores | None, note: str) -> dict[str, Any]:
    return {
        "name": name,
        "sees": sees,
        "macro_f1": scores.macro_f1 if scores else None,
        "macro_f1_low": scores.macro_f1_interval[0] if scores else None,
        "macro_f1_high": scores.macro_f1_interval[1] if scores else None,
        "accuracy": scores.accuracy if scores else None,
        "note": note,
    }


def _verdict(
    ours: float,
    best: BaselineAnswer,
    theirs: float,
    difference: tuple[float, float, float],
    skipped: Sequence[str],
) -> str:
    gap, low, high = difference
    numbers = f"macro-F1 {ours:.3f} against {theirs:.3f}, difference {gap:+.3f} [{low:+.3f}, {high:+.3f}]"
    baseline = f"{best.name} ({best.sees})"
    if high < 0:
        text = f"The baseline {baseline} beats this model: {numbers}."
    elif gap < 0:
        text = f"The baseline {baseline} scores higher than this model, within the uncertainty: {numbers}."
    elif low <= 0:
        text = f"This model does not clearly beat the baseline {baseline}: {numbers}."
    else:
        text = f"This model beats every baseline that was run; the best is {baseline}: {numbers}."
    return text + (f" Not run: {', '.join(skipped)}." if skipped else "")
