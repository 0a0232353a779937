"""How well a field tells classes apart: small trees, cross-validated under two splits.

N is the number of flows, C of classes. A *unit* is what an honest split keeps together, such as a capture.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from capture.errors import UsageError

MAX_FOLDS: Final = 5
# How far above chance a score must be, in standard deviations of as many coin tosses as there are units: many
# fields are tried, and flows of one unit are no independent evidence.
DEVIATIONS: Final = 2.5
LEAST_SHARE: Final = 0.05  # of the way from chance to certainty; less than that is no leak worth a sentence
SURE: Final = 0.97  # a score that is taken seriously however few units there are
_FEW_COLUMNS: Final = 4  # up to here one tree, above a forest
_TREES: Final = 30


def folds_by_unit(
    units: NDArray[np.int64], labels: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """A fold for each flow, the same for all flows of a unit; the units of each class are dealt out in turn.

    Returns:
        int64 (N,), 0 to at most ``MAX_FOLDS`` - 1.
    """
    names, of_flow = np.unique(units, return_inverse=True)
    counts = np.zeros((len(names), int(labels.max(initial=0)) + 1), np.int64)
    np.add.at(counts, (of_flow, labels), 1)
    main = counts.argmax(axis=1)
    fold = np.zeros(len(names), np.int64)
    for label in np.unique(main):
        of_class = rng.permutation(np.flatnonzero(main == label))
        fold[of_class] = np.arange(len(of_class)) % MAX_FOLDS
    return fold[of_flow]


def cross_validated(
    columns: NDArray[np.float32], labels: NDArray[np.int64], folds: NDArray[np.int64], seed: int
) -> float:
    """Balanced accuracy (mean recall of the classes) of a small tree or forest on folds it did not see.

    Args:
        columns: float32 (N, any), without NaN.
        labels: int64 (N,).
        folds: int64 (N,); each fold is answered by a model of the others.
        seed: of the trees.
    """
    if not len(labels) or len(np.unique(folds)) < 2:
        return 0.0
    predicted = np.full(len(labels), -1, np.int64)
    for fold in np.unique(folds):
        train, test = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        model = _model(columns.shape[1], seed).fit(columns[train], labels[train])
        predicted[test] = model.predict(columns[test])
    recalls = [np.mean(predicted[labels == label] == label) for label in np.unique(labels)]
    return float(np.mean(recalls))


def least_above_chance(n_classes: int, n_units: int) -> float:
    """The balanced accuracy from which a field is said to tell classes apart."""
    chance = 1 / max(1, n_classes)
    by_luck = DEVIATIONS * float(np.sqrt(chance * (1 - chance) / max(1, n_units)))
    return min(SURE, chance + max(by_luck, LEAST_SHARE * (1 - chance)))


def _model(n_columns: int, seed: int) -> Any:
    try:
        from sklearn.ensemble import ExtraTreesClassifier
        from sklearn.tree import DecisionTreeClassifier
    except ImportError:
        raise UsageError(
            "the probe needs scikit-learn, which is not installed; pip install 'netcls[train]'"
        ) from None
    if n_columns <= _FEW_COLUMNS:
        return DecisionTreeClassifier(
            max_depth=12, min_samples_leaf=2, class_weight="balanced", random_state=seed
        )
    return ExtraTreesClassifier(_TREES, min_samples_leaf=2, class_weight="balanced", random_state=seed)
