"""How each method trains unless told otherwise: epochs, learning rate, layer decay.

What was measured, and what was not, stands in `docs/finetuning.md`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

METHODS: Final = ("full", "head", "lora")
LOSSES: Final = ("ce", "ldam")


@dataclass(frozen=True, slots=True)
class Recipe:
    """Defaults of one method.

    Attributes:
        epochs: passes over the training flows, at least.
        min_steps: of the whole run; few flows get more epochs.
        learning_rate: peak, of the topmost layer.
        layer_decay: factor on the learning rate for each layer further down.
    """

    epochs: int
    min_steps: int
    learning_rate: float
    layer_decay: float

    def epochs_for(self, n_flows: int, batch: int) -> int:
        """Passes over ``n_flows`` training flows in steps of ``batch``."""
        steps_per_epoch = -(-n_flows // batch)
        return max(self.epochs, -(-self.min_steps // max(steps_per_epoch, 1)))


FROM_SCRATCH: Final = Recipe(epochs=40, min_steps=300, learning_rate=1.5e-3, layer_decay=1.0)

FROM_BASE: Final = {
    "full": Recipe(epochs=30, min_steps=200, learning_rate=1e-3, layer_decay=0.75),
    "head": Recipe(epochs=100, min_steps=1000, learning_rate=5e-3, layer_decay=1.0),
    "lora": Recipe(epochs=30, min_steps=200, learning_rate=3e-3, layer_decay=1.0),
}


def recipe(method: str, *, from_base: bool) -> Recipe:
    """The recipe of a method; random weights have no lower layers worth sparing."""
    return FROM_BASE[method] if from_base else FROM_SCRATCH
