"""A checkpoint as the published NetMamba+ code writes it: names and shapes spelt out here and not asked of ours."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tests.unit.models.published_netmamba import (
    BLOCKS,
    DECODER_BLOCKS,
    DECODER_WIDTH,
    STRIDE,
    WIDTH,
    block_shapes,
)

N_BYTES, N_SEQUENCE, N_SIZES = 400, 6, 1503
N_STRIDES = N_BYTES // STRIDE


def shapes(n_classes: int | None = None) -> dict[str, tuple[int, ...]]:
    """Of a pre-trained file, or of one fine-tuned to ``n_classes``, whose head has no bias."""
    found: dict[str, tuple[int, ...]] = {
        "pos_embed": (1, 2 * (N_SEQUENCE + 1) + N_STRIDES + 1, WIDTH),
        "byte_embed.proj.weight": (WIDTH, 1, STRIDE),
        "byte_embed.proj.bias": (WIDTH,),
        "norm_f.weight": (WIDTH,),
    }
    for modality in ("byte", "size", "iat"):
        found |= {f"{modality}_cls_token": (1, 1, WIDTH), f"{modality}_indicator": (1, 1, WIDTH)}
    for i in range(BLOCKS):
        found |= block_shapes(f"encoder_blocks.{i}", WIDTH)
    if n_classes is not None:
        return found | {"head.weight": (n_classes, WIDTH)}
    found |= {
        "byte_mask_token": (1, 1, DECODER_WIDTH),
        "byte_decoder_pos_embed": (1, N_STRIDES + 1, DECODER_WIDTH),
        "byte_decoder_embed.weight": (DECODER_WIDTH, WIDTH),
        "byte_decoder_embed.bias": (DECODER_WIDTH,),
        "decoder_norm_f.weight": (DECODER_WIDTH,),
        "byte_decoder_pred.weight": (STRIDE, DECODER_WIDTH),
        "byte_decoder_pred.bias": (STRIDE,),
        "size_decoder_pred.weight": (N_SIZES, WIDTH),
        "size_decoder_pred.bias": (N_SIZES,),
        "iat_decoder_pred.weight": (1, WIDTH),
        "iat_decoder_pred.bias": (1,),
    }
    for i in range(DECODER_BLOCKS):
        found |= block_shapes(f"byte_decoder_blocks.{i}", DECODER_WIDTH)
    return found


def state(n_classes: int | None = None, seed: int = 0) -> dict[str, Tensor]:
    """Values of a plausible size."""
    rng = np.random.default_rng(seed)
    values = {
        name: torch.from_numpy(0.3 * rng.standard_normal(shape).astype(np.float32))
        for name, shape in shapes(n_classes).items()
    }
    return {name: value + 1 if "norm" in name else value for name, value in values.items()}
