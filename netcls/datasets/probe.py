"""What can be learnt from labelled captures, and what a number on them can and cannot mean.

Looked at before any training: balance, duplicates, fields that give the label away, and how much information about
the labels is left without them. Scores are balanced accuracies of small trees on folds they did not see, once
with whole units (captures) kept together, once with flows at random; the gap between the two is what a random
split would flatter a model by.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from capture.errors import DataError
from capture.flow_batch import FlowBatch
from capture.representations import build
from netcls.datasets.build import BuildOptions, LabelledFlows, build_flows, token_hashes
from netcls.datasets.probe_fields import FieldColumns, field_columns, host_column, usable_columns
from netcls.datasets.probe_scores import cross_validated, folds_by_unit, least_above_chance
from netcls.datasets.probe_verdict import Findings, Leak, verdict_of
from netcls.datasets.sources import DataOptions, read_source

ProbeSplit = Literal["capture", "group", "host"]

MAX_FLOWS: Final = 4000  # a seeded sample beyond, so that a probe takes seconds
LEAST_GAP: Final = 0.15  # between the random and the honest split, below which nothing is said
_N_PACKETS, _HEADER_BYTES, _PAYLOAD_BYTES = 5, 80, 240


@dataclass(frozen=True, slots=True)
class ProbeOptions:
    """How labelled data is probed.

    Attributes:
        split: what the honest split keeps together.
        seed: of sample, folds and trees.
    """

    split: ProbeSplit = "capture"
    seed: int = 0


@dataclass(frozen=True, slots=True)
class _Scored:
    """Balanced accuracies under the honest and the random split."""

    honest: float
    random: float

    @property
    def gap(self) -> float:
        return self.random - self.honest


def run_probe(
    data: str | os.PathLike[str],
    data_options: DataOptions | None = None,
    build_options: BuildOptions | None = None,
    options: ProbeOptions | None = None,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Probe labelled captures.

    Returns:
        JSON values: ``verdict``, ``leaks`` (``field``, ``score``, ``split``, ``chance``, ``why``), ``fields`` (every
        field's score under both splits), ``information`` (the same without fields that name a place), ``classes``,
        ``duplicates``, ``remarks`` and ``report`` (what became of every packet, flow and row).

    Raises:
        DataError: the data cannot be used.
        UsageError: scikit-learn is not installed.
    """
    options = options or ProbeOptions()
    raw = build(
        "netmamba",
        {
            "n_packets": _N_PACKETS,
            "header_bytes": _HEADER_BYTES,
            "payload_bytes": _PAYLOAD_BYTES,
            "field_policy": "none",
        },
    )
    source = read_source(Path(data), data_options)
    flows, report = build_flows(source, raw, build_options, on_progress=on_progress)
    if len(np.unique(flows.labels)) < 2:
        raise DataError(f"{data}: flows of one class only; expected at least two to tell apart")
    findings = _findings(flows, options, has_hosts=any(capture.host for capture in source.captures))
    return {
        "data": str(data),
        "verdict": verdict_of(findings),
        "leaks": [asdict(leak) for leak in findings.leaks],
        "remarks": findings.remarks,
        "split": options.split,
        "classes": _classes(flows),
        "duplicates": findings.duplicates,
        "information": findings.information,
        "fields": findings.fields,
        "report": report.as_dict(),
        "warnings": report.warnings,
    }


def _findings(flows: LabelledFlows, options: ProbeOptions, *, has_hosts: bool) -> Findings:
    """Scores of every field, on the classes that have two units or more; ``has_hosts``: the table names them."""
    units = {"capture": flows.capture, "group": flows.group, "host": flows.host}[options.split]
    rows, has_two = _comparable(flows.labels, units, options.seed)
    labels, kept_units = flows.labels[rows], units[rows]
    n_classes, n_units = len(np.unique(labels)), len(np.unique(kept_units))
    rng = np.random.default_rng(options.seed)
    honest = folds_by_unit(kept_units, labels, rng)
    random = folds_by_unit(np.arange(len(rows)), labels, rng)

    def scored(columns: NDArray[np.float32]) -> _Scored:
        return _Scored(
            cross_validated(columns, labels, honest, options.seed) if has_two else 0.0,
            cross_validated(columns, labels, random, options.seed),
        )

    records, packets = flows.records[rows], flows.packets[rows]
    data = _bytes_of(flows, rows)
    fields = field_columns(records, packets, data, _HEADER_BYTES)
    if has_hosts and options.split != "host":
        fields.insert(0, host_column(flows.host[rows]))
    scores = [scored(field.columns) for field in fields]
    all_behaviour = scored(usable_columns(records, packets))
    least = least_above_chance(n_classes, n_units)
    leaks = _leaks(fields, scores, all_behaviour, least, 1 / n_classes, options.split, has_two)
    return Findings(
        leaks=leaks,
        remarks=_remarks(fields, scores, least, options.split) if has_two else [],
        duplicates=_duplicates(flows, rows),
        information={
            "score": all_behaviour.honest if has_two else None,
            "random_split": all_behaviour.random,
            "chance": 1 / n_classes,
            "least": least,
            "is_usable": has_two and all_behaviour.honest >= least,
            "classes": n_classes,
            "units": n_units,
        },
        fields=[
            {
                "field": field.name,
                "kind": field.kind,
                "score": score.honest if has_two else None,
                "random_split": score.random,
                "gap": score.gap if has_two else None,
            }
            for field, score in zip(fields, scores, strict=True)
        ],
        has_honest_split=has_two,
        split=options.split,
    )


