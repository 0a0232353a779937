"""Fine-tuning, from labelled captures to a checkpoint folder with an honest card.

    read -> label -> split -> train (validation picks the epoch) -> calibrate (calibration part)
         -> test once, with baselines on the same flows -> checkpoint folder and report.json

The state of a run lies in ``OUT.run`` until the checkpoint is complete.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from capture.errors import DataError, UsageError
from models.learning.team import refuse_team
from models.tasks import CLASS, TASKS
from netcls.datasets.build import BuildOptions, LabelledFlows
from netcls.datasets.files import write_then_rename
from netcls.datasets.labels import ClockOffset
from netcls.datasets.prepare import Prepared, prepare
from netcls.datasets.shots import Shots, keep_shots
from netcls.datasets.sources import DataOptions, LabelledCapture
from netcls.datasets.splits import CALIBRATION, TEST, TRAIN, VALIDATION, GroupRule, SplitKind, SplitOptions
from netcls.datasets.targets import UNITS
from netcls.evaluation.card import card_of_run
from netcls.evaluation.drift import write_reference
from netcls.evaluation.heldout import Measured, MeasureOptions, measure
from netcls.evaluation.seen_captures import seen_captures, write_seen_captures
from netcls.goals import Goal, goal_of, measure_goal
from netcls.provenance import code_version
from netcls.recipes import (
    CHOOSE_FROM,
    DEFAULT_BASE,
    LOSSES,
    METHODS,
    RANDOM_WEIGHTS,
    Recipe,
    batch_for,
    recipe,
)
from netcls.training_run import check_out, wait_passively

if TYPE_CHECKING:
    from capture.representations.base import Representation
    from models.checkpoint import Checkpoint
    from models.learning.batches import LabelledTokens
    from models.learning.finetune import FinetuneResult, FinetuneSettings
    from models.nets.adapters import Adapter

Progress = Callable[[str, dict[str, Any]], None]

_FAMILY: Final = "netmamba"


@dataclass(frozen=True, slots=True)
class FinetuneOptions:
    """All that decides a fine-tuning run.

    Attributes:
        data: labelled captures (directory of classes, table of captures, table of flows).
        out: checkpoint folder to make; must not exist or be empty.
        base: checkpoint to start from, a name or a folder (backbone, or classifier whose head is replaced); ``none``:
            from random weights; None: the default checkpoint, or random weights where ``family``,
            ``representation`` or ``sizes`` say what the network is.
        task: ``class``: one label a flow; ``regression``: the number ``target``; ``multilabel``: labels separated by
            ``;`` in the label column.
        target: ``bytes_left`` behind the packets that the model sees, or ``duration_s`` of the flow; of a regression.
        method: what is trained; ``full``: everything, ``head``: the linear head on the base's features, ``lora``: a
            low-rank adapter and the head.
        freeze: parts of the network that do not learn; of method ``full``.
        rank: of the adapter.
        alpha: of the adapter, whose changes are multiplied by alpha / rank; None: twice the rank.
        keep_adapter: write the adapter beside the checkpoint that it is merged into, too.
        shots: train on so many flows of each class, from as many captures as possible; None: on all.
        loss: ``ce``, or ``ldam``: margins that grow as classes shrink.
        label: column of the label. Tables only.
        group: columns whose values together are a group. Tables only.
        drop_labels: labels that are left out.
        split: what test flows have not in common with training flows: capture, group, host, time or flow; None: the
            split that a built dataset has, else capture.
        group_rule: ``tuple`` or ``each``, see `SplitOptions`.
        leave_out: groups that are the test part; None: chosen by seed.
        epochs: passes over the training flows; None: the method's.
        batch: flows of a step; None: few where there are few flows.
        learning_rate: peak, of the topmost layer; None: the method's.
        balance: 0 draws flows as they are, 1 all classes equally often.
        patience_epochs: stop after so many epochs without a better one; None: never.
        max_seconds: training time, seconds; None: no limit.
        seed: of sample, training, baselines and bootstrap.
        split_seed: of the split; None: ``seed``.
        max_flows_per_capture: flows of each class from each capture, 0: all; None: 20, or all of a built dataset.
        tolerance_s: by how much times of rows and flows may differ, seconds.
        clock_offset: seconds to add to the times of a table's rows; ``auto``: what each capture shows; None: nothing.
        unknown_quantile: share of known flows that stay below the unknown threshold; None: no threshold.
        threads: of reading, training and trees; None: 2 for reading and trees, torch's own for training.
        device: auto, cpu or cuda.
        family: model family; taken from ``base`` where there is one.
        representation: its settings; those left out at their defaults, or as in ``base``.
        sizes: fields of the family's configuration; those left out at their defaults. Without ``base`` only.
        baselines: train the baselines too; without them only the majority class is compared.
        cache_dir: keeps what was read of each capture for the next run; None: nothing is kept.
        resume: go on with an interrupted run of the same options.
        licence: of the weights, for the card.
    """

    data: str
    out: str
    base: str | None = None
    task: str = "class"
    target: str | None = None
    method: str = "full"
    freeze: tuple[str, ...] = ()
    rank: int = 8
    alpha: float | None = None
    keep_adapter: bool = False
    shots: int | None = None
    loss: str = "ce"
    label: str = "label"
    group: tuple[str, ...] = ()
    drop_labels: tuple[str, ...] = ("background",)
    split: SplitKind | None = None
    group_rule: GroupRule = "tuple"
    leave_out: tuple[tuple[str, ...], ...] = ()
    epochs: int | None = None
    batch: int | None = None
    learning_rate: float | None = None
    balance: float = 0.5
    patience_epochs: int | None = None
    max_seconds: float | None = None
    seed: int = 0
    split_seed: int | None = None
    max_flows_per_capture: int | None = None
    tolerance_s: float = 1.0
    clock_offset: ClockOffset = None
    unknown_quantile: float | None = 0.95
    threads: int | None = None
    device: str = "auto"
    family: str = _FAMILY
    representation: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, Any] = field(default_factory=dict)
    baselines: bool = True
    cache_dir: Path | None = None
    resume: bool = False
    licence: str = "not stated"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(f"method {self.method!r} is not available; choose {', '.join(METHODS)}")
        self._check_task()
        if self.loss not in LOSSES:
            raise UsageError(f"loss {self.loss!r} is not available; choose {', '.join(LOSSES)}")
        if self.method != "full" and self.start is None:
            raise UsageError(
                f"method {self.method!r} trains no backbone and would start from random weights; give --base, such as "
                "--base default"
            )
        if self.keep_adapter and self.method != "lora":
            raise UsageError(f"keep_adapter is given, but method {self.method!r} makes none; use method lora")
        for name in ("rank", "shots"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UsageError(f"{name}: got {getattr(self, name)}, expected 1 or more")
        if self.start is not None and self.sizes:
            raise UsageError(
                f"sizes {', '.join(self.sizes)} are given, but they follow from base {self.start!r}; leave them out"
            )

    def _check_task(self) -> None:
        if self.task not in TASKS:
            raise UsageError(f"task {self.task!r} is not available; choose {', '.join(TASKS)}")
        targets = ", ".join(UNITS)
        if self.task == "regression" and self.target not in UNITS:
            raise UsageError(f"target is {self.target!r}, but a regression needs one; choose {targets}")
        if self.task != "regression" and self.target is not None:
            raise UsageError(
                f"target {self.target!r} is given, but task {self.task!r} has none; use task regression"
            )
        if self.task != "class" and self.loss != "ce":
            raise UsageError(f"loss {self.loss!r} is for task class; leave it out with task {self.task!r}")
        if self.task != "class" and self.keep_adapter:
            raise UsageError(
                f"keep_adapter is given, but adapters are kept for task class only, not {self.task!r}"
            )

    @property
    def start(self) -> str | None:
        """Name or folder of the checkpoint that is started from; None: random weights."""
        if self.base is not None:
            return None if self.base == RANDOM_WEIGHTS else self.base
        describes_network = self.sizes or self.representation or self.family != _FAMILY
        return None if describes_network else DEFAULT_BASE

    @property
    def recipe(self) -> Recipe:
        """What fills in the epochs and the learning rate that are not given."""
        return recipe(self.method, from_base=self.start is not None)

    @property
    def adapter_alpha(self) -> float:
        """The alpha that is used."""
        return 2.0 * self.rank if self.alpha is None else self.alpha

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

    def measure_options(self) -> MeasureOptions:
        """How the trained network is measured."""
        return MeasureOptions(self.seed, self.threads, self.device, self.unknown_quantile, self.baselines)

    def split_options(self) -> SplitOptions:
        """How flows are divided."""
        seed = self.seed if self.split_seed is None else self.split_seed
        return SplitOptions(
            self.split or "capture",
            seed,
            rule=self.group_rule,
            leave_out=self.leave_out,
            prefer_stored=self.split is None,
        )


def run_finetune(options: FinetuneOptions, on_progress: Progress | None = None) -> dict[str, Any]:
    """Train, calibrate, test, and write the checkpoint folder.

    Args:
        options: what to do.
        on_progress: called with a stage (``read``, ``train``, ``test``, ``baselines``) and its details.

    Returns:
        The report, as JSON values; the same is in ``OUT/report.json``.

    Raises:
        DataError: the labelled data cannot be used.
        CheckpointError: the base cannot be used, or the checkpoint cannot be written.
        UsageError: the options contradict each other or the folder is in use.
        KeyboardInterrupt: on Ctrl-C; the run can be resumed.
    """
    wait_passively()
    refuse_team("finetune")
    tell = on_progress or _silent
    out = Path(options.out)
    run_dir = check_out(out, resume=options.resume)
    start_s = time.monotonic()
    model = _Start.of(options)
    prepared = prepare(
        options.data,
        model.representation,
        options.data_options(),
        options.build_options(),
        options.split_options(),
        on_progress=lambda done, total: tell("read", {"done": done, "total": total}),
    )
    read_s = time.monotonic() - start_s
    goal = goal_of(options.task, options.target, prepared, model.representation.keep.n_packets)
    shots = None if options.shots is None else keep_shots(prepared, options.shots, options.seed)
    overlap = corpus_overlap(model.base, prepared) if model.base is not None else ""
    settings = _settings(options, prepared)
    trained = _train(options, settings, model, prepared, goal, run_dir, tell)
    checkpoint = _unsaved_checkpoint(out, model, goal, trained)
    result: Measured | None = None
    if goal.task == CLASS:
        result = measure(prepared, checkpoint, options.measure_options(), tell)
        checkpoint, report = replace(checkpoint, calibration=result.calibration), result.report
    else:
        checkpoint, report = measure_goal(goal, prepared, checkpoint, options.measure_options(), tell)
    report.update(
        {
            "out": str(out),
            "data": {"path": str(options.data), **prepared.report.as_dict()},
            "split": prepared.split_summary(),
            "training": _training_facts(options, settings, model, trained, shots),
            "seconds": {"read": read_s, "all": time.monotonic() - start_s},
        }
    )
    limits = [
        *prepared.split.warnings,
        *([overlap] if overlap else []),
        *(shots.sentences() if shots else []),
        *goal.sentences(),
        *filter(None, [report.get("calibration", {}).get("comment")]),
    ]
    report["warnings"] = [*prepared.report.warnings, *limits]
    report["code"] = code_version()
    card = card_of_run(
        f"{checkpoint.name}: {model.family} fine-tuned",
        Path(options.data).name,
        report,
        None if result is None else result.comparison,
        licence=options.licence,
        limits=limits,
    )
    seen = [c for part in (TRAIN, VALIDATION, CALIBRATION) for c in prepared.captures_of(part)]
    written = _write(options, model, replace(checkpoint, card=card), report, seen, run_dir, trained.adapter)
    if result is not None:
        write_reference(out, result.reference)
    return written


def _silent(_stage: str, _details: dict[str, Any]) -> None:
    """Nobody listens."""


@dataclass(frozen=True, slots=True)
class _Start:
    """What training starts from: family, input, sizes, and the base if any."""

    family: str
    representation: Representation
    config: Any
    base: Checkpoint | None

    @classmethod
    def of(cls, options: FinetuneOptions) -> _Start:
        from capture.representations import build
        from models.families import family

        if options.start is None:
            kind = family(options.family)
            representation = build(kind.representation, options.representation)
            try:
                config = kind.config_for(representation.settings(), **options.sizes)
            except (TypeError, ValueError) as error:
                raise UsageError(f"sizes: {error}") from None
            return cls(options.family, representation, config, None)
        from models.checkpoint import load_checkpoint

        base = load_checkpoint(options.start)
        representation = build(base.representation, base.representation_settings | options.representation)
        if representation.settings() != base.representation_settings:
            raise UsageError(
                f"representation {options.representation} contradicts base {options.start!r}, which has "
                f"{base.representation_settings}; leave it out or choose another base"
            )
        return cls(base.family, representation, base.model_config, base)


def _labelled_tokens(flows: LabelledFlows, goal: Goal, rows: NDArray[np.intp]) -> LabelledTokens:
    from models.learning.batches import LabelledTokens

    return LabelledTokens(flows.tokens.take(rows), goal.targets[rows], flows.group[rows])


def _settings(options: FinetuneOptions, prepared: Prepared) -> FinetuneSettings:
    """How to train these flows: the options, completed by the method's recipe."""
    from models.learning.finetune import FinetuneSettings

    defaults = options.recipe
    n_flows = len(prepared.split.rows(TRAIN))
    batch = options.batch or batch_for(n_flows)
    return FinetuneSettings(
        task=options.task,
        method=options.method,
        freeze=options.freeze,
        rank=options.rank,
        alpha=options.adapter_alpha,
        loss=options.loss,
        epochs=options.epochs or defaults.epochs_for(n_flows, batch),
        batch=batch,
        learning_rate=options.learning_rate or defaults.learning_rate_for(batch),
        layer_decay=defaults.layer_decay,
        balance=options.balance,
        patience_epochs=options.patience_epochs,
        choose_from=CHOOSE_FROM if options.start is not None else 1,
        max_seconds=options.max_seconds,
        seed=options.seed,
        threads=options.threads,
        device=options.device,
    )


