"""Fine-tuning: labelled tokens and pretrained weights to a classifier. What learns: :mod:`models.learning.methods`.

The recipe is NetMamba's (arXiv 2405.11449): AdamW, learning rate 5e-4 at batch 64, one sixth of the run warm-up, half
cosine to 1e-6, layer decay 0.75, weight decay 0.05, label smoothing 0.1, the best epoch by validation. Departures:
flows are drawn by class (``balance``), the gradient is clipped, the best epoch goes by macro-F1 and not by accuracy.

A run is a function of seed and data: the same seed gives the same weights on the same machine and number of threads,
also when the run was interrupted and resumed in between (except with ``max_seconds``, which follows the clock).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from capture.errors import UsageError
from models.learning.batches import LabelledTokens, fingerprint, step_seed, to_device
from models.learning.losses import LOSSES
from models.learning.methods import METHODS, Full, HeadMethod, LowRankMethod, Method
from models.learning.objectives import Objective, objective, start_head
from models.learning.run_state import Interrupt, Learner, RunFolder, seeded
from models.learning.schedules import cosine_with_warmup, parameter_groups, run_progress
from models.learning.start import choose_device, identity_of, load_body, resolve, training_process
from models.nets.adapters import head_of
from models.predictor import forward
from models.tasks import TASKS

if TYPE_CHECKING:
    from models.families import Family
    from models.nets.adapters import Adapter

Progress = Callable[[dict[str, Any]], None]
Augment = Callable[[dict[str, NDArray[Any]], np.random.Generator], dict[str, NDArray[Any]]]

_WITHOUT_DECAY = ("pos_embed", "cls_token", "size_cls_token", "iat_cls_token", "byte_cls_token")
_POSITION = ("epoch", "step_in_epoch", "loss_sum", "history", "best_epoch", "finished")
# May change when a run is resumed: where and how long it runs, not what it computes.
_FREE = ("patience_epochs", "max_seconds", "threads", "device", "save_every_s", "validation_batch")


@dataclass(frozen=True, slots=True)
class FinetuneSettings:
    """How to fine-tune.

    Attributes:
        task: what the head answers, see :mod:`models.tasks`.
        method: what learns: ``full``, ``head`` or ``lora``.
        freeze: parts of the body that do not learn (``full``), by the family's names; ``all``: only what pre-training
            did not give, and pooling.
        rank: largest rank of a change of a weight (``lora``).
        alpha: a change is multiplied by alpha / rank (``lora``).
        loss: ``ce``, or ``ldam`` with margins by class size.
        epochs: passes over the training flows.
        batch: flows of a step.
        learning_rate: at its peak, of the topmost layer.
        min_learning_rate: at the end.
        warmup_share: share of the run in which the learning rate rises, 0 to below 1.
        layer_decay: factor on the learning rate for each layer further down.
        weight_decay: of AdamW; none on 1-D tensors, positions and class token.
        label_smoothing: probability given away to the other labels (``ce``).
        balance: 0 draws flows as they are, 1 all classes equally often, 0.5 in proportion to 1 / sqrt(flows of class).
        clip_norm: largest norm of the gradient; None = not clipped.
        patience_epochs: stop after so many epochs without a better one; None = never.
        choose_from: validation flows from which the best epoch by validation is kept; with fewer the last one, because
            they name the best by chance. ``patience_epochs`` keeps the best whatever their number.
        max_seconds: stop after so many seconds; the schedule then follows the clock. None = no limit.
        seed: of everything random.
        threads: of torch; None = as they are.
        device: ``cpu``, ``cuda`` or ``auto``.
        save_every_s: seconds between two saved states; one is saved after each epoch as well.
        validation_batch: flows at a time when validating.

    Raises:
        UsageError: from the constructor, for a value that cannot be.
    """

    task: str = "class"
    method: str = "full"
    freeze: tuple[str, ...] = ()
    rank: int = 8
    alpha: float = 16.0
    loss: str = "ce"
    epochs: int = 120
    batch: int = 64
    learning_rate: float = 5e-4
    min_learning_rate: float = 1e-6
    warmup_share: float = 1 / 6
    layer_decay: float = 0.75
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    balance: float = 0.5
    clip_norm: float | None = 1.0
    patience_epochs: int | None = None
    choose_from: int = 1
    max_seconds: float | None = None
    seed: int = 0
    threads: int | None = None
    device: str = "auto"
    save_every_s: float = 60.0
    validation_batch: int = 64

    def __post_init__(self) -> None:
        for name, known in (("task", TASKS), ("method", METHODS), ("loss", LOSSES)):
            if getattr(self, name) not in known:
                raise UsageError(f"{name}: got {getattr(self, name)!r}, expected one of {', '.join(known)}")
        least_of = {"epochs": 1, "batch": 1, "validation_batch": 1, "rank": 1, "seed": 0, "choose_from": 0}
        for name, least in least_of.items():
            if getattr(self, name) < least:
                raise UsageError(f"{name}: got {getattr(self, name)}, expected {least} or more")
        for name in ("threads", "patience_epochs"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UsageError(f"{name}: got {getattr(self, name)}, expected 1 or more")
        for name in ("learning_rate", "layer_decay", "clip_norm", "max_seconds", "alpha"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise UsageError(f"{name}: got {getattr(self, name)}, expected more than 0")
        for name in ("warmup_share", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"{name}: got {getattr(self, name)}, expected 0 to below 1")
        if self.freeze and self.method != "full":
            raise UsageError(
                f"freeze: got method {self.method!r}, which freezes the body itself; leave it out"
            )
        if not 0 <= self.balance <= 1:
            raise UsageError(f"balance: got {self.balance}, expected 0 to 1")


@dataclass(frozen=True, slots=True)
class FinetuneResult:
    """What fine-tuning gave.

    Attributes:
        state: tensor by name of the best epoch, on the CPU.
        history: one entry an epoch: epoch (from 1), step, loss, validation_loss, the task's score (``val_macro_f1``, of
            a regression ``val_r2``; None without
            validation flows), lr, elapsed_s.
        best_epoch: from 1; the last one without validation flows.
        adapter: of method ``lora``, also merged into ``state``; else None.
    """

    state: dict[str, torch.Tensor]
    history: list[dict[str, Any]]
    best_epoch: int
    adapter: Adapter | None = None


def finetune(
    family: Family | str,
    model_config: Any,
    train: LabelledTokens,
    validation: LabelledTokens,
    n_labels: int,
    settings: FinetuneSettings,
    *,
    init_state: Mapping[str, torch.Tensor] | None = None,
    run_dir: Path,
    resume: bool = False,
    on_progress: Progress | None = None,
    augment: Augment | None = None,
) -> FinetuneResult:
    """Fine-tune a classifier.

    Args:
        family: of the network.
        model_config: its configuration object, or a mapping with every field.
        train: flows to learn from.
        validation: flows to choose the epoch by; may be empty.
        n_labels: C; outputs of the head.
        settings: how.
        init_state: weights of a backbone or classifier to start from (its head is left out); None = from scratch.
        run_dir: where the state of the run is kept.
        resume: go on from the state in ``run_dir``; a finished run gives its result again.
        on_progress: called after each step and each validation with epoch, epochs, step, steps, loss, lr,
            samples_per_s, eta_s and the task's score (of the last validation, else None).
        augment: changes the arrays of a training batch, given a generator that depends on seed and step alone. Not
            with method ``head``, whose features are computed once.

    Raises:
        DataError: for labels that do not fit.
        CheckpointError: for initial weights or a saved state that do not fit.
        TrainingError: if the loss is not finite.
        UsageError: if ``augment`` is given with method ``head``.
        KeyboardInterrupt: on Ctrl-C, after the state was saved.
    """
    if augment is not None and settings.method == "head":
        raise UsageError(
            "augment: got one with method 'head', whose features are computed once; leave it out"
        )
    family, config = resolve(family, model_config)
    with training_process(settings.threads), Interrupt() as interrupt:
        device = choose_device(settings.device)
        seeded(step_seed(settings.seed, 0), device)
        model = family.build_classifier(config, n_labels)
        if init_state is not None:
            load_body(model, init_state, family, config)
        goal = objective(
            settings.task, train, n_labels, settings.loss, settings.balance, settings.label_smoothing, device
        )
        goal.check(train, "training flows", False)
        goal.check(validation, "validation flows", True)
        start_head(settings.task, head_of(model), train.labels)
        freeze(model, family, settings.freeze)
        method = _method(model.to(device), train, validation, settings, device)
        groups = parameter_groups(
            method.network,
            settings.weight_decay,
            without_decay=_WITHOUT_DECAY,
            layer_decay=settings.layer_decay,
            depth_of=lambda name: family.layer_index(name, config),
        )
        identity = identity_of(
            family,
            config,
            settings,
            _FREE,
            n_labels=n_labels,
            training_flows=fingerprint(train.labels, *train.tokens.arrays.values()),
            validation_flows=fingerprint(validation.labels, *validation.tokens.arrays.values()),
        )
        folder = RunFolder(run_dir, identity)
        learner = Learner(
            method.network, groups, (0.9, 0.999), settings.clip_norm, folder, settings.save_every_s
        )
        run = _Finetuning(learner, method, goal, settings, device, interrupt, on_progress, augment)
        if resume:
            run.restore()
        return run.run()


def freeze(model: torch.nn.Module, family: Family, parts: tuple[str, ...]) -> None:
    """Keep parts of a classifier's body as they are.

    Args:
        model: of ``family``.
        family: names the parts.
        parts: their names, or ``all``.

    Raises:
        UsageError: for a part that the network does not have.
    """
    part_of = family.part_of or (lambda _: "")
    of_name = {name: part_of(name) for name, _ in model.named_parameters()}
    known = sorted({part for part in of_name.values() if part})
    for part in parts:
        if not known or part not in (*known, "all"):
            expected = f"one of {', '.join([*known, 'all'])}" if known else "none: it has no named parts"
            raise UsageError(f"freeze: got {part!r} of family {family.name}, expected {expected}")
    for name, parameter in model.named_parameters():
        if of_name[name] and ("all" in parts or of_name[name] in parts):
            parameter.requires_grad_(False)


def _method(
    model: torch.nn.Module,
    train: LabelledTokens,
    validation: LabelledTokens,
    settings: FinetuneSettings,
    device: torch.device,
) -> Method:
    if settings.method == "head":
        is_class = settings.task == "class"
        return HeadMethod(model, train, validation, settings.validation_batch, device, fit_first=is_class)
    if settings.method == "lora":
        return LowRankMethod(model, train, validation, settings.rank, settings.alpha)
    return Full(model, train, validation)


class _Finetuning:
    """One run: where it is, and the loop over epochs and steps."""

    def __init__(
        self,
        learner: Learner,
        method: Method,
        goal: Objective,
        settings: FinetuneSettings,
        device: torch.device,
        interrupt: Interrupt,
        on_progress: Progress | None,
        augment: Augment | None,
    ) -> None:
        self._learner = learner
        self._method = method
        self._train = method.train
        self._validation = method.validation
        self._goal = goal
        self._settings = settings
        self._device = device
        self._interrupt = interrupt
        self._on_progress = on_progress
        self._augment = augment
        self._epoch = 0
        self._step_in_epoch = 0
        self._n_steps_in_epoch = 0
        self._loss_sum = 0.0
        self._history: list[dict[str, Any]] = []
        self._best: dict[str, torch.Tensor] = {}
        self._best_epoch = 0
        self._finished = False

    def run(self) -> FinetuneResult:
        while not self._finished:
            self._train_epoch()
            if self._step_in_epoch == 0:  # resumed with less time than had been used
                break
            self._finish_epoch()
        state, adapter = self._method.result(self._best)
        return FinetuneResult(state, self._history, self._best_epoch, adapter)

    def restore(self) -> None:
        position, self._best = self._learner.restore(_POSITION)
        self._epoch = position["epoch"]
        self._step_in_epoch = position["step_in_epoch"]
        self._loss_sum = position["loss_sum"]
        self._history = position["history"]
        self._best_epoch = position["best_epoch"]
        self._finished = position["finished"]

    def _save(self) -> None:
        values = (
            self._epoch,
            self._step_in_epoch,
            self._loss_sum,
            self._history,
            self._best_epoch,
            self._finished,
        )
        self._learner.save(dict(zip(_POSITION, values, strict=True)), self._best)

    def _save_if_interrupted(self) -> None:
        if self._interrupt.requested:
            self._save()
            raise KeyboardInterrupt

    def _out_of_time(self) -> bool:
        limit = self._settings.max_seconds
        return limit is not None and self._learner.clock.elapsed_s >= limit

    def _train_epoch(self) -> None:
        """The rest of this epoch's steps, or as many as there is time for (one at least in the first epoch)."""
        settings = self._settings
        rows = self._goal.rows(settings.seed, self._epoch)
        self._n_steps_in_epoch = -(-len(rows) // settings.batch)
        self._learner.model.train()
        while self._step_in_epoch < self._n_steps_in_epoch:
            if self._out_of_time() and self._learner.step > 0:
                return
            start = self._step_in_epoch * settings.batch
            loss = self._train_step(rows[start : start + settings.batch])
            self._loss_sum += loss
            self._step_in_epoch += 1
            self._report(loss)
            if self._learner.save_is_due and self._step_in_epoch < self._n_steps_in_epoch:
                self._save()
            self._save_if_interrupted()

    def _train_step(self, rows: NDArray[np.int64]) -> float:
        settings, learner = self._settings, self._learner
        start_s = time.monotonic()
        seeded(step_seed(settings.seed, learner.step + 1), self._device)
        arrays = self._train.tokens.take(rows).arrays
        if self._augment is not None:
            arrays = self._augment(arrays, np.random.default_rng([settings.seed, 3, learner.step]))
        labels = torch.from_numpy(self._train.labels[rows]).to(self._device)
        logits = learner.model(*to_device(arrays, self._device))
        loss = self._goal.loss(logits.float(), labels)
        progress = run_progress(
            learner.step + 1, self._total_steps(), learner.clock.elapsed_s, settings.max_seconds
        )
        floor = min(settings.min_learning_rate / settings.learning_rate, 1.0)
        factor = cosine_with_warmup(progress, settings.warmup_share, floor)
        value = learner.learn(loss, settings.learning_rate * factor)
        learner.clock.count(len(rows), time.monotonic() - start_s)
        return value

    def _total_steps(self) -> int:
        """Of the whole run; epochs differ by a few flows where classes are drawn by chance."""
        done = self._learner.step - self._step_in_epoch
        return done + self._n_steps_in_epoch * (self._settings.epochs - self._epoch)

    def _finish_epoch(self) -> None:
        """Validate, keep the best weights, decide whether to go on, save."""
        settings, learner = self._settings, self._learner
        score, loss = self._validate()
        self._history.append(
            {
                "epoch": self._epoch + 1,
                "step": learner.step,
                "loss": self._loss_sum / max(self._step_in_epoch, 1),
                "validation_loss": loss,
                self._goal.score_name: score,
                "lr": learner.learning_rate,
                "elapsed_s": learner.clock.elapsed_s,
            }
        )
        if self._is_best():
            self._best = self._method.learned()
            self._best_epoch = self._epoch + 1
        self._report(self._history[-1]["loss"])
        self._epoch += 1
        self._step_in_epoch, self._loss_sum = 0, 0.0
        waited = self._epoch - self._best_epoch
        self._finished = (
            self._epoch >= settings.epochs
            or self._out_of_time()
            or (settings.patience_epochs is not None and waited >= settings.patience_epochs)
        )
        self._save()
        if self._interrupt.requested:
            raise KeyboardInterrupt

    def _is_best(self) -> bool:
        """Whether the newest epoch beats all before: by its score, then by validation loss; or is to be kept anyway."""
        settings = self._settings
        if settings.patience_epochs is None and len(self._validation) < settings.choose_from:
            return True
        new, name = self._history[-1], self._goal.score_name
        if new[name] is None or self._best_epoch == 0:
            return True
        best = self._history[self._best_epoch - 1]
        return bool((new[name], -new["validation_loss"]) > (best[name], -best["validation_loss"]))

    def _validate(self) -> tuple[float | None, float | None]:
        """Score and loss of the validation flows."""
        if len(self._validation) == 0:
            return None, None
        self._learner.model.eval()
        batch = self._settings.validation_batch
        parts = []
        for start in range(0, len(self._validation), batch):
            tokens = self._validation.tokens.take(slice(start, start + batch))
            parts.append(forward(self._learner.model, tokens, self._device).numpy())
            self._save_if_interrupted()
        return self._goal.judge(np.concatenate(parts), self._validation.labels)

    def _report(self, loss: float) -> None:
        if self._on_progress is None:
            return
        settings, learner, name = self._settings, self._learner, self._goal.score_name
        left = max(self._total_steps() - learner.step, 0) * settings.batch
        rate = learner.clock.samples_per_s
        eta_s = left / rate if rate else 0.0
        if settings.max_seconds is not None:
            eta_s = min(eta_s, max(settings.max_seconds - learner.clock.elapsed_s, 0.0))
        self._on_progress(
            {
                "epoch": self._epoch + 1,
                "epochs": settings.epochs,
                "step": learner.step,
                "steps": self._total_steps(),
                "loss": loss,
                "lr": learner.learning_rate,
                "samples_per_s": rate,
                "eta_s": eta_s,
                name: self._history[-1][name] if self._history else None,
            }
        )
