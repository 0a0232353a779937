"""What a contender leans on: each field exchanged among the test flows, and what that costs.

Only the test part is changed; nothing is trained again. Source: "The Sweet Danger of Sugar" (SIGCOMM 2025) and
permutation importance (Breiman 2001), on packets instead of columns.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from capture.flow_batch import FlowBatch
from netcls.datasets.splits import TEST
from netcls.evaluation.comparison_data import ComparisonData
from netcls.evaluation.contenders import Contender
from netcls.evaluation.field_exchange import FIELDS, IDENTITY, exchange
from netcls.evaluation.metrics import macro_f1_difference, score
from netcls.evaluation.raw_flows import first_packets, take

LEAST_DROP: Final = 0.03  # of macro-F1; below it nothing is said


def check_shortcuts(
    contender: Contender, data: ComparisonData, *, seed: int, max_flows: int
) -> dict[str, Any]:
    """Macro-F1 of the first classifier with each field exchanged, and a verdict in words.

    Args:
        contender: with at least one classifier.
        data: flows and split.
        seed: of sample, exchange and bootstrap.
        max_flows: test flows that are looked at.

    Returns:
        ``shortcuts``: of each field its name, kind, drop in macro-F1 with interval, flows whose input changed, and
        whether it is a shortcut; ``shortcut_verdict``: a sentence.
    """
    rows = sampled_test_rows(data, seed, max_flows)
    batch, truth, units = data.batch(rows), data.labels[rows], data.units(rows)
    classifier, n_classes = contender.classifiers[0], len(data.label_names)
    logits, _ = classifier.answer(batch)
    plain = classifier.columns[logits.argmax(axis=1)]
    checks = []
    for number, field in enumerate(FIELDS):
        changed = exchange(batch, field, data.raw.keep.header_bytes, np.random.default_rng([seed, 5, number]))
        differs = classifier.differs(batch, changed)
        answered = plain.copy()
        if differs.any():
            again = np.flatnonzero(differs)
            others, _ = classifier.answer(take(changed, again))
            answered[again] = classifier.columns[others.argmax(axis=1)]
        drop, low, high = macro_f1_difference(
            truth, plain, answered, units, n_classes + 1, seed=seed, draws=300
        )
        checks.append(
            {
                "group": field,
                "kind": "identity" if field in IDENTITY else "behaviour",
                "drop": drop,
                "drop_interval": [low, high],
                "changed_flows": int(np.count_nonzero(differs)),
                "is_shortcut": bool(field in IDENTITY and drop > LEAST_DROP and low > 0),
            }
        )
    return {"shortcuts": checks, "shortcut_flows": len(rows), "shortcut_verdict": _verdict(checks)}


def _verdict(checks: list[dict[str, Any]]) -> str:
    found = sorted((check for check in checks if check["is_shortcut"]), key=lambda check: -check["drop"])
    seen = [check["group"] for check in checks if check["kind"] == "identity" and check["changed_flows"]]
    leans = [check for check in checks if check["kind"] == "behaviour" and check["drop"] > LEAST_DROP]
    behaviour = ", ".join(f"{check['group']} ({check['drop'] * 100:.0f} points)" for check in leans)
    tail = f" Of what the traffic does, it uses {behaviour}." if behaviour else ""
    if found:
        named = ", ".join(f"{check['group']} costs {check['drop'] * 100:.0f} points" for check in found)
        return f"Shortcut: {named}. A number that leans on it need not hold elsewhere.{tail}"
    if not seen:
        return f"It sees no field that names a place, a host or a recording.{tail}"
    return (
        f"No shortcut: no field that names a place, a host or a recording ({', '.join(seen)}) costs more than "
        f"{LEAST_DROP * 100:.0f} points.{tail}"
    )


def after_packets(
    contender: Contender, data: ComparisonData, *, seed: int, max_flows: int
) -> list[dict[str, Any]]:
    """Accuracy and macro-F1 of the first classifier if every flow ended after 1, 2, 4, ... packets.

    The last step is as many packets as are kept, which is what the contender sees at most.
    """
    rows = sampled_test_rows(data, seed, max_flows)
    batch, truth = data.batch(rows), data.labels[rows]
    classifier = contender.classifiers[0]
    names = (*data.label_names, "")
    points: list[dict[str, Any]] = []
    before: FlowBatch | None = None
    answered: NDArray[np.int64] = np.empty(0, np.int64)
    for n_packets in _steps(batch.packets.shape[1]):
        cut = first_packets(batch, n_packets)
        if before is None:
            logits, _ = classifier.answer(cut)
            answered = classifier.columns[logits.argmax(axis=1)]
        else:
            again = np.flatnonzero(classifier.differs(before, cut))
            if not len(again):  # it never looks further
                break
            logits, _ = classifier.answer(take(cut, again))
            answered = answered.copy()
            answered[again] = classifier.columns[logits.argmax(axis=1)]
        before = cut
        scores = score(truth, answered, data.units(rows), names, draws=0)
        points.append({"packets": n_packets, "accuracy": scores.accuracy, "macro_f1": scores.macro_f1})
    return points


def _steps(most: int) -> list[int]:
    steps = [1]
    while steps[-1] * 2 < most:
        steps.append(steps[-1] * 2)
    return [*steps, most] if most > 1 else steps


def sampled_test_rows(data: ComparisonData, seed: int, max_flows: int) -> NDArray[np.intp]:
    """Test rows, a seeded sample where there are more than ``max_flows``."""
    rows = data.rows(TEST)
    if len(rows) <= max_flows:
        return rows
    return np.sort(np.random.default_rng([seed, 6]).choice(rows, max_flows, replace=False))
