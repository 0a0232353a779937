"""Learning rate over a run, and per parameter: warm-up and half cosine; layer decay; who has weight decay."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def cosine_with_warmup(progress: float, warmup: float, floor: float = 0.0) -> float:
    """Factor on the peak learning rate.

    It rises in a straight line from 0 over the first ``warmup`` of the run, then falls along half a cosine to
    ``floor``.

    Args:
        progress: share of the run that is done, 0 to 1.
        warmup: share of the run, 0 to below 1.
        floor: factor at the end, 0 to 1.
    """
    if progress < warmup:
        return progress / warmup
    fall = (min(progress, 1.0) - warmup) / (1.0 - warmup)
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * fall))


def run_progress(step: int, total_steps: int | None, elapsed_s: float, max_seconds: float | None) -> float:
    """Share of a run that is done, 0 to 1, by whichever budget is nearer to its end.

    So a run that ends by time has still gone through its whole schedule.
    """
    by_steps = step / total_steps if total_steps else 0.0
    by_time = elapsed_s / max_seconds if max_seconds else 0.0
    return min(max(by_steps, by_time), 1.0)


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    *,
    without_decay: Iterable[str] = (),
    layer_decay: float = 1.0,
    depth_of: Callable[[str], int] | None = None,
) -> list[dict[str, Any]]:
    """The parameters that learn, by weight decay and learning-rate scale, for an optimiser.

    Weight decay spares tensors of one dimension or none, ``A_log`` and ``A_b_log`` (it would pull every decay rate of
    the scan towards 1; Mamba's authors spare it too, NetMamba's code does not), and the names given.

    Args:
        model: all its parameters that require a gradient are taken.
        weight_decay: of those that have one.
        without_decay: more parameter names to spare.
        layer_decay: factor per layer: a parameter ``k`` layers below the top learns ``layer_decay ** k`` as fast.
        depth_of: parameter name -> depth, larger is nearer to the top; needed for ``layer_decay``.

    Returns:
        Groups with ``params``, ``weight_decay`` and ``scale`` (multiply the learning rate by it).

    Source:
        BEiT (arXiv 2106.08254), layer-wise learning-rate decay.
    """
    spared = set(without_decay)
    learning = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    depths = {name: depth_of(name) if depth_of else 0 for name, _ in learning}
    top = max(depths.values())
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in learning:
        plain = parameter.ndim <= 1 or name in spared or name.endswith(("A_log", "A_b_log"))
        key = (0.0 if plain else weight_decay, layer_decay ** (top - depths[name]))
        group = groups.setdefault(key, {"params": [], "weight_decay": key[0], "scale": key[1]})
        group["params"].append(parameter)
    return list(groups.values())


def set_learning_rate(groups: list[dict[str, Any]], learning_rate: float) -> None:
    """Give each group of an optimiser ``learning_rate`` times its ``scale``."""
    for group in groups:
        group["lr"] = learning_rate * group["scale"]
