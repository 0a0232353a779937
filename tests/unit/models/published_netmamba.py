"""A checkpoint as the published NetMamba code writes it: its names and shapes, spelt out here and not asked of ours."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

N_BYTES, STRIDE, WIDTH, STATES, BLOCKS = 400, 4, 24, 4, 2
DECODER_WIDTH, DECODER_BLOCKS = 16, 1
N_STRIDES = N_BYTES // STRIDE


def block_shapes(prefix: str, width: int) -> dict[str, tuple[int, ...]]:
    inner, rank = 2 * width, math.ceil(width / 16)
    return {
        f"{prefix}.mixer.A_log": (inner, STATES),
        f"{prefix}.mixer.D": (inner,),
        f"{prefix}.mixer.in_proj.weight": (2 * inner, width),
        f"{prefix}.mixer.conv1d.weight": (inner, 1, 4),
        f"{prefix}.mixer.conv1d.bias": (inner,),
        f"{prefix}.mixer.x_proj.weight": (rank + 2 * STATES, inner),
        f"{prefix}.mixer.dt_proj.weight": (inner, rank),
        f"{prefix}.mixer.dt_proj.bias": (inner,),
        f"{prefix}.mixer.out_proj.weight": (width, inner),
        f"{prefix}.norm.weight": (width,),
    }


def shapes(n_classes: int | None = None) -> dict[str, tuple[int, ...]]:
    """Of a pre-trained file, or of one fine-tuned to ``n_classes``."""
    found: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, WIDTH),
        "pos_embed": (1, N_STRIDES + 1, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 1, STRIDE),
        "patch_embed.proj.bias": (WIDTH,),
        "norm_f.weight": (WIDTH,),
    }
    for i in range(BLOCKS):
        found |= block_shapes(f"blocks.{i}", WIDTH)
    if n_classes is not None:
        return found | {"head.weight": (n_classes, WIDTH), "head.bias": (n_classes,)}
    found |= {
        "mask_token": (1, 1, DECODER_WIDTH),
        "decoder_pos_embed": (1, N_STRIDES + 1, DECODER_WIDTH),
        "decoder_embed.weight": (DECODER_WIDTH, WIDTH),
        "decoder_embed.bias": (DECODER_WIDTH,),
        "decoder_norm_f.weight": (DECODER_WIDTH,),
        "decoder_pred.weight": (STRIDE, DECODER_WIDTH),
        "decoder_pred.bias": (STRIDE,),
    }
    for i in range(DECODER_BLOCKS):
        found |= block_shapes(f"decoder_blocks.{i}", DECODER_WIDTH)
    return found


def state(n_classes: int | None = None, seed: int = 0) -> dict[str, Tensor]:
    """Tensors of these shapes in which every element matters."""
    rng = np.random.default_rng(seed)
    made = {}
    for name, shape in shapes(n_classes).items():
        value = rng.normal(0.0, 0.3, shape)
        if name.endswith("A_log"):
            value = np.log(np.arange(1, STATES + 1)) + 0.1 * value
        elif name.endswith(("norm.weight", "norm_f.weight", ".D")):
            value += 1
        made[name] = torch.from_numpy(value.astype(np.float32))
    return made


def document(model: dict[str, Any]) -> dict[str, Any]:
    """All that the published code saves beside the model, two Adam moments of each tensor included."""
    moments = {
        i: {"step": torch.tensor(9.0), "exp_avg": t, "exp_avg_sq": t} for i, t in enumerate(model.values())
    }
    return {
        "model": model,
        "optimizer": {"state": moments, "param_groups": [{"lr": 5e-4, "betas": (0.9, 0.95)}]},
        "epoch": 7,
        "scaler": {"scale": 65536.0},
        "args": argparse.Namespace(lr=5e-4, model="net_mamba_pretrain", no_amp=True, betas=(0.9, 0.95)),
    }


def write(path: Path, model: dict[str, Any]) -> Path:
    """As ``pre-train.pth``."""
    torch.save(document(model), path)
    return path
