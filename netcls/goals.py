"""What a fine-tuning run's head learns to answer, and how that is measured: a label, a number, or several labels.

N is the number of labelled flows, C the outputs of the head.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from models.tasks import CLASS, LEAST_CHANCE, QUANTILE_NAMES, QUANTILES, Task, chances, to_log
from netcls.datasets.prepare import Prepared
from netcls.datasets.splits import CALIBRATION, TEST, TRAIN, VALIDATION
from netcls.datasets.targets import label_sets, leave_out_whole_flows, number_task, target_values
from netcls.evaluation.heldout import MeasureOptions, bootstrap_units
from netcls.evaluation.other_tasks import (
    Parts,
    number_baselines,
    number_row,
    set_baselines,
    set_row,
    skipped_row,
    verdict,
)

if TYPE_CHECKING:
    from models.checkpoint import Checkpoint

COVERAGE: Final = QUANTILES[2] - QUANTILES[0]
"""Share of flows whose number the interval is to hold."""

_TEMPERATURES: Final = np.geomspace(0.05, 20.0, 121)


@dataclass(frozen=True, slots=True)
class Goal:
    """What the head learns.

    Attributes:
        task: what the checkpoint will say it answers.
        outputs: C names: labels, or the quantiles.
        targets: of all N flows, as :mod:`models.learning.objectives` takes them.
        left_out: flows whose number the model sees, which are left out.
    """

    task: Task
    outputs: tuple[str, ...]
    targets: NDArray[Any]
    left_out: int = 0

    def sentences(self) -> list[str]:
        """What the report says about it."""
        if not self.left_out:
            return []
        return [
            f"{self.left_out} flows that the model sees from first to last packet are left out: nothing to guess."
        ]


def goal_of(kind: str, target: str | None, prepared: Prepared, n_seen: int) -> Goal:
    """The goal of a run; a regression leaves flows out of the split of ``prepared``.

    Args:
        kind: one of ``models.tasks.TASKS``.
        target: of a regression.
        prepared: the flows.
        n_seen: packets that the model sees.

    Raises:
        DataError: if nothing is left to learn.
    """
    flows = prepared.flows
    if kind == "regression" and target is not None:
        left_out = leave_out_whole_flows(flows, prepared.split, n_seen)
        values = to_log(target_values(flows.records, flows.packets, target, n_seen))
        return Goal(number_task(target), QUANTILE_NAMES, values.astype(np.float32), left_out)
    if kind == "multilabel":
        labels, sets = label_sets(flows.label_names)
        return Goal(Task("multilabel"), labels, sets[flows.labels].astype(np.float32))
    return Goal(CLASS, flows.label_names, flows.labels)


def measure_goal(
    goal: Goal,
    prepared: Prepared,
    checkpoint: Checkpoint,
    options: MeasureOptions,
    on_progress: Callable[[str, dict[str, Any]], None],
) -> tuple[Checkpoint, dict[str, Any]]:
    """Calibrate a regression or multi-label head on the calibration part, then score the test part once.

    Returns:
        The calibrated checkpoint, and the report as JSON values.
    """
    from models.predictor import Predictor

    on_progress("test", {})
    split, flows = prepared.split, prepared.flows
    held, test = split.rows(CALIBRATION), split.rows(TEST)
    with Predictor(checkpoint, threads=options.threads, device=options.device) as predictor:
        held_out, tested = (predictor.logits(flows.tokens.take(rows)) for rows in (held, test))
    parts = Parts(
        flows.records,
        flows.packets,
        split.rows(TRAIN),
        split.rows(VALIDATION),
        test,
        bootstrap_units(prepared, test),
        int(flows.tokens.packets_used.max()),
    )
    score = _score_numbers if goal.task.kind == "regression" else _score_sets
    on_progress("baselines", {})
    checkpoint, facts = score(goal, checkpoint, parts, held, held_out, tested, options)
    facts["task"] = goal.task.document()
    facts["labels"] = list(goal.outputs)
    return checkpoint, facts


def _score_numbers(
    goal: Goal,
    checkpoint: Checkpoint,
    parts: Parts,
    held: NDArray[np.intp],
    held_out: NDArray[np.float32],
    tested: NDArray[np.float32],
    options: MeasureOptions,
) -> tuple[Checkpoint, dict[str, Any]]:
    widened = widening(held_out, goal.targets[held])
    by = np.array([-widened, 0.0, widened], np.float32)
    truth = goal.targets[parts.test].astype(np.float64)
    said = np.sort(np.maximum(tested.astype(np.float64) + by, 0.0), axis=1)
    rows = [number_row("model", truth, said[:, 1], parts.groups)]
    found = number_baselines(
        parts, goal.targets.astype(np.float64), seed=options.seed, threads=options.threads or 2
    )
    for name, answers, note in found if options.baselines else found[:1]:
        made = None if answers is None else number_row(name, truth, answers, parts.groups)
        rows.append(made or skipped_row(rows[0], name, note))
    inside = (said[:, 0] <= truth) & (truth <= said[:, 2])
    facts = {
        "verdict": verdict(rows, "mae_log10", lower_is_better=True),
        "test": rows[0] | {"flows": len(truth)},
        "baselines": rows,
        "interval": {
            "wanted": COVERAGE,
            "coverage": float(inside.mean()),
            "coverage_before": float(np.mean((tested[:, 0] <= truth) & (truth <= tested[:, 2]))),
            "widened_log10": widened,
            "median_width_log10": float(np.median(said[:, 2] - said[:, 0])),
            "fitted_on_flows": len(held),
        },
    }
    return _with_bias(checkpoint, by), facts


def widening(outputs: NDArray[np.float32], truth: NDArray[Any]) -> float:
    """By how much the interval has to grow on both sides to hold ``COVERAGE`` of the calibration flows; may be below 0.

    Args:
        outputs: float32 (N, 3), quantiles.
        truth: (N,), log10(1 + y).

    Source:
        Romano, Patterson, Candes 2019, conformalized quantile regression.
    """
    outside = np.maximum(outputs[:, 0] - truth, truth - outputs[:, 2]).astype(np.float64)
    level = min(np.ceil((len(outside) + 1) * COVERAGE) / len(outside), 1.0)
    return float(np.quantile(outside, level, method="higher"))


def _with_bias(checkpoint: Checkpoint, by: NDArray[np.float32]) -> Checkpoint:
    import torch

    state = dict(checkpoint.state)
    state["head.bias"] = state["head.bias"] + torch.from_numpy(by)
    return dataclasses.replace(checkpoint, state=state)


def _score_sets(
    goal: Goal,
    checkpoint: Checkpoint,
    parts: Parts,
    held: NDArray[np.intp],
    held_out: NDArray[np.float32],
    tested: NDArray[np.float32],
    options: MeasureOptions,
) -> tuple[Checkpoint, dict[str, Any]]:
    from models.checkpoint import Calibration
    from models.learning.objectives import label_f1

    temperature = fit_label_temperature(held_out, goal.targets[held])
    sets = goal.targets > 0
    truth, likely = sets[parts.test], chances(tested, temperature)
    rows = [set_row("model", truth, likely >= LEAST_CHANCE, parts.groups)]
    found = set_baselines(parts, sets, seed=options.seed, threads=options.threads or 2)
    for name, answers, note in found if options.baselines else found[:1]:
        made = None if answers is None else set_row(name, truth, answers, parts.groups)
        rows.append(made or skipped_row(rows[0], name, note))
    of_label = np.nan_to_num(label_f1(likely >= LEAST_CHANCE, truth))
    facts = {
        "verdict": verdict(rows, "macro_f1", lower_is_better=False),
        "test": rows[0] | {"flows": len(truth)},
        "baselines": rows,
        "per_label": [
            {"label": name, "f1": float(f1), "support": int(support)}
            for name, f1, support in zip(goal.outputs, of_label, truth.sum(axis=0), strict=True)
        ],
        "calibration": {"temperature": temperature, "fitted_on_flows": len(held)},
    }
    return dataclasses.replace(checkpoint, calibration=Calibration(temperature, None)), facts


def fit_label_temperature(logits: NDArray[np.float32], truth: NDArray[Any]) -> float:
    """The temperature that makes the labels of the calibration flows likeliest, each label by itself.

    Args:
        logits: float32 (N, C).
        truth: (N, C), 0 or 1.

    Returns:
        One of 121 values from 0.05 to 20.
    """

    def loss(temperature: float) -> float:
        likely = np.clip(chances(logits, temperature), 1e-12, 1 - 1e-12)
        return float(-np.mean(truth * np.log(likely) + (1 - truth) * np.log(1 - likely)))

    return float(_TEMPERATURES[int(np.argmin([loss(float(temperature)) for temperature in _TEMPERATURES]))])
