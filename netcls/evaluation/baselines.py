"""The models that a new one has to beat, on the same split and the same test flows.

Majority class, ports only, packet sizes only, and header fields with sizes and times, by LightGBM and by
a random forest. Both libraries are optional (``netcls[train]``); a row that cannot be made says why.
Of three settings each, the one with the highest macro-F1 on the validation part is taken; test flows choose nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from netcls.evaluation.features import header_features, port_features, size_features
from netcls.evaluation.metrics import confusion_matrix

T = TypeVar("T")

DEFAULT_PACKETS: Final = 20

# 44 classes make 44 trees a round, so few rounds at a high rate. The penalty is what keeps that stable: with
# lambda_l2 below 1 the small classes make LightGBM diverge after some ten rounds (macro-F1 falls from 0.55 to 0.06).
_BOOSTING: Final = {
    "objective": "multiclass",
    "learning_rate": 0.15,
    "lambda_l2": 5.0,
    "min_data_in_leaf": 5,
    "max_bin": 63,
    "force_row_wise": True,
    "deterministic": True,
    "verbosity": -1,
}
_BOOSTING_TRIED: Final[tuple[dict[str, float], ...]] = (
    {"num_leaves": 15, "feature_fraction": 0.3},
    {"num_leaves": 7, "feature_fraction": 0.6},
    {"num_leaves": 31, "feature_fraction": 0.3},
)
_LEAF_SAMPLES_TRIED: Final = (1, 2, 5)
_MAX_ROUNDS: Final = 60
_PATIENCE_ROUNDS: Final = 10
_TREES: Final = 200


Chances = Callable[[NDArray[Any], NDArray[Any]], NDArray[np.float32]]
Features = Callable[[NDArray[Any], NDArray[Any]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class BaselineInput:
    """Flows of the three parts that a baseline touches.

    Attributes:
        records: ``FLOW_DTYPE`` (N,), packets: ``PACKET_DTYPE`` (N, K), labels: int64 (N,), of all flows.
        train, validation, test: row numbers.
        n_labels: C.
        model_packets: packets that the model sees; a LightGBM that sees no more gets a row of its own.
    """

    records: NDArray[Any]
    packets: NDArray[Any]
    labels: NDArray[np.int64]
    train: NDArray[np.intp]
    validation: NDArray[np.intp]
    test: NDArray[np.intp]
    n_labels: int
    model_packets: int


@dataclass(frozen=True, slots=True)
class BaselineAnswer:
    """Answers of one baseline.

    Attributes:
        name: short, stable; for tables.
        sees: what it is given, in words.
        predicted: int64 (test flows,), or None where it could not be trained.
        skipped: why not; empty where it was.
        chances_of: the trained baseline: (records, packets) of any flows -> float32 (F, C) probabilities.
    """

    name: str
    sees: str
    predicted: NDArray[np.int64] | None
    skipped: str = ""
    chances_of: Chances | None = None


def majority_baseline(data: BaselineInput) -> BaselineAnswer:
    """The most frequent class of the training part, for every test flow; its chances are the classes' shares."""
    counts = np.bincount(data.labels[data.train], minlength=data.n_labels)
    answers = np.full(len(data.test), int(counts.argmax()), np.int64)
    shares = (counts / max(counts.sum(), 1)).astype(np.float32)

    def chances_of(records: NDArray[Any], _packets: NDArray[Any]) -> NDArray[np.float32]:
        return np.tile(shares, (len(records), 1))

    sees = "nothing; says the most frequent class of the training part"
    return BaselineAnswer("majority", sees, answers, chances_of=chances_of)


def run_baselines(
    data: BaselineInput,
    *,
    seed: int = 0,
    threads: int = 2,
    on_progress: Callable[[str], None] | None = None,
    only: Collection[str] | None = None,
) -> list[BaselineAnswer]:
    """Train every baseline on the train part and answer the test part.

    The validation part only stops the boosting. Features are made from the packets, so each baseline's view
    ends after ``DEFAULT_PACKETS`` packets or the ``K`` that were kept.

    Args:
        data: flows and parts.
        seed: of the trees.
        threads: of the trees.
        on_progress: called with the name of each baseline before it starts.
        only: names of the baselines to train; None: all.
    """
    tell = on_progress or (lambda _: None)
    answers = []
    if only is None or "majority" in only:
        tell("majority")
        answers.append(majority_baseline(data))
    for name, sees, features in _views(data):
        if only is None or name in only:
            tell(name)
            train = _forest if name == "random_forest" else _boosted
            answers.append(train(name, sees, features, data, seed, threads))
    return answers


def _views(data: BaselineInput) -> list[tuple[str, str, Features]]:
    """Name, what it sees in words, and the features of each baseline that learns."""
    n_packets = min(DEFAULT_PACKETS, data.packets.shape[1])
    all_fields = f"header fields, sizes and times of the first {n_packets} packets"

    def headers(n: int) -> Features:
        return lambda records, packets: header_features(records, packets, n)[0]

    views: list[tuple[str, str, Features]] = [
        ("ports", "protocol and ports only", lambda records, _packets: port_features(records)[0]),
        (
            "sizes",
            f"signed sizes of the first {n_packets} packets",
            lambda records, packets: size_features(records, packets, n_packets)[0],
        ),
        ("lightgbm", all_fields, headers(n_packets)),
    ]
    if 0 < data.model_packets < n_packets:
        sees = f"the same of the first {data.model_packets} packets, as many as the model"
        views.append((f"lightgbm_{data.model_packets}_packets", sees, headers(data.model_packets)))
    views.append(("random_forest", all_fields, headers(n_packets)))
    return views


