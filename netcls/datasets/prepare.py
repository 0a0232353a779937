"""DATA to labelled flows with a split: the whole way, for every command that needs both."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from capture.representations.base import Representation
from netcls.datasets.build import BuildOptions, BuildReport, LabelledFlows, build_flows, remove_duplicates
from netcls.datasets.files import file_digest as file_digest
from netcls.datasets.sources import DataOptions, DataSource, LabelledCapture, read_source
from netcls.datasets.splits import CALIBRATION, PARTS, TEST, Split, SplitOptions, make_split
from netcls.datasets.stored_use import stored_split


@dataclass(frozen=True, slots=True)
class Prepared:
    """Labelled flows and where each of them goes.

    Attributes:
        source: what was read.
        flows: labelled flows.
        split: of these flows, duplicates removed.
        report: what became of every packet, flow and row.
    """

    source: DataSource
    flows: LabelledFlows
    split: Split
    report: BuildReport

    def captures_of(self, part: int) -> list[LabelledCapture]:
        """Captures with at least one flow in a part (or that lost it as a duplicate), by name."""
        split = self.split
        inside = split.part == part
        if split.duplicate_of is not None:
            inside |= split.duplicate_of == part
        return [self.source.captures[number] for number in np.unique(self.flows.capture[inside])]

    def split_summary(self) -> dict[str, Any]:
        """The split as JSON values: how, how many flows, captures and groups in each part, what was left out."""
        split, flows = self.split, self.flows
        options = split.options
        parts = {}
        for part, name in enumerate(PARTS):
            rows = split.rows(part)
            parts[name] = {
                "flows": len(rows),
                "captures": len(np.unique(flows.capture[rows])),
                "groups": len(np.unique(flows.group[rows])),
                "classes": len(np.unique(flows.labels[rows])),
                "duplicates_removed": split.n_duplicates.get(name, 0),
            }
        return {
            "kind": options.kind,
            "description": split.description,
            "seed": options.seed,
            "group_columns": list(flows.group_columns),
            "group_rule": options.rule,
            "parts": parts,
            "calibration_unseen": split.calibration_unseen,
            "left_out_by_group_rule": split.n_left_out,
            "untested_classes": list(split.untested),
            "classes_where_only_the_combination_is_unseen": list(split.fallback),
        }


def prepare(
    data: str | os.PathLike[str],
    representation: Representation,
    data_options: DataOptions,
    build_options: BuildOptions,
    split_options: SplitOptions,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> Prepared:
    """Read, label, split, and remove model inputs that occur on two sides.

    Raises:
        DataError: the data cannot be used, or the split measures nothing.
    """
    source = read_source(data, data_options)
    flows, report = build_flows(source, representation, build_options, on_progress=on_progress)
    if source.dataset is not None and split_options.prefer_stored:
        split = stored_split(source, flows)
    else:
        split = make_split(flows.split_input(), split_options)
    remove_duplicates(flows, split)
    return Prepared(source, flows, split, report)


def evaluation_captures(prepared: Prepared) -> list[Path]:
    """Captures that a pre-training corpus must not hold: those of the test and calibration parts."""
    held = [*prepared.captures_of(TEST), *prepared.captures_of(CALIBRATION)]
    return sorted({capture.path for capture in held})
