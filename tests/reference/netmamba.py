"""NetMamba in float64 numpy from the published state-dict names; imports nothing from ``models``."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tests.reference.mamba import F64, Weights, block, rms_norm, under


def strides_of(flow_bytes: NDArray[np.uint8], stride: int) -> F64:
    """(F, n_bytes) to scaled (F, n, S)."""
    scaled: F64 = ((flow_bytes / 255.0) - 0.5) / 0.5
    return scaled.reshape(len(flow_bytes), -1, stride)


def embed(flow_bytes: NDArray[np.uint8], w: Weights) -> F64:
    """Strides embedded, with their positions; no class token yet."""
    kernel = w["patch_embed.proj.weight"]  # (D, 1, S)
    strides = strides_of(flow_bytes, kernel.shape[2])
    embedded = strides @ kernel[:, 0].T + w["patch_embed.proj.bias"]
    return embedded + w["pos_embed"][:, :-1] if "pos_embed" in w else embedded


def encode(embedded: F64, w: Weights) -> F64:
    """Class token appended, blocks, final norm."""
    token = w["cls_token"] + w["pos_embed"][:, -1:] if "pos_embed" in w else w["cls_token"]
    last = np.broadcast_to(token, (len(embedded), 1, embedded.shape[2]))
    return rms_norm(_blocks(np.concatenate([embedded, last], axis=1), w, "blocks."), w["norm_f.weight"])


def logits(flow_bytes: NDArray[np.uint8], w: Weights) -> F64:
    """(F, C)."""
    return encode(embed(flow_bytes, w), w)[:, -1] @ w["head.weight"].T + w["head.bias"]


def masked_prediction(
    flow_bytes: NDArray[np.uint8], w: Weights, kept: NDArray[np.int64]
) -> tuple[F64, float]:
    """Pre-training with given kept strides: prediction (F, n, S) and loss over the hidden ones.

    ``kept`` (F, k) lists the shown strides in the order in which the encoder reads them.
    """
    embedded = embed(flow_bytes, w)
    n_flows, n_strides, _ = embedded.shape
    encoded = encode(np.stack([embedded[f, kept[f]] for f in range(n_flows)]), w)
    narrow = encoded @ w["decoder_embed.weight"].T + w["decoder_embed.bias"]
    x = np.zeros((n_flows, n_strides + 1, narrow.shape[2]))
    for f in range(n_flows):
        for i in range(n_strides):
            x[f, i] = w["mask_token"][0, 0]
        for place, i in enumerate(kept[f]):
            x[f, i] = narrow[f, place]
        x[f, n_strides] = narrow[f, -1]
    if "decoder_pos_embed" in w:
        x = x + w["decoder_pos_embed"]
    x = rms_norm(_blocks(x, w, "decoder_blocks."), w["decoder_norm_f.weight"])
    predicted = x[:, :-1] @ w["decoder_pred.weight"].T + w["decoder_pred.bias"]
    truth = strides_of(flow_bytes, predicted.shape[2])
    errors = [
        ((predicted[f, i] - truth[f, i]) ** 2).mean()
        for f in range(n_flows)
        for i in range(n_strides)
        if i not in kept[f]
    ]
    return predicted, float(np.mean(errors))


def _blocks(x: F64, w: Weights, prefix: str) -> F64:
    n_blocks = len({name.removeprefix(prefix).split(".")[0] for name in w if name.startswith(prefix)})
    for i in range(n_blocks):
        x = block(x, under(w, f"{prefix}{i}."))
    return x
