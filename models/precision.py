"""How exact a classifier computes on a CPU: float32, or matrix products in bfloat16 or in whole numbers of 8 bits.

``auto`` takes a narrow one only where all of this holds, and nothing that is measured while running decides, so that
the same checkpoint on the same CPU always gives the same answers:

- the CPU has instructions for it (bf16: AVX-512 BF16 or AMX; int8: AVX-512 VNNI or AVX-VNNI); elsewhere it is slower;
- the checkpoint's card says, under ``precision``, that it gave the labels of fp32 on flows that were tried, and how
  much faster it was there, as :func:`compare` returns it:
  ``{"bf16": {"flows": 5000, "labels_equal": 1.0, "largest_logit_change": 0.02, "speed": 1.2}}``.

Of several that pass, the fastest is taken; where nothing is said of the speed, it counts as that of fp32.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from capture.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from capture.representations.base import TokenBatch
    from models.checkpoint import Checkpoint
    from models.predictor import Predictor

NARROW: Final = ("bf16", "int8")
"""Narrower than float32, the most exact first."""
PRECISIONS: Final = ("auto", "fp32", *NARROW)
TRAINING_PRECISIONS: Final = ("fp32", "bf16")

LEAST_LABELS_EQUAL: Final = 0.999
LEAST_FLOWS: Final = 1000
_FLOWS_A_TURN: Final = 64


def cpu_multiplies_bf16() -> bool:
    """Whether this CPU has instructions for products of bf16."""
    return _cpu_has("_is_avx512_bf16_supported", "_is_amx_tile_supported")


def cpu_multiplies_int8() -> bool:
    """Whether this CPU has instructions for products of int8 that add up without saturating."""
    return _cpu_has("_is_vnni_supported")


def choose_precision(wanted: str, model: nn.Module, card: dict[str, Any], device_type: str) -> str:
    """``fp32``, ``bf16`` or ``int8``.

    Args:
        wanted: one of :data:`PRECISIONS`.
        model: has an ``inference_precision`` and the ``inference_precisions`` it can compute in, if there are several.
        card: of the checkpoint.
        device_type: ``cpu`` or ``cuda``.

    Raises:
        UsageError: for another name, or for a narrow one where it does not exist.
    """
    if wanted not in PRECISIONS:
        raise UsageError(f"--precision: got {wanted!r}, expected one of {', '.join(PRECISIONS)}")
    if wanted == "auto":
        return _fastest_vouched_for(model, card, device_type)
    obstacle = "" if wanted == "fp32" else _obstacle(wanted, model, device_type)
    if obstacle:
        raise UsageError(f"--precision: got {wanted}, but {obstacle}; use --precision fp32")
    return wanted


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """What training computes matrix products in under ``torch.autocast``; None: in float32, without it.

    Raises:
        UsageError: for bf16 on a device that has no instructions for it, where it would be slower than float32.
    """
    import torch

    if precision == "fp32":
        return None
    has_bf16 = torch.cuda.is_bf16_supported() if device.type == "cuda" else cpu_multiplies_bf16()
    if not has_bf16:
        needed = "AVX-512 BF16 or AMX" if device.type == "cpu" else "compute capability 8.0"
        raise UsageError(
            f"--precision: got bf16, but this {device.type} device has no bf16 products ({needed}); use fp32"
        )
    return torch.bfloat16


def compare(checkpoint: Checkpoint, tokens: TokenBatch, *, threads: int | None = None) -> dict[str, Any]:
    """What each narrow precision changes for these flows and what it gains: the card's ``precision`` entry.

    All take turns, 64 flows each, so that a busy machine slows them alike.

    Returns:
        By precision: ``flows``; ``labels_equal``, the share that kept the label of fp32; ``largest_logit_change``,
        absolute, before calibration; ``speed``, CPU seconds of fp32 / its own.

    Raises:
        UsageError: where no narrow precision exists, or for no flows.
    """
    if not len(tokens):
        raise UsageError("got no flows to compare precisions on, expected at least one")
    logits, cpu_s = _in_turn(checkpoint, tokens, threads)
    exact = logits.pop("fp32")
    if not logits:
        raise UsageError(
            "got a CPU or a model family without narrow precisions, expected AVX-512 BF16 or VNNI and a NetMamba; "
            "nothing is to be compared"
        )
    return {
        name: {
            "flows": len(tokens),
            "labels_equal": float((changed.argmax(axis=1) == exact.argmax(axis=1)).mean()),
            "largest_logit_change": float(np.abs(changed - exact).max()),
            "speed": cpu_s["fp32"] / cpu_s[name],
        }
        for name, changed in logits.items()
    }


def _in_turn(
    checkpoint: Checkpoint, tokens: TokenBatch, threads: int | None
) -> tuple[dict[str, Any], dict[str, float]]:
    """Logits and CPU seconds of every precision that exists here."""
    turns = [tokens.take(slice(at, at + _FLOWS_A_TURN)) for at in range(0, len(tokens), _FLOWS_A_TURN)]
    with ExitStack() as open_ones:
        predictors = _predictors(checkpoint, threads, open_ones)
        logits: dict[str, list[Any]] = {name: [] for name in predictors}
        cpu_s = dict.fromkeys(predictors, 0.0)
        for predictor in predictors.values():
            predictor.logits(turns[0])  # compiles, allocates
        for turn in turns:
            for name, predictor in predictors.items():
                before_s = time.process_time()
                logits[name].append(predictor.logits(turn))
                cpu_s[name] += time.process_time() - before_s
    return {name: np.concatenate(parts) for name, parts in logits.items()}, cpu_s


def _predictors(checkpoint: Checkpoint, threads: int | None, open_ones: ExitStack) -> dict[str, Predictor]:
    """One of each precision that model and CPU have."""
    from models.predictor import Predictor

    predictors: dict[str, Predictor] = {}
    for name in ("fp32", *NARROW):
        try:
            made = Predictor(checkpoint, threads=threads, device="cpu", precision=name)
        except UsageError:
            if name == "fp32":
                raise
            continue
        predictors[name] = open_ones.enter_context(made)
    return predictors


def _fastest_vouched_for(model: nn.Module, card: dict[str, Any], device_type: str) -> str:
    chosen, best_speed = "fp32", 1.0
    for name in NARROW:
        speed = _vouched_speed(card, name)
        is_faster = speed > best_speed or (chosen == "fp32" and speed >= best_speed)
        if is_faster and not _obstacle(name, model, device_type):
            chosen, best_speed = name, speed
    return chosen


def _obstacle(name: str, model: nn.Module, device_type: str) -> str:
    """Why this model cannot compute so here; nothing where it can."""
    if device_type != "cpu":
        return "it is for the CPU only"
    if name not in getattr(model, "inference_precisions", ()):
        return f"this model has no {name} form"
    if name == "bf16" and not cpu_multiplies_bf16():
        return "this CPU has no bf16 products (AVX-512 BF16 or AMX), it would be slower"
    if name == "int8" and not cpu_multiplies_int8():
        return "this CPU has no int8 products (AVX-512 VNNI or AVX-VNNI), it would be slower"
    return ""


def _vouched_speed(card: dict[str, Any], name: str) -> float:
    """How fast the card says it is, against fp32; 0 where it does not say that it gives the same labels.

    A card may hold anything.
    """
    tried = card.get("precision")
    measured = tried.get(name) if isinstance(tried, dict) else None
    if not isinstance(measured, dict):
        return 0.0
    values = [measured.get("flows"), measured.get("labels_equal"), measured.get("speed", 1.0)]
    numbers = [float(value) for value in values if isinstance(value, int | float)]
    if len(numbers) != len(values):
        return 0.0
    flows, equal, speed = numbers
    return speed if flows >= LEAST_FLOWS and equal >= LEAST_LABELS_EQUAL else 0.0


def _cpu_has(*questions: str) -> bool:
    """Whether one of these of ``torch.cpu`` is answered with yes; a torch without the question says no."""
    import torch

    return any(bool(getattr(torch.cpu, name, lambda: False)()) for name in questions)
