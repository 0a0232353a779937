"""Pre-training: unlabelled tokens to a backbone.

The recipe is NetMamba's masked autoencoder (arXiv 2405.11449): AdamW with betas 0.9 and 0.95, weight decay 0.05 but not
on 1-D tensors, learning rate 1e-3 x batch / 256, warm-up, half cosine to 0. What is hidden and predicted is the
family's own affair: its pre-training network turns tokens into a loss.

A run is a function of seed and data, as in :mod:`models.learning.finetune`; with ``max_seconds`` it follows the clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from capture.errors import DataError, UsageError
from models.learning.batches import fingerprint, step_rows, step_seed, to_device
from models.learning.run_state import Interrupt, Learner, RunFolder, seeded
from models.learning.schedules import cosine_with_warmup, parameter_groups, run_progress
from models.learning.start import choose_device, identity_of, resolve, training_process

if TYPE_CHECKING:
    from capture.representations.base import TokenBatch
    from models.families import Family

_FREE = ("max_seconds", "threads", "device", "save_every_s")


@dataclass(frozen=True, slots=True)
class PretrainSettings:
    """How to pre-train; ``steps``, ``max_seconds`` or both must be given, and the first to end ends the run.

    Attributes:
        steps: optimiser steps of the run; None = by time alone.
        max_seconds: seconds of the run, over all its sessions; None = by steps alone.
        batch: flows of a step; fewer where there are fewer.
        base_learning_rate: for a batch of 256; the peak is this x batch / 256.
        warmup_share: share of the run in which the learning rate rises, 0 to below 1.
        weight_decay: of AdamW; none on 1-D tensors.
        clip_norm: largest norm of the gradient; None = not clipped.
        history_every_steps: steps that one entry of the history averages over.
        seed: of everything random.
        threads: of torch; None = as they are.
        device: ``cpu``, ``cuda`` or ``auto``.
        save_every_s: seconds between two saved states.

    Raises:
        UsageError: from the constructor, for a value that cannot be.
    """

    steps: int | None = None
    max_seconds: float | None = None
    batch: int = 128
    base_learning_rate: float = 1e-3
    warmup_share: float = 0.05
    weight_decay: float = 0.05
    clip_norm: float | None = 1.0
    history_every_steps: int = 50
    seed: int = 0
    threads: int | None = None
    device: str = "auto"
    save_every_s: float = 60.0

    def __post_init__(self) -> None:
        if self.steps is None and self.max_seconds is None:
            raise UsageError("pre-training: got neither steps nor max_seconds, expected a budget; give one")
        for name, least in (
            ("batch", 1),
            ("history_every_steps", 1),
            ("seed", 0),
            ("steps", 1),
            ("threads", 1),
        ):
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise UsageError(f"{name}: got {getattr(self, name)}, expected {least} or more")
        for name in ("base_learning_rate", "clip_norm", "max_seconds"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise UsageError(f"{name}: got {getattr(self, name)}, expected more than 0")
        if not 0 <= self.warmup_share < 1:
            raise UsageError(f"warmup_share: got {self.warmup_share}, expected 0 to below 1")


@dataclass(frozen=True, slots=True)
class PretrainResult:
    """What pre-training gave.

    Attributes:
        state: tensor by name of the pre-training network, on the CPU.
        history: an entry every ``history_every_steps`` and at the end: step, loss (mean since the entry before), lr,
            elapsed_s.
        steps: that were made.
        samples_per_s: flows per second of this session.
    """

    state: dict[str, torch.Tensor]
    history: list[dict[str, Any]]
    steps: int
    samples_per_s: float


def pretrain(
    family: Family | str,
    model_config: Any,
    tokens: TokenBatch,
    settings: PretrainSettings,
    *,
    run_dir: Path,
    resume: bool = False,
    on_progress: Callable[[dict[str, Any]], None] | None = None,
) -> PretrainResult:
    """Pre-train a backbone.

    Args:
        family: of the network.
        model_config: its configuration object, or a mapping with every field.
        tokens: flows to learn from; never those of a test set.
        settings: how, and how long.
        run_dir: where the state of the run is kept.
        resume: go on from the state in ``run_dir``; a finished run gives its result again.
        on_progress: called after each step with epoch, step, steps (None by time alone), loss, lr, samples_per_s,
            eta_s.

    Raises:
        DataError: without flows.
        CheckpointError: for a saved state that does not fit.
        TrainingError: if the loss is not finite.
        KeyboardInterrupt: on Ctrl-C, after the state was saved.
    """
    if len(tokens) == 0:
        raise DataError("pre-training: got 0 flows, expected at least one; give captures with traffic")
    family, config = resolve(family, model_config)
    with training_process(settings.threads), Interrupt() as interrupt:
        device = choose_device(settings.device)
        seeded(step_seed(settings.seed, 0), device)
        model = family.build_pretrainer(config).to(device)
        identity = identity_of(family, config, settings, _FREE, flows=fingerprint(*tokens.arrays.values()))
        learner = Learner(
            model,
            parameter_groups(model, settings.weight_decay),
            (0.9, 0.95),
            settings.clip_norm,
            RunFolder(run_dir, identity),
            settings.save_every_s,
        )
        run = _Pretraining(learner, tokens, settings, device)
        if resume:
            run.restore()
        while not run.is_over():
            loss = run.one_step()
            if on_progress is not None:
                on_progress(run.progress(loss))
            if interrupt.requested or (learner.save_is_due and not run.is_over()):
                run.save()
            if interrupt.requested:
                raise KeyboardInterrupt
        return run.result()


class _Pretraining:
    """One run: where it is, and one step of it."""

    def __init__(
        self, learner: Learner, tokens: TokenBatch, settings: PretrainSettings, device: torch.device
    ) -> None:
        self._learner = learner
        self._tokens = tokens
        self._settings = settings
        self._device = device
        self._batch = min(settings.batch, len(tokens))
        self._history: list[dict[str, Any]] = []
        self._loss_sum = 0.0
        self._n_losses = 0
        learner.model.train()

    def restore(self) -> None:
        position, _ = self._learner.restore(("history", "loss_sum", "n_losses"))
        self._history = position["history"]
        self._loss_sum = position["loss_sum"]
        self._n_losses = position["n_losses"]

    def save(self) -> None:
        self._learner.save({"history": self._history, "loss_sum": self._loss_sum, "n_losses": self._n_losses})

    def is_over(self) -> bool:
        settings, learner = self._settings, self._learner
        if settings.steps is not None and learner.step >= settings.steps:
            return True
        return settings.max_seconds is not None and learner.clock.elapsed_s >= settings.max_seconds

    def one_step(self) -> float:
        settings, learner = self._settings, self._learner
        start_s = time.monotonic()
        rows = step_rows(len(self._tokens), self._batch, settings.seed, learner.step)
        generator = seeded(step_seed(settings.seed, learner.step + 1), self._device)
        inputs = to_device(self._tokens.take(rows).arrays, self._device)
        loss, _, _ = learner.model(*inputs, generator=generator)
        progress = run_progress(
            learner.step + 1, settings.steps, learner.clock.elapsed_s, settings.max_seconds
        )
        peak = settings.base_learning_rate * self._batch / 256
        value = learner.learn(loss, peak * cosine_with_warmup(progress, settings.warmup_share))
        learner.clock.count(len(rows), time.monotonic() - start_s)
        self._loss_sum += value
        self._n_losses += 1
        if learner.step % settings.history_every_steps == 0:
            self._close_entry()
        return value

    def _close_entry(self) -> None:
        learner = self._learner
        self._history.append(
            {
                "step": learner.step,
                "loss": self._loss_sum / self._n_losses,
                "lr": learner.learning_rate,
                "elapsed_s": learner.clock.elapsed_s,
            }
        )
        self._loss_sum, self._n_losses = 0.0, 0

    def progress(self, loss: float) -> dict[str, Any]:
        settings, learner = self._settings, self._learner
        rate = learner.clock.samples_per_s
        estimates = []
        if settings.steps is not None and rate:
            estimates.append((settings.steps - learner.step) * self._batch / rate)
        if settings.max_seconds is not None:
            estimates.append(max(settings.max_seconds - learner.clock.elapsed_s, 0.0))
        return {
            "epoch": learner.step * self._batch // len(self._tokens) + 1,
            "step": learner.step,
            "steps": settings.steps,
            "loss": loss,
            "lr": learner.learning_rate,
            "samples_per_s": rate,
            "eta_s": min(estimates, default=0.0),
        }

    def result(self) -> PretrainResult:
        learner = self._learner
        if self._n_losses:
            self._close_entry()
        self.save()
        state = {name: t.detach().cpu().clone() for name, t in learner.model.state_dict().items()}
        return PretrainResult(state, self._history, learner.step, learner.clock.samples_per_s)