def _boosted(
    name: str, sees: str, features: Features, data: BaselineInput, seed: int, threads: int
) -> BaselineAnswer:
    """Gradient-boosted trees (LightGBM, Ke et al. 2017); the validation part stops them and picks their settings."""
    try:
        import lightgbm
    except ImportError:
        return BaselineAnswer(name, sees, None, "lightgbm is not installed; pip install 'netcls[train]'")
    # LightGBM wants labels 0 to n-1 that all occur.
    present, train_labels = np.unique(data.labels[data.train], return_inverse=True)
    known = np.isin(data.labels[data.validation], present)
    validation = data.validation[known]
    fixed = _BOOSTING | {"num_class": len(present), "seed": seed, "num_threads": threads}
    to_learn, to_judge = _of(features, data, data.train), _of(features, data, validation)

    def judge(booster: Any) -> float:
        chances = np.asarray(booster.predict(to_judge, num_threads=threads))
        return validation_score(present[chances.argmax(axis=1)], data.labels[validation], data.n_labels)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Bins depend on none of the settings that are tried.
        train_set = lightgbm.Dataset(to_learn, train_labels, params=fixed, free_raw_data=False)
        held_out = lightgbm.Dataset(
            to_judge,
            np.searchsorted(present, data.labels[validation]),
            reference=train_set,
            free_raw_data=False,
        )

        def trained(more: dict[str, float]) -> Any:
            return lightgbm.train(
                fixed | more,
                train_set,
                _MAX_ROUNDS,
                valid_sets=[held_out] if len(validation) else None,
                callbacks=[lightgbm.early_stopping(_PATIENCE_ROUNDS, verbose=False)]
                if len(validation)
                else None,
            )

        booster = best_of(_BOOSTING_TRIED, trained, judge if len(validation) else None)

    def chances_of(records: NDArray[Any], packets: NDArray[Any]) -> NDArray[np.float32]:
        columns = features(records, packets)
        chances = booster.predict(columns, num_threads=threads) if len(columns) else np.empty((0, 1))
        return _all_classes(np.asarray(chances), present, data.n_labels)

    return _answered(name, sees, chances_of, data)


def _forest(
    name: str, sees: str, features: Features, data: BaselineInput, seed: int, threads: int
) -> BaselineAnswer:
    """A random forest (Breiman 2001); a missing packet is the value -1e6, outside all real ones."""
    try:
        from sklearn.ensemble import RandomForestClassifier
    except ImportError:
        return BaselineAnswer(name, sees, None, "scikit-learn is not installed; pip install 'netcls[train]'")
    to_learn, to_judge = (
        np.nan_to_num(_of(features, data, rows), nan=-1e6) for rows in (data.train, data.validation)
    )

    def trained(leaf_samples: int) -> Any:
        forest = RandomForestClassifier(
            _TREES,
            min_samples_leaf=leaf_samples,
            class_weight="balanced_subsample",
            random_state=seed,
            n_jobs=threads,
        )
        return forest.fit(to_learn, data.labels[data.train])

    def judge(forest: Any) -> float:
        return validation_score(forest.predict(to_judge), data.labels[data.validation], data.n_labels)

    forest = best_of(_LEAF_SAMPLES_TRIED, trained, judge if len(to_judge) else None)

    def chances_of(records: NDArray[Any], packets: NDArray[Any]) -> NDArray[np.float32]:
        columns = np.nan_to_num(features(records, packets), nan=-1e6)
        chances = forest.predict_proba(columns) if len(columns) else np.empty((0, 1))
        return _all_classes(chances, forest.classes_, data.n_labels)

    return _answered(name, sees, chances_of, data)


def best_of(tried: Sequence[T], train: Callable[[T], Any], judge: Callable[[Any], float] | None) -> Any:
    """What ``train`` makes of the setting that ``judge`` rates highest, the first of equals.

    Args:
        tried: settings.
        train: setting -> model.
        judge: model -> score on the validation part; None where there is none: the first setting is taken.
    """
    if judge is None:
        return train(tried[0])
    models = [train(setting) for setting in tried]
    return models[int(np.argmax([judge(model) for model in models]))]


def validation_score(predicted: NDArray[Any], truth: NDArray[np.int64], n_labels: int) -> float:
    """Macro-F1 over the classes that the validation part holds."""
    counts = confusion_matrix(truth, predicted.astype(np.int64), n_labels)
    support = counts.sum(axis=1)
    f1 = 2 * counts.diagonal() / np.maximum(support + counts.sum(axis=0), 1)
    return float(f1[support > 0].mean())


def _of(features: Features, data: BaselineInput, rows: NDArray[np.intp]) -> NDArray[np.float32]:
    return features(data.records[rows], data.packets[rows])


def _all_classes(chances: NDArray[Any], present: NDArray[np.int64], n_labels: int) -> NDArray[np.float32]:
    """Columns of the classes that trained, put among all C: float32 (F, C)."""
    everywhere = np.zeros((len(chances), n_labels), np.float32)
    if len(chances):
        everywhere[:, present] = chances
    return everywhere


def _answered(name: str, sees: str, chances_of: Chances, data: BaselineInput) -> BaselineAnswer:
    chances = chances_of(data.records[data.test], data.packets[data.test])
    return BaselineAnswer(name, sees, chances.argmax(axis=1).astype(np.int64), chances_of=chances_of)
