"""Answers of flows that are still open: made when a flow is ready, handed out when it ends."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from netcls.event_batch import Answers, ModelName


def _row_dtype(n_top: int) -> np.dtype[Any]:
    return np.dtype(
        [
            ("index", "<i4", (n_top,)),
            ("probability", "<f4", (n_top,)),
            ("unknown_score", "<f4"),
            ("unknown", "?"),
            ("packets_used", "<u2"),
            ("ts_ns", "<i8"),
        ]
    )


class AnswerStore:
    """Holds one fixed-size row for each flow that was answered and has not ended; bounded by the open flows.

    Args:
        model: who answers.
        n_top: best labels to keep of each flow; at least two are kept for the runner-up, where there are two.
        unknown_threshold: flows whose unknown score is above this are unknown; None: none is.
    """

    def __init__(self, model: ModelName, n_top: int, unknown_threshold: float | None) -> None:
        self.model = model
        self._n_shown = min(n_top, len(model.labels))
        self._n_kept = min(max(n_top, 2), len(model.labels))
        self._threshold = unknown_threshold
        self._rows = np.zeros(256, _row_dtype(self._n_kept))
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
    ) -> None:
        """Keep the answers of F flows.

        Args:
            serial: (F,), names the flows.
            probabilities: (F, C), calibrated.
            unknown_score: (F,), 0 to 1.
            packets_used: (F,).
            ts_ns: (F,), time of the last packet that each answer used.
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
        slots = self._take_slots(len(serial))
        self._rows[slots] = rows
        self._slot_of.update(zip(serial.tolist(), slots, strict=True))

    def pop(self, serial: NDArray[np.uint64]) -> Answers:
        """The answers of the given flows, row for row; they are forgotten here.

        Raises:
            KeyError: if a flow was never answered, which would be a defect.
        """
        slots = [self._slot_of.pop(s) for s in serial.tolist()]
        rows = self._rows[slots]
        self._free.extend(slots)
        two = self._n_kept > 1
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
        )

    def _take_slots(self, n: int) -> list[int]:
        while len(self._free) < n:
            size = len(self._rows)
            self._rows = np.concatenate((self._rows, np.zeros_like(self._rows)))
            self._free.extend(range(size, 2 * size))
        taken = self._free[-n:] if n else []
        del self._free[len(self._free) - n :]
        return taken
