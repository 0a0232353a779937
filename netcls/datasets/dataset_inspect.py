"""What a built dataset holds, and what its split can and cannot show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from netcls.datasets.sources import DataOptions
from netcls.datasets.splits import PARTS, TEST
from netcls.datasets.stored import UNUSED_FILE, StoredDataset, open_dataset
from netcls.datasets.stored_use import dataset_columns, dataset_source


def inspect_dataset(path: Path, *, verify: bool = False) -> dict[str, Any]:
    """Open a dataset and count; packets are not read.

    Args:
        path: the folder.
        verify: compare the SHA-256 of every shard too, which reads all of them.

    Returns:
        JSON values: ``format``, ``code``, ``options``, ``keep``, ``flows``, ``captures``, ``groups``, ``bytes``,
        ``bytes_per_flow``, ``classes``, ``split``, ``verdict`` (one sentence each), ``unused``, ``report``.

    Raises:
        DataError: it is damaged, or of another version.
    """
    dataset = open_dataset(path)
    source = dataset_source(path, DataOptions())
    if verify:
        dataset.verify()
    flows = dataset_columns(dataset, source)
    part = dataset.split_parts()
    classes = []
    for label, name in enumerate(dataset.labels):
        rows = np.flatnonzero(flows.labels == label)
        parts = np.bincount(part[rows] + 1, minlength=5)[1:]
        classes.append(
            {
                "label": name,
                "flows": len(rows),
                "captures": len(np.unique(flows.capture[rows])),
                "groups": len(np.unique(flows.group[rows])),
                "hosts": len(np.unique(flows.host[rows])),
                **{of_part: int(count) for of_part, count in zip(PARTS, parts, strict=True)},
            }
        )
    n_bytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    info = dataset.info
    split = {key: value for key, value in info["split"].items() if key != "warnings"}
    return {
        "data": str(path),
        "format": info["format"],
        "code": info["code"],
        "options": info["options"],
        "keep": info["keep"],
        "flows": len(dataset),
        "captures": dataset.captures.num_rows,
        "groups": len(dataset.groups),
        "group_columns": info["group_columns"],
        "bytes": n_bytes,
        "bytes_per_flow": n_bytes / max(1, len(dataset)),
        "classes": classes,
        "split": split,
        "verdict": _verdict(dataset, classes),
        "unused": info.get("unused", {}),
        "unused_file": str(path / UNUSED_FILE),
        "report": info["report"],
        "verified": verify,
        "warnings": [*info["report"].get("warnings", []), *info["split"].get("warnings", [])],
    }


def _verdict(dataset: StoredDataset, classes: list[dict[str, Any]]) -> list[str]:
    """What stands between a score of this split and one that holds elsewhere."""
    split = dataset.info["split"]
    sentences = []
    if split.get("kind") == "flow":
        sentences.append("Optimistic: flows of one capture are on both sides of the split.")
    single = [row["label"] for row in classes if row["captures"] == 1]
    if single:
        sentences.append(
            f"{_named(single)} in one capture only: what the class is and what the capture is cannot be told apart."
        )
    untested = [row["label"] for row in classes if row["flows"] and not row[PARTS[TEST]]]
    if untested:
        sentences.append(f"{_named(untested)} without a test flow.")
    test = split.get("repeats", {}).get(PARTS[TEST], {})
    left = {"none": ("exact", "near"), "exact": ("near",), "near": ()}[split.get("repeats_dropped", "none")]
    for kind, text in (
        ("exact", "have a model input that an earlier part has (training leaves them out of the score)"),
        ("near", "look like flows of an earlier part by their sizes"),
    ):
        if kind in left and test.get(kind):
            sentences.append(f"{test[kind]} of {test['flows']} test flows {text}.")
    if not sentences:
        sentences.append("Nothing in the split is known to flatter a score.")
    return sentences


def _named(labels: list[str]) -> str:
    few = ", ".join(labels[:5]) + (", ..." if len(labels) > 5 else "")
    return f"{len(labels)} classes ({few}) are" if len(labels) > 1 else f"Class {few} is"
