"""Low-rank adapters: what a customer's fine-tuning changes in a backbone, as a few hundred kilobytes.

A dense weight W (n_out, n_in) of the body becomes W + alpha / rank * up @ down, with up (n_out, r), down (r, n_in) and
r = min(rank, n_out, n_in). The change is a parametrization of ``weight`` itself, not a layer around it: the fused paths
read ``x_proj.weight`` or ``dt_proj.weight`` and never call the layer, so a wrapper's change would be lost there.

Source: LoRA (Hu et al. 2021, arXiv 2106.09685), sections 4.1, 4.2. Departure: ``down`` starts with variance 1 / n_in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from capture.errors import CheckpointError

HEAD: Final = "head"


@dataclass(frozen=True, slots=True)
class Adapter:
    """What is added to a backbone: the low-rank changes of its weights, and a head.

    Attributes:
        rank: largest rank of a change, 1 or more.
        alpha: a change is multiplied by alpha / rank.
        tensors: ``LAYER.up`` and ``LAYER.down`` for every dense layer of the body, ``head.weight`` (C, D) and
            ``head.bias`` (C,); float32, on the CPU.
    """

    rank: int
    alpha: float
    tensors: Mapping[str, Tensor]


class LowRank(nn.Module):
    """W to W + scale * up @ down; W itself where training starts, as ``up`` is zero.

    Args:
        weight: W, of shape (n_out, ...).
        rank: r; capped at the rank that W can have.
        scale: alpha / rank.
    """

    def __init__(self, weight: Tensor, rank: int, scale: float) -> None:
        super().__init__()
        n_out, n_in = len(weight), weight[0].numel()
        rank = min(rank, n_out, n_in)
        self.scale = scale
        self.down = nn.Parameter(torch.randn(rank, n_in, device=weight.device) * n_in**-0.5)
        self.up = nn.Parameter(torch.zeros(n_out, rank, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        """The effective weight, of the shape of ``weight``."""
        return weight + self.scale * (self.up @ self.down).view_as(weight)


def dense_layers(model: nn.Module) -> dict[str, nn.Linear | nn.Conv1d]:
    """The layers an adapter changes, by name: every matrix product of the body; no head, no depthwise convolution."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if name != HEAD
        and (isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv1d) and layer.groups == 1))
    }


def add_low_rank(model: nn.Module, rank: int, alpha: float) -> None:
    """Make a model ready to learn an adapter: its outputs stay, and only adapter and head can change."""
    model.requires_grad_(False)
    for layer in dense_layers(model).values():
        parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank, alpha / rank))
    head_of(model).requires_grad_(True)


def adapter_of(model: nn.Module, rank: int, alpha: float) -> Adapter:
    """A copy of the adapter that a model carries."""
    tensors: dict[str, Tensor] = {}
    for name, layer in dense_layers(model).items():
        change = _change_of(layer)
        tensors |= {f"{name}.down": change.down, f"{name}.up": change.up}
    tensors |= {f"{HEAD}.{name}": tensor for name, tensor in head_of(model).state_dict().items()}
    return Adapter(rank, alpha, {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()})


def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """State of the network without adapters that gives the same outputs: copies, on the CPU."""
    state = {name: t for name, t in model.state_dict().items() if ".parametrizations." not in name}
    for name, layer in model.named_modules():
        if parametrize.is_parametrized(layer, "weight"):
            state[f"{name}.weight"] = cast("Tensor", layer.weight)
    return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}


class AdapterSlot:
    """The place on one loaded network where one of several adapters is. Not for use from several threads at once.

    Args:
        model: a classifier; its own head comes back when the adapter is removed.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._own_head = head_of(model)
        self.adapter: Adapter | None = None

    def apply(self, adapter: Adapter) -> None:
        """Put an adapter in; the one that was there is taken out first.

        Raises:
            CheckpointError: if its tensors are not those of this network. The network is then as before.
        """
        layers = dense_layers(self._model)
        self._check(adapter, layers)
        self.remove()
        weight, bias = (adapter.tensors[f"{HEAD}.{name}"] for name in ("weight", "bias"))
        device = self._own_head.weight.device
        head = nn.Linear(weight.shape[1], weight.shape[0], device=device)
        with torch.no_grad():
            head.weight.copy_(weight)
            head.bias.copy_(bias)
            for name, layer in layers.items():
                change = LowRank(layer.weight, adapter.rank, adapter.alpha / adapter.rank)
                change.down.copy_(adapter.tensors[f"{name}.down"])
                change.up.copy_(adapter.tensors[f"{name}.up"])
                parametrize.register_parametrization(layer, "weight", change.requires_grad_(False))
        self._model.head = head.requires_grad_(False).train(self._model.training)
        self.adapter = adapter

    def remove(self) -> None:
        """The network as it was: its own weights, bit for bit, and its own head."""
        if self.adapter is None:
            return
        for layer in dense_layers(self._model).values():
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
        self._model.head = self._own_head
        self.adapter = None

    def _check(self, adapter: Adapter, layers: Mapping[str, nn.Linear | nn.Conv1d]) -> None:
        expected = _shapes(layers, adapter.rank)
        width = self._own_head.weight.shape[1]
        n_labels = len(adapter.tensors.get(f"{HEAD}.bias", ()))
        expected |= {f"{HEAD}.weight": (n_labels, width), f"{HEAD}.bias": (n_labels,)}
        for name in [*expected, *adapter.tensors]:
            got = tuple(adapter.tensors[name].shape) if name in adapter.tensors else "no such tensor"
            if got != expected.get(name, "no such tensor"):
                raise CheckpointError(
                    f"adapter: tensor {name[:80]!r}: got {got}, expected {expected.get(name, 'no such tensor')}; "
                    "use the base that the adapter was trained on"
                )


def head_of(model: nn.Module) -> nn.Linear:
    """The linear layer from features to logits."""
    return cast("nn.Linear", model.get_submodule(HEAD))


def _shapes(layers: Mapping[str, nn.Linear | nn.Conv1d], rank: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for name, layer in layers.items():
        n_out, n_in = len(layer.weight), layer.weight[0].numel()
        r = min(rank, n_out, n_in)
        shapes |= {f"{name}.down": (r, n_in), f"{name}.up": (n_out, r)}
    return shapes


def _change_of(layer: nn.Module) -> LowRank:
    return cast("LowRank", layer.get_submodule("parametrizations.weight.0"))
