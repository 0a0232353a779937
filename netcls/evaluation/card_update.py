"""An evaluation written into the card of the checkpoint that was evaluated: the same numbers, not by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from capture.errors import UsageError
from models.bounded_json import read_json
from models.checkpoint_card import render_card
from models.checkpoint_files import read_files
from netcls.datasets.files import write_then_rename

ENTRY = "evaluations"  # of the card: a list, one entry an evaluation


def update_card(folder: Path, name: str, result: Mapping[str, Any]) -> None:
    """Add an evaluation to a checkpoint's ``card.json`` and ``README.md``; one of the same data and split is replaced.

    The card is no part of a checkpoint's digest: correcting a sentence makes no other model.

    Args:
        folder: of the checkpoint.
        name: of its row in ``result``.
        result: from :func:`netcls.evaluating.run_evaluate`.

    Raises:
        UsageError: the checkpoint was trained on captures that are tested here, so the numbers are void.
        CheckpointError: the folder is no checkpoint.
        DataError: it cannot be written.
    """
    row = next(row for row in result["rows"] if row["name"] == name)
    if row["seen"]["trained_on"]:
        raise UsageError(
            f"{folder}: {row['seen']['warning']}; its card is not changed, choose data that it has not seen"
        )
    files = read_files(folder)
    entry = _entry(row, result)
    others = [
        other
        for other in files.card.get(ENTRY, [])
        if (other.get("test_captures_sha256"), other.get("split"))
        != (entry["test_captures_sha256"], entry["split"])
    ]
    card = files.card | {ENTRY: [*others, entry]}
    page = render_card(folder.absolute().name, read_json(folder / "config.json"), files.labels, card)
    with write_then_rename(folder / "card.json") as file:
        file.write(f"{json.dumps(card, indent=2, ensure_ascii=False)}\n".encode(errors="surrogatepass"))
    with write_then_rename(folder / "README.md") as file:
        file.write(page.encode(errors="replace"))


def _entry(row: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    best = next(other for other in result["rows"] if other["name"] == result["best_baseline"])
    return {
        "data": result["data"]["name"],
        "test_captures_sha256": result["data"]["test_captures_sha256"],
        "split": result["split"]["description"],
        "optimism": result["split"]["optimism"],
        "test_flows": row["test_flows"],
        "classes": len(result["labels"]),
        "macro_f1": row["macro_f1"],
        "macro_f1_low": row["macro_f1_interval"][0],
        "macro_f1_high": row["macro_f1_interval"][1],
        "accuracy": row["accuracy"],
        "ece": row["calibration"]["ece_after"],
        "best_baseline": best["name"],
        "best_baseline_macro_f1": best["macro_f1"],
        "shortcuts": row.get("shortcut_verdict", "not looked for"),
        "seen": row["seen"]["warning"] or "no test capture is in its lists",
        "commit": result["code"]["commit"] or "unknown",
    }
