"""Labelled captures to one set of labelled flows.

N is the number of labelled flows, K the packets whose fields are kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from capture.errors import DataError
from capture.representations.base import Representation, TokenBatch
from netcls.datasets.capture_flows import CaptureFlows, concatenate_tokens, process_captures, sample_order
from netcls.datasets.labels import CONTRADICTORY, DROPPED, UNLABELLED, ClockOffset, Matches, match_flows
from netcls.datasets.sources import DataSource, LabelledCapture
from netcls.datasets.splits import LEFT_OUT, PARTS, TEST, Split, SplitInput

if TYPE_CHECKING:
    from capture.flow_table import FlowTableConfig

MAX_WARNINGS_OF_A_KIND: Final = 5
FLOWS_PER_CAPTURE: Final = 20  # of each class, unless told otherwise


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How flows are made and chosen.

    Attributes:
        max_flows_per_capture: at most this many flows of each class from each capture, a seeded sample; 0: all; None:
            20 of captures, all of a dataset. Keeps a scan or a flood from ruling training and score.
        seed: of the sample.
        tolerance_s: by how much the times of a table's row and a flow may miss each other, seconds.
        clock_offset: seconds to add to the times of a table's rows; ``auto``: what each capture shows; None: nothing.
        threads: captures read at once.
        cache_dir: where the flows of each capture are kept between runs; None: nowhere.
    """

    max_flows_per_capture: int | None = None
    seed: int = 0
    tolerance_s: float = 1.0
    threads: int = 2
    cache_dir: Path | None = None
    clock_offset: ClockOffset = None

    def __post_init__(self) -> None:
        if self.max_flows_per_capture is not None and self.max_flows_per_capture < 0:
            raise DataError(
                f"max_flows_per_capture is {self.max_flows_per_capture}; expected 1 or more, or 0 for all flows"
            )

    @property
    def capture_cap(self) -> int:
        """Flows of each class from each capture file; 0: all."""
        return FLOWS_PER_CAPTURE if self.max_flows_per_capture is None else self.max_flows_per_capture


@dataclass(slots=True)
class BuildReport:
    """What became of every packet, flow and row. Flows seen = labelled + unlabelled + dropped + contradictory.

    Attributes:
        captures: read; captures_unreadable: not read; captures_cut: read up to where they are cut off.
        packets: of all captures; packets_rejected: those in no flow, for any reason.
        flows_seen: of all captures that were read.
        flows_labelled: with a label, before the cap per capture.
        flows_unlabelled: that no row of the table matched.
        flows_dropped_label: whose label the user leaves out.
        flows_contradictory: that rows with different labels claim; left out.
        flows_capped: labelled but left out by ``max_flows_per_capture``.
        flows: what remains.
        rows, rows_unmatched: of a table of flows, and those that no flow matched.
        labels_without_flow: labels of the table that no flow got.
        rows_dropped_label, rows_unlabelled: rows (or captures) with a label left out, or without one.
        captures_clock_offset: captures whose rows all miss their flows by the same time.
        warnings: one line each.
    """

    captures: int = 0
    captures_unreadable: int = 0
    captures_cut: int = 0
    packets: int = 0
    packets_rejected: int = 0
    flows_seen: int = 0
    flows_labelled: int = 0
    flows_unlabelled: int = 0
    flows_dropped_label: int = 0
    flows_contradictory: int = 0
    flows_capped: int = 0
    flows: int = 0
    rows: int = 0
    rows_unmatched: int = 0
    rows_dropped_label: int = 0
    rows_unlabelled: int = 0
    captures_clock_offset: int = 0
    labels_without_flow: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """All counts and warnings, as JSON values."""
        return asdict(self)

    def note_capture(self, n_packets: int, n_rejected: int, n_flows: int, error: str) -> None:
        """Count a capture; ``error``: why it could not be read (no packets), or how it is cut."""
        self.packets += n_packets
        self.packets_rejected += n_rejected
        self.flows_seen += n_flows
        failed = bool(error) and not n_packets
        self.captures += not failed
        self.captures_cut += bool(error) and not failed
        self.captures_unreadable += failed
        if not error:
            return
        count = self.captures_unreadable + self.captures_cut
        if count <= MAX_WARNINGS_OF_A_KIND:
            self.warnings.append(error)
        elif count == MAX_WARNINGS_OF_A_KIND + 1:
            self.warnings.append("more captures cannot be read or are cut; see the counts")

    def note_clock(self, name: str, used_s: float | None, seen_s: float | None) -> None:
        """Count a capture whose rows' clock is off, and say so for the first of them."""
        if seen_s is None:
            return
        self.captures_clock_offset += 1
        if self.captures_clock_offset > 1:
            return
        if used_s and abs(used_s - seen_s) < 1.0:
            self.warnings.append(
                f"{name}: the times of its rows were moved by {used_s:g} s to meet the packets"
            )
        else:
            self.warnings.append(
                f"{name}: its rows miss the packets by {seen_s:g} s, all alike; if the table's clock is off, give "
                "--clock-offset auto, or the seconds to add"
            )


