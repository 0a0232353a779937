"""What is compared: checkpoints, baselines and freshly trained rows, all asked in the same way.

A contender has one classifier for each seed it was trained with (a checkpoint has one). F is the number of flows,
L the labels that a classifier knows, C the classes of DATA that are scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from capture.errors import UsageError
from capture.flow_batch import FlowBatch
from capture.representations.base import Representation
from netcls.evaluation.baselines import BaselineAnswer, Chances
from netcls.evaluation.raw_flows import RawFlows

if TYPE_CHECKING:
    from models.checkpoint import Checkpoint
    from models.predictor import Predictor

Kind = Literal["model", "trained", "baseline"]

_KEPT_FEATURES: Final = 4  # of the test and calibration parts, and what is being compared with them
_LEAST_CHANCE: Final = 1e-9  # a tree says 0 of what it has not seen; its logarithm must be finite


class Classifier(Protocol):
    """Something that answers raw flows.

    Attributes:
        columns: int64 (L,), class of DATA that each of its labels is; C for a label that DATA lacks.
        temperature: logits are divided by it.
    """

    columns: NDArray[np.int64]
    temperature: float

    def answer(self, flows: FlowBatch) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Logits, float32 (F, L), and features (F, D) where it has any."""

    def differs(self, a: FlowBatch, b: FlowBatch) -> NDArray[np.bool_]:
        """Whose input is not the same in two versions of the same flows: bool (F,)."""


class TreeClassifier:
    """A trained baseline; its logits are the logarithms of its probabilities."""

    def __init__(self, chances_of: Chances, n_classes: int) -> None:
        self.columns = np.arange(n_classes)
        self.temperature = 1.0
        self._chances_of = chances_of

    def answer(self, flows: FlowBatch) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Logits; no features."""
        chances = self._chances_of(flows.records, flows.packets)
        return np.log(np.maximum(chances, _LEAST_CHANCE)), None

    def differs(self, a: FlowBatch, b: FlowBatch) -> NDArray[np.bool_]:
        """Whose answer is another; trees do not look at every column."""
        return np.asarray((self.answer(a)[0] != self.answer(b)[0]).any(axis=1))


class FrozenBody:
    """A network's features, computed once for the same flows whoever asks: several heads share one body.

    Args:
        checkpoint: a classifier; its head is not looked at.
        raw: how the raw flows were kept.
        threads: of inference.
        device: auto, cpu or cuda.
    """

    def __init__(self, checkpoint: Checkpoint, raw: RawFlows, *, threads: int | None, device: str) -> None:
        from capture.representations import build
        from models.predictor import Predictor

        self.predictor: Predictor = Predictor(checkpoint, threads=threads, device=device)
        self._representation = build(checkpoint.representation, checkpoint.representation_settings)
        self._raw = raw
        self._kept: list[tuple[FlowBatch, NDArray[np.float32]]] = []

    def features(self, flows: FlowBatch) -> NDArray[np.float32]:
        """float32 (F, D)."""
        for asked, features in self._kept:
            if asked is flows:
                return features
        features = self.predictor.logits_and_features(self._raw.tokens(flows, self._representation))[1]
        self._kept = [*self._kept[1 - _KEPT_FEATURES :], (flows, features)]
        return features

    def differs(self, a: FlowBatch, b: FlowBatch) -> NDArray[np.bool_]:
        """Whose tokens are others: bool (F,)."""
        return _tokens_differ(self._raw, self._representation, a, b)


class HeadClassifier:
    """A linear head on a frozen body.

    Args:
        body: whose features it reads.
        weight: float32 (C, D).
        bias: float32 (C,).
    """

    def __init__(self, body: FrozenBody, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> None:
        self.columns = np.arange(len(weight))
        self.temperature = 1.0
        self._body, self._weight, self._bias = body, weight, bias

    def answer(self, flows: FlowBatch) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Logits and features."""
        features = self._body.features(flows)
        return features @ self._weight.T + self._bias, features

    def differs(self, a: FlowBatch, b: FlowBatch) -> NDArray[np.bool_]:
        """Whose tokens are others."""
        return self._body.differs(a, b)


def _tokens_differ(
    raw: RawFlows, representation: Representation, a: FlowBatch, b: FlowBatch
) -> NDArray[np.bool_]:
    one, other = (raw.tokens(flows, representation).arrays for flows in (a, b))
    differs = np.zeros(len(a), bool)
    for name, array in one.items():
        differs |= (array != other[name]).reshape(len(a), -1).any(axis=1)
    return differs


