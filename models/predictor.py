"""Answers for tokens: a verified checkpoint, its network, and a few worker threads.

F flows, C labels. Micro-batches of 4 flows keep the network's intermediate arrays in the second-level cache, which is
worth more than large matrices; workers run side by side, each with one thread of torch. A flow's answer depends on that
flow alone: batch mates change it only in the last bits (logits within 1e-5, blocking of matrix products).
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from numpy.typing import NDArray

from capture.errors import CheckpointError, UsageError
from capture.flow_batch import FLOW_DTYPE, PACKET_DTYPE, FlowBatch
from capture.representations import TokenBatch, build
from models.checkpoint_verify import build_config, known_family
from models.learning.calibration import softmax
from models.learning.start import choose_device
from models.precision import choose_precision
from models.tasks import chances, from_log

if TYPE_CHECKING:
    from models.checkpoint import Checkpoint
    from models.nets.packet_inference import FastPacketMamba

MICRO_BATCH: Final = 4  # flows; 90-95 flows per cpu-second against 76 with batches of 256
CUDA_BATCH: Final = 256
EARLY_BATCH: Final = 256  # flows that may be answered early: after each level there are fewer left


@dataclass(frozen=True, slots=True)
class Predictions:
    """The answers to F flows, row for row.

    Attributes:
        probabilities: float32 (F, C), calibrated, each row sums to 1.
        unknown_score: float32 (F,), 0 to 1: one minus the largest calibrated probability. Higher is stranger.
        unknown: bool (F,), the score is above the checkpoint's threshold; all False where it has none.
        values: float32 (F, V). V is 0 for ``class``; a ``regression`` gives the quantiles of its number (V = 3) and one
            column of probability 1; a ``multilabel`` checkpoint gives the probability of each label by itself (V = C),
            which are ``probabilities`` too and sum to nothing in particular.
        packets_used: (F,), packets of each flow that the answer is of.
    """

    probabilities: NDArray[np.float32]
    unknown_score: NDArray[np.float32]
    unknown: NDArray[np.bool_]
    values: NDArray[np.float32]
    packets_used: NDArray[np.uint16]

    def __len__(self) -> int:
        return len(self.unknown_score)


class Predictor:
    """Runs a classifier checkpoint over token batches. Safe to call from several threads.

    Args:
        checkpoint: of kind ``classifier``.
        threads: worker threads; None means the cores this process may use.
        device: ``cpu``, ``cuda``, or ``auto`` (CUDA where there is one).
        precision: ``fp32``, ``bf16``, ``int8``, or ``auto``; see :mod:`models.precision`.
        early_exit: answer a flow before its last packet where the checkpoint's thresholds allow it.

    Attributes:
        precision: the one that was chosen.

    Raises:
        CheckpointError: for a backbone, which has no labels to answer with.
        UsageError: for an unknown or absent device or precision, fewer than one thread, or ``early_exit`` with a
            checkpoint or a device that cannot.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        threads: int | None = None,
        device: str = "auto",
        precision: str = "auto",
        early_exit: bool = False,
    ) -> None:
        if checkpoint.kind != "classifier":
            raise CheckpointError(
                f"{checkpoint.path}: got a {checkpoint.kind}, expected a classifier; "
                "fine-tune it with `netcls finetune`"
            )
        if threads is not None and threads < 1:
            raise UsageError(f"--threads: got {threads}, expected 1 or more")
        self.checkpoint = checkpoint
        self.device = choose_device(device)
        on_cpu = self.device.type == "cpu"
        self.threads = (threads or _usable_cores()) if on_cpu else 1
        self._model = _network(checkpoint).to(self.device)
        self._batch = getattr(self._model, "micro_batch", MICRO_BATCH) if on_cpu else CUDA_BATCH
        self.precision = choose_precision(precision, self._model, checkpoint.card, self.device.type)
        if self.precision != "fp32":
            self._model.inference_precision = self.precision  # type: ignore[assignment]
        self.early_exit = early_exit
        if early_exit:
            self._check_early_exit()
        # The number of torch threads belongs to the thread that sets it: the caller's stays as it is.
        self._pool = ThreadPoolExecutor(
            self.threads, "netcls-predict", initializer=torch.set_num_threads, initargs=(1,)
        )

    def predict(self, tokens: TokenBatch) -> Predictions:
        """Calibrated answers, in the order of the flows.

        Args:
            tokens: of the checkpoint's representation.

        Source:
            Guo et al. 2017 (temperature scaling); Hendrycks and Gimpel 2017 (largest probability as a score).
        """
        calibration, kind = self.checkpoint.calibration, self.checkpoint.task.kind
        used = tokens.packets_used
        if self.early_exit:
            logits, used = self._early_logits(tokens)
        else:
            logits = self.logits(tokens)
        if kind != "class":
            return _of_other_task(kind, logits, calibration.temperature, used)
        probabilities = softmax(logits, 1.0 if self.early_exit else calibration.temperature)
        score = (1.0 - probabilities.max(axis=1)).clip(0.0, 1.0).astype(np.float32)
        threshold = np.inf if calibration.unknown_threshold is None else calibration.unknown_threshold
        no_values = np.empty((len(score), 0), np.float32)
        return Predictions(probabilities.astype(np.float32), score, score > threshold, no_values, used)

    def logits(self, tokens: TokenBatch) -> NDArray[np.float32]:
        """What the network says before calibration.

        Returns:
            float32 (F, C).
        """
        starts = range(0, len(tokens), self._batch)
        out = np.empty((len(tokens), len(self.checkpoint.labels)), np.float32)
        # Flows of like length together: a network that stops at the longest one's end has less to do.
        by_length = np.argsort(tokens.packets_used, kind="stable")

        def answer(start: int) -> None:
            rows = by_length[start : start + self._batch]
            out[rows] = forward(self._model, tokens.take(rows), self.device).numpy()

        for _ in self._pool.map(answer, starts):
            pass
        return out

    def logits_after(self, tokens: TokenBatch, n_packets: int) -> NDArray[np.float32]:
        """What the network says when it has seen the first packets of each flow only: float32 (F, C).

        Raises:
            UsageError: for a network whose answer needs the whole input.
        """
        if not hasattr(self._model, "prefix_logits"):
            raise UsageError(
                f"{self.checkpoint.path}: family {self.checkpoint.family!r} answers whole inputs only"
            )
        short = {name: array[:, :n_packets] for name, array in tokens.arrays.items()}
        return self.logits(TokenBatch(short, np.minimum(tokens.packets_used, n_packets).astype(np.uint16)))

    def _check_early_exit(self) -> None:
        where = self.checkpoint.path
        if not self.checkpoint.calibration.early_exit:
            raise UsageError(
                f"--early-exit: {where} has no thresholds for early answers; fine-tune a packet-mamba anew, or leave "
                "the option out"
            )
        with torch.inference_mode():
            if self.checkpoint.task.kind != "class" or self._fast_form() is None:
                raise UsageError(
                    f"--early-exit: got {where} on {self.device.type}, expected a packet-mamba of classes on a CPU"
                )

    def _fast_form(self) -> FastPacketMamba | None:
        make = getattr(self._model, "fast_form", None)
        return None if make is None else make()

    def _early_logits(self, tokens: TokenBatch) -> tuple[NDArray[np.float32], NDArray[np.uint16]]:
        """Logits divided by their temperatures, float32 (F, C), and the packets looked at."""
        from models.early_exit import answers_early

        calibration = self.checkpoint.calibration
        out = np.empty((len(tokens), len(self.checkpoint.labels)), np.float32)
        used = tokens.packets_used.copy()
        by_length = np.argsort(tokens.packets_used, kind="stable")

        @torch.inference_mode()
        def answer(start: int) -> None:
            rows = by_length[start : start + EARLY_BATCH]
            part = tokens.take(rows)
            fast = self._fast_form()
            assert fast is not None  # asked for when this predictor was made
            arrays = (part.arrays["numbers"], part.arrays["flags"], part.arrays["payload"])
            n_packets = part.packets_used.astype(np.int64)
            out[rows], looked_at = answers_early(
                fast, arrays, n_packets, calibration.early_exit, calibration.temperature
            )
            used[rows] = np.minimum(looked_at, n_packets)

        for _ in self._pool.map(answer, range(0, len(tokens), EARLY_BATCH)):
            pass
        return out, used

    def logits_and_features(self, tokens: TokenBatch) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Logits, and what the head reads of each flow: float32 (F, C) and (F, D).

        Raises:
            UsageError: for a network that has no features and no linear head.
        """
        network, head = self._model, getattr(self._model, "head", None)
        if not (hasattr(network, "features") and isinstance(head, torch.nn.Linear)):
            raise UsageError(f"{self.checkpoint.path}: family {self.checkpoint.family!r} shows no features")
        features = np.empty((len(tokens), head.in_features), np.float32)

        @torch.inference_mode()
        def answer(start: int) -> None:
            arrays = tokens.take(slice(start, start + self._batch)).arrays.values()
            inputs = (torch.tensor(array, device=self.device) for array in arrays)
            features[start : start + self._batch] = network.features(*inputs).float().cpu().numpy()  # type: ignore[operator]

        for _ in self._pool.map(answer, range(0, len(tokens), self._batch)):
            pass
        with torch.inference_mode():
            logits = head(torch.from_numpy(features).to(self.device)).float().cpu().numpy()
        return logits, features

    def warm_up(self) -> None:
        """Answer a made-up micro-batch in every worker, so that the first real flow finds compiled kernels."""
        representation = build(self.checkpoint.representation, self.checkpoint.representation_settings)
        keep, n_flows = representation.keep, self._batch * self.threads
        empty_flows = FlowBatch(
            np.zeros(n_flows, FLOW_DTYPE),
            np.zeros((n_flows, keep.n_packets), PACKET_DTYPE),
            np.zeros((n_flows, keep.n_byte_packets, keep.row_bytes), np.uint8),
        )
        self.logits(representation.tokenize(empty_flows))

    def close(self) -> None:
        """End the worker threads; calls under way finish first."""
        self._pool.shutdown()

    def __enter__(self) -> Predictor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _of_other_task(
    kind: str, logits: NDArray[np.float32], temperature: float, used: NDArray[np.uint16]
) -> Predictions:
    """Answers of a regression or of several labels at once; neither knows an unknown flow."""
    if kind == "regression":
        values = from_log(logits).astype(np.float32)
        probabilities = np.ones((len(values), 1), np.float32)
        score = np.zeros(len(values), np.float32)
    else:
        values = probabilities = chances(logits, temperature).astype(np.float32)
        score = (1.0 - values.max(axis=1)).astype(np.float32)
    return Predictions(probabilities, score, np.zeros(len(values), bool), values, used)


@torch.inference_mode()
def forward(model: torch.nn.Module, tokens: TokenBatch, device: torch.device) -> torch.Tensor:
    """Logits of one batch, float32 (F, C) on the CPU. The arrays are the network's arguments, in their order."""
    logits: torch.Tensor = model(*(torch.tensor(array, device=device) for array in tokens.arrays.values()))
    return logits.float().cpu()


def _network(checkpoint: Checkpoint) -> torch.nn.Module:
    """The checkpoint's network with its weights, ready to answer."""
    where = str(checkpoint.path / "config.json")
    family = known_family(checkpoint.family, where)
    config = build_config(family, checkpoint.model_config, where)
    model = family.build_classifier(config, len(checkpoint.labels))
    model.load_state_dict(checkpoint.state, strict=True)
    return model.eval().requires_grad_(False)


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