def _train(
    options: FinetuneOptions,
    settings: FinetuneSettings,
    start: _Start,
    prepared: Prepared,
    goal: Goal,
    run_dir: Path,
    tell: Progress,
) -> FinetuneResult:
    from models.families import family
    from models.learning.finetune import finetune

    flows, split = prepared.flows, prepared.split
    # The head alone learns on features that are computed once.
    augment = None if settings.method == "head" else family(start.family).augment
    return finetune(
        start.family,
        start.config,
        _labelled_tokens(flows, goal, split.rows(TRAIN)),
        _labelled_tokens(flows, goal, split.rows(VALIDATION)),
        len(goal.outputs),
        settings,
        init_state=None if start.base is None else start.base.state,
        run_dir=run_dir,
        resume=options.resume,
        on_progress=lambda details: tell("train", details),
        augment=augment,
    )


def _unsaved_checkpoint(out: Path, start: _Start, goal: Goal, trained: FinetuneResult) -> Checkpoint:
    """The trained network as a checkpoint in memory, not yet calibrated."""
    import dataclasses

    from models.checkpoint import Calibration, Checkpoint

    config = start.config if isinstance(start.config, dict) else dataclasses.asdict(start.config)
    return Checkpoint(
        path=out,
        kind="classifier",
        family=start.family,
        model_config=config,
        representation=start.representation.name,
        representation_version=start.representation.version,
        representation_settings=start.representation.settings(),
        labels=list(goal.outputs),
        calibration=Calibration(),
        card={},
        state=trained.state,
        digest="",
        task=goal.task,
    )


