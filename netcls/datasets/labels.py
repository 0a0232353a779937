"""Labels for flows, from the rows of a table of flows.

A row matches a flow when both have the same five-tuple, in either direction, and their times
overlap within a tolerance. Of several rows the longest overlap wins. VLAN ids are not compared:
tables rarely have them. F is the number of flows, R of rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from capture.errors import DataError

ClockOffset = float | Literal["auto"] | None

UNLABELLED: Final = -1  # no row of this flow
DROPPED: Final = -2  # the row's label is one that the user leaves out
CONTRADICTORY: Final = -3  # rows with different labels claim the flow

_ICMP: Final = (1, 58)
_ECHO: Final = (0, 8, 128, 129)  # types of echo and echo reply, v4 and v6
_MAX_PAIRS: Final = 1 << 20  # of flow and row that are looked at together
_LEAST_PAIRS: Final = 3  # that must agree on a clock offset
_LEAST_AGREEING: Final = 0.8  # of all pairs
_KEY_BYTES: Final = 37


@dataclass(frozen=True, slots=True)
class Matches:
    """Which row labels which flow.

    Attributes:
        labels: int64 (F,), index of a label, or one of the negative constants above.
        groups: int64 (F,), the row's group; -1 where there is no label.
        row_matched: bool (R,), whether the row matched a flow.
        clock_offset_s: added to the rows' times.
        clock_offset_seen_s: what :func:`estimate_clock_offset` says; None: the clocks agree, or nobody can tell.
    """

    labels: NDArray[np.int64]
    groups: NDArray[np.int64]
    row_matched: NDArray[np.bool_]
    clock_offset_s: float = 0.0
    clock_offset_seen_s: float | None = None

    @property
    def n_rows_unmatched(self) -> int:
        """Rows that no flow matched."""
        return int(np.count_nonzero(~self.row_matched))


def match_flows(
    records: NDArray[Any],
    rows: NDArray[Any],
    tolerance_s: float = 1.0,
    clock_offset: ClockOffset = None,
) -> Matches:
    """Label flows by the rows of one capture.

    Flow records hold the ICMP type and code of the first packet as ports. Rows may have the same, or the identifier
    of an echo dialogue in both ports (all identifiers between two hosts are one flow here), or 0 in both, which
    matches by addresses alone; the first of these that a flow finds counts.
    A flow is contradictory when a row of another label overlaps it at least half as long as the best row.

    Args:
        records: ``FLOW_DTYPE`` (F,), ended flows.
        rows: ``FLOW_ROW_DTYPE`` (R,).
        tolerance_s: by how much the times of a row and a flow may miss each other. Times written as floating
            point numbers lose up to 0.2 microseconds, flow meters differ by their clocks.
        clock_offset: seconds to add to the rows' times; ``auto``: what the capture itself shows; None: nothing.

    Raises:
        DataError: for a tolerance or an offset that is no time.
    """
    if not 0 <= tolerance_s < 1e9:
        raise DataError(f"the tolerance is {tolerance_s} s; expected a time from 0")
    if isinstance(clock_offset, float | int) and not abs(clock_offset) < 1e9:
        raise DataError(f"the clock offset is {clock_offset} s; expected a time, or auto")
    tolerance_ns = round(tolerance_s * 1e9)
    keys = _Keys(records, rows)
    seen_s = estimate_clock_offset(records, rows, tolerance_s, keys)
    offset_s = (seen_s or 0.0) if clock_offset == "auto" else float(clock_offset or 0.0)
    row_first, row_last = _moved(rows, round(offset_s * 1e9))
    labels = np.full(len(records), UNLABELLED, np.int64)
    groups = np.full(len(records), -1, np.int64)
    matched = np.zeros(len(rows), bool)
    for flow, row in keys.pairs():
        overlap_ns = np.minimum(row_last[row], records["last_ts_ns"][flow]) - np.maximum(
            row_first[row], records["first_ts_ns"][flow]
        )
        near = overlap_ns >= -tolerance_ns
        flow, row, overlap_ns = flow[near], row[near], overlap_ns[near]
        matched[row] = True
        _choose(flow, row, overlap_ns, rows, labels, groups)
    return Matches(labels, groups, matched, offset_s, seen_s)


def estimate_clock_offset(
    records: NDArray[Any], rows: NDArray[Any], tolerance_s: float, keys: _Keys | None = None
) -> float | None:
    """By how much the rows' times miss the packets', where they all miss by the same.

    Looked at are five-tuples that one row and one flow have. At least three of these must be there, and four of five
    must agree with their median within the tolerance.

    Returns:
        Seconds to add to the rows' times; None where that is less than the tolerance or there is no agreement.
    """
    flow, row = (keys or _Keys(records, rows)).single_pairs()
    timed = rows["first_ts_ns"][row] > 0
    if np.count_nonzero(timed) < _LEAST_PAIRS:
        return None
    missing_s = (records["first_ts_ns"][flow[timed]] - rows["first_ts_ns"][row[timed]]) / 1e9
    offset_s = float(np.median(missing_s))
    agreeing = np.abs(missing_s - offset_s) <= tolerance_s
    if abs(offset_s) <= tolerance_s or np.mean(agreeing) < _LEAST_AGREEING:
        return None
    return round(float(np.median(missing_s[agreeing])), 6)


def _moved(rows: NDArray[Any], offset_ns: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last times of the rows, moved; rows without a time stay without."""
    from netcls.datasets.sources import FOREVER_NS

    first, last = rows["first_ts_ns"].copy(), rows["last_ts_ns"].copy()
    first[first > 0] += offset_ns
    last[last < FOREVER_NS] += offset_ns
    return first, last


