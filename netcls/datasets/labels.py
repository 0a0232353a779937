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
_ECHO: Final = (0, 8, 128, 129)  # types of echo and echo reply, v4 and v6


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

    Flow records hold the ICMP type and code of the first packet as ports. Rows may have the same, or the identifier
    of an echo dialogue in both ports (all identifiers between two hosts are one flow here), or 0 in both, which
    matches by addresses alone; the first of these that a flow finds counts.
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
    index = _RowIndex(rows)
    keys = _keys(
        records["client"], records["client_port"], records["server"], records["server_port"], records
    )
    no_ports = np.zeros(len(records), np.uint16)
    hosts = _keys(records["client"], no_ports, records["server"], no_ports, records)
    for flow in range(len(records)):
        candidates = index.exact.get(keys[flow])
        if candidates is None and records["protocol"][flow] in _ICMP:
            if records["client_port"][flow] in _ECHO:
                candidates = index.echo.get(hosts[flow])
            if candidates is None:
                candidates = index.exact.get(hosts[flow])
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


class _RowIndex:
    """Row numbers by key: ``exact`` by five-tuple, ``echo`` by hosts for rows with an echo identifier as ports."""

    def __init__(self, rows: NDArray[Any]) -> None:
        no_ports = np.zeros(len(rows), np.uint16)
        hosts = _keys(rows["src"], no_ports, rows["dst"], no_ports, rows)
        keys = _keys(rows["src"], rows["src_port"], rows["dst"], rows["dst_port"], rows)
        is_echo = (
            np.isin(rows["protocol"], _ICMP) & (rows["src_port"] == rows["dst_port"]) & (rows["src_port"] > 0)
        )
        self.exact = _numbers_by_key(keys, np.arange(len(rows)))
        self.echo = _numbers_by_key(hosts, np.flatnonzero(is_echo))


def _numbers_by_key(keys: list[bytes], numbers: NDArray[np.intp]) -> dict[bytes, NDArray[np.int64]]:
    lists: dict[bytes, list[int]] = {}
    for number in numbers.tolist():
        lists.setdefault(keys[number], []).append(number)
    return {key: np.array(of_key, np.int64) for key, of_key in lists.items()}


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
