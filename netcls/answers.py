"""Answers of flows that are still open: made when a flow is ready, handed out when it ends.

Live, an answer may be told before the flow ends; what was told last is kept beside it, so that a change is noticed.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from netcls.event_batch import Answers, ModelName

_NOT_TOLD: Final = -1


def _row_dtype(n_top: int, n_values: int) -> np.dtype[Any]:
    return np.dtype(
        [
            ("index", "<i4", (n_top,)),
            ("probability", "<f4", (n_top,)),
            ("unknown_score", "<f4"),
            ("unknown", "?"),
            ("packets_used", "<u2"),
            ("ts_ns", "<i8"),
            ("ready_by", "u1"),
            ("latency_us", "<i8"),
            ("told", "<i4"),
            ("values", "<f4", (n_values,)),
        ]
    )


class AnswerStore:
    """Holds one fixed-size row for each flow that was answered and has not ended.

    Bounded by the open flows, and by ``limit``.

    Args:
        model: who answers.
        n_top: best labels to keep of each flow; at least two are kept for the runner-up, where there are two.
        unknown_threshold: flows whose unknown score is above this are unknown; None: none is.
        limit: rows; beyond them the longest held is forgotten. None: no limit, for who pops every flow.
        is_live: whether answers say how and when they came about.
        n_values: V, numbers that an answer has beside its labels.
    """

    def __init__(
        self,
        model: ModelName,
        n_top: int,
        unknown_threshold: float | None,
        *,
        limit: int | None = None,
        is_live: bool = False,
        n_values: int = 0,
    ) -> None:
        self.model = model
        self._n_shown = min(n_top, len(model.labels))
        self._n_kept = min(max(n_top, 2), len(model.labels))
        self._threshold = unknown_threshold
        self._limit = limit
        self._is_live = is_live
        self._n_values = n_values
        self._rows = np.zeros(256, _row_dtype(self._n_kept, n_values))
        self._slot_of: dict[int, int] = {}
        self._free: list[int] = list(range(len(self._rows)))

    def __len__(self) -> int:
        return len(self._slot_of)

    def put(
        self,
        serial: NDArray[np.uint64],
        probabilities: NDArray[np.float32],
        unknown_score: NDArray[np.float32],
        packets_used: NDArray[np.uint16],
        ts_ns: NDArray[np.int64],
        values: NDArray[np.float32] | None = None,
    ) -> None:
        """Keep the answers of F flows, in place of earlier ones of the same flows.

        Args:
            serial: (F,), names the flows.
            probabilities: (F, C), calibrated.
            unknown_score: (F,), 0 to 1.
            packets_used: (F,).
            ts_ns: (F,), time of the last packet that each answer used.
            values: (F, V); None where V is 0.
        """
        rows: NDArray[Any] = np.zeros(len(serial), self._rows.dtype)
        # A stable sort of the negated values: equal probabilities give the lower label index, always.
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, : self._n_kept]
        rows["index"] = order
        rows["probability"] = np.take_along_axis(probabilities, order, axis=1)
        rows["unknown_score"] = unknown_score
        if self._threshold is not None:
            rows["unknown"] = unknown_score > self._threshold
        rows["packets_used"] = packets_used
        rows["ts_ns"] = ts_ns
        if self._n_values:
            rows["values"] = values
        rows["told"] = _NOT_TOLD
        names = serial.tolist()
        old = [(row, self._slot_of[name]) for row, name in enumerate(names) if name in self._slot_of]
        for row, slot in old:
            rows["told"][row] = self._rows["told"][slot]
            self._free.append(slot)
        slots = self._take_slots(len(serial))
        self._rows[slots] = rows
        self._slot_of.update(zip(names, slots, strict=True))
        while self._limit is not None and len(self._slot_of) > self._limit:
            self._free.append(self._slot_of.pop(next(iter(self._slot_of))))

    def note(self, serial: NDArray[np.uint64], ready_by: NDArray[Any], latency_us: NDArray[np.int64]) -> None:
        """Say of answers just put how their flows became ready (``READY_BY_*``), and how long the answer took."""
        slots = self._slots(serial)
        self._rows["ready_by"][slots] = ready_by
        self._rows["latency_us"][slots] = latency_us

    def knows(self, serial: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which flows have an answer."""
        return np.array([s in self._slot_of for s in serial.tolist()], np.bool_)

    def was_told(self, serial: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which flows had an answer told; False for those that have none."""
        told = self._rows["told"]
        slots = [self._slot_of.get(s) for s in serial.tolist()]
        return np.array([slot is not None and told[slot] != _NOT_TOLD for slot in slots], np.bool_)

    def is_news(self, serial: NDArray[np.uint64], *, first_only: bool) -> NDArray[np.bool_]:
        """Which answers say something else than what was told; with ``first_only``, which were never told."""
        rows = self._rows[self._slots(serial)]
        news: NDArray[np.bool_] = (
            rows["told"] == _NOT_TOLD if first_only else rows["told"] != self._shown(rows)
        )
        return news

    def tell(self, serial: NDArray[np.uint64]) -> None:
        """The answers of these flows have been told."""
        slots = self._slots(serial)
        self._rows["told"][slots] = self._shown(self._rows[slots])

    def take_over(self, older: AnswerStore, serial: NDArray[np.uint64]) -> None:
        """What another model's store holds of these flows is forgotten there; what it told is what was told.

        A label that this model does not have counts as not told.

        Args:
            older: of the model that answered before.
            serial: flows that have an answer here.
        """
        known = older.knows(serial)
        if not known.any():
            return
        names = serial[known]
        slots = [older._slot_of.pop(s) for s in names.tolist()]
        older._free.extend(slots)
        shown = (*older.model.labels, None)
        index_of = {label: index for index, label in enumerate(self.model.labels)} | {
            None: len(self.model.labels)
        }
        told = older._rows["told"][slots].tolist()
        self._rows["told"][self._slots(names)] = [
            _NOT_TOLD if index == _NOT_TOLD else index_of.get(shown[index], _NOT_TOLD) for index in told
        ]

    def look_up(self, serial: NDArray[np.uint64]) -> Answers:
        """The answers of the given flows, row for row, which stay here."""
        return self._answers(self._rows[self._slots(serial)])

    def _slots(self, serial: NDArray[np.uint64]) -> list[int]:
        return [self._slot_of[s] for s in serial.tolist()]

    def _shown(self, rows: NDArray[Any]) -> NDArray[Any]:
        """What an event shows as the label: its number, or one behind the last for "unknown"."""
        return np.where(rows["unknown"], len(self.model.labels), rows["index"][:, 0])

    def pop(self, serial: NDArray[np.uint64]) -> Answers:
        """The answers of the given flows, row for row; they are forgotten here.

        Raises:
            KeyError: if a flow was never answered, which would be a defect.
        """
        slots = [self._slot_of.pop(s) for s in serial.tolist()]
        rows = self._rows[slots]
        self._free.extend(slots)
        return self._answers(rows)

    def _answers(self, rows: NDArray[Any]) -> Answers:
        two = self._n_kept > 1
        corrects = (rows["told"] != _NOT_TOLD) & (rows["told"] != self._shown(rows))
        return Answers(
            model=self.model,
            label_index=rows["index"][:, 0],
            probability=rows["probability"][:, 0],
            runner_up_index=rows["index"][:, 1] if two else np.full(len(rows), -1, np.int32),
            runner_up_probability=rows["probability"][:, 1] if two else np.zeros(len(rows), np.float32),
            unknown=rows["unknown"],
            unknown_score=rows["unknown_score"],
            packets_used=rows["packets_used"],
            answer_ts_ns=rows["ts_ns"],
            top_index=rows["index"][:, : self._n_shown],
            top_probability=rows["probability"][:, : self._n_shown],
            values=rows["values"] if self._n_values else None,
            ready_by=rows["ready_by"] if self._is_live else None,
            latency_us=rows["latency_us"] if self._is_live else None,
            was_index=np.where(corrects, rows["told"], _NOT_TOLD) if self._is_live else None,
        )

    def _take_slots(self, n: int) -> list[int]:
        while len(self._free) < n:
            size = len(self._rows)
            self._rows = np.concatenate((self._rows, np.zeros_like(self._rows)))
            self._free.extend(range(size, 2 * size))
        taken = self._free[-n:] if n else []
        del self._free[len(self._free) - n :]
        return taken
