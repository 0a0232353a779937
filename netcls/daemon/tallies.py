"""Counts of what was answered, for metrics, page and status: per batch a few array operations, per packet nothing."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from netcls.event_batch import EventBatch
    from netcls.live import Answered

LATENCY_BOUNDS_S: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
PROBABILITY_BOUNDS: Final = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
BATCH_BOUNDS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_RECENT: Final = 4096


class Histogram:
    """Numbers by the first bound that is not below them, as Prometheus counts.

    Args:
        bounds: ascending, in base units; everything above the last falls into one more bucket.

    Attributes:
        counts: int64 (len(bounds) + 1,), not cumulative.
        total: sum of all numbers.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(float(bound) for bound in bounds)
        self.counts: NDArray[np.int64] = np.zeros(len(self.bounds) + 1, np.int64)
        self.total = 0.0

    @property
    def n(self) -> int:
        """How many numbers."""
        return int(self.counts.sum())

    def observe(self, values: NDArray[Any] | Sequence[float]) -> None:
        """Count numbers."""
        array = np.asarray(values, np.float64)
        if array.size:
            places = np.searchsorted(self.bounds, array, side="left")
            self.counts += np.bincount(places, minlength=len(self.counts))
            self.total += float(array.sum())

    def as_dict(self) -> dict[str, Any]:
        """Bounds, counts and sum as JSON values."""
        return {"bounds": list(self.bounds), "counts": self.counts.tolist(), "sum": self.total}


class Tallies:
    """What was said so far. Written by the thread that answers, read by anyone.

    Attributes:
        by_label: final answers by label; ``unknown`` is one of them.
        latency_s: from the packet (or the timeout, or the end) that made a flow ready to its answer.
        stage_latency_s: its parts, ``queue`` (until the model's turn) and ``model``, and then ``output`` (encode, hand
            over to the sinks); ``queue`` by flow, the other two by batch.
        probability: of answers.
        batch_flows: flows that the model was asked about at once.
        events: events that went to the sinks, by ``event_type``.
    """

    def __init__(self) -> None:
        self.by_label: Counter[str] = Counter()
        self.latency_s = Histogram(LATENCY_BOUNDS_S)
        self.stage_latency_s = {name: Histogram(LATENCY_BOUNDS_S) for name in ("queue", "model", "output")}
        self.probability = Histogram(PROBABILITY_BOUNDS)
        self.batch_flows = Histogram(BATCH_BOUNDS)
        self.events: Counter[str] = Counter()
        self._recent_s: deque[float] = deque(maxlen=_RECENT)

    def answered(self, answered: Answered) -> None:
        """Count what asking the model about a batch has cost."""
        self.batch_flows.observe([len(answered.latency_s)])
        self.latency_s.observe(answered.latency_s)
        self.stage_latency_s["queue"].observe(answered.queue_s)
        self.stage_latency_s["model"].observe([answered.model_s])
        self._recent_s.extend(answered.latency_s.tolist())

    def told(self, batch: EventBatch, output_s: float) -> None:
        """Count the events of a batch.

        Args:
            batch: that was told.
            output_s: what encoding and handing it over took.
        """
        answers = batch.answers
        self.events["flow" if answers is None else "netcls"] += len(batch)
        self.stage_latency_s["output"].observe([output_s])
        if answers is None:
            return
        self.probability.observe(answers.probability)
        if batch.final:
            names = (*answers.model.labels, "unknown")
            shown = np.where(answers.unknown, len(names) - 1, answers.label_index)
            for index, n in enumerate(np.bincount(shown, minlength=len(names)).tolist()):
                if n:
                    self.by_label[names[index]] += n

    def histograms(self) -> dict[str, Any]:
        """All of them as JSON values; those of latency by stage, ``total`` is the whole way to the answer."""
        latency = {"total": self.latency_s} | self.stage_latency_s
        return {
            "latency_s": {name: histogram.as_dict() for name, histogram in latency.items()},
            "probability": self.probability.as_dict(),
            "batch_size": self.batch_flows.as_dict(),
        }

    def recent_latency_us(self) -> dict[str, int]:
        """The 50th, 95th and 99th percentile over the last answers, microseconds; empty before the first."""
        recent = np.array(list(self._recent_s))
        if not recent.size:
            return {}
        values = np.percentile(recent, (50, 95, 99)) * 1e6
        return {f"p{p}": int(value) for p, value in zip((50, 95, 99), values, strict=True)}
