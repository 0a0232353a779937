"""NetMamba+ written a second time, slowly: its sequences packet by packet, its networks in float64 numpy.

Imports nothing from ``capture`` or ``models``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.reference.mamba import F64, Weights, block, rms_norm, under
from tests.reference.netmamba import strides_of

LARGEST = 1500


def sequences(
    packets: Sequence[tuple[int, int, int]], n: int, signed: bool
) -> tuple[list[int], list[float], list[bool], list[bool]]:
    """Sizes, times, and which of each are there, of one flow's first ``n`` packets.

    ``packets`` has (time in ns, IP length, direction) of each, in the order in which they came.
    """
    sizes, iats, sizes_present, iats_present = [], [], [], []
    for k in range(n):
        if k >= len(packets):
            sizes.append((2 * LARGEST if signed else LARGEST) + 1)
            iats.append(0.0)
            sizes_present.append(False)
            iats_present.append(False)
            continue
        ts_ns, size, direction = packets[k]
        shown = min(size, LARGEST)
        if signed:
            shown = LARGEST - shown if direction == 1 else LARGEST + shown
        sizes.append(shown)
        sizes_present.append(True)
        iats_present.append(k > 0)
        gap_ns = max(ts_ns - packets[k - 1][0], 0) if k > 0 else 0
        iats.append(1 + math.log2(1 + gap_ns) if k > 0 else 0.0)
    return sizes, iats, sizes_present, iats_present


def published_sequences(
    packets: Sequence[tuple[int, int, int]], n: int, signed: bool
) -> tuple[list[int], list[float]]:
    """Sizes and times as the published code makes them; ``packets`` with frame lengths.

    Its sizes are shifted and then cut to the legal range, which the padding's number is just outside of.
    """
    shift = LARGEST if signed else 0
    raw = [(-size if signed and direction == 1 else size) for _, size, direction in packets[:n]]
    raw += [LARGEST + 1] * (n - len(raw))
    sizes = [min(max(size + shift, 0), LARGEST + shift) for size in raw]
    times: list[float] = []
    for k in range(n):
        if k >= len(packets):
            times.append(math.inf)
        else:
            times.append(round(max(packets[k][0] - packets[k - 1][0], 0) / 1e9, 6) if k > 0 else 0.0)
    return sizes, [1 / (1 + 1 / (1 + seconds)) for seconds in times]


def rows_of(packets: Any, n_kept: int, size: str) -> list[tuple[int, int, int]]:
    """The kept rows of a ``PACKET_DTYPE`` array as (time, ``size``, direction)."""
    return [(int(row["ts_ns"]), int(row[size]), int(row["direction"])) for row in packets[:n_kept]]


def value_embedding(values: NDArray[Any], width: int) -> F64:
    """(F, n) to (F, n, D): sine and cosine in turn, each pair slower than the one before."""
    embedded = np.zeros((*values.shape, width))
    for place, value in np.ndenumerate(values):
        for pair in range(width // 2):
            angle = float(value) / 10_000 ** (2 * pair / width)
            embedded[(*place, 2 * pair)] = math.sin(angle)
            embedded[(*place, 2 * pair + 1)] = math.cos(angle)
    return embedded


Arrays = tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]
"""Bytes, sizes, times, which sizes are there, which times are there."""


def sequence(arrays: Arrays, w: Weights, kept: NDArray[np.int64] | None = None) -> F64:
    """What the blocks read, (F, L, D); of the strides only ``kept`` (F, k), in that order, if given."""
    flow_bytes, sizes, iats, sizes_present, iats_present = arrays
    n_flows, n = sizes.shape
    width = w["pos_embed"].shape[2]
    kernel, bias = w["byte_embed.proj.weight"], w["byte_embed.proj.bias"]
    strides = strides_of(flow_bytes, kernel.shape[2])
    embedded_sizes, embedded_iats = value_embedding(sizes, width), value_embedding(iats, width)
    flows = []
    for f in range(n_flows):
        tokens = [embedded_sizes[f, k] * sizes_present[f, k] + w["size_indicator"][0, 0] for k in range(n)]
        tokens += [w["size_cls_token"][0, 0] + w["size_indicator"][0, 0]]
        tokens += [embedded_iats[f, k] * iats_present[f, k] + w["iat_indicator"][0, 0] for k in range(n)]
        tokens += [w["iat_cls_token"][0, 0] + w["iat_indicator"][0, 0]]
        tokens += [kernel[:, 0] @ stride + bias + w["byte_indicator"][0, 0] for stride in strides[f]]
        tokens += [w["byte_cls_token"][0, 0] + w["byte_indicator"][0, 0]]
        with_positions = np.stack(tokens) + w["pos_embed"][0]
        if kept is not None:
            first = 2 * (n + 1)
            chosen = [*range(first), *(first + int(i) for i in kept[f]), len(tokens) - 1]
            with_positions = with_positions[chosen]
        flows.append(with_positions)
    return np.stack(flows)


def encode(x: F64, w: Weights) -> F64:
    """Blocks and final norm."""
    return rms_norm(_blocks(x, w, "encoder_blocks."), w["norm_f.weight"])


def logits(arrays: Arrays, w: Weights) -> F64:
    """(F, C)."""
    n = arrays[1].shape[1]
    encoded = encode(sequence(arrays, w), w)
    summed = encoded[:, n] + encoded[:, 2 * n + 1] + encoded[:, -1]
    return summed @ w["head.weight"].T + w["head.bias"]


def pretraining(
    arrays: Arrays,
    w: Weights,
    kept: NDArray[np.int64],
    sizes_hidden: NDArray[np.bool_],
    iats_hidden: NDArray[np.bool_],
    iat_scale: float,
) -> tuple[F64, float, float, float]:
    """Predicted strides (F, m, S), and the losses of strides, sizes and times, for given masks."""
    flow_bytes, sizes, iats, sizes_present, iats_present = arrays
    n_flows, n = sizes.shape
    hides_with = len(w["size_decoder_pred.bias"]) - 1
    covered = (np.where(sizes_hidden, hides_with, sizes), np.where(iats_hidden, 0.0, iats))
    encoded = encode(sequence((flow_bytes, *covered, sizes_present, iats_present), w, kept), w)
    narrow = encoded[:, 2 * n + 2 :] @ w["byte_decoder_embed.weight"].T + w["byte_decoder_embed.bias"]
    n_strides = w["byte_decoder_pos_embed"].shape[1] - 1
    x = np.zeros((n_flows, n_strides + 1, narrow.shape[2]))
    x[:, :n_strides] = w["byte_mask_token"][0, 0]
    x[:, n_strides] = narrow[:, -1]
    for f in range(n_flows):
        for place, i in enumerate(kept[f]):
            x[f, i] = narrow[f, place]
    decoded = _blocks(x + w["byte_decoder_pos_embed"], w, "byte_decoder_blocks.")
    decoded = rms_norm(decoded, w["decoder_norm_f.weight"])[:, :-1]
    predicted = decoded @ w["byte_decoder_pred.weight"].T + w["byte_decoder_pred.bias"]
    truth = strides_of(flow_bytes, predicted.shape[2])
    of_bytes, of_sizes, of_iats = [], [], []
    for f in range(n_flows):
        hidden_strides = [i for i in range(n_strides) if i not in kept[f]]
        of_bytes += [((predicted[f, i] - truth[f, i]) ** 2).mean() for i in hidden_strides]
        for k in range(n):
            if sizes_hidden[f, k] and sizes_present[f, k]:
                scores = encoded[f, k] @ w["size_decoder_pred.weight"].T + w["size_decoder_pred.bias"]
                of_sizes.append(math.log(np.exp(scores - scores[sizes[f, k]]).sum()))
            if iats_hidden[f, k] and iats_present[f, k]:
                guess = (
                    encoded[f, n + 1 + k] @ w["iat_decoder_pred.weight"][0] + w["iat_decoder_pred.bias"][0]
                )
                of_iats.append((guess - iats[f, k] / iat_scale) ** 2)
    return predicted, *(float(np.mean(losses)) for losses in (of_bytes, of_sizes, of_iats))  # type: ignore[return-value]


def _blocks(x: F64, w: Weights, prefix: str) -> F64:
    n_blocks = len({name.removeprefix(prefix).split(".")[0] for name in w if name.startswith(prefix)})
    for i in range(n_blocks):
        x = block(x, under(w, f"{prefix}{i}."))
    return x
