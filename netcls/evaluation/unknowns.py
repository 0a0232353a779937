"""How well flows of classes that were never learnt stand out, by several scores.

A higher score is stranger. F is the number of flows, D of features, C of classes.

=========== ======================================================================================================
score       what it is
=========== ======================================================================================================
doubt       one minus the largest calibrated probability (Hendrycks and Gimpel 2017); what events carry
energy      minus the log-sum-exp of the logits (Liu et al. 2020); networks only
cosine      distance of the features to the nearest class mean, as an angle; networks only
mahalanobis the same in units of the classes' common spread (Lee et al. 2018); networks only
surprise    pre-training loss of the backbone that a network started from, where that is generative (`models.surprise`)
=========== ======================================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from capture.errors import CheckpointError, UsageError
from netcls.datasets.splits import TEST, TRAIN
from netcls.evaluation.comparison_data import ComparisonData
from netcls.evaluation.contenders import Contender, TreeClassifier
from netcls.evaluation.measures import Answers, ask

if TYPE_CHECKING:
    from models.checkpoint import Checkpoint

FALSE_ALARM_RATE: Final = 0.05
_MEAN_FLOWS: Final = 50  # training flows of each class that its mean is taken from
_MAX_UNKNOWN: Final = 2000
_MAX_SURPRISED: Final = 500  # of known and unknown flows each: a pre-training network is slow
_RIDGE: Final = 0.1  # share of the mean variance that is added to each, so that few flows give an inverse


@dataclass(frozen=True, slots=True)
class ClassMeans:
    """Where the classes are in feature space.

    Attributes:
        means: float64 (C, D), of classes with training flows.
        precision: float64 (D, D), inverse of the common covariance.
    """

    means: NDArray[np.float64]
    precision: NDArray[np.float64]

    @classmethod
    def of(cls, features: NDArray[np.float32], labels: NDArray[np.int64]) -> ClassMeans:
        """Means and common spread of labelled features (F, D)."""
        x = features.astype(np.float64)
        classes, which = np.unique(labels, return_inverse=True)
        means = np.stack([x[which == number].mean(axis=0) for number in range(len(classes))])
        spread = x - means[which]
        covariance = spread.T @ spread / max(len(x) - len(classes), 1)
        ridge = _RIDGE * max(float(np.trace(covariance)) / len(covariance), 1e-12)
        return cls(means, np.linalg.inv(covariance + ridge * np.eye(len(covariance))))

    def scores(self, features: NDArray[np.float32]) -> dict[str, NDArray[np.float64]]:
        """``cosine`` and ``mahalanobis``, float64 (F,) each."""
        x = features.astype(np.float64)
        norms = np.linalg.norm(x, axis=1, keepdims=True) * np.linalg.norm(self.means, axis=1)
        cosine = 1 - (x @ self.means.T / np.maximum(norms, 1e-12)).max(axis=1)
        nearest = np.full(len(x), np.inf)
        for mean in self.means:
            away = x - mean
            nearest = np.minimum(nearest, np.einsum("fd,de,fe->f", away, self.precision, away, optimize=True))
        return {"cosine": cosine, "mahalanobis": nearest}


def auroc(known: NDArray[np.float64], unknown: NDArray[np.float64]) -> float:
    """Chance that an unknown flow scores above a known one; equal scores count half."""
    both = np.concatenate([known, unknown])
    _, place, counts = np.unique(both, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks = (ends - (counts - 1) / 2)[place]  # from 1, ties at their middle
    above = ranks[len(known) :].sum() - len(unknown) * (len(unknown) + 1) / 2
    return float(above / (len(known) * len(unknown)))


def false_alarms_at(known: NDArray[np.float64], unknown: NDArray[np.float64], found: float = 0.95) -> float:
    """Share of known flows at or above the threshold that finds a share ``found`` of the unknown ones."""
    threshold = np.quantile(unknown, 1 - found, method="lower")
    return float(np.mean(known >= threshold))


def found_at(
    known: NDArray[np.float64], unknown: NDArray[np.float64], false_alarms: float = FALSE_ALARM_RATE
) -> float:
    """Share of unknown flows above the threshold that ``false_alarms`` of the known ones are above."""
    return float(np.mean(unknown > np.quantile(known, 1 - false_alarms, method="higher")))


def measure_unknowns(
    contender: Contender,
    data: ComparisonData,
    answers: Answers,
    backbone: Checkpoint | None = None,
    device: str = "auto",
) -> dict[str, Any] | None:
    """AUROC and error rates of every score, test flows against flows of unknown classes; None without such flows.

    Args:
        contender: its classifiers are asked for the unknown flows.
        data: flows and split.
        answers: to the test rows.
        backbone: that the contender started from, for its surprise; None: there is none.
        device: of that, auto, cpu or cuda.
    """
    rows = _sample(data.unknown)
    if not len(rows) or contender.name == "majority":
        return None
    strange = ask(contender, data, rows)
    values: dict[str, list[tuple[float, float, float]]] = {}
    for number, classifier in enumerate(contender.classifiers):
        is_network = not isinstance(classifier, TreeClassifier)
        means = _class_means(contender, number, data) if is_network else None
        known, unknown = (
            _scores(said.logits[number], said.features[number], classifier.temperature, is_network, means)
            for said in (answers, strange)
        )
        for name, of_known in known.items():
            of_unknown = unknown[name]
            values.setdefault(name, []).append(
                (
                    auroc(of_known, of_unknown),
                    false_alarms_at(of_known, of_unknown),
                    found_at(of_known, of_unknown),
                )
            )
    surprise = None if backbone is None else backbone_surprise(backbone, data, rows, device)
    if surprise is not None:
        values["surprise"] = [(auroc(*surprise), false_alarms_at(*surprise), found_at(*surprise))]
    scores = []
    for name, of_seeds in values.items():
        area, alarms, found = np.mean(of_seeds, axis=0)
        scores.append(
            {
                "score": name,
                "auroc": float(area),
                "fpr_at_95_tpr": float(alarms),
                "found_at_5_percent_false_alarms": float(found),
            }
        )
    return {"flows": len(rows), "classes": list(data.unknown_names), "scores": scores}


def backbone_surprise(
    backbone: Checkpoint, data: ComparisonData, unknown: NDArray[np.intp], device: str = "auto"
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """A generative backbone's loss of test flows and of unknown flows, a sample of either where there are many.

    Returns:
        float64 (F,) of the known and of the unknown; None for a family that has no loss by flow.
    """
    from capture.representations import build
    from models.surprise import Surprise

    try:
        surprise = Surprise(backbone, device=device)
    except UsageError:
        return None
    representation = build(backbone.representation, backbone.representation_settings)
    known, strange = (
        surprise.of(data.raw.tokens(data.batch(_sample(rows, _MAX_SURPRISED)), representation)).astype(
            np.float64
        )
        for rows in (data.rows(TEST), unknown)
    )
    return known, strange


def backbone_of(checkpoint: Checkpoint) -> Checkpoint | None:
    """The backbone that a classifier was fine-tuned from, by its card; None where it is not at hand any more."""
    from models.checkpoint import load_checkpoint

    training = checkpoint.card.get("training")
    told = training.get("base") if isinstance(training, dict) else None
    if not isinstance(told, dict) or not isinstance(told.get("name"), str):
        return None
    try:
        found = load_checkpoint(told["name"])
    except CheckpointError:
        return None
    return found if found.kind == "backbone" and found.digest == told.get("checkpoint") else None


def _sample(rows: NDArray[np.intp], most: int = _MAX_UNKNOWN) -> NDArray[np.intp]:
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng(0).choice(rows, most, replace=False))


def _scores(
    logits: NDArray[np.float32],
    features: NDArray[np.float32] | None,
    temperature: float,
    is_network: bool,
    means: ClassMeans | None,
) -> Mapping[str, NDArray[np.float64]]:
    from models.learning.calibration import softmax

    scores = {"doubt": 1 - softmax(logits, temperature).max(axis=1)}
    if is_network:
        scaled = logits.astype(np.float64)
        top = scaled.max(axis=1)
        scores["energy"] = -(top + np.log(np.exp(scaled - top[:, None]).sum(axis=1)))
    if means is not None and features is not None:
        scores |= means.scores(features)
    return scores


def _class_means(contender: Contender, number: int, data: ComparisonData) -> ClassMeans | None:
    """From a few training flows of each class; None where nothing trains or there are no features."""
    train = data.rows(TRAIN)
    labels = data.labels[train]
    rng = np.random.default_rng(0)
    chosen = [
        train[rng.permutation(np.flatnonzero(labels == label))[:_MEAN_FLOWS]] for label in np.unique(labels)
    ]
    if len(chosen) < 2:
        return None
    rows = np.sort(np.concatenate(chosen))
    _, features = contender.classifiers[number].answer(data.batch(rows))
    return None if features is None else ClassMeans.of(features, data.labels[rows])
