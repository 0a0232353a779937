"""What other heads than a classifier's learn of labelled flows: a number that the flow table knows, or several labels.

N is the number of flows, L of labels.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from capture.errors import DataError
from models.tasks import Task
from netcls.datasets.build import LabelledFlows
from netcls.datasets.splits import LEFT_OUT, PARTS, Split

UNITS: Final = {"bytes_left": "bytes", "duration_s": "s"}
"""Unit of each target, by its name."""

LABEL_SEPARATOR: Final = ";"


def number_task(target: str) -> Task:
    """The regression of a target."""
    return Task("regression", target, UNITS[target])


def target_values(
    records: NDArray[Any], packets: NDArray[Any], target: str, n_seen: int
) -> NDArray[np.float64]:
    """The number of each flow.

    Args:
        records: ``FLOW_DTYPE`` (N,), as they were at the end of each flow.
        packets: ``PACKET_DTYPE`` (N, >= n_seen).
        target: ``bytes_left``: bytes of IP packets behind the first ``n_seen`` packets; ``duration_s``: from the first
            to the last packet, seconds.
        n_seen: packets that the model sees.

    Returns:
        float64 (N,), 0 or more.

    Raises:
        DataError: if fewer packets were kept than the model sees.
    """
    if target == "duration_s":
        apart_ns = records["last_ts_ns"].astype(np.float64) - records["first_ts_ns"].astype(np.float64)
        return np.asarray(np.maximum(apart_ns, 0.0) / 1e9)
    if packets.shape[1] < n_seen:
        raise DataError(
            f"target {target}: the data keeps {packets.shape[1]} packets of a flow, the model sees {n_seen}; "
            "build the dataset for this model"
        )
    there = np.arange(n_seen) < records["n_kept"][:, None]
    seen = (packets["ip_len"][:, :n_seen].astype(np.float64) * there).sum(axis=1)
    return np.asarray(np.maximum(records["ip_bytes"].sum(axis=1) - seen, 0.0))


def leave_out_whole_flows(flows: LabelledFlows, split: Split, n_seen: int) -> int:
    """Leave flows out that the model sees from first to last packet: their numbers need no guess.

    Returns:
        How many; ``split`` is changed.

    Raises:
        DataError: a part has no longer flow.
    """
    short = flows.records["packets"].sum(axis=1) <= n_seen
    left_out = int(np.count_nonzero(short & (split.part != LEFT_OUT)))
    split.part[short] = LEFT_OUT
    if split.duplicate_of is not None:
        split.duplicate_of[short] = -1
    for part, name in enumerate(PARTS):
        if not (split.part == part).any():
            raise DataError(
                f"the {name} part has no flow of more than {n_seen} packets, which is what the model sees; "
                "give longer flows, or a model of fewer packets"
            )
    return left_out


def label_sets(names: tuple[str, ...]) -> tuple[tuple[str, ...], NDArray[np.bool_]]:
    """The single labels of names such as ``web;video``.

    Args:
        names: C names as the label column has them.

    Returns:
        The L labels, sorted, and bool (C, L): which of them each name holds.

    Raises:
        DataError: for an empty label, or fewer than two.
    """
    sets = [[part.strip() for part in name.split(LABEL_SEPARATOR)] for name in names]
    for name, parts in zip(names, sets, strict=True):
        if not all(parts):
            raise DataError(
                f"label {name!r} has an empty part; expected labels separated by {LABEL_SEPARATOR!r}"
            )
    labels = tuple(sorted({part for parts in sets for part in parts}))
    if len(labels) < 2:
        raise DataError(f"the data has only the label {labels[0]!r}; expected at least two")
    return labels, np.array([[label in parts for label in labels] for parts in sets], bool)
