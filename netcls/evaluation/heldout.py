"""A trained network on the parts it was not trained on: calibrate on one, test once on the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from capture.errors import UsageError
from netcls.datasets.prepare import Prepared
from netcls.datasets.splits import CALIBRATION, TEST, TRAIN, VALIDATION
from netcls.evaluation.baselines import BaselineAnswer, BaselineInput, majority_baseline, run_baselines
from netcls.evaluation.calibration_report import calibration_facts
from netcls.evaluation.contenders import what_it_sees
from netcls.evaluation.drift import Reference, make_reference
from netcls.evaluation.metrics import confusion_matrix, score
from netcls.evaluation.report import Comparison, compare

if TYPE_CHECKING:
    from capture.representations import TokenBatch
    from models.checkpoint import Calibration, Checkpoint
    from models.checkpoint_files import ExitLevel
    from models.predictor import Predictor


LEAST_UNITS: Final = 5
"""Groups or hosts in the test part below which intervals are drawn over captures."""


@dataclass(frozen=True, slots=True)
class MeasureOptions:
    """How a network is measured.

    Attributes:
        seed: of baselines and bootstrap.
        threads: of inference and trees; None: one per core for inference, 2 for trees.
        device: auto, cpu or cuda.
        unknown_quantile: share of known flows that stay below the unknown threshold; None: no threshold.
        baselines: train all of them; False: the majority class only.
    """

    seed: int = 0
    threads: int | None = None
    device: str = "auto"
    unknown_quantile: float | None = 0.95
    baselines: bool = True


@dataclass(frozen=True, slots=True)
class Measured:
    """What the calibration and test parts said.

    Attributes:
        calibration: fitted on the calibration part.
        comparison: model and baselines on the test part.
        report: the same and more as JSON values.
        reference: what `netcls drift` compares with.
    """

    calibration: Calibration
    comparison: Comparison
    report: dict[str, Any]
    reference: Reference


def measure(
    prepared: Prepared,
    checkpoint: Checkpoint,
    options: MeasureOptions,
    on_progress: Callable[[str, dict[str, Any]], None],
) -> Measured:
    """Calibrate on the calibration part, then score the test part once, beside the baselines.

    Args:
        prepared: flows and split.
        checkpoint: a classifier of these labels and this input; its own calibration is not looked at.
        options: how.
        on_progress: called with the stages ``test`` and ``baselines``.
    """
    from models.checkpoint import Calibration
    from models.learning.calibration import fit_temperature, fit_unknown_threshold, softmax
    from models.predictor import Predictor

    on_progress("test", {})
    flows, split = prepared.flows, prepared.split
    held, test = split.rows(CALIBRATION), split.rows(TEST)
    repeated = np.flatnonzero(split.duplicate_of == TEST)
    with Predictor(checkpoint, threads=options.threads, device=options.device) as predictor:
        held_logits, test_logits, repeated_logits = (
            predictor.logits(flows.tokens.take(rows)) for rows in (held, test, repeated)
        )
        exits = exit_levels(predictor, flows.tokens.take(held), held_logits, flows.labels[held])
    temperature = fit_temperature(held_logits, flows.labels[held])
    threshold = None
    if options.unknown_quantile is not None:
        unknown_scores = np.clip(1 - softmax(held_logits, temperature).max(axis=1), 0, 1)
        threshold = fit_unknown_threshold(unknown_scores, options.unknown_quantile)
    truth, predicted = flows.labels[test], test_logits.argmax(axis=1).astype(np.int64)
    groups = bootstrap_units(prepared, test)
    answers = _baselines(prepared, checkpoint, options, on_progress)
    comparison = compare(
        truth,
        predicted,
        answers,
        groups,
        flows.label_names,
        model_sees=what_it_sees(checkpoint),
        seed=options.seed,
    )
    all_rows = np.concatenate([test, repeated])
    all_scores = score(
        flows.labels[all_rows],
        np.concatenate([predicted, repeated_logits.argmax(axis=1)]),
        bootstrap_units(prepared, all_rows),
        flows.label_names,
        seed=options.seed,
    )
    report = {
        "verdict": comparison.verdict,
        "labels": list(flows.label_names),
        "test": comparison.model.as_dict(),
        "test_with_repeated_inputs": {
            "flows": all_scores.n,
            "macro_f1": all_scores.macro_f1,
            "macro_f1_interval": list(all_scores.macro_f1_interval),
            "accuracy": all_scores.accuracy,
        },
        "baselines": comparison.rows,
        "difference_to_best_baseline": list(comparison.difference),
        "calibration": calibration_facts(
            test_logits,
            truth,
            held_logits,
            flows.labels[held],
            temperature,
            threshold,
            units=units_of(prepared),
            unseen=split.calibration_unseen,
            seed=options.seed,
        ),
        "confusion_matrix": confusion_matrix(truth, predicted, len(flows.label_names)).tolist(),
    }
    held_chances = softmax(held_logits, temperature)
    reference = make_reference(
        flows.tokens.take(split.rows(TRAIN)),
        held_chances.max(axis=1),
        held_chances.argmax(axis=1) == flows.labels[held],
    )
    return Measured(Calibration(temperature, threshold, exits), comparison, report, reference)


def exit_levels(
    predictor: Predictor, tokens: TokenBatch, final: NDArray[np.float32], labels: NDArray[np.int64]
) -> tuple[ExitLevel, ...]:
    """When the checkpoint may answer early, fitted on calibration flows; none for families that cannot.

    Args:
        predictor: of the checkpoint.
        tokens: of calibration flows.
        final: float32 (F, C), logits of the whole inputs.
        labels: int64 (F,).
    """
    from models.early_exit import LEVELS, fit_levels

    most = int(tokens.packets_used.max(initial=0))
    packets = tuple(level for level in LEVELS if level < most)
    try:
        logits = [predictor.logits_after(tokens, level) for level in packets]
    except UsageError:
        return ()
    if not logits:
        return ()
    return fit_levels(np.stack(logits), final, labels, tokens.packets_used, packets)


def bootstrap_units(prepared: Prepared, rows: NDArray[np.intp]) -> NDArray[np.int64]:
    """What the intervals draw: whole captures, or the coarser units that the split keeps together.

    With a split by flow, captures still: flows of one capture are no independent evidence. Where fewer than
    ``LEAST_UNITS`` groups or hosts are tested, captures too: of one group alone every draw would be the same.
    """
    flows = prepared.flows
    units = {"group": flows.group, "host": flows.host}.get(prepared.split.options.kind, flows.capture)
    tested = np.unique(units[prepared.split.rows(TEST)])
    return (units if len(tested) >= LEAST_UNITS else flows.capture)[rows]


def units_of(prepared: Prepared) -> str:
    """What test flows do not share with training flows, plural."""
    return {"group": "groups", "host": "hosts"}.get(prepared.split.options.kind, "captures")


def _baselines(
    prepared: Prepared,
    checkpoint: Checkpoint,
    options: MeasureOptions,
    on_progress: Callable[[str, dict[str, Any]], None],
) -> list[BaselineAnswer]:
    flows, split = prepared.flows, prepared.split
    data = BaselineInput(
        flows.records,
        flows.packets,
        flows.labels,
        split.rows(TRAIN),
        split.rows(VALIDATION),
        split.rows(TEST),
        len(flows.label_names),
        int(checkpoint.representation_settings.get("n_packets", 0)),
    )
    if not options.baselines:
        return [majority_baseline(data)]
    return run_baselines(
        data,
        seed=options.seed,
        threads=options.threads or 2,
        on_progress=lambda name: on_progress("baselines", {"name": name}),
    )
