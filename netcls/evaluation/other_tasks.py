"""Scores of a regression or of several labels at once, beside baselines on the same test flows.

N test flows, L labels. Numbers are compared as log10(1 + y), because flows differ by powers of ten.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from models.tasks import LEAST_CHANCE
from netcls.evaluation.baselines import DEFAULT_PACKETS
from netcls.evaluation.features import header_features

_DRAWS: Final = 1000
_FACTOR: Final = float(np.log10(2.0))
_TREES: Final = 100
_ROUNDS: Final = 200
_PATIENCE_ROUNDS: Final = 15


@dataclass(frozen=True, slots=True)
class Parts:
    """Rows of the parts, and what was kept of all flows.

    Attributes:
        records: ``FLOW_DTYPE`` (M,), packets: ``PACKET_DTYPE`` (M, K), of all flows.
        train, validation, test: row numbers.
        groups: int64 (N,), unit of each test flow that intervals draw.
        n_packets: packets that baselines see: as many as the model.
    """

    records: NDArray[Any]
    packets: NDArray[Any]
    train: NDArray[np.intp]
    validation: NDArray[np.intp]
    test: NDArray[np.intp]
    groups: NDArray[np.int64]
    n_packets: int

    def features(self, rows: NDArray[np.intp]) -> NDArray[np.float32]:
        """What LightGBM and the forest see: header fields, sizes and times."""
        n = min(self.n_packets or DEFAULT_PACKETS, self.packets.shape[1])
        return header_features(self.records[rows], self.packets[rows], n)[0]


def number_row(
    name: str, truth: NDArray[np.float64], said: NDArray[np.float64], groups: NDArray[np.int64]
) -> dict[str, Any]:
    """Scores of one regression.

    Args:
        name: of the row.
        truth: float64 (N,), log10(1 + y).
        said: float64 (N,), the same of the answers.
        groups: int64 (N,).

    Returns:
        ``mae_log10`` with its interval of 95 % by group, ``r2`` (of log10) and ``within_factor_2`` (share).
    """
    miss = np.abs(said - truth)
    spread = float(((truth - truth.mean()) ** 2).sum())
    low, high = _interval(miss, groups)
    return {
        "name": name,
        "mae_log10": float(miss.mean()),
        "mae_log10_low": low,
        "mae_log10_high": high,
        "r2": 1.0 - float(((said - truth) ** 2).sum()) / max(spread, 1e-12),
        "within_factor_2": float(np.mean(miss <= _FACTOR)),
        "note": "",
    }


def number_baselines(
    parts: Parts, values: NDArray[np.float64], *, seed: int, threads: int
) -> list[tuple[str, NDArray[np.float64] | None, str]]:
    """Name, answers for the test part (None where it was not trained) and why not, of median and LightGBM.

    Args:
        parts: the flows.
        values: float64 (M,), log10(1 + y) of all flows.
        seed: of the trees.
        threads: of the trees.
    """
    median = np.full(len(parts.test), float(np.median(values[parts.train])))
    rows: list[tuple[str, NDArray[np.float64] | None, str]] = [("median", median, "")]
    try:
        import lightgbm
    except ImportError:
        return [*rows, ("lightgbm", None, "lightgbm is not installed; pip install 'netcls[train]'")]
    settings = {
        "objective": "regression_l1",
        "learning_rate": 0.05,
        "num_leaves": 15,
        "min_data_in_leaf": 5,
        "feature_fraction": 0.5,
        "seed": seed,
        "num_threads": threads,
        "deterministic": True,
        "force_row_wise": True,
        "verbosity": -1,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train = lightgbm.Dataset(parts.features(parts.train), values[parts.train])
        held_out = lightgbm.Dataset(
            parts.features(parts.validation), values[parts.validation], reference=train
        )
        stop = lightgbm.early_stopping(_PATIENCE_ROUNDS, verbose=False)
        booster = lightgbm.train(settings, train, _ROUNDS, valid_sets=[held_out], callbacks=[stop])
        said = booster.predict(parts.features(parts.test), num_threads=threads)
    return [*rows, ("lightgbm", np.maximum(np.asarray(said, np.float64), 0.0), "")]


def set_row(
    name: str, truth: NDArray[np.bool_], said: NDArray[np.bool_], groups: NDArray[np.int64]
) -> dict[str, Any]:
    """Scores of several labels at once.

    Args:
        name: of the row.
        truth: bool (N, L).
        said: bool (N, L).
        groups: int64 (N,).

    Returns:
        ``macro_f1`` over the labels that occur, ``micro_f1``, and ``exact`` (share of flows with all labels right) with
        its interval of 95 % by group.
    """
    from models.learning.objectives import label_f1

    exact = (truth == said).all(axis=1)
    low, high = _interval(exact.astype(np.float64), groups)
    occurs = truth.any(axis=0)
    return {
        "name": name,
        "macro_f1": float(np.nan_to_num(label_f1(said, truth)[occurs]).mean()) if occurs.any() else 0.0,
        "micro_f1": float(2 * (said & truth).sum() / max(said.sum() + truth.sum(), 1)),
        "exact": float(exact.mean()),
        "exact_low": low,
        "exact_high": high,
        "note": "",
    }


def set_baselines(
    parts: Parts, sets: NDArray[np.bool_], *, seed: int, threads: int
) -> list[tuple[str, NDArray[np.bool_] | None, str]]:
    """Name, answers and why not, of the labels that most training flows have, and of a random forest.

    Args:
        parts: the flows.
        sets: bool (M, L), of all flows.
        seed: of the trees.
        threads: of the trees.
    """
    usual = sets[parts.train].mean(axis=0) >= LEAST_CHANCE
    rows: list[tuple[str, NDArray[np.bool_] | None, str]] = [
        ("majority", np.tile(usual, (len(parts.test), 1)), "")
    ]
    try:
        from sklearn.ensemble import RandomForestClassifier
    except ImportError:
        return [*rows, ("random_forest", None, "scikit-learn is not installed; pip install 'netcls[train]'")]
    forest = RandomForestClassifier(_TREES, min_samples_leaf=1, random_state=seed, n_jobs=threads)
    forest.fit(np.nan_to_num(parts.features(parts.train), nan=-1e6), sets[parts.train].astype(np.int8))
    said = forest.predict(np.nan_to_num(parts.features(parts.test), nan=-1e6))
    return [*rows, ("random_forest", np.asarray(said) > 0, "")]


def verdict(rows: list[dict[str, Any]], measure: str, *, lower_is_better: bool) -> str:
    """One sentence: whether the model, the first row, beats every baseline."""
    sign = -1.0 if lower_is_better else 1.0
    tried = [row for row in rows[1:] if not row["note"]]
    best = max(tried, key=lambda row: sign * row[measure])
    numbers = f"{measure} {rows[0][measure]:.3f} against {best[measure]:.3f} of {best['name']}"
    if sign * rows[0][measure] > sign * best[measure]:
        return f"This model is better than every baseline that was run: {numbers}."
    return f"The baseline {best['name']} is as good as this model or better: {numbers}."


def skipped_row(like: dict[str, Any], name: str, note: str) -> dict[str, Any]:
    """A row of a baseline that was not trained."""
    return dict.fromkeys(like) | {"name": name, "note": note}


def _interval(values: NDArray[np.float64], groups: NDArray[np.int64]) -> tuple[float, float]:
    """95 % percentile interval of the mean, by drawing whole groups."""
    group = np.unique(groups, return_inverse=True)[1]
    sums, counts = np.bincount(group, values), np.bincount(group).astype(np.float64)
    rng = np.random.default_rng(0)
    times = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=_DRAWS)
    low, high = np.quantile((times @ sums) / (times @ counts), (0.025, 0.975))
    return float(low), float(high)
