"""Whether every stage lives: each shows a sign of life, and one that does not ends the process.

A daemon that is half alive is worse than one that is gone: nobody restarts it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Stage:
    """A thread that does one part of the work.

    Attributes:
        name: for messages and metrics.
        limit_s: it counts as stalled after so long without a sign of life.
        last_s: when it gave the last one (monotonic clock); only its own thread writes it.
        is_done: it has ended because its work was done.
        failure: what ended it before that.
    """

    name: str
    limit_s: float
    last_s: float = field(default_factory=time.monotonic)
    is_done: bool = False
    failure: BaseException | None = None

    def beat(self) -> None:
        """Show a sign of life."""
        self.last_s = time.monotonic()

    def age_s(self) -> float:
        """Since the last sign of life; 0 where none is due any more."""
        return 0.0 if self.is_done else time.monotonic() - self.last_s

    def trouble(self) -> str:
        """What is wrong with it; empty if nothing."""
        if self.failure is not None:
            return f"stage '{self.name}' died: {type(self.failure).__name__}: {self.failure}"
        if self.age_s() > self.limit_s:
            return (
                f"stage '{self.name}' has not moved for {self.age_s():.1f} s; the limit is {self.limit_s:g} s"
            )
        return ""


class StageBoard:
    """All stages of the process. Stages come and go while it runs (a reload may add a sink)."""

    def __init__(self) -> None:
        self._stages: dict[str, Stage] = {}

    def add(self, name: str, limit_s: float) -> Stage:
        """A new stage, or one in place of an old one of that name; it counts from now on."""
        stage = Stage(name, limit_s)
        self._stages = {**self._stages, name: stage}
        return stage

    def remove(self, name: str) -> None:
        """Look after it no longer."""
        self._stages = {key: stage for key, stage in self._stages.items() if key != name}

    def trouble(self) -> str:
        """What is wrong with the first stage that has something; empty while all is well."""
        for stage in self._stages.values():
            if text := stage.trouble():
                return text
        return ""

    def all_moved(self, within_s: float) -> bool:
        """Whether every stage gave a sign of life in the last seconds; asked before each watchdog ping."""
        return all(
            stage.failure is None and stage.age_s() <= max(within_s, 0.0) for stage in self._stages.values()
        )

    def as_dict(self) -> dict[str, Any]:
        """Of each stage, seconds since it moved, and how many it may take."""
        return {
            name: {"age_s": round(stage.age_s(), 3), "limit_s": stage.limit_s}
            for name, stage in self._stages.items()
        }
