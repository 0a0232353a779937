"""Scores of one classifier on one test part, with bootstrap intervals by group.

N is the number of test flows, C of classes, G of groups, D of bootstrap draws, S of seeds. Macro scores are
means over the classes that the test part holds; a prediction of any other class is simply wrong.
Where something was trained with several seeds, its score is the mean over the seeds, also in every draw.
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
        predicted: int64 (N,), the answers; or (S, N), those of each seed.
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
    of_seeds = [_counts_by_group(truth, answers, groups, n_classes) for answers in np.atleast_2d(predicted)]
    n_groups = len(of_seeds[0][0])
    accuracy, macro, weighted = (float(values[0]) for values in _mean_rates(of_seeds, np.ones((1, n_groups))))
    if draws:
        edges = ((1 - confidence) / 2, (1 + confidence) / 2)
        drawn = _mean_rates(of_seeds, _times_drawn(n_groups, draws, seed))
        accuracy_at, macro_at = (np.quantile(values, edges) for values in drawn[:2])
    else:
        accuracy_at, macro_at = np.array([accuracy] * 2), np.array([macro] * 2)
    hits, answered, support = (
        np.sum([counts[which].sum(axis=0) for counts in of_seeds], axis=0) for which in range(3)
    )
    return Scores(
        n=len(truth),
        n_groups=n_groups,
        accuracy=accuracy,
        accuracy_interval=(float(accuracy_at[0]), float(accuracy_at[1])),
        macro_f1=macro,
        macro_f1_interval=(float(macro_at[0]), float(macro_at[1])),
        weighted_f1=weighted,
        per_class=_per_class(hits, answered, support, label_names, len(of_seeds)),
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
        of_seeds = [
            _counts_by_group(truth, answers, groups, n_classes) for answers in np.atleast_2d(predicted)
        ]
        n_groups = len(of_seeds[0][0])
        times = np.concatenate([np.ones((1, n_groups)), _times_drawn(n_groups, draws, seed)])
        at.append(_mean_rates(of_seeds, times)[1])
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


def _times_drawn(n_groups: int, draws: int, seed: int) -> NDArray[np.float64]:
    """How often each of G groups is drawn, with replacement: (D, G), each row sums to G."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=draws).astype(np.float64)


def _mean_rates(
    of_seeds: Sequence[tuple[NDArray[np.int64], ...]], times: NDArray[np.float64]
) -> list[NDArray[np.float64]]:
    """Accuracy, macro-F1 and weighted F1 at each draw, (D,) each: the mean over the seeds.

    Args:
        of_seeds: of each seed the three counts, int64 (G, C).
        times: float64 (D, G), how often each group is drawn.
    """
    rates = [
        _rates(*(times @ counts.astype(np.float64) for counts in of_one_seed)) for of_one_seed in of_seeds
    ]
    return [np.mean([of_seed[which] for of_seed in rates], axis=0) for which in range(3)]


def _rates(
    hits: NDArray[Any], answered: NDArray[Any], support: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Accuracy, macro-F1 and weighted F1, (D,) each, of counts (D, C)."""
    f1 = 2 * hits / np.maximum(answered + support, 1)
    n = support.sum(axis=1)
    macro = np.where(support > 0, f1, 0).sum(axis=1) / np.maximum((support > 0).sum(axis=1), 1)
    return hits.sum(axis=1) / n, macro, (f1 * support).sum(axis=1) / n


def _per_class(
    hits: NDArray[np.int64],
    answered: NDArray[np.int64],
    support: NDArray[np.int64],
    names: Sequence[str],
    n_seeds: int,
) -> tuple[ClassScore, ...]:
    """Of the answers of all seeds together; the support is that of one."""
    return tuple(
        ClassScore(
            label=names[label],
            precision=float(hits[label] / max(answered[label], 1)),
            recall=float(hits[label] / support[label]),
            f1=float(2 * hits[label] / (answered[label] + support[label])),
            support=int(support[label]) // n_seeds,
        )
        for label in map(int, np.flatnonzero(support))
    )
