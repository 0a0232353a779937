"""Pre-training: unlabelled tokens to a backbone.

The recipe is NetMamba's masked autoencoder (arXiv 2405.11449): AdamW with betas 0.9 and 0.95, weight decay 0.05 but not
on 1-D tensors, learning rate 1e-3 x batch / 256, warm-up, half cosine to 0. What is hidden and predicted is the
family's own affair: its pre-training network turns tokens into a loss.

A run is a function of seed and data, as in :mod:`models.learning.finetune`; with ``max_seconds`` it follows the clock.

A step may be cut in parts: ``accumulate`` parts one after the other, and each process of a team
(:mod:`models.learning.team`) has its own. The flows of a step, their masks and the gradient are those of one batch of
all parts, so memory and devices decide how a step is cut, not what it learns. Two exceptions: drop path is drawn for
each part, and a family whose loss is a mean over a number that varies (NetMamba+'s hidden sizes) takes it part by part.
"""

from __future__ import annotations

import contextlib
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
from models.learning.team import Team, device_of, place_in_team, team
from models.precision import TRAINING_PRECISIONS, autocast_dtype

if TYPE_CHECKING:
    from capture.representations.base import TokenBatch
    from models.families import Family

_FREE = ("max_seconds", "threads", "device", "save_every_s")
_POSITION = ("history", "loss_sum", "n_losses")


