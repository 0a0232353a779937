"""Labelled tokens, and which of them make up an epoch.

Everything random here is a function of (seed, epoch) alone, so a run that was interrupted draws what it would have
drawn. N is the number of flows, C of labels.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from capture.errors import DataError
from capture.representations.base import TokenBatch

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class LabelledTokens:
    """Model input of N flows with what they are.

    Attributes:
        tokens: N rows.
        labels: int64 (N,), 0 to C - 1; of other tasks see :mod:`models.learning.objectives`.
        groups: int64 (N,), flows of one group (capture, host, ...) never stand on both sides of a split.
    """

    tokens: TokenBatch
    labels: NDArray[Any]
    groups: NDArray[np.int64]

    def __post_init__(self) -> None:
        if not len(self.tokens) == len(self.labels) == len(self.groups):
            raise DataError(
                f"got {len(self.tokens)} flows, {len(self.labels)} labels and {len(self.groups)} groups, "
                "expected one label and one group for each flow"
            )

    def __len__(self) -> int:
        return len(self.labels)


def check_labelled(data: LabelledTokens, n_labels: int, name: str, *, may_be_empty: bool = False) -> None:
    """Refuse data that a classifier of ``n_labels`` labels cannot learn from or be measured on.

    Raises:
        DataError: without flows, or with a label outside 0 to C - 1.
    """
    if len(data) == 0:
        if may_be_empty:
            return
        raise DataError(f"{name}: got 0 flows, expected at least one of each label")
    if data.labels.min() < 0 or data.labels.max() >= n_labels:
        raise DataError(
            f"{name}: got labels {data.labels.min()} to {data.labels.max()}, expected 0 to {n_labels - 1}"
        )


def epoch_rows(labels: NDArray[np.int64], balance: float, seed: int, epoch: int) -> NDArray[np.int64]:
    """Row numbers of one epoch, shuffled, as many as there are flows.

    A flow of a class of n flows is drawn in proportion to n ** -balance: 0 takes every flow exactly once, 1 all
    classes equally often, 0.5 lies between. A class's flows are gone through evenly: none comes up a second time before
    all came up once.

    Args:
        labels: int64 (N,).
        balance: 0 to 1.
        seed: of the run.
        epoch: from 0.

    Returns:
        int64 (N,), a few more where a class would otherwise not come up at all.
    """
    rng = np.random.default_rng([seed, 1, epoch])
    classes, counts = np.unique(labels, return_counts=True)
    quotas = counts if balance == 0 else _quotas(counts, balance, rng)
    drawn = []
    for label, quota in zip(classes, quotas, strict=True):
        rows = np.flatnonzero(labels == label)
        rounds = [rng.permutation(rows) for _ in range(-(-quota // len(rows)))]
        drawn.append(np.concatenate(rounds)[:quota])
    return rng.permutation(np.concatenate(drawn))


def _quotas(counts: NDArray[np.intp], balance: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """Flows that an epoch takes of each class; one random offset rounds all, so shares are exact over many epochs."""
    share = counts.astype(np.float64) ** (1.0 - balance)
    ends = np.cumsum(share) * (counts.sum() / share.sum())
    rounded = np.floor(ends + rng.random()).astype(np.int64)
    return np.asarray(np.maximum(np.diff(rounded, prepend=0), 1))


def step_rows(n_flows: int, batch: int, seed: int, step: int) -> NDArray[np.int64]:
    """Row numbers of one step of an endless stream of shuffled epochs without labels.

    Each epoch leaves out the remainder that fills no batch, another one every time.

    Args:
        n_flows: N, at least ``batch``.
        batch: flows of a step.
        seed: of the run.
        step: from 0.

    Returns:
        int64 (batch,).
    """
    epoch, position = divmod(step, n_flows // batch)
    order = np.random.default_rng([seed, 1, epoch]).permutation(n_flows)
    return np.asarray(order[position * batch : (position + 1) * batch])


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """Seed of everything random inside one step (masks, drop path): a resumed run goes on with the same numbers.

    Each process of a run (``rank``) has numbers of its own.
    """
    entropy = [seed, 2, step] if rank == 0 else [seed, 2, step, rank]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))


def to_device(arrays: dict[str, NDArray[Any]], device: torch.device) -> list[torch.Tensor]:
    """A token batch's arrays as a network's arguments, in their order; always a copy."""
    import torch

    return [torch.tensor(array, device=device) for array in arrays.values()]


def fingerprint(*arrays: NDArray[Any]) -> str:
    """16 hex digits over dtypes, shapes and bytes: whether a resumed run has the data it began with."""
    hasher = hashlib.sha256()
    for array in arrays:
        hasher.update(f"{array.dtype} {array.shape};".encode())
        hasher.update(np.ascontiguousarray(array).data)
    return hasher.hexdigest()[:16]
