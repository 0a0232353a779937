"""What fine-tuning minimises: cross-entropy, or label-distribution-aware margins for classes of unequal size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from capture.errors import UsageError

LOSSES: Final = ("ce", "ldam")

MAX_MARGIN: Final = 2.0
"""Margin of the rarest class, in logits."""

Loss = Callable[[Tensor, Tensor], Tensor]


def ldam_margins(counts: NDArray[np.intp]) -> NDArray[np.float32]:
    """Margin of each class, in proportion to n ** -1/4, the largest ``MAX_MARGIN``.

    Args:
        counts: (C,), training flows of each class; a class without any counts as one flow.

    Returns:
        float32 (C,), in logits.

    Source:
        LDAM (Cao et al. 2019, arXiv 1906.07413), equation 13.
    """
    margins: NDArray[np.float64] = np.maximum(counts, 1).astype(np.float64) ** -0.25
    return np.asarray(margins * (MAX_MARGIN / margins.max()), np.float32)


def training_loss(
    name: str, labels: NDArray[np.int64], n_labels: int, label_smoothing: float, device: torch.device
) -> Loss:
    """The loss of a batch: (logits float (F, C), labels int64 (F,)) -> mean over the flows.

    ``ldam`` takes each flow's logit of its own class down by the margin of that class. Departure from the paper: the
    head stays a plain linear layer, not the cosine of features and weights times 30, so that a checkpoint is the same
    network whatever its loss. There is no label smoothing beside it: smoothing pulls together what margins push apart.

    Args:
        name: one of ``LOSSES``.
        labels: int64 (N,), of the training flows.
        n_labels: C.
        label_smoothing: of ``ce``.
        device: of the logits.

    Raises:
        UsageError: for another name.
    """
    if name == "ce":
        return lambda logits, truth: functional.cross_entropy(logits, truth, label_smoothing=label_smoothing)
    if name != "ldam":
        raise UsageError(f"loss: got {name!r}, expected one of {', '.join(LOSSES)}")
    margins = torch.from_numpy(ldam_margins(np.bincount(labels, minlength=n_labels))).to(device)

    def ldam(logits: Tensor, truth: Tensor) -> Tensor:
        lowered = functional.one_hot(truth, n_labels) * margins
        return functional.cross_entropy(logits - lowered, truth)

    return ldam
