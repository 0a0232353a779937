"""Labels for flows, from the rows of a table of flows.

A row matches a flow when both have the same five-tuple, in either direction, and their times
overlap within a tolerance. Of several rows the longest overlap wins. VLAN ids are not compared:
tables rarely have them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from capture.errors import DataError

UNLABELLED: Final = -1  # no row of this flow
DROPPED: Final = -2  # the row's label is one that the user leaves out
CONTRADICTORY: Final = -3  # rows with different labels claim the flow

_ICMP: Final = (1, 58)


@dataclass(frozen=True, slots=True)
class Matches:
    """Which row labels which flow.

    Attributes:
        labels: int64 (F,), index of a label, or one of the negative constants above.
        groups: int64 (F,), the row's group; -1 where there is no label.
        n_rows_unmatched: rows that no flow matched.
    """

    labels: NDArray[np.int64]
    groups: NDArray[np.int64]
    n_rows_unmatched: int


def match_flows(records: NDArray[Any], rows: NDArray[Any], tolerance_s: float = 1.0) -> Matches:
    """Label flows by the rows of one capture.

    ICMP rows with both ports 0 match by addresses alone, because flow records hold type and code there.
    A flow is contradictory when a row of another label overlaps it at least half as long as the best row.

    Args:
        records: ``FLOW_DTYPE`` (F,), ended flows.
        rows: ``FLOW_ROW_DTYPE`` (R,).
        tolerance_s: by how much the times of a row and a flow may miss each other. Times written as floating
            point numbers lose up to 0.2 microseconds, flow meters differ by their clocks.
    """
    if not 0 <= tolerance_s < 1e9:
        raise DataError(f"the tolerance is {tolerance_s} s; expected a time from 0")
    tolerance_ns = round(tolerance_s * 1e9)
    labels = np.full(len(records), UNLABELLED, np.int64)
    groups = np.full(len(records), -1, np.int64)
    matched = np.zeros(len(rows), bool)
    index = _index_rows(rows)
    exact = _keys(
        records["client"], records["client_port"], records["server"], records["server_port"], records
    )
    no_ports = np.zeros(len(records), np.uint16)
    loose = _keys(records["client"], no_ports, records["server"], no_ports, records)
    for flow in range(len(records)):
        candidates = index.get(exact[flow])
        if candidates is None and records["protocol"][flow] in _ICMP:
            candidates = index.get(loose[flow])
        if candidates is None:
            continue
        overlap_ns = np.minimum(rows["last_ts_ns"][candidates], records["last_ts_ns"][flow]) - np.maximum(
            rows["first_ts_ns"][candidates], records["first_ts_ns"][flow]
        )
        near = overlap_ns >= -tolerance_ns
        if not near.any():
            continue
        matched[candidates[near]] = True
        labels[flow], groups[flow] = _choose(rows[candidates[near]], overlap_ns[near])
    return Matches(labels, groups, int(np.count_nonzero(~matched)))


def _choose(rows: NDArray[Any], overlap_ns: NDArray[np.int64]) -> tuple[int, int]:
    """Label and group of the best of the rows that overlap one flow."""
    best = int(np.argmax(overlap_ns))
    label = int(rows["label"][best])
    longest = int(overlap_ns[best])
    # Where nothing but the tolerance joins flow and row, every other row is as good.
    enough_ns = longest / 2 if longest >= 0 else -np.inf
    if np.any((rows["label"] != label) & (overlap_ns >= enough_ns)):
        return CONTRADICTORY, -1
    return (DROPPED, -1) if label < 0 else (label, int(rows["group"][best]))


def _index_rows(rows: NDArray[Any]) -> dict[bytes, NDArray[np.int64]]:
    lists: dict[bytes, list[int]] = {}
    for number, key in enumerate(_keys(rows["src"], rows["src_port"], rows["dst"], rows["dst_port"], rows)):
        lists.setdefault(key, []).append(number)
    return {key: np.array(numbers, np.int64) for key, numbers in lists.items()}


def _keys(
    a: NDArray[np.uint8],
    a_port: NDArray[np.uint16],
    b: NDArray[np.uint8],
    b_port: NDArray[np.uint16],
    rows: NDArray[Any],
) -> list[bytes]:
    """37-byte keys, equal for both directions of a five-tuple."""
    ends = np.empty((2, len(rows), 18), np.uint8)
    for end, address, port in ((0, a, a_port), (1, b, b_port)):
        ends[end, :, :16] = address
        ends[end, :, 16] = port >> 8
        ends[end, :, 17] = port & 0xFF
    first = [row.tobytes() for row in ends[0]]
    second = [row.tobytes() for row in ends[1]]
    protocol = [bytes((int(number),)) for number in rows["protocol"]]
    return [min(x, y) + max(x, y) + p for x, y, p in zip(first, second, protocol, strict=True)]
