"""What the pipeline hands to the outside: ended flows, with the model's answers where there is a model.

n is the number of flows of a batch, k the number of runner-up labels asked for with ``--top``.
Columns all the way; only :mod:`netcls.event` makes objects of them, at the very edge.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class ModelName:
    """Which model answered.

    Attributes:
        name: as the checkpoint calls itself, for example ``netmamba-lab``.
        checkpoint: first 12 hex digits of the digest over weights and config.
        representation: name and version of the model's input, for example ``netmamba-1``.
        labels: label names; an answer's ``label_index`` points into them.
    """

    name: str
    checkpoint: str
    representation: str
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Answers:
    """What the model says of the n flows of an :class:`EventBatch`.

    Attributes:
        model: who answered.
        label_index: int32 (n,), the best known label, into ``model.labels``, also where ``unknown`` is set.
        probability: float32 (n,), calibrated, 0 to 1, of ``label_index``.
        runner_up_index: int32 (n,), the second best label; -1 where the model knows only one.
        runner_up_probability: float32 (n,), calibrated.
        unknown: bool (n,), the unknown score passed the checkpoint's threshold.
        unknown_score: float32 (n,), 0 to 1, higher is stranger.
        packets_used: uint16 (n,), packets of the flow that the model saw.
        answer_ts_ns: int64 (n,), time of the last packet that the answer used, nanoseconds since the epoch.
        top_index: int32 (n, k), the best k labels, best first; k is 0 unless asked for.
        top_probability: float32 (n, k), calibrated.
    """

    model: ModelName
    label_index: NDArray[np.int32]
    probability: NDArray[np.float32]
    runner_up_index: NDArray[np.int32]
    runner_up_probability: NDArray[np.float32]
    unknown: NDArray[np.bool_]
    unknown_score: NDArray[np.float32]
    packets_used: NDArray[np.uint16]
    answer_ts_ns: NDArray[np.int64]
    top_index: NDArray[np.int32]
    top_probability: NDArray[np.float32]

    def take(self, rows: NDArray[np.bool_]) -> Answers:
        """The answers of the rows that are True."""
        columns = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name != "model"}
        return Answers(model=self.model, **columns)


@dataclass(frozen=True, slots=True)
class EventBatch:
    """Ended flows of one capture, each exactly once.

    Attributes:
        source: name of the capture as events show it (``pcap_filename``); ``-`` for standard input.
        records: ``capture.flow_batch.FLOW_DTYPE`` (n,).
        answers: the model's answers, row for row; None where no model was asked (``netcls flows``).
    """

    source: str
    records: NDArray[Any]
    answers: Answers | None = None

    def __len__(self) -> int:
        return len(self.records)
