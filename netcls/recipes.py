"""How each method trains unless told otherwise: epochs, batch, learning rate, layer decay.

Why these, what was measured, and what was not: `docs/decisions/0010-finetune-defaults.md`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

METHODS: Final = ("full", "head", "lora")
LOSSES: Final = ("ce", "ldam")

DEFAULT_BASE: Final = "default"
RANDOM_WEIGHTS: Final = "none"

FEW_FLOWS: Final = 2000
"""Training flows below which a step has few flows, so that an epoch has many steps."""

CHOOSE_FROM: Final = 200
"""Validation flows from which the best epoch is kept, not the last: fewer name it by chance."""

_SMALL_BATCH: Final = 16
_BATCH: Final = 64


@dataclass(frozen=True, slots=True)
class Recipe:
    """Defaults of one method.

    Attributes:
        epochs: passes over the training flows, at least.
        min_steps: of the whole run; few flows get more epochs.
        learning_rate: peak, of the topmost layer, in steps of 64 flows.
        small_batch_rate: the same in steps of 16.
        layer_decay: factor on the learning rate for each layer further down.
    """

    epochs: int
    min_steps: int
    learning_rate: float
    small_batch_rate: float
    layer_decay: float

    def epochs_for(self, n_flows: int, batch: int) -> int:
        """Passes over ``n_flows`` training flows in steps of ``batch``."""
        steps_per_epoch = -(-n_flows // batch)
        return max(self.epochs, -(-self.min_steps // max(steps_per_epoch, 1)))

    def learning_rate_for(self, batch: int) -> float:
        """Peak for steps of ``batch`` flows."""
        return self.small_batch_rate if batch < _BATCH else self.learning_rate


FROM_SCRATCH: Final = Recipe(
    epochs=40, min_steps=300, learning_rate=1.5e-3, small_batch_rate=7.5e-4, layer_decay=1.0
)

FROM_BASE: Final = {
    "full": Recipe(epochs=20, min_steps=200, learning_rate=1.5e-3, small_batch_rate=7.5e-4, layer_decay=1.0),
    "head": Recipe(epochs=20, min_steps=400, learning_rate=1e-3, small_batch_rate=5e-4, layer_decay=1.0),
    "lora": Recipe(epochs=12, min_steps=200, learning_rate=3e-3, small_batch_rate=2e-3, layer_decay=1.0),
}


def recipe(method: str, *, from_base: bool) -> Recipe:
    """The recipe of a method. No layer decay: with two to four blocks it only slows the lower ones (decision 0010)."""
    return FROM_BASE[method] if from_base else FROM_SCRATCH


def batch_for(n_flows: int) -> int:
    """Flows of a step, for so many training flows."""
    return _SMALL_BATCH if n_flows < FEW_FLOWS else _BATCH