@dataclass(frozen=True, slots=True)
class LabelledFlows:
    """Flows with labels, ready to be split.

    Attributes:
        tokens: model input, N rows.
        packets: ``PACKET_DTYPE`` (N, K), fields of the first packets, for baselines.
        records: ``FLOW_DTYPE`` (N,), at the end of each flow.
        labels: int64 (N,), index into ``label_names``.
        capture, group, host: int64 (N,), indices; ``capture`` into ``capture_names``, ``group`` into
            ``group_names``.
        time_s: float64 (N,), when the flow (or by the table, its capture) began, seconds since the epoch.
        label_names: sorted.
        capture_names: as the user wrote them.
        group_names: values of the group columns.
        group_columns: what they are called.
        rows: int64 (N,), where each flow is in the dataset that they are of; None: they are of captures.
    """

    tokens: TokenBatch
    packets: NDArray[Any]
    records: NDArray[Any]
    labels: NDArray[np.int64]
    capture: NDArray[np.int64]
    group: NDArray[np.int64]
    host: NDArray[np.int64]
    time_s: NDArray[np.float64]
    label_names: tuple[str, ...]
    capture_names: tuple[str, ...]
    group_names: tuple[tuple[str, ...], ...]
    group_columns: tuple[str, ...]
    rows: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def split_input(self) -> SplitInput:
        """What `make_split` looks at."""
        return SplitInput(
            self.labels,
            self.capture,
            self.group,
            self.host,
            self.time_s,
            self.label_names,
            self.group_names,
            self.group_columns,
        )


