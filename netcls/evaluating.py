"""``netcls evaluate``: contenders side by side on the same labelled flows, and the truth about the result.

    read -> label -> split, once -> ask every contender for the test part -> measure -> one result object

The result is JSON values; :mod:`netcls.evaluation.html` makes a page of it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from capture.errors import CheckpointError, UsageError
from netcls.datasets.build import BuildOptions
from netcls.datasets.labels import ClockOffset
from netcls.datasets.sources import DataOptions
from netcls.datasets.splits import TEST, GroupRule, SplitKind, SplitOptions
from netcls.evaluation.baseline_rows import baseline_input, baseline_rows, few_shot_trees
from netcls.evaluation.baselines import BaselineInput
from netcls.evaluation.comparison_data import (
    ComparisonData,
    KnownLabels,
    read_comparison_data,
    split_facts,
)
from netcls.evaluation.contenders import Contender, NetworkClassifier, checkpoint_contender
from netcls.evaluation.measures import (
    Answers,
    ask,
    calibrate_baselines,
    measure_contender,
    score_only,
    time_contender,
)
from netcls.evaluation.retraining import Retrainer, can_train
from netcls.evaluation.seen_captures import SeenCaptures, seen_captures
from netcls.evaluation.shortcuts import after_packets, check_shortcuts
from netcls.evaluation.trained_rows import FROM_RANDOM_WEIGHTS, ROWS, SHOT_ROWS, RowChoice, RowTrainer
from netcls.evaluation.unknowns import backbone_of, measure_unknowns
from netcls.evaluation.verdict import best_network, verdict_of
from netcls.training_run import wait_passively

if TYPE_CHECKING:
    from capture.representations.base import Representation
    from models.checkpoint import Checkpoint

Progress = Callable[[str, dict[str, Any]], None]
EvaluationSplit = Literal["capture", "group", "host", "time", "flow", "none"]

FORMAT = 1
CHECKED_BASELINE = "lightgbm"
"""The baseline that is asked with fields exchanged and with fewer packets, as every network is."""


@dataclass(frozen=True, slots=True)
class EvaluateOptions:
    """All that decides an evaluation.

    Attributes:
        data: labelled captures, as for fine-tuning.
        models: checkpoints, names or folders.
        base: checkpoint that rows are trained from here; None: nothing but baselines is trained.
        rows: how, as for :meth:`netcls.evaluation.trained_rows.RowChoice.parse`.
        shots: flows of each class at which the learning curve is drawn.
        shot_rows: rows that it is drawn of, of those in ``rows``, beside LightGBM.
        max_seconds_per_row: of each training of a row, seconds.
        label, group, drop_labels, max_flows_per_capture, tolerance_s, clock_offset: how labels are read, as for
            fine-tuning.
        unknown_labels: classes that nothing here is trained on, to measure how well unknowns are found.
        split: as for fine-tuning, or ``none``: all of DATA is tested; None: that of a built dataset, else capture.
        group_rule: ``tuple`` or ``each``.
        leave_out: groups that are the test part; none: chosen by seed.
        seeds: of what is trained here, one training each; the first is that of sample, split and bootstrap too.
        split_seed: of the split; None: the first seed.
        baselines: train the baselines; False: the majority class only.
        checks: look for shortcuts, and at answers after few packets; several more passes over the test part.
        max_checked_flows: test flows that are looked at for that.
        retrained_fields: fields that matter, at most so many, are removed and the best network and LightGBM are
            trained again without each; 0: none.
        threads: of inference and trees; None: one per core for inference, 2 for trees.
        device: auto, cpu or cuda.
        cache_dir: keeps what was read of each capture for the next run; None: nothing is kept.
    """

    data: str
    models: tuple[str, ...] = ()
    base: str | None = None
    rows: tuple[str, ...] = ROWS
    shots: tuple[int, ...] = ()
    shot_rows: tuple[str, ...] = SHOT_ROWS
    max_seconds_per_row: float = 60.0
    label: str = "label"
    group: tuple[str, ...] = ()
    drop_labels: tuple[str, ...] = ("background",)
    max_flows_per_capture: int | None = None
    tolerance_s: float = 1.0
    clock_offset: ClockOffset = None
    unknown_labels: tuple[str, ...] = ()
    split: EvaluationSplit | None = None
    group_rule: GroupRule = "tuple"
    leave_out: tuple[tuple[str, ...], ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    split_seed: int | None = None
    baselines: bool = True
    checks: bool = True
    max_checked_flows: int = 1000
    retrained_fields: int = 3
    threads: int | None = None
    device: str = "auto"
    cache_dir: Path | None = None

    def __post_init__(self) -> None:
        if self.split is not None and self.split not in get_args(EvaluationSplit):
            raise UsageError(
                f"split {self.split!r} is not known; choose one of {', '.join(get_args(EvaluationSplit))}"
            )
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise UsageError(f"seeds are {list(self.seeds)}; expected one or more, all different")
        if self.base is not None and self.split == "none":
            raise UsageError("base is given to train rows from, but split none leaves nothing to train on")
        if self.base is None and self.shots:
            raise UsageError(
                "shots are given, but no base to train rows from; give --base, such as --base netmamba"
            )
        if min(self.shots, default=1) < 1:
            raise UsageError(f"shots: got {min(self.shots)}, expected 1 or more")
        self.row_choices()
        for row in self.shot_rows:
            if row not in ROWS:
                raise UsageError(f"shot_rows: row {row!r} is not known; choose from {', '.join(ROWS)}")

    @property
    def seed(self) -> int:
        """Of sample, split and bootstrap."""
        return self.seeds[0]

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """The checkpoints to evaluate: those given; the default one where nothing is trained here either."""
        return self.models or (("default",) if self.base is None else ())

    def row_choices(self) -> list[RowChoice]:
        """The rows to train."""
        return [RowChoice.parse(row) for row in self.rows] if self.base is not None else []

    def data_options(self) -> DataOptions:
        """How the table is read."""
        return DataOptions(self.label, self.group, self.drop_labels)

    def build_options(self) -> BuildOptions:
        """How flows are chosen."""
        return BuildOptions(
            self.max_flows_per_capture,
            self.seed,
            self.tolerance_s,
            self.threads or 2,
            self.cache_dir,
            self.clock_offset,
        )

    def split_options(self) -> SplitOptions | None:
        """How flows are divided; None: they are not."""
        if self.split == "none":
            if self.leave_out:
                raise UsageError(
                    "leave_out names test groups, but split none tests everything; use split group"
                )
            return None
        kind: SplitKind = self.split or "capture"
        seed = self.seed if self.split_seed is None else self.split_seed
        return SplitOptions(
            kind, seed, rule=self.group_rule, leave_out=self.leave_out, prefer_stored=self.split is None
        )


def run_evaluate(options: EvaluateOptions, on_progress: Progress | None = None) -> dict[str, Any]:
    """Compare checkpoints and baselines on labelled captures.

    Args:
        options: what to do.
        on_progress: called with a stage (``read``, ``baselines``, ``test``) and its details.

    Returns:
        The result, as JSON values.

    Raises:
        DataError: the labelled data cannot be used.
        CheckpointError: a model cannot be loaded.
        UsageError: the options contradict each other.
    """
    wait_passively()
    from models.checkpoint import load_checkpoint

    tell = on_progress or _silent
    start_s = time.monotonic()
    checkpoints = _load(options.checkpoints)
    base = None if options.base is None else load_checkpoint(options.base)
    networks = [checkpoint for _, checkpoint in checkpoints] + ([] if base is None else [base])
    data = read_comparison_data(
        options.data,
        options.data_options(),
        options.build_options(),
        options.split_options(),
        [_representation(checkpoint) for checkpoint in networks],
        checkpoints=[KnownLabels(name, tuple(checkpoint.labels)) for name, checkpoint in checkpoints],
        unknown_labels=options.unknown_labels,
        on_progress=lambda done, total: tell("read", {"done": done, "total": total}),
    )
    contenders: list[Contender] = []
    trainer = None if base is None else _trainer(options, base, data, tell)
    base_seen = None if base is None else seen_captures(base, f"base {base.name!r}", _tested(data))
    try:
        contenders += _checkpoint_contenders(options, checkpoints, data)
        if trainer is not None:
            contenders += _trained_contenders(options, trainer, base_seen)
        trees = baseline_input(networks, data)
        contenders += baseline_rows(
            trees,
            data,
            options.seeds,
            threads=options.threads or 2,
            is_wanted=options.baselines,
            on_progress=lambda details: tell("baselines", details),
        )
        calibrate_baselines(contenders, data)
        rows, answers = _measured(options, base, contenders, data, tell)
        if options.checks and options.retrained_fields and can_train(data):
            _retrain(options, base, networks, contenders, rows, data, tell)
        curve = [] if trainer is None else _learning_curve(options, trainer, trees, data)
    finally:
        for contender in contenders:
            contender.close()
        if trainer is not None:
            trainer.close()
    result = _result(options, data, contenders, rows, answers, time.monotonic() - start_s)
    if base is not None and base_seen is not None:
        result["base"] = {"name": base.name, "checkpoint": base.digest, "seen": base_seen.as_dict()}
        result["warnings"] += [base_seen.warning] if base_seen.warning else []
    return result | {"learning_curve": curve}


def _silent(_stage: str, _details: dict[str, Any]) -> None:
    """Nobody listens."""


def _load(names: tuple[str, ...]) -> list[tuple[str, Checkpoint]]:
    """Checkpoints under names that tell them apart."""
    from models.checkpoint import load_checkpoint

    found: list[tuple[str, Checkpoint]] = []
    for given in names:
        checkpoint = load_checkpoint(given)
        if checkpoint.kind != "classifier":
            raise CheckpointError(
                f"{given}: got a {checkpoint.kind}, expected a classifier; fine-tune it with `netcls finetune`"
            )
        if checkpoint.task.kind != "class":
            raise UsageError(
                f"{given}: its task is {checkpoint.task.kind}, expected a model of one label a flow; its scores are "
                "in its report.json"
            )
        name = checkpoint.name
        if any(name == other for other, _ in found):
            name = os.fspath(given)
        if any(checkpoint.path.resolve() == other.path.resolve() for _, other in found):
            raise UsageError(f"model {given!r} is given twice; give each checkpoint once")
        found.append((name, checkpoint))
    return found


def _representation(checkpoint: Checkpoint) -> Representation:
    from capture.representations import build

    return build(checkpoint.representation, checkpoint.representation_settings)


def _checkpoint_contenders(
    options: EvaluateOptions, checkpoints: list[tuple[str, Checkpoint]], data: ComparisonData
) -> list[Contender]:
    tested = _tested(data)
    made = []
    for name, checkpoint in checkpoints:
        contender = checkpoint_contender(
            name, checkpoint, data.raw, data.label_names, threads=options.threads, device=options.device
        )
        seen = seen_captures(checkpoint, f"model {name!r}", tested)
        contender.facts |= {"seen": seen.as_dict(), "is_void": bool(seen.trained_on)}
        made.append(contender)
    return made


def _tested(data: ComparisonData) -> list[str]:
    """SHA-256 of each test capture."""
    return [capture.digest() for capture in data.prepared.captures_of(TEST)]


def _trained_contenders(
    options: EvaluateOptions, trainer: RowTrainer, base_seen: SeenCaptures | None
) -> list[Contender]:
    """The rows that are trained here; one whose base has learnt test captures is void."""
    made = [trainer.contender(choice, options.seeds) for choice in options.row_choices()]
    for contender in made:
        starts_from_base = contender.name != FROM_RANDOM_WEIGHTS
        contender.facts["is_void"] = bool(starts_from_base and base_seen and base_seen.trained_on)
    return made


def _trainer(options: EvaluateOptions, base: Checkpoint, data: ComparisonData, tell: Progress) -> RowTrainer:
    return RowTrainer(
        base,
        data,
        max_seconds=options.max_seconds_per_row,
        threads=options.threads,
        device=options.device,
        on_progress=lambda details: tell("train", details),
    )


def _learning_curve(
    options: EvaluateOptions, trainer: RowTrainer, trees: BaselineInput, data: ComparisonData
) -> list[dict[str, Any]]:
    """Scores at each number of training flows a class: of `shot_rows`, and of the trees."""
    curves: dict[str, list[dict[str, Any]]] = {}
    choices = [choice for choice in options.row_choices() if choice.name in options.shot_rows]
    for shots in options.shots:
        rows = [(choice.name, trainer.contender(choice, options.seeds, shots)) for choice in choices]
        if options.baselines:
            few = few_shot_trees(
                CHECKED_BASELINE, trees, data, options.seeds, shots, threads=options.threads or 2
            )
            rows.append((CHECKED_BASELINE, few))
        for name, contender in rows:
            if contender.classifiers:
                scores = score_only(contender, data, seed=options.seed)
                curves.setdefault(name, []).append({"shots": shots, **scores})
            contender.close()
    return [{"name": name, "points": points} for name, points in curves.items()]


def _backbone_under(contender: Contender, base: Checkpoint | None) -> Checkpoint | None:
    """The backbone that a contender started from; None where it did not, or where that is not at hand."""
    if contender.kind == "model" and isinstance(contender.classifiers[0], NetworkClassifier):
        return backbone_of(contender.classifiers[0].checkpoint)
    is_based = contender.kind == "trained" and contender.name != FROM_RANDOM_WEIGHTS
    return base if is_based and base is not None and base.kind == "backbone" else None


def _measured(
    options: EvaluateOptions,
    base: Checkpoint | None,
    contenders: list[Contender],
    data: ComparisonData,
    tell: Progress,
) -> tuple[list[dict[str, Any]], dict[str, Answers]]:
    """One row of the result for each contender, and what those that were run said of the test part."""
    rows, answers = [], {}
    for contender in contenders:
        tell("test", {"name": contender.name})
        row: dict[str, Any] = {
            "name": contender.name,
            "kind": contender.kind,
            "sees": contender.sees,
            "seeds": contender.seeds,
            "skipped": contender.skipped,
            **contender.facts,
        }
        if contender.classifiers:
            said = ask(contender, data, data.rows(TEST))
            answers[contender.name] = said
            row |= measure_contender(contender, data, said, seed=options.seed)
            row["unknown"] = None
            if not contender.knows(data.unknown_names):
                row["unknown"] = measure_unknowns(
                    contender, data, said, _backbone_under(contender, base), options.device
                )
            if options.checks and (contender.kind != "baseline" or contender.name == CHECKED_BASELINE):
                tell("checks", {"name": contender.name})
                row |= check_shortcuts(
                    contender, data, seed=options.seed, max_flows=options.max_checked_flows
                )
                row["after_packets"] = after_packets(
                    contender, data, seed=options.seed, max_flows=options.max_checked_flows
                )
            row["speed"] = time_contender(contender, data, time.perf_counter)
        rows.append(row)
    return rows, answers


def _retrain(
    options: EvaluateOptions,
    base: Checkpoint | None,
    networks: list[Checkpoint],
    contenders: list[Contender],
    rows: list[dict[str, Any]],
    data: ComparisonData,
    tell: Progress,
) -> None:
    """Train the best network and the checked baseline again without the fields that matter to each."""
    best = best_network(rows)["name"]
    again = Retrainer(
        base,
        lambda checkpoint, changed: _trainer(options, checkpoint, changed, tell),
        lambda changed: baseline_input(networks, changed),
        seed=options.seed,
        threads=options.threads or 2,
    )
    for contender, row in zip(contenders, rows, strict=True):
        if contender.name in (best, CHECKED_BASELINE) and contender.classifiers:
            tell("retrain", {"name": contender.name})
            row |= again.check(
                contender,
                row["shortcuts"],
                data,
                max_flows=options.max_checked_flows,
                at_most=options.retrained_fields,
            )


def _result(
    options: EvaluateOptions,
    data: ComparisonData,
    contenders: list[Contender],
    rows: list[dict[str, Any]],
    answers: dict[str, Answers],
    seconds: float,
) -> dict[str, Any]:
    from netcls.bench import machine_facts
    from netcls.provenance import code_version

    split = split_facts(data, options.split_options())
    verdict = verdict_of(rows, answers, data, split, seed=options.seed)
    warnings = [*data.warnings]
    warnings += [row["seen"]["warning"] for row in rows if row.get("seen", {}).get("warning")]
    for contender in contenders:
        known = contender.knows(data.unknown_names)
        if known:
            warnings.append(
                f"{contender.name} was trained on {', '.join(known[:5])}, so these are no unknowns for it"
            )
    test = data.rows(TEST)
    return {
        "format": FORMAT,
        "kind": "evaluation",
        "verdict": verdict.text,
        "best": verdict.best,
        "best_baseline": verdict.best_baseline,
        "difference_to_best_baseline": list(verdict.difference),
        "warnings": warnings,
        "data": {
            "name": Path(options.data).name,
            "path": options.data,
            "label_column": options.label,
            "max_flows_per_capture": options.max_flows_per_capture,
            "test_captures_sha256": _digest_of_digests(data),
            **{key: value for key, value in data.prepared.report.as_dict().items() if key != "warnings"},
        },
        "split": split,
        "labels": list(data.label_names),
        "unknown_labels": list(data.unknown_names),
        "support": np.bincount(data.labels[test], minlength=len(data.label_names)).tolist(),
        "seeds": list(options.seeds),
        "rows": rows,
        "machine": machine_facts(),
        "code": code_version(),
        "seconds": seconds,
    }


def _digest_of_digests(data: ComparisonData) -> str:
    """One SHA-256 over the sorted SHA-256 of all test captures: whether two evaluations tested the same files."""
    import hashlib

    digests = sorted(_tested(data))
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()
