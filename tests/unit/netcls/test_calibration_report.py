"""The report says how honest the probabilities are, and why they are not where they are not."""

from __future__ import annotations

import numpy as np
import pytest

from models.learning.calibration import softmax
from netcls.evaluation.calibration_report import calibration_facts, ece_floor


def answers(n: int, seed: int, *, flattery: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and truths drawn from their own probabilities; the logits are then multiplied by ``flattery``."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (n, 4))
    chances = softmax(logits)
    truth = (rng.random((n, 1)) > chances.cumsum(axis=1)).sum(axis=1).clip(0, 3)
    return (flattery * logits).astype(np.float32), truth


def facts(test, held, temperature=1.0, **more):
    options = {"units": "groups", "unseen": True} | more
    return calibration_facts(*test, *held, temperature, 0.9, **options)


def test_honest_probabilities_need_no_comment():
    said = facts(answers(20_000, 0), answers(20_000, 1))
    assert said["ece_after"] < 0.03
    assert said["comment"] == ""


def test_few_test_flows_are_the_reason_where_perfect_probabilities_would_look_as_bad():
    said = facts(answers(40, 3), answers(5_000, 1))
    assert 0.03 <= said["ece_after"] <= said["ece_floor"]
    assert "40 test flows are too few to tell" in said["comment"]


def test_a_temperature_of_known_groups_is_named_as_the_reason():
    said = facts(answers(5_000, 0, flattery=3.0), answers(5_000, 1), unseen=False)
    assert "the temperature was fitted on flows of known groups" in said["comment"]


def test_test_groups_unlike_the_calibration_groups_are_named_as_the_reason():
    said = facts(answers(5_000, 0, flattery=3.0), answers(5_000, 1))
    assert (
        "the test groups differ from those held out for calibration: there the model is surer"
        in said["comment"]
    )
    assert said["comment"].startswith(
        f"The calibration error on test flows is {said['ece_after']:.3f}, not below 0.03"
    )
    shy = facts(answers(5_000, 0, flattery=0.3), answers(5_000, 1))
    assert "less sure than it should be, right more often at the same certainty" in shy["comment"]


def test_one_temperature_too_coarse_is_named_where_calibration_flows_are_as_bad():
    def mixed(seed):
        (sure, of_sure), (shy, of_shy) = (
            answers(5_000, seed, flattery=2.5),
            answers(5_000, seed + 9, flattery=0.45),
        )
        return np.concatenate([sure, shy]), np.concatenate([of_sure, of_shy])

    said = facts(mixed(0), mixed(1))
    assert said["ece_calibration"] > 0.03
    assert "one temperature for all labels is too coarse" in said["comment"]


def test_the_floor_is_what_perfect_probabilities_show_and_falls_with_the_flows():
    chances = {n: softmax(answers(n, 5)[0]) for n in (50, 5_000)}
    assert ece_floor(chances[50]) > 0.08
    assert ece_floor(chances[5_000]) < 0.03
    assert ece_floor(chances[50], seed=1) == ece_floor(chances[50], seed=1)
    assert ece_floor(np.array([[1.0, 0.0]] * 9)) == pytest.approx(0.0)
