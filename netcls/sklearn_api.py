"""Flows as scikit-learn takes them: a classifier over what a pretrained network makes of them.

    flows = netcls.Flows.read(["web.pcap", "video.pcap"])
    model = netcls.TrafficClassifier().fit(flows, labels)              # one label a flow
    model.predict(netcls.Flows.read("new.pcap"))
    cross_val_score(model, flows, labels, groups=flows.capture, cv=GroupKFold())   # whole captures on one side

The network stays as it is; what learns is a logistic regression on its features, or any scikit-learn classifier that is
given. For a checkpoint, a calibrated answer and an honest report use ``netcls finetune``. F is the number of flows.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from capture.errors import CaptureError, UsageError
from capture.representations.base import TokenBatch
from netcls.api import PathLike, load
from netcls.datasets.capture_flows import concatenate_tokens, process_captures
from netcls.inputs import find_captures

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
except ImportError:
    raise UsageError("scikit-learn is not installed; pip install 'netcls[train]'") from None

if TYPE_CHECKING:
    from models.checkpoint import Checkpoint

SEES: Final = ("features", "tokens")


@dataclass(frozen=True, slots=True)
class Flows:
    """Flows of captures as the input of one model; indexed and cut like a sequence.

    Attributes:
        tokens: of the base's representation, F rows.
        representation: its name, version and settings in one line: what must be equal to be compared.
        capture: int64 (F,), which capture each flow is of; the ``groups`` of an honest cross-validation.
        flow_id: uint64 (F,), as in events.
    """

    tokens: TokenBatch
    representation: str
    capture: NDArray[np.int64]
    flow_id: NDArray[np.uint64]

    @classmethod
    def read(cls, paths: PathLike | Iterable[PathLike], base: PathLike | Checkpoint = "default") -> Flows:
        """All flows of captures, in order of the captures and of their first packets.

        Args:
            paths: capture file, folder of captures, or several of these.
            base: whose input is made, a name, a folder or a loaded checkpoint.

        Raises:
            CaptureError: a capture cannot be read, or there is none.
            CheckpointError: the base cannot be loaded.
        """
        from capture.representations import build

        checkpoint = load(base) if isinstance(base, str | os.PathLike) else base
        several = [paths] if isinstance(paths, str | os.PathLike) else paths
        captures = [Path(path) for given in several for path in find_captures(os.fspath(given))]
        if not captures:
            raise CaptureError("no capture was given; expected at least one file")
        representation = build(checkpoint.representation, checkpoint.representation_settings)
        parts = []
        for number, made in enumerate(process_captures(captures, representation)):
            if made.error and not made.n_packets:
                raise CaptureError(made.error)
            ids = made.records["flow_id"]
            parts.append(cls(made.tokens, described(checkpoint), np.full(len(made), number), ids))
        return joined(parts)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: Any) -> Flows:
        """Some flows: a number, a slice, numbers or a mask."""
        if isinstance(rows, int | np.integer):
            if not -len(self) <= rows < len(self):
                raise IndexError(f"flow {rows} of {len(self)}")
            rows = [rows % len(self)]
        chosen = np.arange(len(self))[rows]
        return Flows(
            self.tokens.take(chosen), self.representation, self.capture[chosen], self.flow_id[chosen]
        )


def joined(parts: Sequence[Flows]) -> Flows:
    """Flows of one representation, one behind the other.

    Raises:
        UsageError: they are of several representations.
    """
    described_as = {part.representation for part in parts}
    if len(described_as) != 1:
        raise UsageError(
            f"flows are of {len(described_as)} representations ({'; '.join(sorted(described_as))})"
        )
    return Flows(
        concatenate_tokens([part.tokens for part in parts]),
        parts[0].representation,
        np.concatenate([part.capture for part in parts]),
        np.concatenate([part.flow_id for part in parts]),
    )


def described(checkpoint: Checkpoint) -> str:
    """Its representation in one line."""
    settings = ", ".join(
        f"{name} {value}" for name, value in sorted(checkpoint.representation_settings.items())
    )
    return f"{checkpoint.representation_id} ({settings})"


class TrafficClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc] # scikit-learn has no types
    """Labels for flows, in scikit-learn's shape.

    Args:
        base: classifier checkpoint whose network sees the flows, a name or a folder; it is not changed.
        estimator: scikit-learn classifier that learns; None: standardised features and a logistic regression in which
            all classes count alike.
        sees: ``features`` of the network, or its ``tokens`` as plain columns, for a classifier of your own.
        threads: of the network; None: one per core.
        device: auto, cpu or cuda.

    Attributes:
        classes_: labels in the order of the columns of :meth:`predict_proba`.
        estimator_: what has learnt.
    """

    def __init__(
        self,
        base: str = "default",
        estimator: Any = None,
        sees: str = "features",
        threads: int | None = None,
        device: str = "auto",
    ) -> None:
        self.base = base
        self.estimator = estimator
        self.sees = sees
        self.threads = threads
        self.device = device

    def fit(self, X: Flows | Sequence[Flows], y: Any) -> TrafficClassifier:
        """Learn one label a flow.

        Raises:
            UsageError: numbers of flows and labels differ, the labels are all the same, or the flows are another
                model's input.
        """
        from sklearn.base import clone

        labels = np.asarray(y)
        if self.sees not in SEES:
            raise UsageError(f"sees is {self.sees!r}, expected one of {', '.join(SEES)}")
        if labels.shape != (len(X),):
            raise UsageError(
                f"got {len(X)} flows and labels of shape {labels.shape}; expected one label a flow"
            )
        if len(np.unique(labels)) < 2:
            raise UsageError("every label is the same; expected at least two classes")
        learner = _logistic() if self.estimator is None else clone(self.estimator)
        self.estimator_ = learner.fit(self._columns(X), labels)
        self.classes_ = self.estimator_.classes_
        return self

    def predict(self, X: Flows | Sequence[Flows]) -> NDArray[Any]:
        """The likeliest label of each flow: (F,)."""
        return np.asarray(self._fitted().predict(self._columns(X)))

    def predict_proba(self, X: Flows | Sequence[Flows]) -> NDArray[np.float64]:
        """Probabilities, not calibrated: float64 (F, classes)."""
        return np.asarray(self._fitted().predict_proba(self._columns(X)), np.float64)

    def _fitted(self) -> Any:
        if not hasattr(self, "estimator_"):
            raise UsageError("the classifier has learnt nothing; call fit first")
        return self.estimator_

    def _columns(self, flows: Flows | Sequence[Flows]) -> NDArray[Any]:
        """What the learner sees of each flow: (F, D)."""
        from models.predictor import Predictor

        whole = flows if isinstance(flows, Flows) else joined(list(flows))
        checkpoint = load(self.base)
        if whole.representation != described(checkpoint):
            raise UsageError(
                f"the flows are {whole.representation}, but base {self.base!r} sees {described(checkpoint)}; "
                f"read them with Flows.read(paths, base={self.base!r})"
            )
        if self.sees == "tokens":
            arrays = [array.reshape(len(whole), -1) for array in whole.tokens.arrays.values()]
            return np.concatenate(arrays, axis=1).astype(np.float32)
        with Predictor(checkpoint, threads=self.threads, device=self.device) as predictor:
            return predictor.logits_and_features(whole.tokens)[1]


def _logistic() -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
