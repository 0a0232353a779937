"""Labelled captures as every contender of one comparison sees them: the same flows, one split.

C is the number of known classes, N of labelled flows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from capture.errors import DataError
from capture.flow_batch import FlowBatch
from capture.representations.base import Representation
from netcls.datasets.build import BuildOptions, LabelledFlows, build_flows, remove_duplicates
from netcls.datasets.prepare import Prepared
from netcls.datasets.sources import DataOptions, DataSource, read_source
from netcls.datasets.splits import LEFT_OUT, TEST, Split, SplitOptions, all_tested, make_split
from netcls.datasets.stored_use import stored_split
from netcls.evaluation.heldout import LEAST_UNITS, bootstrap_units
from netcls.evaluation.raw_flows import RawFlows

NOT_KNOWN = -1
"""Label of flows of a class that no contender has learnt: the unknowns."""

_KEPT_BATCHES: Final = 6


@dataclass(frozen=True, slots=True)
class ComparisonData:
    """Labelled flows, raw, with one split for all contenders.

    Attributes:
        raw: what is kept of each flow.
        prepared: source, flows, split and report. ``flows.labels`` are 0 to C-1, or ``NOT_KNOWN``; their
            ``tokens`` are raw.
        unknown: rows of flows of classes that no contender knows, all parts of DATA together.
        unknown_names: those classes.
        warnings: one line each, of reading and splitting.
    """

    raw: RawFlows
    prepared: Prepared
    unknown: NDArray[np.intp]
    unknown_names: tuple[str, ...]
    warnings: tuple[str, ...]
    _batches: dict[bytes, FlowBatch] = field(default_factory=dict)

    @property
    def label_names(self) -> tuple[str, ...]:
        """The C known classes."""
        return self.prepared.flows.label_names

    @property
    def labels(self) -> NDArray[np.int64]:
        """int64 (N,)."""
        return self.prepared.flows.labels

    def rows(self, part: int) -> NDArray[np.intp]:
        """Flows of one part."""
        return self.prepared.split.rows(part)

    def batch(self, rows: NDArray[np.intp]) -> FlowBatch:
        """Raw flows. The same object for the same rows while they are in use, so that answers can be kept by it."""
        key = rows.tobytes()
        if key not in self._batches:
            if len(self._batches) >= _KEPT_BATCHES:
                del self._batches[next(iter(self._batches))]
            flows = self.prepared.flows
            data = flows.tokens.arrays["data"]
            self._batches[key] = FlowBatch(flows.records[rows], flows.packets[rows], data[rows])
        return self._batches[key]

    def changed(self, change: Callable[[FlowBatch], FlowBatch]) -> ComparisonData:
        """The same flows, labels and split, the raw flows changed; copies of the flows are held."""
        flows = self.prepared.flows
        made = change(FlowBatch(flows.records, flows.packets, flows.tokens.arrays["data"]))
        tokens = replace(flows.tokens, arrays={"data": made.data})
        changed = replace(flows, records=made.records, packets=made.packets, tokens=tokens)
        return replace(self, prepared=replace(self.prepared, flows=changed), _batches={})

    def units(self, rows: NDArray[np.intp]) -> NDArray[np.int64]:
        """What the intervals draw."""
        return bootstrap_units(self.prepared, rows)

    def n_classes_tested(self) -> int:
        """Classes with test flows."""
        return len(np.unique(self.labels[self.rows(TEST)]))


@dataclass(frozen=True, slots=True)
class KnownLabels:
    """Labels of one checkpoint, and its name for messages."""

    name: str
    labels: tuple[str, ...]


def read_comparison_data(
    data: str,
    data_options: DataOptions,
    build_options: BuildOptions,
    split_options: SplitOptions | None,
    representations: Sequence[Representation],
    *,
    checkpoints: Sequence[KnownLabels] = (),
    unknown_labels: Sequence[str] = (),
    on_progress: Callable[[int, int], None] | None = None,
) -> ComparisonData:
    """Read, label and split, once for all contenders.

    A class counts as known where every checkpoint has it, as unknown where none has it or ``unknown_labels``
    names it; a class that only some checkpoints have is left out, so that all are scored on the same flows.

    Args:
        data: labelled captures.
        data_options: how the table is read.
        build_options: how flows are chosen.
        split_options: how flows are divided; None: every flow is tested.
        representations: of the contenders; test flows that repeat the input of a training flow in any of them leave.
        checkpoints: labels of the contenders that were trained before; none: all classes of DATA are known.
        unknown_labels: classes to leave out as unknowns.
        on_progress: called with captures done and captures in all.

    Raises:
        DataError: the data cannot be used, or fewer than two classes are known.
    """
    source = read_source(data, data_options)
    raw = RawFlows.for_all(representations)
    flows, report = build_flows(source, raw, build_options, on_progress=on_progress)
    flows, unknown_names, warnings = _divide_labels(data, flows, checkpoints, unknown_labels)
    known = np.flatnonzero(flows.labels >= 0)
    split = _split_known(source, flows, known, split_options)
    if split_options is not None:
        _remove_repeats(flows, split, raw, representations)
    prepared = Prepared(source, flows, split, report)
    kind = split.options.kind
    tested = np.unique({"group": flows.group, "host": flows.host}.get(kind, flows.capture)[split.rows(TEST)])
    if kind in ("group", "host") and len(tested) < LEAST_UNITS:
        warnings.append(
            f"{len(tested)} {kind}s are tested, too few to draw from: the intervals are over captures and do not say "
            f"how another {kind} would do"
        )
    return ComparisonData(
        raw,
        prepared,
        np.flatnonzero(flows.labels == NOT_KNOWN),
        unknown_names,
        (*report.warnings, *warnings, *split.warnings),
    )


def _divide_labels(
    data: str, flows: LabelledFlows, checkpoints: Sequence[KnownLabels], unknown_labels: Sequence[str]
) -> tuple[LabelledFlows, tuple[str, ...], list[str]]:
    """Number the known classes anew; flows of the others become ``NOT_KNOWN``, or leave."""
    for label in unknown_labels:
        if label not in flows.label_names:
            raise DataError(
                f"{data}: has no label {label!r} to leave out as unknown; "
                f"its labels are {', '.join(flows.label_names[:10])}"
            )
    of_all = [set(checkpoint.labels) for checkpoint in checkpoints]
    known, unknown, partly = [], [], []
    for name in flows.label_names:
        n_with = sum(name in labels for labels in of_all)
        if name in unknown_labels or (checkpoints and n_with == 0):
            unknown.append(name)
        elif n_with == len(checkpoints):
            known.append(name)
        else:
            partly.append(name)
    if len(known) < 2:
        theirs = "; ".join(f"{one.name}: {', '.join(one.labels[:5])}, ..." for one in checkpoints)
        raise DataError(
            f"{data}: {len(known)} of its {len(flows.label_names)} labels ({', '.join(flows.label_names[:5])}, ...) "
            f"is a label of every model ({theirs}); expected at least two, so rename labels in DATA or choose "
            "another --label column"
        )
    number = {name: index for index, name in enumerate(known)}
    number |= dict.fromkeys(unknown, NOT_KNOWN)
    new = np.array([number.get(name, NOT_KNOWN - 1) for name in flows.label_names], np.int64)[flows.labels]
    rows = np.flatnonzero(new >= NOT_KNOWN)
    warnings = []
    if partly:
        warnings.append(
            f"{len(partly)} classes are left out, because not every model has them: {', '.join(partly[:5])}"
        )
    for checkpoint in checkpoints:
        more = [label for label in checkpoint.labels if label not in flows.label_names]
        if more:
            warnings.append(
                f"{checkpoint.name} has {len(more)} labels that DATA lacks ({', '.join(more[:5])}"
                f"{', ...' if len(more) > 5 else ''}); an answer with one of them is wrong"
            )
    kept = _take(replace(flows, labels=new, label_names=tuple(known)), rows)
    return kept, tuple(unknown), warnings


def _take(flows: LabelledFlows, rows: NDArray[np.intp]) -> LabelledFlows:
    """The given flows, in the given order."""
    return replace(
        flows,
        tokens=flows.tokens.take(rows),
        packets=flows.packets[rows],
        records=flows.records[rows],
        labels=flows.labels[rows],
        capture=flows.capture[rows],
        group=flows.group[rows],
        host=flows.host[rows],
        time_s=flows.time_s[rows],
        rows=None if flows.rows is None else flows.rows[rows],
    )


def _split_known(
    source: DataSource, flows: LabelledFlows, known: NDArray[np.intp], options: SplitOptions | None
) -> Split:
    """The split of the known flows, spread over all flows; unknowns are in no part."""
    these = flows.split_input().take(known)
    if options is None:
        split = all_tested(these)
    elif source.dataset is not None and options.prefer_stored:
        split = stored_split(source, _take(flows, known))
    else:
        split = make_split(these, options)
    part = np.full(len(flows), LEFT_OUT, np.int8)
    part[known] = split.part
    split.part = part
    return split


def _remove_repeats(
    flows: LabelledFlows, split: Split, raw: RawFlows, representations: Sequence[Representation]
) -> None:
    """Take out test flows that any of the models has seen with the same input in an earlier part."""
    batch = FlowBatch(flows.records, flows.packets, flows.tokens.arrays["data"])
    together = np.full(len(flows), -1, np.int8)
    counts: dict[str, int] = {}
    seen: set[str] = set()
    for representation in representations:
        described = f"{representation.name} {representation.version} {representation.settings()}"
        if described in seen:
            continue
        seen.add(described)
        remove_duplicates(replace(flows, tokens=raw.tokens(batch, representation)), split)
        if split.duplicate_of is not None:
            together = np.where(split.duplicate_of >= 0, split.duplicate_of, together).astype(np.int8)
        counts = {name: counts.get(name, 0) + n for name, n in split.n_duplicates.items()}
    split.duplicate_of = together
    split.n_duplicates = counts


def split_facts(data: ComparisonData, options: SplitOptions | None) -> dict[str, Any]:
    """The split as JSON values, with one sentence on what it lets a number mean."""
    kind = "none" if options is None else data.prepared.split.options.kind
    facts = data.prepared.split_summary()
    columns = ", ".join(data.prepared.flows.group_columns)
    return facts | {"kind": kind, "optimism": _OPTIMISM[kind].format(columns=columns)}


_OPTIMISM = {
    "flow": "within-capture split: optimistic, flows of one capture are on both sides",
    "capture": "split by capture: optimistic for new hosts, programs and networks, which may be on both sides",
    "group": "split by group ({columns}): no group is on both sides",
    "host": "split by host: programs and networks may be on both sides",
    "time": "split by time: earlier captures train, later ones are tested",
    "none": "no split: all of DATA is tested, so it must hold nothing that a model was trained on",
}
