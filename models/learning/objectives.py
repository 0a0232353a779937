"""What a run of fine-tuning minimises and is judged by, for each task: flows drawn, loss, score, first head.

N flows, C outputs. Labels are int64 (N,) for ``class``, float32 (N,) of log10(1 + y) for ``regression``, float32 (N, C)
of 0 and 1 for ``multilabel``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from capture.errors import DataError
from models.learning.batches import LabelledTokens, check_labelled, epoch_rows
from models.learning.calibration import nll, softmax
from models.learning.losses import training_loss
from models.tasks import LEAST_CHANCE, QUANTILES, chances

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Objective:
    """One task's part in training.

    Attributes:
        score_name: what the score is called in a run's history; higher is better.
        check: refuses labels that do not fit; with (flows, name, may be empty).
        rows: (seed, epoch) -> row numbers of an epoch.
        loss: (outputs, labels) -> mean over the flows.
        judge: (outputs (N, C), labels) -> score and loss of the validation flows.
    """

    score_name: str
    check: Callable[[LabelledTokens, str, bool], None]
    rows: Callable[[int, int], NDArray[np.int64]]
    loss: Loss
    judge: Callable[[NDArray[np.float32], NDArray[Any]], tuple[float, float]]


def objective(
    task: str,
    train: LabelledTokens,
    n_outputs: int,
    loss: str,
    balance: float,
    smoothing: float,
    device: torch.device,
) -> Objective:
    """The objective of a task.

    Args:
        task: one of ``models.tasks.TASKS``.
        train: flows to learn from.
        n_outputs: C.
        loss: ``ce`` or ``ldam``; of ``class`` only.
        balance: 0 draws flows as they are, 1 all classes equally often; of ``class`` only.
        smoothing: of the labels; of ``class`` only.
        device: of the network.
    """
    if task == "class":

        def check(data: LabelledTokens, name: str, may_be_empty: bool) -> None:
            check_labelled(data, n_outputs, name, may_be_empty=may_be_empty)

        check(train, "training flows", False)
        return Objective(
            "val_macro_f1",
            check,
            lambda seed, epoch: epoch_rows(train.labels, balance, seed, epoch),
            training_loss(loss, train.labels, n_outputs, smoothing, device),
            _judge_classes,
        )

    def every_flow(seed: int, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([seed, 1, epoch]).permutation(len(train)).astype(np.int64)

    if task == "regression":
        return Objective("val_r2", _check_numbers, every_flow, pinball_loss, _judge_quantiles)
    return Objective("val_macro_f1", _check_sets(n_outputs), every_flow, _each_label, _judge_sets)


def start_head(task: str, head: nn.Linear, labels: NDArray[Any]) -> None:
    """Let a new head of a regression begin with the quantiles of the training flows; others stay as they are."""
    if task != "regression":
        return
    with torch.no_grad():
        head.bias.copy_(torch.from_numpy(np.quantile(labels, QUANTILES).astype(np.float32)))


def pinball_loss(outputs: Tensor, truth: Tensor) -> Tensor:
    """Mean over flows and quantiles: a miss by 1 below the quantile q costs q, above it 1 - q.

    Args:
        outputs: float (F, 3).
        truth: float (F,).

    Source:
        Koenker and Bassett 1978, quantile regression.
    """
    quantiles = torch.tensor(QUANTILES, device=outputs.device)
    below = truth[:, None] - outputs
    return torch.maximum(quantiles * below, (quantiles - 1) * below).mean()


def macro_f1(predicted: NDArray[np.integer[Any]], labels: NDArray[np.int64]) -> float:
    """Mean over the labels that occur, or were answered, of the harmonic mean of precision and recall.

    Args:
        predicted: (N,).
        labels: int64 (N,), N > 0.
    """
    n_labels = int(max(predicted.max(), labels.max())) + 1
    right = np.bincount(labels[predicted == labels], minlength=n_labels)
    together = np.bincount(labels, minlength=n_labels) + np.bincount(predicted, minlength=n_labels)
    occurs = together > 0
    return float((2.0 * right[occurs] / together[occurs]).mean())


def label_f1(given: NDArray[np.bool_], truth: NDArray[np.bool_]) -> NDArray[np.float64]:
    """F1 of each label by itself, float64 (C,); NaN for one that neither occurs nor was given."""
    right = (given & truth).sum(axis=0)
    together = given.sum(axis=0) + truth.sum(axis=0)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(together > 0, 2.0 * right / together, np.nan))


def _judge_classes(outputs: NDArray[np.float32], labels: NDArray[Any]) -> tuple[float, float]:
    probabilities = softmax(outputs)
    return macro_f1(probabilities.argmax(axis=1), labels), nll(probabilities, labels)


def _judge_quantiles(outputs: NDArray[np.float32], labels: NDArray[Any]) -> tuple[float, float]:
    """R squared of the median, and the pinball loss."""
    spread = float(((labels - labels.mean()) ** 2).sum())
    r2 = 1.0 - float(((labels - outputs[:, 1]) ** 2).sum()) / max(spread, 1e-12)
    return r2, float(pinball_loss(torch.from_numpy(outputs), torch.from_numpy(labels)))


def _judge_sets(outputs: NDArray[np.float32], labels: NDArray[Any]) -> tuple[float, float]:
    """Mean F1 of the labels that occur or were given, and the cross-entropy."""
    of_label = label_f1(chances(outputs) >= LEAST_CHANCE, labels > 0)
    loss = _each_label(torch.from_numpy(outputs), torch.from_numpy(labels))
    return float(np.nanmean(of_label)) if not np.isnan(of_label).all() else 0.0, float(loss)


def _each_label(outputs: Tensor, truth: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(outputs, truth)


def _check_numbers(data: LabelledTokens, name: str, may_be_empty: bool) -> None:
    if len(data) == 0 and not may_be_empty:
        raise DataError(f"{name}: got 0 flows, expected at least one")
    if data.labels.ndim != 1 or not np.isfinite(data.labels).all() or (data.labels < 0).any():
        raise DataError(f"{name}: got targets that are not all finite numbers of 0 or more")


def _check_sets(n_outputs: int) -> Callable[[LabelledTokens, str, bool], None]:
    def check(data: LabelledTokens, name: str, may_be_empty: bool) -> None:
        if len(data) == 0 and not may_be_empty:
            raise DataError(f"{name}: got 0 flows, expected at least one")
        if data.labels.shape != (len(data), n_outputs) or not np.isin(data.labels, (0, 1)).all():
            raise DataError(
                f"{name}: got labels {data.labels.shape}, expected 0 or 1 for each of {n_outputs} labels"
            )

    return check