class NetworkClassifier:
    """A checkpoint with its network loaded.

    Args:
        checkpoint: a classifier.
        raw: how the raw flows were kept.
        label_names: the C classes of DATA.
        threads: of inference.
        device: auto, cpu or cuda.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        raw: RawFlows,
        label_names: Sequence[str],
        *,
        threads: int | None = None,
        device: str = "auto",
    ) -> None:
        from capture.representations import build
        from models.predictor import Predictor

        self.predictor: Predictor = Predictor(checkpoint, threads=threads, device=device)
        self.checkpoint = checkpoint
        self.representation = build(checkpoint.representation, checkpoint.representation_settings)
        self.temperature = checkpoint.calibration.temperature
        number = {name: index for index, name in enumerate(label_names)}
        self.columns = np.array([number.get(name, len(label_names)) for name in checkpoint.labels], np.int64)
        self._raw = raw

    def answer(self, flows: FlowBatch) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Logits, and features where the family shows them."""
        tokens = self._raw.tokens(flows, self.representation)
        try:
            return self.predictor.logits_and_features(tokens)
        except UsageError:
            return self.predictor.logits(tokens), None

    def differs(self, a: FlowBatch, b: FlowBatch) -> NDArray[np.bool_]:
        """Whose tokens are others."""
        return _tokens_differ(self._raw, self.representation, a, b)

    def close(self) -> None:
        """End the worker threads."""
        self.predictor.close()


@dataclass(slots=True)
class Contender:
    """One row of the comparison.

    Attributes:
        name: for tables.
        kind: ``model`` (a checkpoint given), ``trained`` (a network trained here), ``baseline``.
        sees: what it is given, in words.
        classifiers: one for each seed; none where it could not be run.
        seeds: that they were trained with; empty for a checkpoint.
        skipped: why it was not run.
        facts: more for the report, JSON values.
    """

    name: str
    kind: Kind
    sees: str
    classifiers: list[Classifier] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    skipped: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    def knows(self, labels: Sequence[str]) -> list[str]:
        """Of these labels, those that a checkpoint has learnt."""
        learnt: set[str] = set()
        for classifier in self.classifiers:
            if isinstance(classifier, NetworkClassifier):
                learnt.update(classifier.checkpoint.labels)
        return [label for label in labels if label in learnt]

    def close(self) -> None:
        """Free what the classifiers hold."""
        for classifier in self.classifiers:
            if isinstance(classifier, NetworkClassifier):
                classifier.close()


def checkpoint_contender(
    name: str,
    checkpoint: Checkpoint,
    raw: RawFlows,
    label_names: Sequence[str],
    *,
    threads: int | None,
    device: str,
) -> Contender:
    """A checkpoint that was trained before."""
    classifier = NetworkClassifier(checkpoint, raw, label_names, threads=threads, device=device)
    facts = {"checkpoint": checkpoint.digest, "family": checkpoint.family, "labels": len(checkpoint.labels)}
    return Contender(name, "model", what_it_sees(checkpoint), [classifier], facts=facts)


def baseline_contenders(
    of_seeds: Sequence[tuple[int, Sequence[BaselineAnswer]]], n_classes: int
) -> list[Contender]:
    """The baselines, each with the classifiers of all seeds.

    Args:
        of_seeds: seed and the answers of `run_baselines` with it, in the same order for each seed.
        n_classes: C.
    """
    made: dict[str, Contender] = {}
    for seed, answers in of_seeds:
        for answer in answers:
            row = made.setdefault(answer.name, Contender(answer.name, "baseline", answer.sees))
            row.skipped = answer.skipped
            if answer.chances_of is not None:
                row.classifiers.append(TreeClassifier(answer.chances_of, n_classes))
                row.seeds.append(seed)
    majority = made.get("majority")
    if majority is not None:  # nothing in it is drawn by chance
        majority.classifiers, majority.seeds = majority.classifiers[:1], []
    return list(made.values())


def what_it_sees(checkpoint: Checkpoint) -> str:
    """A network's input in words."""
    settings = ", ".join(f"{name} {value}" for name, value in checkpoint.representation_settings.items())
    return f"{checkpoint.family}: {checkpoint.representation} input ({settings})"
