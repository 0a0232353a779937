"""What a result is worth without the fields that it leans on: each removed from all flows, and trained again.

Exchanging a field among test flows (:mod:`netcls.evaluation.shortcuts`) asks what a trained model leans on. Removing it
and training again asks what could be had without: a model that leans on a shortcut may do as well without it, or
the shortcut may have been all there was. Both are drawn in one chart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from netcls.datasets.splits import CALIBRATION, TRAIN, VALIDATION
from netcls.evaluation.baseline_rows import few_shot_trees
from netcls.evaluation.baselines import BaselineInput
from netcls.evaluation.comparison_data import ComparisonData
from netcls.evaluation.contenders import Contender, NetworkClassifier
from netcls.evaluation.field_removal import remove
from netcls.evaluation.metrics import macro_f1_difference
from netcls.evaluation.shortcuts import LEAST_DROP, sampled_test_rows
from netcls.evaluation.trained_rows import RowChoice, RowTrainer

if TYPE_CHECKING:
    from models.checkpoint import Checkpoint

_DRAWS: Final = 300


def fields_that_matter(checks: Sequence[Mapping[str, Any]], at_most: int) -> list[str]:
    """Fields whose exchange costs more than `LEAST_DROP` for certain: shortcuts first, then by what they cost."""
    found = [check for check in checks if check["drop"] > LEAST_DROP and check["drop_interval"][0] > 0]
    found.sort(key=lambda check: (not check["is_shortcut"], -check["drop"]))
    return [check["group"] for check in found[:at_most]]


def can_train(data: ComparisonData) -> bool:
    """Whether the split has something to train, validate and calibrate on."""
    return all(len(data.rows(part)) for part in (TRAIN, VALIDATION, CALIBRATION))


@dataclass(frozen=True, slots=True)
class Retrainer:
    """Trains a contender again on changed flows, with one seed.

    Attributes:
        base: that the trained rows start from; None: there are none.
        trainer_of: a trainer of rows that start from a checkpoint, on some data.
        trees_of: what baselines train on, of some data.
        seed: of training, sample and bootstrap.
        threads: of the trees.
    """

    base: Checkpoint | None
    trainer_of: Callable[[Checkpoint, ComparisonData], RowTrainer]
    trees_of: Callable[[ComparisonData], BaselineInput]
    seed: int
    threads: int

    def check(
        self,
        contender: Contender,
        checks: Sequence[dict[str, Any]],
        data: ComparisonData,
        *,
        max_flows: int,
        at_most: int,
    ) -> dict[str, Any]:
        """Train again without each field that matters.

        A checkpoint's own training is not known, so it is trained on here with all fields too, and that is compared.
        One seed: the interval is over test units alone.

        Args:
            contender: with at least one classifier.
            checks: of `check_shortcuts`; those that matter get ``retrained``: ``drop`` of macro-F1 and
                ``drop_interval``, on the sampled test flows.
            data: flows and split.
            max_flows: test flows that are looked at.
            at_most: fields.

        Returns:
            ``retrained_verdict``: a sentence for each field that was removed.
        """
        wanted = fields_that_matter(checks, at_most)
        rows = sampled_test_rows(data, self.seed, max_flows)
        truth, units, n_classes = data.labels[rows], data.units(rows), len(data.label_names)
        if not wanted:
            return {"retrained_verdict": ""}
        if contender.kind == "model":
            before = self._trained_answers(contender, data, rows)
        else:
            before = _answers(contender, data, rows)
        for check in checks:
            field = check["group"]
            if field in wanted:
                header_bytes = data.raw.keep.header_bytes
                without = data.changed(partial(remove, field=field, header_bytes=header_bytes))
                after = self._trained_answers(contender, without, rows)
                drop, low, high = macro_f1_difference(
                    truth, before, after, units, n_classes + 1, seed=self.seed, draws=_DRAWS
                )
                check["retrained"] = {"drop": drop, "drop_interval": [low, high]}
        return {"retrained_verdict": _verdict(checks)}

    def _trained_answers(
        self, contender: Contender, data: ComparisonData, rows: NDArray[np.intp]
    ) -> NDArray[np.int64]:
        """Answers of a fresh training on the train part of ``data``: int64 (F,)."""
        if contender.kind == "baseline":
            trees = self.trees_of(data)
            made = few_shot_trees(contender.name, trees, data, (self.seed,), None, threads=self.threads)
            return _answers(made, data, rows)
        first = contender.classifiers[0]
        start, row = self.base, contender.name
        if contender.kind == "model" and isinstance(first, NetworkClassifier):
            start, row = first.checkpoint, "full"
        assert start is not None  # a trained row has a base
        trainer = self.trainer_of(start, data)
        try:
            made = trainer.contender(RowChoice(row, 1), (self.seed,))
            answers = _answers(made, data, rows)
            made.close()
        finally:
            trainer.close()
        return answers


def _answers(contender: Contender, data: ComparisonData, rows: NDArray[np.intp]) -> NDArray[np.int64]:
    classifier = contender.classifiers[0]
    logits, _ = classifier.answer(data.batch(rows))
    return np.asarray(classifier.columns[logits.argmax(axis=1)])


def _verdict(checks: Sequence[Mapping[str, Any]]) -> str:
    tried = [check for check in checks if "retrained" in check]
    sentences = []
    for check in sorted(tried, key=lambda check: (not check["is_shortcut"], -check["retrained"]["drop"])):
        again = check["retrained"]
        low, high = (end * 100 for end in again["drop_interval"])
        lost = round(again["drop"] * 100)
        points = f"{'loses' if lost >= 0 else 'gains'} {abs(lost)} points (lost: [{low:.0f}, {high:.0f}])"
        if again["drop"] <= LEAST_DROP:
            cost = f"Trained without {check['group']}, it {points}: other fields tell the same"
            advice = ", so hide this one." if check["is_shortcut"] else "."
        elif again["drop_interval"][0] <= 0:
            cost, advice = f"Trained without {check['group']}, it {points}: not certain", "."
        else:
            cost = f"Trained without {check['group']}, it {points}"
            advice = ": so much of the number is the shortcut." if check["is_shortcut"] else "."
        sentences.append(cost + advice)
    return " ".join(sentences)
