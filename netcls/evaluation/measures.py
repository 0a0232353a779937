"""Everything that is measured of one contender on the test part, as JSON values.

S seeds, N test flows, L labels of a classifier, C classes of DATA. Every number of something that was trained here with
several seeds is the mean over them; counts (confusion matrix, reliability bins) are sums.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from netcls.datasets.splits import CALIBRATION, TEST
from netcls.evaluation.calibration_report import calibration_facts
from netcls.evaluation.comparison_data import ComparisonData
from netcls.evaluation.contenders import Classifier, Contender
from netcls.evaluation.heldout import units_of
from netcls.evaluation.metrics import Scores, confusion_matrix, score
from netcls.evaluation.raw_flows import take

OTHER_LABEL: Final = "(a label that DATA lacks)"
COVERAGES: Final = (1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
N_BINS: Final = 10  # of the reliability plot; the error itself is computed with 15, as everywhere


@dataclass(frozen=True, slots=True)
class Answers:
    """What one contender said of some flows.

    Attributes:
        logits: of each seed, float32 (N, L).
        features: of each seed, float32 (N, D), or None.
        predicted: int64 (S, N), class of DATA; C for a label that DATA lacks.
    """

    logits: list[NDArray[np.float32]]
    features: list[NDArray[np.float32] | None]
    predicted: NDArray[np.int64]


def ask(contender: Contender, data: ComparisonData, rows: NDArray[np.intp]) -> Answers:
    """Answers of every classifier of a contender to some rows of DATA."""
    batch = data.batch(rows)
    logits, features, predicted = [], [], []
    for classifier in contender.classifiers:
        scores, seen = classifier.answer(batch)
        logits.append(scores)
        features.append(seen)
        predicted.append(classifier.columns[scores.argmax(axis=1)])
    return Answers(logits, features, np.array(predicted, np.int64).reshape(len(logits), len(rows)))


def true_columns(classifier: Classifier, labels: NDArray[np.int64], n_classes: int) -> NDArray[np.int64]:
    """Column of a classifier's logits that each flow's class has."""
    column_of = np.full(n_classes, -1, np.int64)
    inside = classifier.columns < n_classes
    column_of[classifier.columns[inside]] = np.flatnonzero(inside)
    return column_of[labels]


def calibrate_baselines(contenders: list[Contender], data: ComparisonData) -> None:
    """Give every baseline the temperature that the calibration part asks for."""
    for contender in contenders:
        if contender.kind == "baseline":
            fitted = fitted_temperatures(contender, data)
            for classifier, temperature in zip(contender.classifiers, fitted, strict=True):
                classifier.temperature = temperature if temperature is not None else 1.0


def fitted_temperatures(contender: Contender, data: ComparisonData) -> list[float | None]:
    """Temperature of each classifier that fits the calibration part best; None where that part is empty."""
    from models.learning.calibration import fit_temperature

    rows = data.rows(CALIBRATION)
    if not len(rows):
        return [None] * len(contender.classifiers)
    answers = ask(contender, data, rows)
    return [
        fit_temperature(logits, true_columns(classifier, data.labels[rows], len(data.label_names)))
        for classifier, logits in zip(contender.classifiers, answers.logits, strict=True)
    ]


def measure_contender(
    contender: Contender, data: ComparisonData, answers: Answers, *, seed: int
) -> dict[str, Any]:
    """Scores, confusion, calibration, coverage and vote of one contender.

    Args:
        contender: with at least one classifier.
        data: flows and split.
        answers: to the test rows.
        seed: of the bootstrap.
    """
    rows = data.rows(TEST)
    truth, names = data.labels[rows], (*data.label_names, OTHER_LABEL)
    scores = score(truth, answers.predicted, data.units(rows), names, seed=seed)
    one_by_one = [
        score(truth, predicted, data.units(rows), names, draws=0) for predicted in answers.predicted
    ]
    matrix = sum(confusion_matrix(truth, predicted, len(names)) for predicted in answers.predicted)
    return {
        **_headline(scores),
        "macro_f1_of_seeds": [of_seed.macro_f1 for of_seed in one_by_one],
        "accuracy_of_seeds": [of_seed.accuracy for of_seed in one_by_one],
        "with_repeated_inputs": _with_repeats(contender, data, answers, seed),
        "answering_only_labels_of_data": _restricted(contender, data, answers, seed),
        "vote_by_capture": _vote(contender, data, answers),
        "per_class": [asdict(of_class) for of_class in scores.per_class],
        "confusion_matrix": np.asarray(matrix).tolist(),
        "calibration": _calibration(contender, data, answers),
        "coverage": _coverage(contender, data, answers),
    }


def score_only(contender: Contender, data: ComparisonData, *, seed: int) -> dict[str, Any]:
    """Macro-F1 and accuracy of a contender on the test part, with intervals, and nothing else."""
    rows = data.rows(TEST)
    answers = ask(contender, data, rows)
    names = (*data.label_names, OTHER_LABEL)
    return _headline(score(data.labels[rows], answers.predicted, data.units(rows), names, seed=seed))


def _headline(scores: Scores) -> dict[str, Any]:
    return {
        "test_flows": scores.n,
        "bootstrap_groups": scores.n_groups,
        "macro_f1": scores.macro_f1,
        "macro_f1_interval": list(scores.macro_f1_interval),
        "accuracy": scores.accuracy,
        "accuracy_interval": list(scores.accuracy_interval),
        "weighted_f1": scores.weighted_f1,
        "confidence": scores.confidence,
    }


def _with_repeats(
    contender: Contender, data: ComparisonData, answers: Answers, seed: int
) -> dict[str, Any] | None:
    """The score with the test flows whose input an earlier part holds; None where there are none."""
    split = data.prepared.split
    if split.duplicate_of is None or not (split.duplicate_of == TEST).any():
        return None
    repeated = np.flatnonzero(split.duplicate_of == TEST)
    again = ask(contender, data, repeated)
    rows = np.concatenate([data.rows(TEST), repeated])
    predicted = np.concatenate([answers.predicted, again.predicted], axis=1)
    scores = score(
        data.labels[rows], predicted, data.units(rows), (*data.label_names, OTHER_LABEL), seed=seed
    )
    return {
        "flows": scores.n,
        "macro_f1": scores.macro_f1,
        "macro_f1_interval": list(scores.macro_f1_interval),
        "accuracy": scores.accuracy,
    }


def _restricted(
    contender: Contender, data: ComparisonData, answers: Answers, seed: int
) -> dict[str, Any] | None:
    """The score if labels that DATA lacks may not be answered; None where there are none."""
    n_classes = len(data.label_names)
    if all((classifier.columns < n_classes).all() for classifier in contender.classifiers):
        return None
    predicted = []
    for classifier, logits in zip(contender.classifiers, answers.logits, strict=True):
        inside = np.flatnonzero(classifier.columns < n_classes)
        predicted.append(classifier.columns[inside[logits[:, inside].argmax(axis=1)]])
    rows = data.rows(TEST)
    scores = score(data.labels[rows], np.array(predicted), data.units(rows), data.label_names, seed=seed)
    return {
        "macro_f1": scores.macro_f1,
        "macro_f1_interval": list(scores.macro_f1_interval),
        "accuracy": scores.accuracy,
    }


def _vote(contender: Contender, data: ComparisonData, answers: Answers) -> dict[str, Any]:
    """One answer for all flows of a class in a capture: the label with the highest mean probability."""
    from models.learning.calibration import softmax

    rows = data.rows(TEST)
    capture = data.prepared.flows.capture[rows]
    truth = data.labels[rows]
    pairs, of_flow = np.unique(np.stack([capture, truth]), axis=1, return_inverse=True)
    of_flow = of_flow.reshape(-1)
    voted = []
    for classifier, logits in zip(contender.classifiers, answers.logits, strict=True):
        chances = softmax(logits, classifier.temperature)
        sums = np.zeros((pairs.shape[1], chances.shape[1]))
        np.add.at(sums, of_flow, chances)
        voted.append(classifier.columns[sums.argmax(axis=1)])
    scores = score(
        pairs[1], np.array(voted), np.arange(pairs.shape[1]), (*data.label_names, OTHER_LABEL), draws=0
    )
    return {"captures": int(pairs.shape[1]), "macro_f1": scores.macro_f1, "accuracy": scores.accuracy}


def _calibration(contender: Contender, data: ComparisonData, answers: Answers) -> dict[str, Any]:
    """Errors of the probabilities on the test part: raw, as delivered, and with a temperature fitted on DATA."""
    from models.learning.calibration import brier, ece, nll, softmax

    truth = data.labels[data.rows(TEST)]
    temperatures = [classifier.temperature for classifier in contender.classifiers]
    refitted = fitted_temperatures(contender, data) if contender.kind == "model" else []
    facts: dict[str, Any] = {
        "temperature": float(np.mean(temperatures)),
        "fitted_on_flows": len(data.rows(CALIBRATION)) if contender.kind != "model" else None,
    }
    columns = [true_columns(classifier, truth, len(data.label_names)) for classifier in contender.classifiers]
    stages: list[tuple[str, list[float]]] = [("before", [1.0] * len(temperatures)), ("after", temperatures)]
    fitted = [temperature for temperature in refitted if temperature is not None]
    if fitted:
        facts["refitted_temperature"] = float(np.mean(fitted))
        stages.append(("refitted", fitted))
    for name, at in stages:
        chances = [softmax(logits, t) for logits, t in zip(answers.logits, at, strict=True)]
        for measure in (ece, nll, brier):
            values = [measure(p, column) for p, column in zip(chances, columns, strict=True)]
            facts[f"{measure.__name__}_{name}"] = float(np.mean(values))
    facts["reliability"] = _reliability(contender, answers, columns)
    return facts | _why_off(contender, data, answers)


def _why_off(contender: Contender, data: ComparisonData, answers: Answers) -> dict[str, Any]:
    """What the calibration report says of the first classifier; nothing where nothing was set aside to calibrate on."""
    rows, test = data.rows(CALIBRATION), data.rows(TEST)
    if not len(rows):
        return {"comment": ""}
    classifier, n_classes = contender.classifiers[0], len(data.label_names)
    held, _ = classifier.answer(data.batch(rows))
    split = data.prepared.split
    facts = calibration_facts(
        answers.logits[0],
        true_columns(classifier, data.labels[test], n_classes),
        held,
        true_columns(classifier, data.labels[rows], n_classes),
        classifier.temperature,
        None,
        units=units_of(data.prepared),
        unseen=split.calibration_unseen,
    )
    return {name: facts[name] for name in ("ece_calibration", "ece_floor", "comment")}


def _reliability(
    contender: Contender, answers: Answers, columns: list[NDArray[np.int64]]
) -> list[dict[str, float]]:
    """Bins by the probability of the answer: how many, how sure, how often right."""
    from models.learning.calibration import softmax

    confidence, right = [], []
    for classifier, logits, column in zip(contender.classifiers, answers.logits, columns, strict=True):
        chances = softmax(logits, classifier.temperature)
        confidence.append(chances.max(axis=1))
        right.append(chances.argmax(axis=1) == column)
    sure, is_right = np.concatenate(confidence), np.concatenate(right)
    bins = np.clip(np.ceil(sure * N_BINS).astype(int) - 1, 0, N_BINS - 1)
    rows = []
    for number in range(N_BINS):
        inside = bins == number
        if inside.any():
            rows.append(
                {
                    "low": number / N_BINS,
                    "high": (number + 1) / N_BINS,
                    "confidence": float(sure[inside].mean()),
                    "accuracy": float(is_right[inside].mean()),
                    "share": float(inside.mean()),
                }
            )
    return rows


def _coverage(contender: Contender, data: ComparisonData, answers: Answers) -> list[dict[str, float]]:
    """Accuracy of the flows that a contender is surest of, at several shares of all flows."""
    from models.learning.calibration import softmax

    truth = data.labels[data.rows(TEST)]
    accuracy = np.zeros((len(answers.logits), len(COVERAGES)))
    for number, (classifier, logits) in enumerate(zip(contender.classifiers, answers.logits, strict=True)):
        sure = softmax(logits, classifier.temperature).max(axis=1)
        right = (answers.predicted[number] == truth)[np.argsort(-sure, kind="stable")]
        for place, share in enumerate(COVERAGES):
            accuracy[number, place] = right[: max(1, round(share * len(right)))].mean()
    means = accuracy.mean(axis=0)
    return [
        {"coverage": share, "accuracy": float(mean)} for share, mean in zip(COVERAGES, means, strict=True)
    ]


def time_contender(
    contender: Contender,
    data: ComparisonData,
    clock: Callable[[], float],
    *,
    n_flows: int = 256,
    n_single: int = 32,
) -> dict[str, Any]:
    """Flows a second in one go, and milliseconds for flows that come one by one: raw flow to answer.

    Args:
        contender: its first classifier is timed, after a few flows that are not.
        data: whose test flows are answered.
        clock: seconds of wall time.
        n_flows: in one go.
        n_single: one by one.
    """
    rows = data.rows(TEST)
    batch_rows, single = rows[:n_flows], rows[:n_single]
    classifier = contender.classifiers[0]
    # Copies, so that no features kept of the same flows are taken.
    classifier.answer(take(data.batch(rows[:8]), np.arange(len(rows[:8]))))
    batch = take(data.batch(batch_rows), np.arange(len(batch_rows)))
    start = clock()
    classifier.answer(batch)
    took = max(clock() - start, 1e-9)
    single_s = []
    for row in single:
        flow = take(data.batch(np.array([row])), np.arange(1))
        start = clock()
        classifier.answer(flow)
        single_s.append(clock() - start)
    p50, p95 = np.quantile(single_s, (0.5, 0.95)) * 1e3
    return {
        "flows_per_s": len(batch_rows) / took,
        "flows_in_one_go": len(batch_rows),
        "latency_ms_p50": float(p50),
        "latency_ms_p95": float(p95),
    }
