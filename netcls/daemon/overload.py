"""What gives way when the model cannot keep up, in a stated order, and when it comes back.

    normal -> larger batches -> the small model (if there is one) -> answers at flow end only -> drops, counted

One step at a time: up when the queue has been filling for a moment, down when it has been nearly empty for a while.
The two thresholds and the two times keep it from swinging.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final


class Step(IntEnum):
    """How much has given way."""

    NORMAL = 0
    LARGER_BATCHES = 1
    SMALL_MODEL = 2
    END_ONLY = 3
    DROPPING = 4

    @property
    def text(self) -> str:
        """As events show it."""
        return self.name.lower()


UP_FILL: Final = (0.0, 0.05, 0.15, 0.30, 0.90)  # of the queue, at which each step is taken
DOWN_FILL: Final = (0.0, 0.02, 0.05, 0.10, 0.50)  # at which it is taken back


@dataclass(slots=True)
class OverloadPolicy:
    """Says which step is due; who asks carries it out.

    Attributes:
        has_small_model: whether that step exists here.
        up_s: so long the queue is too full before the next step is taken.
        down_s: so long it is nearly empty before a step is taken back.
        step: in force.
    """

    has_small_model: bool = False
    up_s: float = 0.5
    down_s: float = 5.0
    step: Step = Step.NORMAL
    _since_s: float | None = None
    _direction: int = 0

    def look(self, fill: float, now_s: float, *, is_dropping: bool = False) -> Step:
        """The step after a look at the queue.

        Args:
            fill: of the queue to the model, 0 to 1.
            now_s: monotonic clock.
            is_dropping: flows were left out since the last look; that is the last step, whatever the fill says.
        """
        direction = self._wanted(fill, is_dropping)
        if direction == 0 or direction != self._direction:
            self._direction, self._since_s = direction, now_s
        patience_s = self.up_s if direction > 0 else self.down_s
        if direction and self._since_s is not None and now_s - self._since_s >= patience_s:
            self.step = self._next(direction)
            self._since_s = now_s
        return self.step

    def _wanted(self, fill: float, is_dropping: bool) -> int:
        above = self._next(1)
        if above != self.step and (fill >= UP_FILL[above] or is_dropping):
            return 1
        if self.step and fill <= DOWN_FILL[self.step] and not is_dropping:
            return -1
        return 0

    def _next(self, direction: int) -> Step:
        wanted = min(max(self.step + direction, Step.NORMAL), Step.DROPPING)
        if wanted == Step.SMALL_MODEL and not self.has_small_model:
            wanted += direction
        return Step(wanted)
