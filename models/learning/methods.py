"""What of a classifier learns: everything, its head alone, or a low-rank adapter and the head.

    full    every weight
    head    the linear head, on features that are computed once: the body is frozen bit for bit, without dropout
    lora    low-rank changes of the body's dense layers (:mod:`models.nets.adapters`) and the head

A `Method` hands the training loop a network and its flows, and turns the weights that the loop kept of the best epoch
into a state of the whole classifier.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from capture.representations.base import TokenBatch
from models.learning.batches import LabelledTokens, to_device
from models.nets.adapters import Adapter, adapter_of, add_low_rank, head_of, merged_state

METHODS: Final = ("full", "head", "lora")

_LEAST_DEVIATION: Final = 1e-3
"""Smallest standard deviation that a feature is divided by; one that hardly varies is noise."""

_MOST_ITERATIONS: Final = 200


class Method(Protocol):
    """One way to fine-tune.

    Attributes:
        network: what the loop trains; the parameters that require a gradient learn.
        train: flows to learn from, as ``network`` reads them.
        validation: flows to choose the epoch by, likewise.
    """

    network: nn.Module
    train: LabelledTokens
    validation: LabelledTokens

    def learned(self) -> dict[str, Tensor]:
        """Copies of what is to be kept of an epoch, on the CPU."""

    def result(self, learned: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Adapter | None]:
        """State of the whole classifier, without adapters, for what was kept; and the adapter by itself, if any."""


class Full:
    """Every weight learns."""

    def __init__(self, model: nn.Module, train: LabelledTokens, validation: LabelledTokens) -> None:
        self.network = model
        self.train = train
        self.validation = validation

    def learned(self) -> dict[str, Tensor]:
        """The whole state."""
        return _copies(self.network.state_dict())

    def result(self, learned: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Adapter | None]:
        """What was kept is the classifier."""
        return dict(learned), None


class LowRankMethod:
    """An adapter and the head learn.

    Args:
        model: the classifier; it gets an adapter, to begin with one that changes nothing.
        train: flows to learn from.
        validation: flows to choose the epoch by.
        rank: of the adapter.
        alpha: of the adapter.
    """

    def __init__(
        self, model: nn.Module, train: LabelledTokens, validation: LabelledTokens, rank: int, alpha: float
    ) -> None:
        add_low_rank(model, rank, alpha)
        self.network = model
        self.train = train
        self.validation = validation
        self._rank = rank
        self._alpha = alpha

    def learned(self) -> dict[str, Tensor]:
        """Adapter and head."""
        return _copies({name: p for name, p in self.network.named_parameters() if p.requires_grad})

    def result(self, learned: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Adapter | None]:
        """The adapter is merged into the weights."""
        self.network.load_state_dict(dict(learned), strict=False)
        return merged_state(self.network), adapter_of(self.network, self._rank, self._alpha)


class HeadMethod:
    """The head learns, on standardised features of a frozen body.

    It starts from the logistic regression of these features (:func:`logistic_regression`), which gradient steps alone
    would not reach in a short run. Mean and deviation of the training flows' features are folded into the head's
    weights at the end: the classifier has a plain head again.

    Args:
        model: the classifier; never changed.
        train: flows to learn from.
        validation: flows to choose the epoch by.
        batch: flows at a time.
        device: where ``model`` is.
        fit_first: start from the logistic regression; for one label a flow.

    Source:
        MAE (He et al. 2021, arXiv 2111.06377), appendix A.1: linear probing normalises the features.
    """

    def __init__(
        self,
        model: nn.Module,
        train: LabelledTokens,
        validation: LabelledTokens,
        batch: int,
        device: torch.device,
        *,
        fit_first: bool = True,
    ) -> None:
        self._model = model
        self.network: nn.Module = _HeadAlone(head_of(model)).to(device)
        features = _features(model, train, batch, device)
        self._mean = features.mean(axis=0, dtype=np.float64).astype(np.float32)
        deviation = features.std(axis=0, dtype=np.float64).astype(np.float32)
        self._deviation = np.maximum(deviation, _LEAST_DEVIATION)
        self.train = self._standardised(features, train)
        self.validation = self._standardised(_features(model, validation, batch, device), validation)
        if fit_first:
            weight, bias = logistic_regression(
                self.train.tokens.arrays["features"], train.labels, head_of(model).out_features
            )
            self.network.load_state_dict({"head.weight": weight, "head.bias": bias})

    def learned(self) -> dict[str, Tensor]:
        """The head of standardised features."""
        return _copies(self.network.state_dict())

    def result(self, learned: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Adapter | None]:
        """The body as it was, and the head of plain features."""
        weight = learned["head.weight"].double() / torch.from_numpy(self._deviation)
        bias = learned["head.bias"].double() - weight @ torch.from_numpy(self._mean).double()
        head = {"head.weight": weight.float(), "head.bias": bias.float()}
        return _copies(self._model.state_dict()) | head, None

    def _standardised(self, features: NDArray[np.float32], data: LabelledTokens) -> LabelledTokens:
        tokens = TokenBatch({"features": (features - self._mean) / self._deviation}, data.tokens.packets_used)
        return LabelledTokens(tokens, data.labels, data.groups)


class _HeadAlone(nn.Module):
    """Features to logits, under the head's name in the classifier; starts from a copy of its weights."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.head = nn.Linear(head.in_features, head.out_features)
        self.head.load_state_dict(head.state_dict())

    def forward(self, features: Tensor) -> Tensor:
        """float32 (F, D) to float32 (F, C)."""
        logits: Tensor = self.head(features)
        return logits


def logistic_regression(
    features: NDArray[np.float32], labels: NDArray[np.int64], n_labels: int
) -> tuple[Tensor, Tensor]:
    """Weights (C, D) and bias (C,) of the multinomial logistic regression, float32.

    All classes count alike. The sum of the flows' losses and half the squared weights is minimised (L-BFGS, in float64
    on the CPU: a few seconds for thousands of flows).

    Args:
        features: float32 (N, D), standardised.
        labels: int64 (N,).
        n_labels: C; a label without flows is never answered first.
    """
    x, y = torch.from_numpy(features).double(), torch.from_numpy(labels)
    counts = torch.bincount(y, minlength=n_labels).double()
    class_weight = len(y) / ((counts > 0).sum() * counts.clamp(min=1))
    weight = torch.zeros(n_labels, features.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(n_labels, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=_MOST_ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> float:
        optimiser.zero_grad()
        losses = functional.cross_entropy(functional.linear(x, weight, bias), y, reduction="none")
        value = ((losses * class_weight[y]).sum() + 0.5 * weight.square().sum()) / len(y)
        value.backward()  # type: ignore[no-untyped-call]
        return float(value.detach())

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    return weight.detach().float(), bias.detach().float()


@torch.inference_mode()
def _features(
    model: nn.Module, data: LabelledTokens, batch: int, device: torch.device
) -> NDArray[np.float32]:
    """What the head reads of each flow, float32 (N, D); in evaluation: no dropout, no drop path."""
    model.eval()
    features = np.empty((len(data), head_of(model).in_features), np.float32)
    for start in range(0, len(data), batch):
        rows = slice(start, start + batch)
        features[rows] = model.features(*to_device(data.tokens.take(rows).arrays, device)).cpu().numpy()  # type: ignore[operator]
    return features


def _copies(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
