"""Scores equal scikit-learn's, and their intervals are those of whole groups."""

from __future__ import annotations

import numpy as np
import pytest

from netcls.evaluation.baselines import BaselineAnswer
from netcls.evaluation.metrics import confusion_matrix, macro_f1_difference, score
from netcls.evaluation.report import compare

NAMES = ["a", "b", "c", "d"]


def some(n=400, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 4, n)
    predicted = np.where(rng.random(n) < 0.7, truth, rng.integers(0, 4, n))
    return truth, predicted, rng.integers(0, 25, n)


def test_scores_equal_those_of_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics")
    truth, predicted, groups = some()
    scores = score(truth, predicted, groups, NAMES)
    assert scores.macro_f1 == pytest.approx(sklearn.f1_score(truth, predicted, average="macro"))
    assert scores.weighted_f1 == pytest.approx(sklearn.f1_score(truth, predicted, average="weighted"))
    assert scores.accuracy == pytest.approx(sklearn.accuracy_score(truth, predicted))
    precision, recall, f1, support = sklearn.precision_recall_fscore_support(truth, predicted)
    for label, of_class in enumerate(scores.per_class):
        assert of_class.precision == pytest.approx(precision[label])
        assert of_class.recall == pytest.approx(recall[label])
        assert of_class.f1 == pytest.approx(f1[label])
        assert of_class.support == support[label]
    assert np.array_equal(confusion_matrix(truth, predicted, 4), sklearn.confusion_matrix(truth, predicted))


def test_the_interval_is_that_of_a_plain_bootstrap_over_groups():
    truth, predicted, groups = some(seed=2)
    scores = score(truth, predicted, groups, NAMES, draws=2000)
    rng = np.random.default_rng(9)
    members = [np.flatnonzero(groups == group) for group in range(25)]
    drawn = []
    for _ in range(600):
        rows = np.concatenate([members[group] for group in rng.integers(0, 25, 25)])
        drawn.append(np.mean(truth[rows] == predicted[rows]))
    low, high = np.quantile(drawn, (0.025, 0.975))
    assert scores.accuracy_interval == pytest.approx((low, high), abs=0.01)
    assert scores.macro_f1_interval[0] < scores.macro_f1 < scores.macro_f1_interval[1]


def test_few_large_groups_give_a_wider_interval_than_many_small_ones():
    truth, _, _ = some()
    wrong = np.arange(400) % 80 < 20  # every fourth block of 20 flows is wrong throughout
    predicted = np.where(wrong, (truth + 1) % 4, truth)
    wide = score(truth, predicted, np.arange(400) // 20, NAMES).accuracy_interval
    narrow = score(truth, predicted, np.arange(400), NAMES).accuracy_interval
    assert wide[1] - wide[0] > 2 * (narrow[1] - narrow[0])


def test_a_class_that_is_not_tested_does_not_enter_the_mean():
    truth = np.array([0, 0, 1, 1])
    scores = score(truth, np.array([0, 3, 1, 1]), np.arange(4), NAMES)
    assert [of_class.label for of_class in scores.per_class] == ["a", "b"]
    assert scores.macro_f1 == pytest.approx((2 / 3 + 1) / 2)


def test_a_paired_difference_is_sharper_than_two_intervals():
    truth, predicted, groups = some(seed=4)
    worse = predicted.copy()
    worse[:20] = (truth[:20] + 1) % 4
    gap, low, high = macro_f1_difference(truth, predicted, worse, groups, 4)
    assert low < gap < high
    assert low > -0.01
    assert gap > 0.01
    assert macro_f1_difference(truth, predicted, predicted, groups, 4) == (0.0, 0.0, 0.0)


def test_a_better_baseline_is_said_to_be_better():
    truth, predicted, groups = some(n=2000)
    good = BaselineAnswer("lightgbm", "header fields", truth.copy())
    majority = BaselineAnswer("majority", "nothing", np.zeros_like(truth))
    missing = BaselineAnswer("random_forest", "header fields", None, "not installed")
    found = compare(truth, predicted, [majority, good, missing], groups, NAMES, model_sees="bytes")
    assert found.verdict.startswith("The baseline lightgbm (header fields) beats this model: macro-F1 0.7")
    assert found.verdict.endswith("Not run: random_forest.")
    assert [row["name"] for row in found.rows] == ["model", "majority", "lightgbm", "random_forest"]
    assert found.rows[3]["macro_f1"] is None
    better = compare(
        truth, truth, [majority, BaselineAnswer("p", "ports", predicted)], groups, NAMES, model_sees="x"
    )
    assert better.verdict.startswith("This model beats every baseline that was run; the best is p (ports)")
    even = compare(truth, truth, [good], groups, NAMES, model_sees="x")
    assert even.verdict.startswith("This model does not clearly beat the baseline lightgbm")
