"""Rows that are trained here, on the training part of the same split: the same network in several ways.

=========== ==========================================================================================================
row         what it is
=========== ==========================================================================================================
random      every weight trained, from random weights: what the architecture gives without pre-training
frozen      nothing trained: a linear head in closed form (equal priors, diagonal spread) on the base's features
head        the linear head trained, on frozen features
lora        a low-rank adapter and the head trained
full        every weight trained, from the base
=========== ==========================================================================================================

Every training has the same bound in time; what it came to is said in the row (``training``).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from capture.errors import UsageError
from capture.representations.base import TokenBatch
from netcls.datasets.shots import choose_shots
from netcls.datasets.splits import CALIBRATION, TRAIN, VALIDATION
from netcls.evaluation.comparison_data import ComparisonData
from netcls.evaluation.contenders import (
    Classifier,
    Contender,
    FrozenBody,
    HeadClassifier,
    NetworkClassifier,
    what_it_sees,
)
from netcls.recipes import CHOOSE_FROM, batch_for, recipe

if TYPE_CHECKING:
    from models.checkpoint import Checkpoint
    from models.families import Family
    from models.learning.batches import LabelledTokens
    from models.learning.finetune import FinetuneResult

ROWS: Final = ("random", "frozen", "head", "lora", "full")
FROM_RANDOM_WEIGHTS: Final = "random"
SHOT_ROWS: Final = (FROM_RANDOM_WEIGHTS, "frozen", "head")
"""Rows that the learning curve over shots is drawn of: the same network from random weights, and the quick ones."""

_MAX_VALIDATION: Final = (
    600  # flows that pick the epoch of a network; more would take longer than training in short runs
)
_LEAST_DEVIATION: Final = 1e-3
_IN_WORDS: Final = {
    "random": "trained here from random weights",
    "frozen": "head in closed form on frozen features",
    "head": "head trained here on frozen features",
    "lora": "low-rank adapter and head trained here",
    "full": "every weight trained here from the base",
}


@dataclass(frozen=True, slots=True)
class RowChoice:
    """One row to train.

    Attributes:
        name: one of ``ROWS``.
        n_seeds: seeds that it is trained with, of those given; None: all.
    """

    name: str
    n_seeds: int | None = None

    @classmethod
    def parse(cls, text: str) -> RowChoice:
        """``head``, or ``full:1`` for one seed only.

        Raises:
            UsageError: for a row that does not exist, or a number that is none.
        """
        name, colon, number = text.partition(":")
        if name not in ROWS:
            raise UsageError(f"row {name!r} is not known; choose from {', '.join(ROWS)}")
        if colon and not (number.isdecimal() and int(number) > 0):
            raise UsageError(
                f"row {text!r}: got {number!r} seeds, expected a number from 1, such as {name}:1"
            )
        return cls(name, int(number) if colon else None)


class RowTrainer:
    """Trains rows of one base on one split.

    Args:
        base: backbone or classifier to start from.
        data: flows and split.
        max_seconds: of each training.
        threads: of torch.
        device: auto, cpu or cuda.
        on_progress: called with a row's name and details.
    """

    def __init__(
        self,
        base: Checkpoint,
        data: ComparisonData,
        *,
        max_seconds: float,
        threads: int | None,
        device: str,
        on_progress: Callable[[dict[str, Any]], None],
    ) -> None:
        from capture.representations import build

        self._base = base
        self._data = data
        self._max_seconds = max_seconds
        self._threads = threads
        self._device = device
        self._tell = on_progress
        self._representation = build(base.representation, base.representation_settings)
        self._body: FrozenBody | None = None
        self._features: dict[int, NDArray[np.float32]] = {}

    def contender(self, choice: RowChoice, seeds: Sequence[int], shots: int | None = None) -> Contender:
        """A row with a classifier for each seed.

        Args:
            choice: which row.
            seeds: one training each; of the closed form without shots, one is enough.
            shots: training flows of each class; None: all.
        """
        used = list(seeds[: choice.n_seeds])
        if choice.name == "frozen" and shots is None:
            used = used[:1]  # nothing in it is drawn by chance
        name = choice.name if shots is None else f"{choice.name}, {shots} flows a class"
        row = Contender(name, "trained", f"as base {self._base.name}; {_IN_WORDS[choice.name]}")
        trainings = []
        for seed in used:
            self._tell({"name": name, "seed": seed})
            classifier, facts = self._trained(choice.name, seed, shots)
            self._calibrate(classifier)
            row.classifiers.append(classifier)
            row.seeds.append(seed)
            trainings.append(facts)
        row.facts["training"] = {
            "base": {
                "name": self._base.name,
                "checkpoint": self._base.digest,
                "sees": what_it_sees(self._base),
            },
            "shots": shots,
            "budget": _budget(choice.name, trainings, self._max_seconds),
            "of_seeds": trainings,
        }
        return row

    def _rows(self, seed: int, shots: int | None) -> NDArray[np.intp]:
        rows = self._data.rows(TRAIN)
        if shots is None:
            return rows
        flows = self._data.prepared.flows
        return rows[choose_shots(flows.labels[rows], flows.capture[rows], shots, seed)]

    def _trained(self, name: str, seed: int, shots: int | None) -> tuple[Classifier, dict[str, Any]]:
        start_s = time.monotonic()
        rows = self._rows(seed, shots)
        facts: dict[str, Any] = {"seed": seed, "flows": len(rows)}
        classifier: Classifier
        if name == "frozen":
            x, labels = self._features_of(TRAIN, rows), self._data.labels[rows]
            weight, bias = linear_discriminant(x.astype(np.float64), labels, len(self._data.label_names))
            classifier = HeadClassifier(self._frozen(), weight, bias)
        elif name == "head":
            classifier, more = self._head(seed, rows)
            facts |= more
        else:
            classifier, more = self._network(name, seed, rows)
            facts |= more
        facts["seconds"] = time.monotonic() - start_s
        return classifier, facts

    def _head(self, seed: int, rows: NDArray[np.intp]) -> tuple[Classifier, dict[str, Any]]:
        """A linear head, trained as ``finetune --method head`` does, on features that are computed once."""
        from models.learning.batches import LabelledTokens
        from models.learning.feature_family import FEATURES, FeatureConfig

        def labelled(part: int, chosen: NDArray[np.intp]) -> LabelledTokens:
            features = self._features_of(part, chosen)
            tokens = TokenBatch({"features": features}, np.zeros(len(chosen), np.uint16))
            return LabelledTokens(tokens, self._data.labels[chosen], np.zeros(len(chosen), np.int64))

        train, validation = labelled(TRAIN, rows), labelled(VALIDATION, self._data.rows(VALIDATION))
        config = FeatureConfig(train.tokens.arrays["features"].shape[1])
        result, facts = self._fit("head", seed, FEATURES, config, train, validation, None)
        weight, bias = (result.state[f"head.{part}"].numpy() for part in ("weight", "bias"))
        return HeadClassifier(self._frozen(), weight, bias), facts

    def _network(self, name: str, seed: int, rows: NDArray[np.intp]) -> tuple[Classifier, dict[str, Any]]:
        from models.families import family

        validation = self._data.rows(VALIDATION)
        if len(validation) > _MAX_VALIDATION:
            chosen = np.random.default_rng([seed, 7]).choice(validation, _MAX_VALIDATION, replace=False)
            validation = np.sort(chosen)
        result, facts = self._fit(
            name,
            seed,
            family(self._base.family),
            self._base.model_config,
            self._labelled(rows),
            self._labelled(validation),
            None if name == "random" else self._base.state,
        )
        classifier = NetworkClassifier(
            self._checkpoint(result.state),
            self._data.raw,
            self._data.label_names,
            threads=self._threads,
            device=self._device,
        )
        return classifier, facts

    def _fit(
        self,
        name: str,
        seed: int,
        family: Family,
        model_config: Any,
        train: LabelledTokens,
        validation: LabelledTokens,
        init_state: Any,
    ) -> tuple[FinetuneResult, dict[str, Any]]:
        """Train as ``netcls finetune`` does by default, within the bound in time."""
        from models.learning.finetune import FinetuneSettings, finetune

        method = "full" if name == "random" else name
        defaults = recipe(method, from_base=name != "random")
        batch = batch_for(len(train))
        settings = FinetuneSettings(
            method=method,
            epochs=defaults.epochs_for(len(train), batch),
            batch=batch,
            learning_rate=defaults.learning_rate_for(batch),
            layer_decay=defaults.layer_decay,
            max_seconds=self._max_seconds,
            choose_from=1 if name == "random" else CHOOSE_FROM,
            seed=seed,
            threads=self._threads,
            device=self._device,
        )
        with tempfile.TemporaryDirectory(prefix="netcls-row-") as folder:
            result = finetune(
                family,
                model_config,
                train,
                validation,
                len(self._data.label_names),
                settings,
                init_state=init_state,
                run_dir=Path(folder) / "run",
                augment=family.augment,
            )
        facts = {
            "epochs": len(result.history),
            "of_epochs": settings.epochs,
            "best_epoch": result.best_epoch,
            "learning_rate": settings.learning_rate,
        }
        return result, facts

    def _labelled(self, rows: NDArray[np.intp]) -> LabelledTokens:
        from models.learning.batches import LabelledTokens

        data = self._data
        tokens = data.raw.tokens(data.batch(rows), self._representation)
        return LabelledTokens(tokens, data.labels[rows], data.prepared.flows.group[rows])

    def _frozen(self) -> FrozenBody:
        if self._body is None:
            checkpoint = self._checkpoint(self._blank_state())
            self._body = FrozenBody(checkpoint, self._data.raw, threads=self._threads, device=self._device)
        return self._body

    def _features_of(self, part: int, rows: NDArray[np.intp]) -> NDArray[np.float32]:
        """Features of some flows of a part; those of the whole part are computed once."""
        all_rows = self._data.rows(part)
        if part not in self._features:
            self._features[part] = self._frozen().features(self._data.batch(all_rows))
        return self._features[part][np.searchsorted(all_rows, rows)]

    def close(self) -> None:
        """End the worker threads."""
        if self._body is not None:
            self._body.predictor.close()

    def _blank_state(self) -> dict[str, Any]:
        """The base's body under a new head."""
        from models.learning.start import load_body, resolve

        family, config = resolve(self._base.family, self._base.model_config)
        network = family.build_classifier(config, len(self._data.label_names))
        load_body(network, self._base.state, family, config)
        return dict(network.state_dict())

    def _checkpoint(self, state: dict[str, Any]) -> Checkpoint:
        from models.checkpoint import Calibration

        return replace(
            self._base,
            kind="classifier",
            labels=list(self._data.label_names),
            calibration=Calibration(),
            card={},
            state=state,
            digest="",
        )

    def _calibrate(self, classifier: Classifier) -> None:
        from models.learning.calibration import fit_temperature

        rows = self._data.rows(CALIBRATION)
        logits, _ = classifier.answer(self._data.batch(rows))
        classifier.temperature = fit_temperature(logits, self._data.labels[rows])


