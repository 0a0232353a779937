"""Whether traffic still looks like what a model was trained on, and how often it is likely right, without labels.

``reference.json`` in a checkpoint's folder holds what is needed: per field of the input the shares of its values in the
training flows, the confidences of the calibration flows, and their accuracy. It decides no answer, so it is not part
of the checkpoint's digest.

Sources: population stability index as used in credit scoring (Siddiqi 2006); average thresholded confidence (Garg et
al. 2022, arXiv 2201.04234); difference of confidences (Guillory et al. 2021, arXiv 2107.03315).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from capture.errors import CheckpointError
from capture.representations.packets import FLAGS, NUMBERS
from models.atomic_write import replace_file
from models.bounded_json import read_json

if TYPE_CHECKING:
    from capture.representations import TokenBatch

REFERENCE_FILE: Final = "reference.json"
FORMAT: Final = 1
MOVED: Final = 0.25
"""Population stability index from which a field counts as moved, beside what chance gives."""
LEAST_FLOWS: Final = 50
"""Flows below which nothing is said."""
LEAST_DROP: Final = 0.1
"""Fall of the estimated accuracy that is a warning."""
_N_BINS, _MAX_BINS = 10, 64
_CATEGORIES: Final = ("direction", "protocol", "tcp_flags", "tos", "tcp_options", "tcp_order")


@dataclass(frozen=True, slots=True)
class Histogram:
    """Shares of a field's values. Bin i holds edges[i - 1] <= value < edges[i]; the outer ones are open.

    Attributes:
        edges: rising.
        shares: one more than edges, sum 1.
        n_flows: flows they are of.
    """

    edges: list[float]
    shares: list[float]
    n_flows: int

    @classmethod
    def of(cls, values: NDArray[Any], n_flows: int, edges: NDArray[Any]) -> Histogram:
        """Of these values."""
        counts = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
        return cls([float(e) for e in edges], (counts / max(len(values), 1)).tolist(), n_flows)

    def psi(self, values: NDArray[Any], n_flows: int) -> tuple[float, float]:
        """Population stability index of other values, and what chance alone would give on average.

        Packets of a flow are alike, so chance goes by flows.
        """
        other = Histogram.of(values, n_flows, np.array(self.edges)).shares
        # An empty bin counts as half a flow, or the logarithm would be infinite.
        a = np.maximum(self.shares, 0.5 / max(self.n_flows, 1))
        b = np.maximum(other, 0.5 / max(n_flows, 1))
        index = float(((b - a) * np.log(b / a)).sum())
        return index, len(self.edges) * (1 / max(self.n_flows, 1) + 1 / max(n_flows, 1))


@dataclass(frozen=True, slots=True)
class Reference:
    """What a checkpoint's training flows looked like.

    Attributes:
        fields: name -> histogram over the training flows' packets (``packets``: over flows).
        confidence: of the calibration flows' answers.
        accuracy: of the calibration flows.
        mean_confidence: of the calibration flows.
        atc_threshold: that share of the calibration flows is below it which is answered wrongly.
    """

    fields: dict[str, Histogram]
    confidence: Histogram
    accuracy: float
    mean_confidence: float
    atc_threshold: float


def columns_of(tokens: TokenBatch) -> dict[str, NDArray[Any]]:
    """The fields that are compared, by name: values of all packets, and of ``packets`` of all flows."""
    columns: dict[str, NDArray[Any]] = {"packets": tokens.packets_used.astype(np.int64)}
    if set(tokens.arrays) >= {"numbers", "flags"}:
        numbers, flags = tokens.arrays["numbers"], tokens.arrays["flags"]
        present = flags[..., 0] > 0
        later = present.copy()
        later[:, 0] = False  # a first packet has no gap
        for column, name in enumerate(NUMBERS):
            columns[name] = numbers[..., column][later if name.startswith("gap") else present]
        for name in _CATEGORIES:
            columns[name] = flags[..., FLAGS.index(name)][present].astype(np.int64)
    return columns


def make_reference(
    training: TokenBatch, confidence: NDArray[np.floating[Any]], is_right: NDArray[np.bool_]
) -> Reference:
    """The reference of a checkpoint.

    Args:
        training: tokens of the training flows.
        confidence: (N,), largest calibrated probability of each calibration flow.
        is_right: bool (N,), whether that answer is true.
    """
    fields = {
        name: Histogram.of(values, len(training), _edges(values, name in _CATEGORIES))
        for name, values in columns_of(training).items()
        if len(values)
    }
    accuracy = float(is_right.mean())
    return Reference(
        fields,
        Histogram.of(confidence, len(confidence), np.linspace(0.1, 0.9, 9)),
        accuracy,
        float(confidence.mean()),
        float(np.quantile(confidence, 1 - accuracy)),
    )


def _edges(values: NDArray[Any], is_category: bool) -> NDArray[np.float64]:
    """Between values that are categories; at the tenths of others."""
    if is_category:
        return (np.unique(values)[1:] - 0.5)[: _MAX_BINS - 1].astype(np.float64)
    return np.unique(np.quantile(values, np.arange(1, _N_BINS) / _N_BINS, method="higher")).astype(np.float64)


def compare(
    reference: Reference, tokens: TokenBatch, confidence: NDArray[np.floating[Any]]
) -> dict[str, Any]:
    """What has moved, and the accuracy that is likely now; JSON values.

    Returns:
        ``flows``; ``fields`` by name: ``psi``, ``by_chance`` and ``moved``; ``confidence`` likewise, with the ``mean``;
        ``accuracy``: ``calibration``, ``estimated`` (average thresholded confidence) and
        ``estimated_by_confidence`` (difference of confidences); ``warning`` with its ``reasons``.
    """
    n_flows = len(tokens)
    enough = n_flows >= LEAST_FLOWS
    fields = {}
    columns = columns_of(tokens)
    for name, histogram in reference.fields.items():
        if len(columns.get(name, ())):
            fields[name] = _moved(histogram, columns[name], n_flows)
    mean = float(confidence.mean()) if n_flows else math.nan
    atc = float((confidence >= reference.atc_threshold).mean()) if n_flows else math.nan
    doc = min(max(reference.accuracy - (reference.mean_confidence - mean), 0.0), 1.0)
    reasons = [f"{name}: stability index {f['psi']:.2f}" for name, f in fields.items() if f["moved"]]
    if enough and reference.accuracy - atc > LEAST_DROP:
        reasons.append(f"estimated accuracy {atc:.2f}, on calibration flows {reference.accuracy:.2f}")
    return {
        "flows": n_flows,
        "enough_flows": enough,
        "fields": fields,
        "confidence": {"mean": mean, **_moved(reference.confidence, confidence, n_flows)}
        if n_flows
        else None,
        "accuracy": {"calibration": reference.accuracy, "estimated": atc, "estimated_by_confidence": doc}
        if n_flows
        else None,
        "warning": enough and bool(reasons),
        "reasons": reasons if enough else [],
    }


def _moved(histogram: Histogram, values: NDArray[Any], n_flows: int) -> dict[str, Any]:
    psi, by_chance = histogram.psi(values, n_flows)
    moved = n_flows >= LEAST_FLOWS and psi > MOVED + by_chance
    return {"psi": psi, "by_chance": by_chance, "moved": moved}


def write_reference(folder: Path, reference: Reference) -> None:
    """Write it beside a checkpoint's files."""
    document = {
        "format": FORMAT,
        "fields": {name: _document(h) for name, h in reference.fields.items()},
        "confidence": _document(reference.confidence),
        "accuracy": reference.accuracy,
        "mean_confidence": reference.mean_confidence,
        "atc_threshold": reference.atc_threshold,
    }
    replace_file(folder / REFERENCE_FILE, json.dumps(document, allow_nan=False).encode() + b"\n")
    (folder / REFERENCE_FILE).chmod(0o644)