def _comparable(
    labels: NDArray[np.int64], units: NDArray[np.int64], seed: int
) -> tuple[NDArray[np.intp], bool]:
    """Flows of classes with two units or more, and True; all flows and False where fewer than two classes have them."""
    pairs = np.unique(np.stack([labels, units]), axis=1)
    n_units = np.bincount(pairs[0], minlength=int(labels.max()) + 1)
    has_two = np.count_nonzero(n_units >= 2) >= 2
    rows = np.flatnonzero(n_units[labels] >= 2) if has_two else np.arange(len(labels))
    if len(rows) > MAX_FLOWS:
        rows = np.sort(np.random.default_rng(seed).permutation(rows)[:MAX_FLOWS])
    return rows, bool(has_two)


def _leaks(
    fields: list[FieldColumns],
    scores: list[_Scored],
    behaviour: _Scored,
    least: float,
    chance: float,
    split: ProbeSplit,
    has_two: bool,
) -> list[Leak]:
    """Fields that name the label on captures never seen, and the capture where only a random split sees the label."""
    if not has_two:
        best = max([behaviour.random, *(score.random for score in scores)])
        why = f"each class is one {split}: class and {split} cannot be told apart"
        return [Leak(split, best, "flow", chance, why)]
    clock = next(score for field, score in zip(fields, scores, strict=True) if field.name == "clock")
    # Where the clock itself parts the classes, they were recorded one after the other, and the hour says no more.
    harmless = {"clock"} | ({"time_of_day"} if clock.honest >= least else set())
    leaks = [
        Leak(field.name, score.honest, split, chance, f"tells the label in a {split} never seen")
        for field, score in zip(fields, scores, strict=True)
        if field.kind == "identity" and field.name not in harmless and score.honest >= least
    ]
    leaks.sort(key=lambda leak: -leak.score)
    wide = [
        (score, field.name)
        for field, score in zip(fields, scores, strict=True)
        if not field.is_per_capture and score.random >= least
    ]
    if behaviour.random >= least:
        wide.append((behaviour, "sizes, times and header fields together"))
    worst, name = max(wide, key=lambda pair: pair[0].gap, default=(_Scored(0.0, 0.0), ""))
    if worst.gap >= LEAST_GAP:
        why = f"{name}: {worst.random:.2f} with flows at random, {worst.honest:.2f} in a {split} never seen"
        leaks.append(Leak(split, worst.random, "flow", chance, why))
    return leaks


def _remarks(fields: list[FieldColumns], scores: list[_Scored], least: float, split: ProbeSplit) -> list[str]:
    by_name = {field.name: score for field, score in zip(fields, scores, strict=True)}
    remarks = []
    if by_name["clock"].honest >= least:
        remarks.append(
            f"classes were recorded at different times (the clock alone: {by_name['clock'].honest:.2f}); "
            "whatever else changed meanwhile is mixed with the class"
        )
    near = [
        field.name
        for field, score in zip(fields, scores, strict=True)
        if field.is_per_capture and score.random >= least and score.gap >= LEAST_GAP
    ]
    if near:
        remarks.append(
            f"{', '.join(near)} name the {split}: a model that sees them profits from a random split"
        )
    return remarks


def _bytes_of(flows: LabelledFlows, rows: NDArray[np.intp]) -> NDArray[np.uint8]:
    kept: NDArray[np.uint8] = flows.tokens.arrays["bytes"][rows]
    return kept.reshape(len(rows), _N_PACKETS, _HEADER_BYTES + _PAYLOAD_BYTES)


def _duplicates(flows: LabelledFlows, rows: NDArray[np.intp]) -> dict[str, Any]:
    """Flows whose default model input (identity fields hidden) another flow has too."""
    hidden = build(
        "netmamba",
        {"n_packets": _N_PACKETS, "header_bytes": _HEADER_BYTES, "payload_bytes": _PAYLOAD_BYTES},
    )
    batch = FlowBatch(flows.records[rows], flows.packets[rows], _bytes_of(flows, rows))
    hashes = np.array(token_hashes(hidden.tokenize(batch)), "S16")
    _, number, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    labels = flows.labels[rows]
    by_class = np.zeros((len(counts), int(labels.max()) + 1), np.int64)
    np.add.at(by_class, (number, labels), 1)
    mixed = np.count_nonzero(by_class, axis=1) > 1
    n = max(1, len(rows))
    return {
        "flows": len(rows),
        "distinct": len(counts),
        "repeated_share": float(np.count_nonzero(counts[number] > 1) / n),
        "across_classes_share": float(np.count_nonzero(mixed[number]) / n),
        "best_possible_accuracy": float(by_class.max(axis=1).sum() / n),
    }


def _classes(flows: LabelledFlows) -> list[dict[str, Any]]:
    rows = [np.flatnonzero(flows.labels == label) for label in range(len(flows.label_names))]
    return [
        {
            "label": name,
            "flows": len(of_class),
            "captures": len(np.unique(flows.capture[of_class])),
            "groups": len(np.unique(flows.group[of_class])),
            "hosts": len(np.unique(flows.host[of_class])),
        }
        for name, of_class in zip(flows.label_names, rows, strict=True)
    ]
