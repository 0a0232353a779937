"""What only inference needs: embedding, norm, and a Mamba block's scan fused with its neighbours, as numba kernels.

The projection of dt, softplus, scan, skip and gate are one kernel: dt exists for one token at a time, in the first
level of cache, and the projection (rank 16, too thin for a matrix product) runs at the speed of the row loops.

Dimensions: F flows, L tokens, D width, E channels (d_inner), N states, R rank of dt (a multiple of 4), S bytes of a
stride. The state's layout and the row functions are those of :mod:`models.nets.scan_kernels`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import float32, njit
from numpy.typing import NDArray

from models.nets.fast_math import FAST, exp2_of_negative, softplus
from models.nets.norm_kernels import inverse_root_mean_square
from models.nets.scan_kernels import advance_4_states, gate

F32 = NDArray[np.float32]
_ROW: dict[str, Any] = {"fastmath": FAST, "error_model": "numpy", "nogil": True, "cache": True}
_BLOCK: dict[str, Any] = {"error_model": "numpy", "nogil": True, "cache": True}


@njit(**_ROW)
def add_scaled(row: F32, factor: float, weight: F32) -> None:
    """Add factor * weight to row; (D,)."""
    for j in range(row.shape[0]):
        row[j] += factor * weight[j]


@njit(**_ROW)
def copy_row(source: F32, target: F32) -> None:
    """Copy (D,)."""
    for j in range(source.shape[0]):
        target[j] = source[j]


@njit(**_BLOCK)
def embed(flow_bytes: NDArray[np.uint8], weight: F32, positions: F32, first: int, x: F32) -> None:
    """Strides to embeddings, among tokens that are the same for every flow.

    Args:
        flow_bytes: uint8 (F, n * S), n strides.
        weight: float32 (S, D), with the scaling of the bytes folded in.
        positions: float32 (L, D): what a token is without its bytes; the bias of the embedding folded in.
        first: token that is the first stride.
        x: float32 (F, L, D), written.
    """
    stride = weight.shape[0]
    n_strides = flow_bytes.shape[1] // stride
    for b in range(x.shape[0]):
        for t in range(x.shape[1]):
            copy_row(positions[t], x[b, t])
        for t in range(n_strides):
            for k in range(stride):
                add_scaled(x[b, first + t], float32(flow_bytes[b, t * stride + k]), weight[k])


@njit(**_ROW)
def scale(x: F32, factor: float, y: F32) -> None:
    """Write y = x * factor; (D,)."""
    for j in range(x.shape[0]):
        y[j] = x[j] * factor


@njit(**_BLOCK)
def normalise(x: F32, y: F32, eps: float) -> None:
    """RMSNorm without its weight, which is folded into the next projection; float32 (rows, D)."""
    for i in range(x.shape[0]):
        scale(x[i], inverse_root_mean_square(x[i], eps), y[i])


@njit(**_ROW)
def add_4_scaled(row: F32, factors: F32, weight: F32, r: int) -> None:
    """Add four rows of ``weight`` (R, E), times their factors, from row r on; (E,)."""
    f0, f1, f2, f3 = factors[r], factors[r + 1], factors[r + 2], factors[r + 3]
    w0, w1, w2, w3 = weight[r], weight[r + 1], weight[r + 2], weight[r + 3]
    for j in range(row.shape[0]):
        row[j] += (f0 * w0[j] + f1 * w1[j]) + (f2 * w2[j] + f3 * w3[j])


@njit(**_ROW)
def steps_of_token(dt: F32, u: F32, D: F32, dtu: F32, s: F32) -> None:
    """Turn dt into softplus(dt) in place; dt * u; and the skip D * u in ``s``; all (E,)."""
    for j in range(dt.shape[0]):
        d = softplus(dt[j])
        dt[j] = d
        dtu[j] = d * u[j]
        s[j] = D[j] * u[j]


@njit(**_ROW)
def advance_4_states_silently(h: F32, A2: F32, dt: F32, dtu: F32, B: F32, n: int) -> None:
    """As :func:`models.nets.scan_kernels.advance_4_states`, for a token whose output nobody reads."""
    h0, h1, h2, h3 = h[n], h[n + 1], h[n + 2], h[n + 3]
    a0, a1, a2, a3 = A2[n], A2[n + 1], A2[n + 2], A2[n + 3]
    b0, b1, b2, b3 = B[n], B[n + 1], B[n + 2], B[n + 3]
    for j in range(dt.shape[0]):
        d = dt[j]
        w = dtu[j]
        h0[j] = h0[j] * exp2_of_negative(d * a0[j]) + w * b0
        h1[j] = h1[j] * exp2_of_negative(d * a1[j]) + w * b1
        h2[j] = h2[j] * exp2_of_negative(d * a2[j]) + w * b2
        h3[j] = h3[j] * exp2_of_negative(d * a3[j]) + w * b3


@njit(**_BLOCK)
def fused_scan(
    u: F32,
    selection: F32,
    dt_weight: F32,
    dt_bias: F32,
    A2: F32,
    D: F32,
    z: F32,
    z_layout: tuple[int, int],
    outputs: NDArray[np.int64],
    y: F32,
    y_layout: tuple[int, int],
    first: int,
    last: int,
) -> None:
    """Projection of dt, softplus, scan, skip and gate of flows first .. last-1.

    Args:
        u: float32 (F, L, E).
        selection: float32 (F, L, R + 2 N): the low-rank dt, B and C of each token.
        dt_weight: float32 (R, E).
        dt_bias: float32 (E,).
        A2: float32 (N, E), A * log2(e), all <= 0.
        D: float32 (E,).
        z: float32 (anything,), flat: output i of flow b is the row at ``b * z_layout[0] + i * z_layout[1]``.
        z_layout: elements from flow to flow and from output to output of ``z``.
        outputs: int64 (I,), rising: the tokens whose outputs are computed.
        y: float32 (anything,), flat, written, addressed as ``z``. May be the memory of ``u``.
        y_layout: elements from flow to flow and from output to output of ``y``.
        first: first flow.
        last: flow after the last one.
    """
    n_tokens, width = u.shape[1], u.shape[2]
    n_states, rank = A2.shape[0], dt_weight.shape[0]
    h = np.empty((n_states, width), np.float32)
    dt, dtu, s = np.empty(width, np.float32), np.empty(width, np.float32), np.empty(width, np.float32)
    for b in range(first, last):
        for n in range(n_states):
            for j in range(width):
                h[n, j] = 0.0
        i = 0
        for t in range(n_tokens):
            low_rank = selection[b, t, 0:rank]
            B = selection[b, t, rank : rank + n_states]
            copy_row(dt_bias, dt)
            for r in range(0, rank, 4):
                add_4_scaled(dt, low_rank, dt_weight, r)
            steps_of_token(dt, u[b, t], D, dtu, s)
            if i >= outputs.shape[0] or t != outputs[i]:
                for n in range(0, n_states, 4):
                    advance_4_states_silently(h, A2, dt, dtu, B, n)
                continue
            C = selection[b, t, rank + n_states : rank + 2 * n_states]
            for n in range(0, n_states, 4):
                advance_4_states(h, A2, dt, dtu, s, B, C, n)
            z_at = b * z_layout[0] + i * z_layout[1]
            y_at = b * y_layout[0] + i * y_layout[1]
            gate(s, z[z_at : z_at + width], y[y_at : y_at + width])
            i += 1