def read_reference(folder: Path) -> Reference:
    """The reference of a checkpoint.

    Raises:
        CheckpointError: if there is none, or it is not as expected.
    """
    path = folder / REFERENCE_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{path}: got no such file; fine-tune the model anew, which writes what its training flows looked like"
        )
    value = read_json(path)
    try:
        if value["format"] != FORMAT:
            raise ValueError(f"format {value['format']!r:.40}, expected {FORMAT}")
        numbers = [_number(value[name]) for name in ("accuracy", "mean_confidence", "atc_threshold")]
        fields = {str(name)[:80]: _histogram(h) for name, h in value["fields"].items()}
        return Reference(fields, _histogram(value["confidence"]), *numbers)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: not as expected ({type(error).__name__}: {error!s:.100}); fine-tune anew"
        ) from None


def _document(histogram: Histogram) -> dict[str, Any]:
    return {"edges": histogram.edges, "shares": histogram.shares, "n_flows": histogram.n_flows}


def _histogram(value: Any) -> Histogram:
    edges, shares = [_number(e) for e in value["edges"]], [_number(s) for s in value["shares"]]
    if len(shares) != len(edges) + 1 or len(edges) >= _MAX_BINS or sorted(set(edges)) != edges:
        raise ValueError("a histogram's edges and shares do not fit")
    if min(shares) < 0 or abs(sum(shares) - 1) > 1e-3 or type(value["n_flows"]) is not int:
        raise ValueError("a histogram's shares are no shares")
    return Histogram(edges, shares, value["n_flows"])


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"got {value!r:.40}, expected a number")
    return float(value)