@dataclass(frozen=True, slots=True)
class PretrainSettings:
    """How to pre-train; ``steps``, ``max_seconds`` or both must be given, and the first to end ends the run.

    Attributes:
        steps: optimiser steps of the run; None = by time alone.
        max_seconds: seconds of the run, over all its sessions; None = by steps alone.
        batch: flows that a process takes at a time; fewer where there are fewer.
        accumulate: batches of a step in each process; a step's flows are batch x accumulate x processes.
        precision: ``fp32``, or ``bf16``: matrix products in bfloat16, weights and optimiser in float32.
        base_learning_rate: for a step of 256 flows; the peak is this x flows of a step / 256.
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
    accumulate: int = 1
    precision: str = "fp32"
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
            ("accumulate", 1),
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
        if self.precision not in TRAINING_PRECISIONS:
            raise UsageError(
                f"precision: got {self.precision!r}, expected one of {', '.join(TRAINING_PRECISIONS)}"
            )
        if not 0 <= self.warmup_share < 1:
            raise UsageError(f"warmup_share: got {self.warmup_share}, expected 0 to below 1")


@dataclass(frozen=True, slots=True)
class PretrainResult:
    """What pre-training gave.

    Attributes:
        state: tensor by name of the pre-training network, on the CPU.
        history: an entry every ``history_every_steps`` and at the end: step, loss and its parts, if it has any (means
            since the entry before), lr, elapsed_s.
        steps: that were made.
        samples_per_s: flows per second of this session, of all processes together.
        flows_per_step: of all processes together.
        device: ``cpu`` or ``cuda``.
        processes: that trained together.
        is_first: whether this process is the one that writes.
    """

    state: dict[str, torch.Tensor]
    history: list[dict[str, Any]]
    steps: int
    samples_per_s: float
    flows_per_step: int
    device: str
    processes: int = 1
    is_first: bool = True


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
    """Pre-train a backbone; under ``torchrun``, one process's part of it.

    Args:
        family: of the network.
        model_config: its configuration object, or a mapping with every field.
        tokens: flows to learn from; never those of a test set. The same in every process.
        settings: how, and how long.
        run_dir: where the state of the run is kept. The first process writes, all of them read.
        resume: go on from the state in ``run_dir``; a finished run gives its result again.
        on_progress: called in the first process after each step with epoch, step, steps (None by time alone), loss and
            its parts, lr, samples_per_s, eta_s.

    Raises:
        DataError: without flows, or with fewer than parts of a step.
        CheckpointError: for a saved state that does not fit.
        TrainingError: if the loss is not finite, the processes disagree, or one of them is gone.
        UsageError: if this device has no bf16.
        KeyboardInterrupt: on Ctrl-C or SIGTERM in any process, after the state was saved.
    """
    if len(tokens) == 0:
        raise DataError("pre-training: got 0 flows, expected at least one; give captures with traffic")
    family, config = resolve(family, model_config)
    place = place_in_team()
    with training_process(settings.threads), Interrupt(is_patient=place.size > 1) as interrupt:
        device = device_of(place, choose_device(settings.device))
        autocast_dtype(settings.precision, device)  # refuse before anything else
        seeded(step_seed(settings.seed, 0), device)
        model = family.build_pretrainer(config).to(device)
        flows = fingerprint(*tokens.arrays.values())
        identity = identity_of(family, config, settings, _FREE, flows=flows, processes=place.size)
        learner = Learner(
            model,
            parameter_groups(model, settings.weight_decay),
            (0.9, 0.95),
            settings.clip_norm,
            RunFolder(run_dir, identity),
            settings.save_every_s,
        )
        with team(place, device) as members:
            members.check_same(identity | {"device": device.type, "resume": resume})
            run = _Pretraining(learner, tokens, settings, device, members)
            if resume:
                run.restore()
            while not run.is_over():
                losses = run.one_step()
                if on_progress is not None and place.is_first:
                    on_progress(run.progress(losses))
                is_interrupted = run.agree(interrupt.requested)
                if is_interrupted or (learner.save_is_due and not run.is_over()):
                    run.save()
                if is_interrupted:
                    raise KeyboardInterrupt
            return run.result()


class _Pretraining:
    """One run: where it is, and one step of it."""

    def __init__(
        self,
        learner: Learner,
        tokens: TokenBatch,
        settings: PretrainSettings,
        device: torch.device,
        members: Team,
    ) -> None:
        self._learner = learner
        self._tokens = tokens
        self._settings = settings
        self._device = device
        self._team = members
        n_parts = settings.accumulate * members.place.size
        if len(tokens) < n_parts:
            raise DataError(
                f"pre-training: got {len(tokens)} flows for {n_parts} parts of a step ({settings.accumulate} batches "
                f"in each of {members.place.size} processes), expected one for each; lower --accumulate"
            )
        self._batch = min(settings.batch, len(tokens) // n_parts)
        self._flows_per_step = self._batch * n_parts
        self._network = members.share_gradients(learner.model, device)
        self._elapsed_s = 0.0  # of the first process, so that all of them see the same
        self._history: list[dict[str, Any]] = []
        self._loss_sums: dict[str, float] = {}  # since the last entry; "loss" and its parts, by name
        self._n_losses = 0
        learner.model.train()

    def restore(self) -> None:
        position, _ = self._learner.restore(_POSITION)
        self._history = position["history"]
        saved = position["loss_sum"]
        # A state from before losses had parts holds one number.
        self._loss_sums = saved if isinstance(saved, dict) else {"loss": saved}
        self._n_losses = position["n_losses"]
        self._team.check_same({"saved step": self._learner.step})
        self.agree(False)

    def save(self) -> None:
        if self._team.place.is_first:
            self._learner.save(
                {"history": self._history, "loss_sum": self._loss_sums, "n_losses": self._n_losses}
            )

    def agree(self, is_interrupted: bool) -> bool:
        """Whether any process was told to stop; all of them take over the clock of the first one."""
        mine = self._learner.clock.elapsed_s if self._team.place.is_first else 0.0
        self._elapsed_s, stops = self._team.sums(mine, float(is_interrupted))
        return stops > 0

    def is_over(self) -> bool:
        settings, learner = self._settings, self._learner
        if settings.steps is not None and learner.step >= settings.steps:
            return True
        return settings.max_seconds is not None and self._elapsed_s >= settings.max_seconds

    def one_step(self) -> dict[str, float]:
        """One optimiser step; returns the loss and its parts by name, of all processes together."""
        settings, learner = self._settings, self._learner
        start_s = time.monotonic()
        found = self._add_gradients()
        n_parts = settings.accumulate * self._team.place.size
        sums = self._team.sums(*(value / n_parts for value in found.values()))
        losses = dict(zip(found, sums, strict=True))
        progress = run_progress(learner.step + 1, settings.steps, self._elapsed_s, settings.max_seconds)
        peak = settings.base_learning_rate * self._flows_per_step / 256
        learner.update(losses["loss"], peak * cosine_with_warmup(progress, settings.warmup_share))
        learner.clock.count(self._flows_per_step, time.monotonic() - start_s)
        for name, value in losses.items():
            self._loss_sums[name] = self._loss_sums.get(name, 0.0) + value
        self._n_losses += 1
        if learner.step % settings.history_every_steps == 0:
            self._close_entry()
        return losses

    def _add_gradients(self) -> dict[str, float]:
        """Forward and backward over this process's parts of the step; returns the sums of their losses.

        ``loss`` comes first; behind it what the family's network has in ``losses``, if its loss has parts.
        """
        settings, rank = self._settings, self._team.place.rank
        step = self._learner.step
        rows = step_rows(len(self._tokens), self._flows_per_step, settings.seed, step)
        first = rank * settings.accumulate * self._batch
        generator = self._mask_generator(step, n_before=first)
        dtype = autocast_dtype(settings.precision, self._device)
        totals = {"loss": 0.0}
        told = getattr(self._learner.model, "set_progress", None)
        if told is not None:
            told(run_progress(step, settings.steps, self._elapsed_s, settings.max_seconds))
        for part in range(settings.accumulate):
            start = first + part * self._batch
            inputs = to_device(self._tokens.take(rows[start : start + self._batch]).arrays, self._device)
            with contextlib.ExitStack() as stack:
                if self._network is not self._learner.model and part + 1 < settings.accumulate:
                    stack.enter_context(self._network.no_sync())  # type: ignore[operator]
                with torch.autocast(self._device.type, dtype=dtype, enabled=dtype is not None):
                    loss, _, _ = self._network(*inputs, generator=generator)
                loss = self._team.reaching_all(loss, self._learner.model)
                self._learner.add_gradient(loss, 1 / settings.accumulate)
            parts: dict[str, torch.Tensor] = getattr(self._learner.model, "losses", {})
            for name, value in {"loss": loss.detach(), **parts}.items():
                totals[name] = totals.get(name, 0.0) + float(value)
        return totals

    def _mask_generator(self, step: int, n_before: int) -> torch.Generator:
        """Where the masks of this process's flows come from: those of one batch, less the flows of earlier processes.

        A family whose pre-training network has no ``skip_draws`` gets masks of its own in each process.
        """
        rank = self._team.place.rank
        generator = seeded(step_seed(self._settings.seed, step + 1, rank), self._device)
        skip = getattr(self._learner.model, "skip_draws", None)
        if rank and skip is not None:
            generator.manual_seed(step_seed(self._settings.seed, step + 1))
            skip(generator, n_before)
        return generator

    def _close_entry(self) -> None:
        learner = self._learner
        self._history.append(
            {
                "step": learner.step,
                **{name: total / self._n_losses for name, total in self._loss_sums.items()},
                "lr": learner.learning_rate,
                "elapsed_s": learner.clock.elapsed_s,
            }
        )
        self._loss_sums, self._n_losses = {}, 0

    def progress(self, losses: dict[str, float]) -> dict[str, Any]:
        settings, learner = self._settings, self._learner
        rate = learner.clock.samples_per_s
        estimates = []
        if settings.steps is not None and rate:
            estimates.append((settings.steps - learner.step) * self._flows_per_step / rate)
        if settings.max_seconds is not None:
            estimates.append(max(settings.max_seconds - learner.clock.elapsed_s, 0.0))
        return {
            "epoch": learner.step * self._flows_per_step // len(self._tokens) + 1,
            "step": learner.step,
            "steps": settings.steps,
            **losses,
            "lr": learner.learning_rate,
            "samples_per_s": rate,
            "eta_s": min(estimates, default=0.0),
        }

    def result(self) -> PretrainResult:
        learner, place = self._learner, self._team.place
        if self._n_losses:
            self._close_entry()
        self.save()
        state = {name: t.detach().cpu().clone() for name, t in learner.model.state_dict().items()}
        return PretrainResult(
            state,
            self._history,
            learner.step,
            learner.clock.samples_per_s,
            self._flows_per_step,
            self._device.type,
            place.size,
            place.is_first,
        )
