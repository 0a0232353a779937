"""Scores of one classifier on one test part, with bootstrap intervals by group.

N is the number of test flows, C of classes, G of groups, D of bootstrap draws. Macro scores are
means over the classes that the test part holds; a prediction of any other class is simply wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class ClassScore:
    """Scores of one class. ``precision`` is 0 where the class was never predicted."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of one classifier.

    Attributes:
        n: test flows.
        n_groups: independent units that they come from.
        accuracy: share of flows answered rightly; with its interval.
        macro_f1: unweighted mean of the classes' F1; with its interval.
        weighted_f1: mean weighted by support.
        per_class: of each class with support, in label order.
        confidence: of the intervals, for example 0.95.
    """

    n: int
    n_groups: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    macro_f1: float
    macro_f1_interval: tuple[float, float]
    weighted_f1: float
    per_class: tuple[ClassScore, ...]
    confidence: float

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def confusion_matrix(
    truth: NDArray[np.int64], predicted: NDArray[np.int64], n_classes: int
) -> NDArray[np.int64]:
    """int64 (C, C): row is the true class, column the answer."""
    return np.bincount(truth * n_classes + predicted, minlength=n_classes * n_classes).reshape(
        n_classes, n_classes
    )


def score(
    truth: NDArray[np.int64],
    predicted: NDArray[np.int64],
    groups: NDArray[np.int64],
    label_names: Sequence[str],
    *,
    draws: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Scores:
    """Score answers against the truth.

    The interval is the percentile bootstrap over groups (captures, hosts, ...): flows of one group share
    everything, so resampling single flows would promise too much.

    Args:
        truth: int64 (N,), class of each flow.
        predicted: int64 (N,), the answers.
        groups: int64 (N,), the unit each flow belongs to.
        label_names: C names.
        draws: D; 0: the intervals are the scores themselves.
        confidence: share of the draws inside the interval.
        seed: of the draws.

    Raises:
        ValueError: no test flow.
    """
    if not len(truth):
        raise ValueError("no test flow to score")
    n_classes = len(label_names)
    hits, answered, support = _counts_by_group(truth, predicted, groups, n_classes)
    total = [counts.sum(axis=0)[None] for counts in (hits, answered, support)]
    accuracy, macro, weighted = (float(values[0]) for values in _rates(*total))
    if draws:
        drawn = _resampled(hits, answered, support, draws, np.random.default_rng(seed))
        edges = ((1 - confidence) / 2, (1 + confidence) / 2)
        accuracy_at, macro_at = (np.quantile(values, edges) for values in _rates(*drawn)[:2])
    else:
        accuracy_at, macro_at = np.array([accuracy] * 2), np.array([macro] * 2)
    return Scores(
        n=len(truth),
        n_groups=len(hits),
        accuracy=accuracy,
        accuracy_interval=(float(accuracy_at[0]), float(accuracy_at[1])),
        macro_f1=macro,
        macro_f1_interval=(float(macro_at[0]), float(macro_at[1])),
        weighted_f1=weighted,
        per_class=_per_class(total[0][0], total[1][0], total[2][0], label_names),
        confidence=confidence,
    )


def macro_f1_difference(
    truth: NDArray[np.int64],
    ours: NDArray[np.int64],
    theirs: NDArray[np.int64],
    groups: NDArray[np.int64],
    n_classes: int,
    *,
    draws: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Macro-F1 of one classifier minus that of another on the same flows: the difference and its interval.

    Paired: both are scored on the same draws of groups, which is sharper than two intervals side by side.
    Arguments are those of `score`.
    """
    at: list[NDArray[np.float64]] = []
    for predicted in (ours, theirs):
        counts = _counts_by_group(truth, predicted, groups, n_classes)
        total = [count.sum(axis=0)[None] for count in counts]
        drawn = _resampled(*counts, draws, np.random.default_rng(seed))
        at.append(np.concatenate([_rates(*total)[1], _rates(*drawn)[1]]))
    difference = at[0] - at[1]
    low, high = np.quantile(difference[1:], ((1 - confidence) / 2, (1 + confidence) / 2))
    return float(difference[0]), float(low), float(high)


def _counts_by_group(
    truth: NDArray[np.int64], predicted: NDArray[np.int64], groups: NDArray[np.int64], n_classes: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Right answers, answers and true flows of each class in each group, int64 (G, C) each."""
    group = np.unique(groups, return_inverse=True)[1]
    n_groups = int(group.max()) + 1

    def count(classes: NDArray[np.int64], of: NDArray[np.int64]) -> NDArray[np.int64]:
        flat = np.bincount(of * n_classes + classes, minlength=n_groups * n_classes)
        return flat.reshape(n_groups, n_classes)

    right = truth == predicted
    return count(truth[right], group[right]), count(predicted, group), count(truth, group)


def _resampled(
    hits: NDArray[np.int64],
    answered: NDArray[np.int64],
    support: NDArray[np.int64],
    draws: int,
    rng: np.random.Generator,
) -> list[NDArray[np.float64]]:
    """The three counts, (D, C) each, of D draws of G groups with replacement."""
    n_groups = len(hits)
    times = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=draws).astype(np.float64)
    return [times @ counts.astype(np.float64) for counts in (hits, answered, support)]


def _rates(
    hits: NDArray[Any], answered: NDArray[Any], support: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Accuracy, macro-F1 and weighted F1, (D,) each, of counts (D, C)."""
    f1 = 2 * hits / np.maximum(answered + support, 1)
    n = support.sum(axis=1)
    macro = np.where(support > 0, f1, 0).sum(axis=1) / np.maximum((support > 0).sum(axis=1), 1)
    return hits.sum(axis=1) / n, macro, (f1 * support).sum(axis=1) / n


def _per_class(
    hits: NDArray[np.int64], answered: NDArray[np.int64], support: NDArray[np.int64], names: Sequence[str]
) -> tuple[ClassScore, ...]:
    return tuple(
        ClassScore(
            label=names[label],
            precision=float(hits[label] / max(answered[label], 1)),
            recall=float(hits[label] / support[label]),
            f1=float(2 * hits[label] / (answered[label] + support[label])),
            support=int(support[label]),
        )
        for label in map(int, np.flatnonzero(support))
    )
