"""Few-shot training: N labelled flows of each class, and everything else of training left out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from netcls.datasets.prepare import Prepared
from netcls.datasets.splits import CALIBRATION, LEFT_OUT, TRAIN, VALIDATION


@dataclass(frozen=True, slots=True)
class Shots:
    """What a few-shot run learns from.

    Attributes:
        per_class: flows wanted of each class.
        flows: that train.
        captures: that they come from.
        left_out: training flows that do not train.
        flows_to_choose_with: labelled flows that pick the epoch and fit the temperature; they are no shots.
        fewer: class name -> flows, of the classes that have not enough.
    """

    per_class: int
    flows: int
    captures: int
    left_out: int
    flows_to_choose_with: int
    fewer: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """All of it, as JSON values."""
        return asdict(self)

    def sentences(self) -> list[str]:
        """What the report says about it."""
        first = (
            f"Few-shot: trained on {self.per_class} flows of each class ({self.flows} flows of {self.captures} "
            f"captures; {self.left_out} other training flows were left out). {self.flows_to_choose_with} further "
            "labelled flows judged the epochs and fitted the temperature."
        )
        if not self.fewer:
            return [first]
        names = ", ".join(f"{name!r} ({flows})" for name, flows in self.fewer.items())
        return [first, f"Fewer than {self.per_class} training flows: {names}."]


def keep_shots(prepared: Prepared, per_class: int, seed: int) -> Shots:
    """Leave out of training all but ``per_class`` flows of each class; changes the split of ``prepared``."""
    flows, split = prepared.flows, prepared.split
    rows = split.rows(TRAIN)
    kept = rows[choose_shots(flows.labels[rows], flows.capture[rows], per_class, seed)]
    split.part[rows] = LEFT_OUT
    split.part[kept] = TRAIN
    counts = np.bincount(flows.labels[kept], minlength=len(flows.label_names))
    fewer = {
        name: int(count) for name, count in zip(flows.label_names, counts, strict=True) if count < per_class
    }
    return Shots(
        per_class,
        len(kept),
        len(np.unique(flows.capture[kept])),
        len(rows) - len(kept),
        len(split.rows(VALIDATION)) + len(split.rows(CALIBRATION)),
        fewer,
    )


def choose_shots(
    labels: NDArray[np.int64], captures: NDArray[np.int64], per_class: int, seed: int
) -> NDArray[np.intp]:
    """Flows of each class, one from each capture before a second from any.

    Flows of one capture resemble each other: five captures show more of a class than five flows of one.

    Args:
        labels: int64 (N,).
        captures: int64 (N,).
        per_class: wanted of each class.
        seed: decides among captures and among their flows.

    Returns:
        (at most C x per_class,), ascending; all flows of a class that has fewer.
    """
    rng = np.random.default_rng([seed, 4])
    chosen = []
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        _, which = np.unique(captures[rows], return_inverse=True)
        turn = _occurrence(which)  # 0 for the first flow of its capture, 1 for the second ...
        chosen.append(rows[np.argsort(turn, kind="stable")][:per_class])
    return np.sort(np.concatenate(chosen))


def _occurrence(values: NDArray[np.intp]) -> NDArray[np.intp]:
    """How many equal values stand before each."""
    order = np.argsort(values, kind="stable")
    starts = np.searchsorted(values[order], values[order])
    occurrence = np.empty(len(values), np.intp)
    occurrence[order] = np.arange(len(values)) - starts
    return occurrence