def corpus_overlap(base: Checkpoint, prepared: Prepared) -> str:
    """A warning where test captures are, or may be, among those that the base was trained on; else empty."""
    tested = [capture.digest() for capture in prepared.captures_of(TEST)]
    return seen_captures(base, f"base {base.name!r}", tested).warning


def _training_facts(
    options: FinetuneOptions,
    settings: FinetuneSettings,
    start: _Start,
    trained: FinetuneResult,
    shots: Shots | None,
) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "method": options.method,
        "base": None if start.base is None else {"name": start.base.name, "checkpoint": start.base.digest},
        "epochs": len(trained.history),
        "best_epoch": trained.best_epoch,
        "batch": settings.batch,
        "learning_rate": settings.learning_rate,
        "layer_decay": settings.layer_decay,
        "loss": settings.loss,
        "balance": settings.balance,
        "seed": options.seed,
        "elapsed_s": trained.history[-1]["elapsed_s"] if trained.history else 0.0,
        "history": trained.history,
    }
    if options.method == "lora":
        facts |= {"rank": settings.rank, "alpha": settings.alpha}
    if options.freeze:
        facts["freeze"] = list(options.freeze)
    if shots is not None:
        facts["shots"] = shots.as_dict()
    return facts


def _write(
    options: FinetuneOptions,
    start: _Start,
    checkpoint: Checkpoint,
    report: dict[str, Any],
    seen: list[LabelledCapture],
    run_dir: Path,
    adapter: Adapter | None,
) -> dict[str, Any]:
    """Write the checkpoint folder, then what it has seen, adapter and report beside it, then forget the run's state."""
    saved = checkpoint.save(options.out)
    report["checkpoint"] = saved.digest
    write_seen_captures(Path(options.out), seen, start.base)
    if options.keep_adapter and adapter is not None and start.base is not None:
        from models.adapter_files import save_adapter

        save_adapter(Path(options.out), adapter, start.base, saved.labels, saved.calibration)
    text = json.dumps(report, indent=1, ensure_ascii=False)
    with write_then_rename(Path(options.out) / "report.json") as file:
        file.write(text.encode(errors="surrogateescape") + b"\n")
    shutil.rmtree(run_dir, ignore_errors=True)
    values: dict[str, Any] = json.loads(text)
    return values


def held_out_captures(options: FinetuneOptions) -> list[Path]:
    """Captures that a fine-tuning run of these options calibrates or tests on, by path.

    A backbone that such a run starts from must not have seen them.

    Raises:
        DataError: the labelled data cannot be used.
    """
    from netcls.datasets.prepare import evaluation_captures

    prepared = prepare(
        options.data,
        _Start.of(options).representation,
        options.data_options(),
        options.build_options(),
        options.split_options(),
    )
    captures = evaluation_captures(prepared)
    if not captures:
        raise DataError(f"{options.data}: no capture is in the test part")
    return captures
