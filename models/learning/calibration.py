"""From logits to honest probabilities: temperature scaling, how honest they are, and when to say "unknown".

N flows, C labels. Everything is numpy in float64; labels are int64 (N,), 0 to C - 1.

Source: Guo et al. 2017, "On Calibration of Modern Neural Networks" (temperature scaling, ECE).
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from capture.errors import DataError

Floats = NDArray[np.floating[Any]]

TEMPERATURE_RANGE: Final = (0.05, 20.0)
_GOLDEN: Final = (math.sqrt(5.0) - 1.0) / 2.0


def softmax(logits: Floats, temperature: float = 1.0) -> NDArray[np.float64]:
    """Probabilities (N, C) of logits (N, C) divided by ``temperature``."""
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    weights = np.exp(scaled)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def nll(probabilities: Floats, labels: NDArray[np.int64]) -> float:
    """Mean negative log-likelihood of the true labels, in nats. An impossible truth counts as probability 1e-300."""
    _check(probabilities, labels)
    of_truth = probabilities.astype(np.float64)[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(of_truth, 1e-300)).mean())


def brier(probabilities: Floats, labels: NDArray[np.int64]) -> float:
    """Mean squared distance between the probabilities and the truth as a unit vector: 0 (perfect) to 2."""
    _check(probabilities, labels)
    distance = probabilities.astype(np.float64).copy()
    distance[np.arange(len(labels)), labels] -= 1.0
    return float((distance**2).sum(axis=1).mean())


def ece(probabilities: Floats, labels: NDArray[np.int64], n_bins: int = 15) -> float:
    """Expected calibration error: mean gap between how sure the answers are and how often they are right, 0 to 1.

    Answers are put into ``n_bins`` bins of equal width by the probability of the chosen label; a bin is (low, high].
    """
    _check(probabilities, labels)
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    bins = np.clip(np.ceil(confidence * n_bins).astype(np.int64) - 1, 0, n_bins - 1)
    sum_of_confidence = np.bincount(bins, confidence, n_bins)
    sum_of_right = np.bincount(bins, right, n_bins)
    return float(np.abs(sum_of_confidence - sum_of_right).sum() / len(labels))


def fit_temperature(logits: Floats, labels: NDArray[np.int64]) -> float:
    """The temperature that makes the true labels most likely; fit it on validation flows, never on test flows.

    The likelihood has one maximum in log T, found by golden-section search to 1e-6.

    Args:
        logits: (N, C).
        labels: int64 (N,).

    Returns:
        0.05 to 20. The ends mean that there is nothing to fit, for example when every answer is right.

    Raises:
        DataError: without flows, or if a label is not one of the C.
    """
    _check(logits, labels)

    def loss(log_t: float) -> float:
        return nll(softmax(logits, math.exp(log_t)), labels)

    low, high = math.log(TEMPERATURE_RANGE[0]), math.log(TEMPERATURE_RANGE[1])
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    loss_left, loss_right = loss(left), loss(right)
    while high - low > 1e-6:
        if loss_left <= loss_right:
            high, right, loss_right = right, left, loss_left
            left = high - _GOLDEN * (high - low)
            loss_left = loss(left)
        else:
            low, left, loss_left = left, right, loss_right
            right = low + _GOLDEN * (high - low)
            loss_right = loss(right)
    return math.exp((low + high) / 2.0)


def fit_unknown_threshold(unknown_scores: Floats, quantile: float = 0.95) -> float:
    """The score that ``quantile`` of flows of known labels stay at or below.

    With 0.95, one known flow in twenty is called unknown: the price of the flows that really are. Fit it on
    validation flows.

    Args:
        unknown_scores: (N,), 0 to 1, of flows whose labels the model knows.
        quantile: 0 to 1.

    Raises:
        DataError: without flows, or for a quantile outside 0 to 1.
    """
    if len(unknown_scores) == 0:
        raise DataError("unknown threshold: got 0 flows, expected validation flows of known labels")
    if not 0.0 <= quantile <= 1.0:
        raise DataError(f"unknown threshold: got quantile {quantile}, expected 0 to 1")
    return float(np.quantile(unknown_scores.astype(np.float64), quantile, method="higher"))


def _check(scores: Floats, labels: NDArray[np.int64]) -> None:
    """Refuse what would average over nothing or pick a wrong column."""
    if len(labels) == 0 or scores.ndim != 2 or len(scores) != len(labels):
        raise DataError(
            f"calibration: got {scores.shape} scores for {len(labels)} labels, expected (N, C) for N > 0"
        )
    if labels.min() < 0 or labels.max() >= scores.shape[1]:
        raise DataError(
            f"calibration: got labels {labels.min()} to {labels.max()}, expected 0 to {scores.shape[1] - 1}"
        )
