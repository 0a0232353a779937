"""Calibration: the fitted temperature is the best one, and the scores are what their definitions say."""

from __future__ import annotations

import numpy as np
import pytest

from capture.errors import DataError
from models.learning.calibration import brier, ece, fit_temperature, fit_unknown_threshold, nll, softmax

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0.0, 2.0, (4000, 5))
# The truth is drawn from the softmax of LOGITS: LOGITS are calibrated, and 3 * LOGITS are too sure by a factor of 3.
LABELS = (softmax(LOGITS).cumsum(axis=1) < RNG.random((4000, 1))).sum(axis=1).astype(np.int64)


def test_the_temperature_that_spoiled_the_logits_is_found() -> None:
    assert fit_temperature(LOGITS, LABELS) == pytest.approx(1.0, abs=0.05)
    assert fit_temperature(3.0 * LOGITS, LABELS) == pytest.approx(
        3.0 * fit_temperature(LOGITS, LABELS), rel=1e-4
    )


def test_no_temperature_nearby_is_better() -> None:
    best = fit_temperature(3.0 * LOGITS, LABELS)
    at_best = nll(softmax(3.0 * LOGITS, best), LABELS)
    for other in (0.97 * best, 1.03 * best, 1.0):
        assert nll(softmax(3.0 * LOGITS, other), LABELS) > at_best


def test_the_temperature_makes_the_answers_more_honest() -> None:
    before = softmax(3.0 * LOGITS)
    after = softmax(3.0 * LOGITS, fit_temperature(3.0 * LOGITS, LABELS))
    assert ece(after, LABELS) < 0.25 * ece(before, LABELS)
    assert brier(after, LABELS) < brier(before, LABELS)
    assert (after.argmax(1) == before.argmax(1)).all()


def test_answers_that_are_all_right_give_a_finite_temperature() -> None:
    temperature = fit_temperature(np.eye(3) * 10, np.arange(3))
    assert temperature == pytest.approx(0.05, rel=1e-4)


def test_softmax_of_huge_logits_is_finite() -> None:
    assert softmax(np.array([[1e4, -1e4]], np.float32)).tolist() == [[1.0, 0.0]]


def test_ece_equals_its_definition() -> None:
    probabilities = softmax(LOGITS[:500] * 2)
    labels = LABELS[:500]
    total = 0.0
    for low in range(15):
        inside = [i for i, p in enumerate(probabilities) if low / 15 < p.max() <= (low + 1) / 15]
        if inside:
            sure = np.mean([probabilities[i].max() for i in inside])
            right = np.mean([probabilities[i].argmax() == labels[i] for i in inside])
            total += abs(sure - right) * len(inside) / 500
    assert ece(probabilities, labels) == pytest.approx(total)


def test_brier_and_nll_equal_their_definitions() -> None:
    probabilities = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
    labels = np.array([0, 1])
    assert brier(probabilities, labels) == pytest.approx((0.09 + 0.04 + 0.01 + 0.01 + 0.81 + 0.64) / 2)
    assert nll(probabilities, labels) == pytest.approx(-(np.log(0.7) + np.log(0.1)) / 2)
    assert np.isfinite(nll(np.array([[0.0, 1.0]]), np.array([0])))


def test_the_unknown_threshold_lets_the_stated_share_of_known_flows_pass() -> None:
    scores = RNG.random(1000).astype(np.float32)
    threshold = fit_unknown_threshold(scores, 0.95)
    assert 0.95 <= (scores <= threshold).mean() <= 0.952
    assert fit_unknown_threshold(scores, 1.0) == scores.max()


def test_nothing_to_fit_on_is_refused() -> None:
    with pytest.raises(DataError, match="calibration: got"):
        fit_temperature(np.zeros((0, 3)), np.zeros(0, np.int64))
    with pytest.raises(DataError, match="got labels 0 to 3, expected 0 to 2"):
        ece(np.full((2, 3), 1 / 3), np.array([0, 3]))
    with pytest.raises(DataError, match="unknown threshold: got 0 flows"):
        fit_unknown_threshold(np.zeros(0))
    with pytest.raises(DataError, match=r"got quantile 95, expected 0 to 1"):
        fit_unknown_threshold(np.zeros(3), 95)
