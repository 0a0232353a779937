"""Causal depthwise convolution with SiLU, forward and backward, as numba kernels over rows of channels.

Mamba convolves each channel with ``d_conv`` taps along time, looking back only. In the layout (flows, tokens,
channels) a tap is one multiplication of a row, and nothing is transposed, unlike ``nn.Conv1d``.

    p[t, e] = bias[e] + sum_k weight[k, e] * x[t - (K - 1) + k, e]      x before the start is 0
    y[t, e] = silu(p[t, e])

Dimensions: B flows, L tokens, E channels, K taps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import float32, njit
from numpy.typing import NDArray

from models.nets.fast_math import FAST, sigmoid

F32 = NDArray[np.float32]
_ROW: dict[str, Any] = {"fastmath": FAST, "error_model": "numpy", "nogil": True, "cache": True}


@njit(**_ROW)
def start(row: F32, bias: F32) -> None:
    """Set row = bias; (E,)."""
    for j in range(row.shape[0]):
        row[j] = bias[j]


@njit(**_ROW)
def add_tap(row: F32, x: F32, weight: F32) -> None:
    """Add x * weight to row; (E,)."""
    for j in range(row.shape[0]):
        row[j] += x[j] * weight[j]


@njit(**_ROW)
def silu_row(row: F32) -> None:
    """Apply SiLU in place; (E,)."""
    for j in range(row.shape[0]):
        row[j] = row[j] * sigmoid(row[j])


@njit(**_ROW)
def four_taps(row: F32, x0: F32, x1: F32, x2: F32, x3: F32, weight: F32, bias: F32) -> None:
    """The whole of one token for the usual K = 4, SiLU included; x0 is the oldest token; all (E,)."""
    w0, w1, w2, w3 = weight[0], weight[1], weight[2], weight[3]
    for j in range(row.shape[0]):
        p = bias[j] + (x0[j] * w0[j] + x1[j] * w1[j]) + (x2[j] * w2[j] + x3[j] * w3[j])
        row[j] = p * sigmoid(p)


@njit(**_ROW)
def unsilu(gy: F32, p: F32) -> None:
    """From the gradient of silu(p) to that of p, written over ``p``; (E,)."""
    for j in range(gy.shape[0]):
        s = sigmoid(p[j])
        p[j] = gy[j] * s * (float32(1.0) + p[j] * (float32(1.0) - s))


@njit(nogil=True, cache=True, error_model="numpy")
def conv_forward(
    x: F32, x_layout: tuple[int, int], weight: F32, bias: F32, y: F32, first: int, last: int
) -> None:
    """Convolve flows first .. last-1.

    Args:
        x: float32 (anything,), flat: token t of flow b is the row at ``b * x_layout[0] + t * x_layout[1]``.
        x_layout: elements from flow to flow and from token to token of ``x``.
        weight: float32 (K, E); the last tap is the present token.
        bias: float32 (E,).
        y: float32 (B, L, E), written.
        first: first flow.
        last: flow after the last one.
    """
    n_tokens, width = y.shape[1], y.shape[2]
    n_taps = weight.shape[0]
    step = x_layout[1]
    for b in range(first, last):
        for t in range(n_tokens):
            at = b * x_layout[0] + t * step
            if n_taps == 4 and t >= 3:
                four_taps(
                    y[b, t],
                    x[at - 3 * step : at - 3 * step + width],
                    x[at - 2 * step : at - 2 * step + width],
                    x[at - step : at - step + width],
                    x[at : at + width],
                    weight,
                    bias,
                )
                continue
            start(y[b, t], bias)
            for k in range(max(0, n_taps - 1 - t), n_taps):
                source = at - (n_taps - 1 - k) * step
                add_tap(y[b, t], x[source : source + width], weight[k])
            silu_row(y[b, t])


@njit(nogil=True, cache=True, error_model="numpy")
def conv_backward(
    gy: F32,
    x: F32,
    x_layout: tuple[int, int],
    weight: F32,
    bias: F32,
    gx: F32,
    gweight: F32,
    gbias: F32,
    first: int,
    last: int,
) -> None:
    """Gradients for flows first .. last-1; the sum before SiLU is computed again.

    Args:
        gy: float32 (B, L, E).
        x: as for :func:`conv_forward`, likewise ``x_layout``, ``weight``, ``bias``.
        x_layout: see ``x``.
        weight: see ``x``.
        bias: see ``x``.
        gx: float32 (B, L, E), zero on entry, written.
        gweight: float32 (K, E), added to: the caller's own for this range of flows, likewise ``gbias`` (E,).
        gbias: see ``gweight``.
        first: first flow.
        last: flow after the last one.
    """
    n_tokens, width = gy.shape[1], gy.shape[2]
    n_taps = weight.shape[0]
    step = x_layout[1]
    p = np.empty(width, np.float32)
    ones = np.ones(width, np.float32)
    for b in range(first, last):
        for t in range(n_tokens):
            at = b * x_layout[0] + t * step
            oldest = max(0, n_taps - 1 - t)
            start(p, bias)
            for k in range(oldest, n_taps):
                source = at - (n_taps - 1 - k) * step
                add_tap(p, x[source : source + width], weight[k])
            unsilu(gy[b, t], p)
            add_tap(gbias, p, ones)
            for k in range(oldest, n_taps):
                back = n_taps - 1 - k
                source = at - back * step
                add_tap(gx[b, t - back], p, weight[k])
                add_tap(gweight[k], p, x[source : source + width])