def _choose(
    flow: NDArray[np.intp],
    row: NDArray[np.intp],
    overlap_ns: NDArray[np.int64],
    rows: NDArray[Any],
    labels: NDArray[np.int64],
    groups: NDArray[np.int64],
) -> None:
    """Write label and group of each flow that has a pair; ``flow`` ascends, and rows of a flow do."""
    if not len(flow):
        return
    order = np.lexsort((np.arange(len(flow)), -overlap_ns, flow))
    first = order[np.flatnonzero(np.diff(flow[order], prepend=-1))]  # the best pair of each flow
    of_flow, best_row, longest = flow[first], row[first], overlap_ns[first]
    at = np.searchsorted(of_flow, flow)
    label = rows["label"][best_row].astype(np.int64)
    # Where nothing but the tolerance joins flow and row, every other row is as good.
    rival = (rows["label"][row] != label[at]) & ((longest[at] < 0) | (2 * overlap_ns >= longest[at]))
    contradicts = np.zeros(len(of_flow), bool)
    contradicts[at[rival]] = True
    labels[of_flow] = np.where(contradicts, CONTRADICTORY, np.where(label < 0, DROPPED, label))
    groups[of_flow] = np.where(contradicts | (label < 0), -1, rows["group"][best_row])


class _Keys:
    """Which rows each flow may belong to, by five-tuple.

    Args:
        records: ``FLOW_DTYPE`` (F,).
        rows: ``FLOW_ROW_DTYPE`` (R,).
    """

    def __init__(self, records: NDArray[Any], rows: NDArray[Any]) -> None:
        client = (records["client"], records["client_port"])
        server = (records["server"], records["server_port"])
        exact = _keys(*client, *server, records["protocol"])
        row_exact = _keys(rows["src"], rows["src_port"], rows["dst"], rows["dst_port"], rows["protocol"])
        is_icmp = np.isin(records["protocol"], _ICMP)
        hosts = _hosts(records["client"], records["server"], records["protocol"])
        row_hosts = _hosts(rows["src"], rows["dst"], rows["protocol"])
        has_identifier = (
            np.isin(rows["protocol"], _ICMP) & (rows["src_port"] == rows["dst_port"]) & (rows["src_port"] > 0)
        )
        echo_rows = np.flatnonzero(has_identifier)
        by_exact = _Index(row_exact, np.arange(len(rows)))
        by_echo = _Index(row_hosts[echo_rows], echo_rows)
        # Each flow has one range of rows; the echo index lies behind the exact one.
        lo, hi = by_exact.ranges(exact)
        is_echo = is_icmp & np.isin(records["client_port"], _ECHO)
        for chosen, index, shift in ((is_echo, by_echo, len(rows)), (is_icmp, by_exact, 0)):
            open_flows = np.flatnonzero(chosen & (lo == hi))
            found_lo, found_hi = index.ranges(hosts[open_flows])
            there = found_hi > found_lo
            lo[open_flows[there]], hi[open_flows[there]] = found_lo[there] + shift, found_hi[there] + shift
        self._lo, self._hi = lo, hi
        self._rows = np.concatenate([by_exact.numbers, by_echo.numbers])
        self._exact = exact

    def pairs(self) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
        """Flows and rows of the same five-tuple, in order of flows; all pairs of a flow together."""
        counts = self._hi - self._lo
        ends = np.cumsum(counts)
        start = 0
        while start < len(counts):
            before = int(ends[start - 1]) if start else 0
            stop = max(start + 1, int(np.searchsorted(ends, before + _MAX_PAIRS, side="right")))
            yield self._of(np.arange(start, stop))
            start = stop

    def single_pairs(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Pairs of a flow that is the only one of its five-tuple with a row that is the only one."""
        _, number, n_flows = np.unique(self._exact, return_inverse=True, return_counts=True)
        return self._of(np.flatnonzero((self._hi - self._lo == 1) & (n_flows[number] == 1)))

    def _of(self, flows: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        counts = self._hi[flows] - self._lo[flows]
        flow = np.repeat(flows, counts)
        within = np.arange(len(flow)) - np.repeat(np.cumsum(counts) - counts, counts)
        return flow, self._rows[self._lo[flow] + within]


class _Index:
    """Row numbers in order of their keys."""

    def __init__(self, keys: NDArray[np.bytes_], numbers: NDArray[np.intp]) -> None:
        order = np.argsort(keys, kind="stable")
        self._keys = keys[order]
        self.numbers = numbers[order]

    def ranges(self, keys: NDArray[np.bytes_]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Where each key's rows begin and end in ``numbers``."""
        return np.searchsorted(self._keys, keys, "left"), np.searchsorted(self._keys, keys, "right")


def _hosts(a: NDArray[np.uint8], b: NDArray[np.uint8], protocol: NDArray[np.uint8]) -> NDArray[np.bytes_]:
    no_ports = np.zeros(len(a), np.uint16)
    return _keys(a, no_ports, b, no_ports, protocol)


def _keys(
    a: NDArray[np.uint8],
    a_port: NDArray[np.uint16],
    b: NDArray[np.uint8],
    b_port: NDArray[np.uint16],
    protocol: NDArray[np.uint8],
) -> NDArray[np.bytes_]:
    """37-byte keys, equal for both directions of a five-tuple.

    An ``S`` array does not count trailing zeros; all keys have the same length, so that equal means equal.
    """
    ends = np.empty((2, len(a), 18), np.uint8)
    for end, address, port in ((0, a, a_port), (1, b, b_port)):
        ends[end, :, :16] = address
        ends[end, :, 16] = port >> 8
        ends[end, :, 17] = port & 0xFF
    as_text = ends.view("S18")[:, :, 0]
    in_order = (as_text[0] <= as_text[1])[:, None]
    keys = np.empty((len(a), _KEY_BYTES), np.uint8)
    keys[:, :18] = np.where(in_order, ends[0], ends[1])
    keys[:, 18:36] = np.where(in_order, ends[1], ends[0])
    keys[:, 36] = protocol
    return keys.view(f"S{_KEY_BYTES}")[:, 0]
