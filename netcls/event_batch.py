"""What the pipeline hands to the outside: ended flows, with the model's answers where there is a model.

n is the number of flows of a batch, k the number of runner-up labels asked for with ``--top``.
Columns all the way; only :mod:`netcls.event` makes objects of them, at the very edge.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from models.tasks import CLASS, Task

if TYPE_CHECKING:
    from capture.handshake import Handshake

# How a flow became ready (`Answers.ready_by`), live.
READY_BY_PACKETS: Final = 0
READY_BY_TIMEOUT: Final = 1
READY_BY_END: Final = 2


@dataclass(frozen=True, slots=True)
class ModelName:
    """Which model answered.

    Attributes:
        name: as the checkpoint calls itself, for example ``netmamba-lab``.
        checkpoint: first 12 hex digits of the digest over weights and config.
        representation: name and version of the model's input, for example ``netmamba-1``.
        labels: label names; an answer's ``label_index`` points into them. A regression has the name of its number.
        task: what the model answers.
    """

    name: str
    checkpoint: str
    representation: str
    labels: tuple[str, ...]
    task: Task = CLASS


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
        values: float32 (n, V), see :class:`models.predictor.Predictions`; None for a model of one label a flow.
        ready_by: uint8 (n,), a ``READY_BY_*``; None from files.
        latency_us: int64 (n,), from becoming ready to the answer, microseconds; None from files.
        was_index: int32 (n,), the label that was told before and is corrected by this one, ``len(labels)`` for
            "unknown", -1 where nothing is corrected; None from files.
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
    values: NDArray[np.float32] | None = None
    ready_by: NDArray[np.uint8] | None = None
    latency_us: NDArray[np.int64] | None = None
    was_index: NDArray[np.int32] | None = None

    def take(self, rows: NDArray[np.bool_]) -> Answers:
        """The answers of the rows that are True."""
        columns = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "model"}
        taken: dict[str, Any] = {
            name: None if column is None else column[rows] for name, column in columns.items()
        }
        return Answers(model=self.model, **taken)


@dataclass(frozen=True, slots=True)
class EventBatch:
    """Flows of one capture, each exactly once when it ends; of an interface, also when it is ready.

    Attributes:
        source: name of the capture as events show it (``pcap_filename``), ``-`` for standard input; or of the
            interface (``in_iface``).
        records: ``capture.flow_batch.FLOW_DTYPE`` (n,).
        answers: the model's answers, row for row; None where no model was asked (``netcls flows``).
        is_live: whether ``source`` is an interface.
        phase: ``ready`` for flows that are still open, ``end`` for ended ones.
        final: no further event of these flows follows.
        is_shutdown: those that were forced to end did so because the daemon stops.
        handshakes: what the client of each flow said in the clear, row for row; None where nobody looked.
    """

    source: str
    records: NDArray[Any]
    answers: Answers | None = None
    is_live: bool = False
    phase: str = "end"
    final: bool = True
    is_shutdown: bool = False
    handshakes: list[Handshake | None] | None = None

    def __len__(self) -> int:
        return len(self.records)

    def take(self, rows: NDArray[np.bool_]) -> EventBatch:
        """The flows whose row is True."""
        answers = None if self.answers is None else self.answers.take(rows)
        hellos = self.handshakes
        if hellos is not None:
            hellos = [hello for hello, keep in zip(hellos, rows, strict=True) if keep]
        return replace(self, records=self.records[rows], answers=answers, handshakes=hellos)