def build_flows(
    source: DataSource,
    representation: Representation,
    options: BuildOptions | None = None,
    *,
    flow_config: FlowTableConfig | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[LabelledFlows, BuildReport]:
    """Read every capture of ``source`` and label its flows.

    Args:
        source: from `read_source`.
        representation: makes the model input.
        options: how.
        flow_config: time-outs and memory of the flow table; None: the defaults.
        on_progress: called with captures done and captures in all.

    Raises:
        DataError: no capture could be read, or no flow got a label.
    """
    options = options or BuildOptions()
    if source.dataset is not None:
        from netcls.datasets.stored_use import flows_of_dataset

        return flows_of_dataset(source, representation, options, on_progress)
    if source.form == 5:
        from netcls.store.feedback import flows_of_feedback

        return flows_of_feedback(source, representation, options)
    report = BuildReport(
        rows=sum(0 if capture.rows is None else len(capture.rows) for capture in source.captures),
        rows_dropped_label=source.n_dropped,
        rows_unlabelled=source.n_unlabelled,
        warnings=list(source.warnings),
    )
    # Flows of a table of flows are sampled after they got their labels.
    at_most = options.capture_cap or None if source.form != 3 else None
    parts = _Parts()
    flows_of = process_captures(
        [capture.path for capture in source.captures],
        representation,
        flow_config=flow_config,
        at_most=at_most,
        seed=options.seed,
        threads=options.threads,
        cache_dir=options.cache_dir,
        on_progress=on_progress,
    )
    for number, (capture, flows) in enumerate(zip(source.captures, flows_of, strict=True)):
        _count_capture(report, flows)
        labels, groups = _label(capture, flows, report, options)
        rows = np.flatnonzero(labels >= 0)
        chosen = rows[within_cap(flows.records["flow_id"][rows], labels[rows], options)]
        report.flows_labelled += len(rows)
        report.flows_capped += len(rows) - len(chosen)
        parts.add(number, capture, flows.take(chosen), labels[chosen], groups[chosen])
    report.flows = parts.n
    check_report(source, report)
    return without_empty_labels(parts.join(source), source, report), report


def _count_capture(report: BuildReport, flows: CaptureFlows) -> None:
    report.note_capture(flows.n_packets, flows.n_rejected, flows.n_flows, flows.error)


def _label(
    capture: LabelledCapture, flows: CaptureFlows, report: BuildReport, options: BuildOptions
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Label and group of each flow; labels below 0 are counted and left out."""
    n = len(flows)
    if capture.rows is None:
        # Flows that the reader's sample left out have the capture's label too.
        report.flows_labelled += flows.n_flows - n
        report.flows_capped += flows.n_flows - n
        return np.full(n, capture.label, np.int64), np.full(n, capture.group, np.int64)
    labels, groups, matches = label_flows(capture, flows.records, options)
    report.rows_unmatched += matches.n_rows_unmatched if matches else 0
    report.flows_unlabelled += int(np.count_nonzero(labels == UNLABELLED))
    report.flows_dropped_label += int(np.count_nonzero(labels == DROPPED))
    report.flows_contradictory += int(np.count_nonzero(labels == CONTRADICTORY))
    if matches is not None:
        report.note_clock(capture.name, matches.clock_offset_s, matches.clock_offset_seen_s)
    return labels, groups


def label_flows(
    capture: LabelledCapture, records: NDArray[Any], options: BuildOptions
) -> tuple[NDArray[np.int64], NDArray[np.int64], Matches | None]:
    """Label and group of each flow of a capture; labels below 0 mean what they do in `netcls.datasets.labels`."""
    if capture.rows is None:
        n = len(records)
        return np.full(n, capture.label, np.int64), np.full(n, capture.group, np.int64), None
    matches = match_flows(records, capture.rows, options.tolerance_s, options.clock_offset)
    return matches.labels, matches.groups, matches


def within_cap(
    flow_ids: NDArray[np.uint64], labels: NDArray[np.int64], options: BuildOptions
) -> NDArray[np.intp]:
    """Which flows of one capture stay: of each class the first in sample order, in capture order."""
    if not options.capture_cap:
        return np.arange(len(labels))
    order = np.argsort(sample_order(flow_ids, options.seed), kind="stable")
    kept = [order[labels[order] == label][: options.capture_cap] for label in np.unique(labels)]
    return np.sort(np.concatenate(kept)) if kept else np.empty(0, np.intp)


@dataclass(slots=True)
class _Parts:
    """Flows of the captures so far."""

    n: int = 0
    tokens: list[TokenBatch] = field(default_factory=list)
    packets: list[NDArray[Any]] = field(default_factory=list)
    records: list[NDArray[Any]] = field(default_factory=list)
    labels: list[NDArray[np.int64]] = field(default_factory=list)
    groups: list[NDArray[np.int64]] = field(default_factory=list)
    captures: list[NDArray[np.int64]] = field(default_factory=list)
    times: list[NDArray[np.float64]] = field(default_factory=list)
    hosts: list[str] = field(default_factory=list)

    def add(
        self,
        number: int,
        capture: LabelledCapture,
        flows: CaptureFlows,
        labels: NDArray[np.int64],
        groups: NDArray[np.int64],
    ) -> None:
        n = len(flows)
        self.n += n
        self.tokens.append(flows.tokens)
        self.packets.append(flows.packets)
        self.records.append(flows.records)
        self.labels.append(labels)
        self.groups.append(groups)
        self.captures.append(np.full(n, number, np.int64))
        started_s = flows.records["first_ts_ns"].astype(np.float64) / 1e9
        self.times.append(started_s if capture.time_s is None else np.full(n, capture.time_s))
        self.hosts.extend(capture.host or client.tobytes().hex() for client in flows.records["client"])

    def join(self, source: DataSource) -> LabelledFlows:
        return LabelledFlows(
            concatenate_tokens(self.tokens),
            np.concatenate(self.packets),
            np.concatenate(self.records),
            np.concatenate(self.labels),
            np.concatenate(self.captures),
            np.concatenate(self.groups),
            np.unique(self.hosts, return_inverse=True)[1].astype(np.int64),
            np.concatenate(self.times),
            source.labels,
            tuple(capture.name for capture in source.captures),
            source.groups,
            source.group_columns,
        )


def check_report(source: DataSource, report: BuildReport) -> None:
    """Refuse data of which nothing could be used, and say what was left out.

    Raises:
        DataError: no capture could be read, or no flow got a label.
    """
    if not report.captures:
        reason = report.warnings[-1] if report.warnings else "none was given"
        raise DataError(f"{source.path}: none of {len(source.captures)} captures can be read: {reason}")
    if not report.flows and source.form == 3:
        raise DataError(
            f"{source.path}: none of {report.rows} rows matches any of {report.flows_seen} flows; "
            "compare addresses, ports, proto and first_ts (epoch seconds) with what 'netcls flows' prints"
        )
    if not report.flows:
        raise DataError(f"{source.path}: the captures hold no flow; expected IP packets")
    if report.rows_unmatched:
        report.warnings.append(f"{report.rows_unmatched} of {report.rows} rows match no flow")
    if report.flows_unlabelled:
        report.warnings.append(
            f"{report.flows_unlabelled} of {report.flows_seen} flows have no row; left out"
        )
    if report.flows_contradictory:
        report.warnings.append(
            f"{report.flows_contradictory} flows have rows with different labels; left out"
        )


def without_empty_labels(flows: LabelledFlows, source: DataSource, report: BuildReport) -> LabelledFlows:
    """Number the labels anew without those that no flow has, which a model could only guess."""
    counts = np.bincount(flows.labels, minlength=len(flows.label_names))
    if counts.all():
        return flows
    names = np.array(flows.label_names, object)
    kept, empty = tuple(names[counts > 0]), tuple(names[counts == 0])
    if len(kept) < 2:
        raise DataError(
            f"{source.path}: every labelled flow is of class {kept[0]!r}; expected at least two classes"
        )
    report.labels_without_flow = list(empty)
    report.warnings.append(
        f"{len(empty)} labels have no flow and are left out: {', '.join(empty[:MAX_WARNINGS_OF_A_KIND])}"
    )
    number = np.cumsum(counts > 0) - 1
    return replace(flows, labels=number[flows.labels].astype(np.int64), label_names=kept)


def remove_duplicates(flows: LabelledFlows, split: Split) -> None:
    """Take flows whose model input an earlier part already holds out of the later part.

    Parts in order: train, validation, calibration, test. Flows alike within one part stay: that is how often they
    occur. ``split`` is changed: ``part``, ``duplicate_of``, ``n_duplicates`` and a warning for classes that lose
    all their test flows.

    Raises:
        DataError: a part, or all but one class of the test part, is gone.
    """
    tested = np.unique(flows.labels[split.rows(TEST)])
    seen: set[bytes] = set()
    hashes = token_hashes(flows.tokens)
    split.duplicate_of = np.full(len(hashes), -1, np.int8)
    for part, name in enumerate(PARTS):
        rows = split.rows(part)
        again = np.array([hashes[row] in seen for row in rows], bool)
        split.part[rows[again]] = LEFT_OUT
        split.duplicate_of[rows[again]] = part
        split.n_duplicates[name] = int(np.count_nonzero(again))
        seen.update(hashes[row] for row in rows)
        if len(rows) and again.all():
            raise DataError(
                f"each of {len(rows)} {name} flows has a model input that was seen before; "
                "show the model more of each flow, or give more varied captures"
            )
    left = np.unique(flows.labels[split.rows(TEST)])
    if len(left) < 2:
        raise DataError(
            f"after removing test flows whose model input was seen before, {len(left)} class is tested; "
            "show the model more of each flow, or give more varied captures"
        )
    gone = [flows.label_names[label] for label in np.setdiff1d(tested, left)]
    if gone:
        split.untested += tuple(gone)
        split.warnings.append(
            f"{len(gone)} classes are not tested, every test flow looks like a flow seen before: {', '.join(gone)}"
        )


def token_hashes(tokens: TokenBatch) -> list[bytes]:
    """16 bytes for each flow's model input; equal where the inputs are."""
    arrays = [np.ascontiguousarray(array) for _, array in sorted(tokens.arrays.items())]
    return [
        hashlib.blake2b(b"".join(array[row].tobytes() for array in arrays), digest_size=16).digest()
        for row in range(len(tokens))
    ]
