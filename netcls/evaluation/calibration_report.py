"""How honest the probabilities are on test flows, and why they are not where they are not.

N flows, C labels, D draws.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

ECE_GOAL: Final = 0.03
"""Calibration error below which the probabilities are taken at their word."""

_DRAWS: Final = 200


def calibration_facts(
    logits: NDArray[np.float32],
    truth: NDArray[np.int64],
    held_logits: NDArray[np.float32],
    held_truth: NDArray[np.int64],
    temperature: float,
    threshold: float | None,
    *,
    units: str,
    unseen: bool,
    seed: int = 0,
) -> dict[str, Any]:
    """Calibration error before and after the temperature, and a sentence about it.

    Args:
        logits: float32 (N, C), of the test flows.
        truth: int64 (N,).
        held_logits: float32 (M, C), of the calibration flows.
        held_truth: int64 (M,).
        temperature: fitted on the calibration flows.
        threshold: of the unknown score; None: there is none.
        units: what test flows do not share with training flows, plural, such as ``captures``.
        unseen: the calibration flows do not share it either.
        seed: of the draws.

    Returns:
        JSON values. ``ece_floor``: the ECE that perfectly calibrated answers would stay below in 95 of 100 test parts
        of this size. ``ece_calibration``: after scaling, on the calibration flows themselves. ``comment``: empty where
        the ECE is below ``ECE_GOAL``, else the likeliest reason.
    """
    from models.learning.calibration import brier, ece, nll, softmax

    facts: dict[str, Any] = {
        "temperature": temperature,
        "unknown_threshold": threshold,
        "fitted_on_flows": len(held_truth),
        "fitted_on_unseen": unseen,
    }
    for name, at in (("before", 1.0), ("after", temperature)):
        probabilities = softmax(logits, at)
        facts |= {
            f"ece_{name}": ece(probabilities, truth),
            f"nll_{name}": nll(probabilities, truth),
            f"brier_{name}": brier(probabilities, truth),
        }
    held = softmax(held_logits, temperature)
    facts["ece_calibration"] = ece(held, held_truth)
    facts["ece_floor"] = ece_floor(probabilities, seed=seed)
    if threshold is not None:
        facts["test_flows_called_unknown"] = float(np.mean(1 - probabilities.max(axis=1) > threshold))
    gap = _too_sure(probabilities, truth) - _too_sure(held, held_truth)
    facts["comment"] = _comment(facts, gap, len(truth), units)
    return facts


def ece_floor(probabilities: NDArray[np.float64], *, seed: int = 0, draws: int = _DRAWS) -> float:
    """ECE that answers with exactly these probabilities stay below in 95 of 100 test parts, by drawing the truth.

    Only whether the chosen label is right matters, and it is right with its own probability.

    Args:
        probabilities: float64 (N, C).
        seed: of the draws.
        draws: D.
    """
    from models.learning.calibration import ece

    confidence = probabilities.max(axis=1)
    two = np.stack([confidence, -np.ones_like(confidence)], axis=1)  # the first column is always the answer
    rng = np.random.default_rng(seed)
    wrong = (rng.random((draws, len(confidence))) >= confidence).astype(np.int64)
    return float(np.quantile([ece(two, truth) for truth in wrong], 0.95))


def _too_sure(probabilities: NDArray[np.float64], truth: NDArray[np.int64]) -> float:
    """Mean certainty of the answers minus the share that is right."""
    return float(probabilities.max(axis=1).mean() - np.mean(probabilities.argmax(axis=1) == truth))


def _comment(facts: dict[str, Any], gap: float, n_test: int, units: str) -> str:
    after = facts["ece_after"]
    if after < ECE_GOAL:
        return ""
    said = f"The calibration error on test flows is {after:.3f}, not below {ECE_GOAL}, because "
    if after <= facts["ece_floor"]:
        return said + (
            f"{n_test} test flows are too few to tell: perfect probabilities would often show up to "
            f"{facts['ece_floor']:.3f}."
        )
    if not facts["fitted_on_unseen"]:
        return said + (
            f"the temperature was fitted on flows of known {units}; too few {units} to hold some out for it. "
            "On flows of others the model is too sure."
        )
    if abs(gap) > ECE_GOAL:
        surer, less = ("surer", "right less often") if gap > 0 else ("less sure", "right more often")
        return said + (
            f"the test {units} differ from those held out for calibration: there the model is {surer} than it "
            f"should be, {less} at the same certainty. More {units} in the labelled data would bring the two nearer."
        )
    return said + (
        f"one temperature for all labels is too coarse here: on the calibration flows themselves "
        f"{facts['ece_calibration']:.3f} is left."
    )
