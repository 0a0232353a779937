"""How exact a classifier computes on a CPU: float32, or matrix products in bfloat16.

``auto`` takes bf16 only where both hold, and nothing that is measured while running decides, so that the same
checkpoint on the same CPU always gives the same answers:

- the CPU multiplies bf16 in hardware (AVX-512 BF16 or AMX); elsewhere bf16 is slower than float32;
- the checkpoint's card says, under ``precision``, that bf16 gave the labels of fp32 on flows that were tried:
  ``{"bf16": {"flows": 5000, "labels_equal": 1.0, "largest_logit_change": 0.02}}``, as :func:`compare` returns it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from capture.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from capture.representations.base import TokenBatch
    from models.checkpoint import Checkpoint

PRECISIONS: Final = ("auto", "fp32", "bf16")
TRAINING_PRECISIONS: Final = ("fp32", "bf16")

LEAST_LABELS_EQUAL: Final = 0.999
LEAST_FLOWS: Final = 1000


def cpu_multiplies_bf16() -> bool:
    """Whether this CPU has instructions for products of bf16."""
    import torch

    known = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name, lambda: False)()) for name in known)


def choose_precision(wanted: str, model: nn.Module, card: dict[str, Any], device_type: str) -> str:
    """``fp32`` or ``bf16``.

    Args:
        wanted: one of :data:`PRECISIONS`.
        model: has an ``inference_precision`` if its family can compute in bf16.
        card: of the checkpoint.
        device_type: ``cpu`` or ``cuda``.

    Raises:
        UsageError: for another name, or for bf16 where it does not exist.
    """
    if wanted not in PRECISIONS:
        raise UsageError(f"--precision: got {wanted!r}, expected one of {', '.join(PRECISIONS)}")
    obstacle = _obstacle(model, device_type)
    if wanted == "bf16" and obstacle:
        raise UsageError(f"--precision: got bf16, but {obstacle}; use --precision fp32")
    if wanted == "auto" and not obstacle and _is_vouched_for(card):
        return "bf16"
    return "bf16" if wanted == "bf16" else "fp32"


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
    """What bf16 changes for these flows: the card's ``precision`` entry.

    Returns:
        ``{"bf16": {"flows", "labels_equal", "largest_logit_change"}}``; the change is absolute, before calibration.

    Raises:
        UsageError: where there is no bf16, or for no flows.
    """
    from models.predictor import Predictor

    if not len(tokens):
        raise UsageError("got no flows to compare precisions on, expected at least one")
    logits = {}
    for precision in ("fp32", "bf16"):
        with Predictor(checkpoint, threads=threads, device="cpu", precision=precision) as predictor:
            logits[precision] = predictor.logits(tokens)
    is_equal = logits["fp32"].argmax(axis=1) == logits["bf16"].argmax(axis=1)
    return {
        "bf16": {
            "flows": len(tokens),
            "labels_equal": float(is_equal.mean()),
            "largest_logit_change": float(np.abs(logits["bf16"] - logits["fp32"]).max()),
        }
    }


def _obstacle(model: nn.Module, device_type: str) -> str:
    if device_type != "cpu":
        return "it is for the CPU only"
    if not hasattr(model, "inference_precision"):
        return "this model family has no bf16 form"
    if not cpu_multiplies_bf16():
        return "this CPU has no bf16 products (AVX-512 BF16 or AMX), it would be slower"
    return ""


def _is_vouched_for(card: dict[str, Any]) -> bool:
    """Whether the card says that bf16 gives the same labels; a card may hold anything."""
    tried = card.get("precision")
    measured = tried.get("bf16") if isinstance(tried, dict) else None
    if not isinstance(measured, dict):
        return False
    flows, equal = measured.get("flows"), measured.get("labels_equal")
    if not isinstance(flows, int) or not isinstance(equal, int | float):
        return False
    return flows >= LEAST_FLOWS and equal >= LEAST_LABELS_EQUAL