def linear_discriminant(
    x: NDArray[np.float64], labels: NDArray[np.int64], n_classes: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weights and bias of a head that answers the class whose mean is nearest, each feature in its own spread.

    Args:
        x: float64 (F, D).
        labels: int64 (F,).
        n_classes: C; a class without flows is never answered.

    Returns:
        float32 (C, D) and (C,).
    """
    weight, bias = np.zeros((n_classes, x.shape[1])), np.full(n_classes, -1e4)
    present = np.unique(labels)
    means = np.stack([x[labels == label].mean(axis=0) for label in present])
    spread = x - means[np.searchsorted(present, labels)]
    # With one flow a class there is no spread inside the classes: that of all flows stands in.
    if len(x) == len(present):
        spread = x - x.mean(axis=0)
    variance = np.maximum(spread.var(axis=0), _LEAST_DEVIATION**2)
    centre = means.mean(axis=0)
    weight[present] = (means - centre) / variance
    bias[present] = -0.5 * ((means**2 - centre**2) / variance).sum(axis=1)
    # Features are not independent: their sum would be far too sure. Scaled, a temperature near 1 fits.
    weight /= x.shape[1]
    bias[present] /= x.shape[1]
    return weight.astype(np.float32), bias.astype(np.float32)


def _budget(name: str, trainings: Sequence[dict[str, Any]], max_seconds: float) -> str:
    if name == "frozen":
        return "not trained"
    n = len(trainings)
    cut = sum(training["epochs"] < training["of_epochs"] for training in trainings)
    text = f"{n} seed{'s' if n > 1 else ''}, at most {max_seconds:g} s each"
    return f"{text}; the time ended {cut} of {n} early" if cut else text
