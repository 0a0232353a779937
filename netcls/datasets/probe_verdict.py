"""The probe's findings in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Leak:
    """A field that gives the label away.

    Attributes:
        field: its name; ``capture`` (or what else is kept together) where the label is tied to the file.
        score: balanced accuracy of the field alone.
        split: under which split: what was kept together, or ``flow`` for flows at random.
        chance: the score of guessing.
        why: in words.
    """

    field: str
    score: float
    split: str
    chance: float
    why: str


@dataclass(frozen=True, slots=True)
class Findings:
    """All that the verdict is made from; see `run_probe`."""

    leaks: list[Leak]
    remarks: list[str]
    duplicates: dict[str, Any]
    information: dict[str, Any]
    fields: list[dict[str, Any]]
    has_honest_split: bool
    split: str


def verdict_of(found: Findings) -> str:
    """What a number on this data can and cannot mean, in a few sentences."""
    info, split = found.information, found.split
    if not found.has_honest_split:
        return (
            f"Fewer than two classes have two {split}s, so class and {split} cannot be told apart: "
            f"no number on this data says how a model will do elsewhere. Give more {split}s of each class."
        )
    sentences = [
        f"{leak.field} alone tells the label ({leak.score:.2f}, chance {leak.chance:.2f}): "
        "a model that sees it has learnt the field, not the traffic."
        for leak in found.leaks
        if leak.split != "flow"
    ]
    sentences += [
        f"The label hangs on the {split} ({leak.why}): a score of a random split means nothing; split by {split}."
        for leak in found.leaks
        if leak.split == "flow"
    ]
    chance = f"chance {info['chance']:.2f}, {info['classes']} classes, {info['units']} {split}s"
    if info["is_usable"]:
        sentences.append(
            f"Sizes, times and header fields tell the classes apart with balanced accuracy {info['score']:.2f} in a "
            f"{split} never seen ({chance}); a model should do better than that."
        )
    else:
        sentences.append(
            f"No usable information about the labels in sizes, times and header fields ({info['score']:.2f} in a "
            f"{split} never seen; {chance})."
        )
    if not found.leaks:
        sentences.insert(0, "No field that names a place gives the label away.")
    if found.duplicates["across_classes_share"] > 0:
        sentences.append(
            f"{found.duplicates['across_classes_share']:.0%} of the flows look exactly like flows of another class: "
            f"no model can exceed an accuracy of {found.duplicates['best_possible_accuracy']:.2f} here."
        )
    return " ".join(sentences)
