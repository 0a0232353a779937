"""What a head answers: one label, a number, or several labels at once. Imports no torch.

F is the number of flows, C the outputs of the head.

==========  ================================================  ==================================================
task        outputs                                           an answer
==========  ================================================  ==================================================
class       one logit a label                                 the label of the largest, with its probability
regression  the quantiles 0.1, 0.5 and 0.9 of log10(1 + y)    the median of y and an interval of 80 %
multilabel  one logit a label, each by itself                 every label with a probability of 0.5 or more
==========  ================================================  ==================================================
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from capture.errors import CheckpointError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TASKS: Final = ("class", "regression", "multilabel")
QUANTILES: Final = (0.1, 0.5, 0.9)
QUANTILE_NAMES: Final = ("q10", "q50", "q90")
LEAST_CHANCE: Final = 0.5
"""Probability from which a label of a multi-label answer is given."""

_MAX_LOG10: Final = 18.0
_MAX_CHARACTERS: Final = 40


@dataclass(frozen=True, slots=True)
class Task:
    """What a checkpoint's head answers.

    Attributes:
        kind: one of ``TASKS``.
        target: name of the number (regression), such as ``bytes_left``; else empty.
        unit: of the number, such as ``bytes`` or ``s``; else empty.
    """

    kind: str = "class"
    target: str = ""
    unit: str = ""

    def document(self) -> dict[str, Any]:
        """JSON values, as ``config.json`` holds them."""
        return asdict(self)


CLASS: Final = Task()


def read_task(value: Any, labels: list[str], where: str) -> Task:
    """The task of a checkpoint's ``config.json``.

    Args:
        value: of the key ``task``.
        labels: of ``labels.json``; a regression has those of the quantiles.
        where: for the message.

    Raises:
        CheckpointError: for anything else than a task of this version.
    """
    if not isinstance(value, dict) or value.keys() != {"kind", "target", "unit"}:
        raise CheckpointError(f"{where}: got task {value!r:.80}, expected an object with kind, target, unit")
    if value["kind"] not in TASKS:
        raise CheckpointError(f"{where}: got task {value['kind']!r:.80}, expected one of {', '.join(TASKS)}")
    is_number = value["kind"] == "regression"
    for name in ("target", "unit"):
        text = value[name]
        fits = isinstance(text, str) and len(text) <= _MAX_CHARACTERS and (not text or text.isprintable())
        if not fits or bool(text) != is_number:
            expected = f"1 to {_MAX_CHARACTERS} printable characters" if is_number else "nothing"
            raise CheckpointError(f"{where}: got task.{name} {text!r:.80}, expected {expected}")
    if is_number and tuple(labels) != QUANTILE_NAMES:
        raise CheckpointError(
            f"{where}: got a regression with {len(labels)} labels, expected the labels {', '.join(QUANTILE_NAMES)}"
        )
    return Task(value["kind"], value["target"], value["unit"])


def to_log(values: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """log10(1 + y) of numbers y >= 0, float64 of the same shape."""
    import numpy as np

    return np.asarray(np.log10(1.0 + values.astype(np.float64)))


def from_log(outputs: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Numbers of the outputs of a regression: sorted quantiles, at least 0, float64 (F, 3)."""
    import numpy as np

    ordered = np.sort(np.clip(outputs.astype(np.float64), 0.0, _MAX_LOG10), axis=1)
    return np.asarray(10.0**ordered - 1.0)


def chances(logits: NDArray[np.floating[Any]], temperature: float = 1.0) -> NDArray[np.float64]:
    """Probability of each label by itself, float64 (F, C)."""
    import numpy as np

    scaled = np.clip(logits.astype(np.float64) / temperature, -50.0, 50.0)
    return np.asarray(1.0 / (1.0 + np.exp(-scaled)))
