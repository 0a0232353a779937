"""The selective scan on a CPU: forward and backward as numba kernels over rows of channels.

Source: Mamba (arXiv 2312.00752), algorithm 2 with the zero-order hold of A and the Euler step of B that its code uses.
Per flow, channel d and state n, with dt[t] = softplus(dt_raw[t] + dt_bias):

    h[t, n, d] = exp(dt[t, d] * A[d, n]) * h[t-1, n, d] + dt[t, d] * u[t, d] * B[t, n]
    s[t, d]    = sum_n C[t, n] * h[t, n, d] + D[d] * u[t, d]
    y[t, d]    = s[t, d] * silu(z[t, d])

Dimensions: B flows, L tokens, E channels (d_inner), N states (d_state, a multiple of 4), K tokens a chunk.

Why it looks as it does (each was measured):

- The state is (N, E): the channels of one state are a row, so the vector unit runs along channels and needs no
  horizontal sum. LLVM vectorises the small one-loop functions over 1-D rows; one big function stays scalar.
- Four states in one pass of the forward kernel save loads of dt and stores of y. In the backward kernel two are no
  faster than one, and with four LLVM gives up on the alias checks.
- Nothing of size (L, E, N) is kept: the state is stored every K tokens and recomputed, chunk by chunk, backwards.
- Row assignment is a loop; assigning slices is 12 times slower in numba.

Every kernel takes the half-open range of flows it works on, so a thread pool can share a batch; the GIL is released.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import float32, njit
from numpy.typing import NDArray

from models.nets.fast_math import FAST, FAST_SUM, LOG2_E, exp2_of_negative, sigmoid, softplus

F32 = NDArray[np.float32]

CHUNK = 16
"""K: tokens between two stored states. 8 and 32 are no faster, and 16 needs little memory of either kind."""

_ROW: dict[str, Any] = {"fastmath": FAST, "error_model": "numpy", "nogil": True, "cache": True}
_ROW_SUM: dict[str, Any] = {**_ROW, "fastmath": FAST_SUM}


@njit(**_ROW)
def copy_rows(source: F32, target: F32) -> None:
    """Copy (N, E)."""
    for n in range(source.shape[0]):
        for j in range(source.shape[1]):
            target[n, j] = source[n, j]


@njit(**_ROW)
def prepare_token(u: F32, dt_raw: F32, bias: F32, D: F32, dt: F32, dtu: F32, s: F32) -> None:
    """One token's dt = softplus(dt_raw + bias), dt * u, and the skip D * u in ``s``; all (E,)."""
    for j in range(u.shape[0]):
        d = softplus(dt_raw[j] + bias[j])
        dt[j] = d
        dtu[j] = d * u[j]
        s[j] = D[j] * u[j]


@njit(**_ROW)
def advance_4_states(h: F32, A2: F32, dt: F32, dtu: F32, s: F32, B: F32, C: F32, n: int) -> None:
    """States n .. n+3 one token on, in place, and their part of the output added to ``s``.

    ``A2`` is A * log2(e), (N, E); ``h`` (N, E); ``B``, ``C`` (N,); the others (E,).
    """
    h0, h1, h2, h3 = h[n], h[n + 1], h[n + 2], h[n + 3]
    a0, a1, a2, a3 = A2[n], A2[n + 1], A2[n + 2], A2[n + 3]
    b0, b1, b2, b3 = B[n], B[n + 1], B[n + 2], B[n + 3]
    c0, c1, c2, c3 = C[n], C[n + 1], C[n + 2], C[n + 3]
    for j in range(dt.shape[0]):
        d = dt[j]
        w = dtu[j]
        q0 = h0[j] * exp2_of_negative(d * a0[j]) + w * b0
        q1 = h1[j] * exp2_of_negative(d * a1[j]) + w * b1
        q2 = h2[j] * exp2_of_negative(d * a2[j]) + w * b2
        q3 = h3[j] * exp2_of_negative(d * a3[j]) + w * b3
        h0[j] = q0
        h1[j] = q1
        h2[j] = q2
        h3[j] = q3
        s[j] += (q0 * c0 + q1 * c1) + (q2 * c2 + q3 * c3)


@njit(**_ROW)
def gate(s: F32, z: F32, y: F32) -> None:
    """Write y = s * silu(z); all (E,)."""
    for j in range(s.shape[0]):
        y[j] = s[j] * z[j] * sigmoid(z[j])


@njit(nogil=True, cache=True, error_model="numpy")
def scan_forward(
    u: F32,
    dt_raw: F32,
    A2: F32,
    B: F32,
    C: F32,
    D: F32,
    z: F32,
    z_layout: tuple[int, int],
    bias: F32,
    y: F32,
    checkpoints: F32,
    first: int,
    last: int,
) -> None:
    """The scan of flows first .. last-1.

    Args:
        u: float32 (B, L, E), C order, as every array here.
        dt_raw: float32 (B, L, E), before bias and softplus.
        A2: float32 (N, E), A * log2(e), all <= 0.
        B: float32 (B, L, N).
        C: float32 (B, L, N).
        D: float32 (E,).
        z: float32 (anything,), flat: token t of flow b is the row at ``b * z_layout[0] + t * z_layout[1]``.
        z_layout: elements from flow to flow and from token to token of ``z``.
        bias: float32 (E,).
        y: float32 (B, L, E), written.
        checkpoints: float32 (B, ceil(L / K), N, E), written: the state *before* token k * K. Of size 0 in axis 1 if
            no gradient is wanted.
        first: first flow.
        last: flow after the last one.
    """
    n_tokens, width = u.shape[1], u.shape[2]
    n_states = A2.shape[0]
    keep = checkpoints.shape[1] > 0
    h = np.empty((n_states, width), np.float32)
    dt, dtu, s = np.empty(width, np.float32), np.empty(width, np.float32), np.empty(width, np.float32)
    for b in range(first, last):
        for n in range(n_states):
            for j in range(width):
                h[n, j] = 0.0
        for t in range(n_tokens):
            if keep and t % CHUNK == 0:
                copy_rows(h, checkpoints[b, t // CHUNK])
            prepare_token(u[b, t], dt_raw[b, t], bias, D, dt, dtu, s)
            for n in range(0, n_states, 4):
                advance_4_states(h, A2, dt, dtu, s, B[b, t], C[b, t], n)
            at = b * z_layout[0] + t * z_layout[1]
            gate(s, z[at : at + width], y[b, t])


@njit(**_ROW)
def advance_keeping_decay(
    h: F32, decay: F32, after: F32, A2: F32, dt: F32, dtu: F32, s: F32, b: float, c: float
) -> None:
    """One state one token on, ``after = decay * h + dtu * b``, all (E,); what the backward pass needs is kept."""
    for j in range(dt.shape[0]):
        e = exp2_of_negative(dt[j] * A2[j])
        q = h[j] * e + dtu[j] * b
        decay[j] = e
        after[j] = q
        s[j] += q * c


@njit(**_ROW)
def ungate(gy: F32, s: F32, z: F32, gs: F32, gz: F32) -> None:
    """From the gradient of y = s * silu(z) to those of s and z; all (E,)."""
    for j in range(gy.shape[0]):
        p = sigmoid(z[j])
        gs[j] = gy[j] * z[j] * p
        gz[j] = gy[j] * s[j] * p * (float32(1.0) + z[j] * (float32(1.0) - p))


@njit(**_ROW_SUM)
def retreat_1_state(
    g: F32,
    before: F32,
    after: F32,
    decay: F32,
    A: F32,
    dt: F32,
    dtu: F32,
    gs: F32,
    gdtu: F32,
    gdt: F32,
    gA: F32,
    b: float,
    c: float,
) -> tuple[float, float]:
    """One state one token back, all (E,): ``g`` is dLoss/dh from the future, made that of the token before.

    Adds to ``gdtu``, ``gdt`` and ``gA``; returns the gradients of the token's B[n] and C[n].
    """
    gB = float32(0.0)
    gC = float32(0.0)
    for j in range(dt.shape[0]):
        gh = g[j] + gs[j] * c
        gC += gs[j] * after[j]
        gB += gh * dtu[j]
        gdtu[j] += gh * b
        ge = gh * decay[j]
        x = ge * before[j]
        gdt[j] += x * A[j]
        gA[j] += x * dt[j]
        g[j] = ge
    return gB, gC


@njit(**_ROW)
def finish_token(
    u: F32,
    dt_raw: F32,
    bias: F32,
    D: F32,
    dt: F32,
    gs: F32,
    gdtu: F32,
    gdt: F32,
    gu: F32,
    gdt_raw: F32,
    gD: F32,
    gbias: F32,
) -> None:
    """From the gradients of dt and dt * u to those of u, dt_raw, D and the bias; all (E,)."""
    for j in range(u.shape[0]):
        gu[j] = gs[j] * D[j] + gdtu[j] * dt[j]
        g = (gdt[j] + gdtu[j] * u[j]) * sigmoid(dt_raw[j] + bias[j])
        gdt_raw[j] = g
        gbias[j] += g
        gD[j] += gs[j] * u[j]


@njit(nogil=True, cache=True, error_model="numpy")
def _recompute_chunk(
    u: F32,
    dt_raw: F32,
    A2: F32,
    B: F32,
    C: F32,
    D: F32,
    bias: F32,
    states: F32,
    decays: F32,
    dt: F32,
    dtu: F32,
    s: F32,
) -> None:
    """Run a chunk forward from ``states[0]``; keep states (K+1, N, E), decays (K, N, E) and the rows (K, E)."""
    for k in range(u.shape[0]):
        prepare_token(u[k], dt_raw[k], bias, D, dt[k], dtu[k], s[k])
        for n in range(A2.shape[0]):
            advance_keeping_decay(
                states[k, n], decays[k, n], states[k + 1, n], A2[n], dt[k], dtu[k], s[k], B[k, n], C[k, n]
            )


@njit(nogil=True, cache=True, error_model="numpy")
def scan_backward(
    gy: F32,
    u: F32,
    dt_raw: F32,
    A: F32,
    B: F32,
    C: F32,
    D: F32,
    z: F32,
    z_layout: tuple[int, int],
    bias: F32,
    checkpoints: F32,
    gu: F32,
    gdt_raw: F32,
    gA: F32,
    gB: F32,
    gC: F32,
    gD: F32,
    gz: F32,
    gbias: F32,
    first: int,
    last: int,
) -> None:
    """Gradients of the scan of flows first .. last-1.

    Args:
        gy: float32 (B, L, E), gradient of the output.
        u: as for :func:`scan_forward`, likewise ``dt_raw``, ``B``, ``C``, ``D``, ``z``, ``z_layout``, ``bias``.
        dt_raw: see ``u``.
        A: float32 (N, E), without the factor log2(e).
        B: see ``u``.
        C: see ``u``.
        D: see ``u``.
        z: see ``u``.
        z_layout: see ``u``.
        bias: see ``u``.
        checkpoints: what :func:`scan_forward` stored.
        gu: float32 (B, L, E), written, likewise ``gdt_raw`` and ``gz``.
        gdt_raw: see ``gu``.
        gA: float32 (N, E), added to: the caller's own for this range of flows, likewise ``gD`` and ``gbias`` (E,).
        gB: float32 (B, L, N), written, likewise ``gC``.
        gC: see ``gB``.
        gD: see ``gA``.
        gz: see ``gu``.
        gbias: see ``gA``.
        first: first flow.
        last: flow after the last one.
    """
    n_tokens, width = u.shape[1], u.shape[2]
    n_states = A.shape[0]
    A2 = A * float32(LOG2_E)
    states = np.empty((CHUNK + 1, n_states, width), np.float32)
    decays = np.empty((CHUNK, n_states, width), np.float32)
    dt, dtu, s = (
        np.empty((CHUNK, width), np.float32),
        np.empty((CHUNK, width), np.float32),
        np.empty((CHUNK, width), np.float32),
    )
    g = np.empty((n_states, width), np.float32)
    gs, gdtu, gdt = np.empty(width, np.float32), np.empty(width, np.float32), np.empty(width, np.float32)
    for b in range(first, last):
        for n in range(n_states):
            for j in range(width):
                g[n, j] = 0.0
        for chunk in range(checkpoints.shape[1] - 1, -1, -1):
            lo = chunk * CHUNK
            hi = min(lo + CHUNK, n_tokens)
            copy_rows(checkpoints[b, chunk], states[0])
            _recompute_chunk(
                u[b, lo:hi],
                dt_raw[b, lo:hi],
                A2,
                B[b, lo:hi],
                C[b, lo:hi],
                D,
                bias,
                states,
                decays,
                dt,
                dtu,
                s,
            )
            for t in range(hi - 1, lo - 1, -1):
                k = t - lo
                at = b * z_layout[0] + t * z_layout[1]
                ungate(gy[b, t], s[k], z[at : at + width], gs, gz[b, t])
                for j in range(width):
                    gdtu[j] = 0.0
                    gdt[j] = 0.0
                for n in range(n_states):
                    gB[b, t, n], gC[b, t, n] = retreat_1_state(
                        g[n],
                        states[k, n],
                        states[k + 1, n],
                        decays[k, n],
                        A[n],
                        dt[k],
                        dtu[k],
                        gs,
                        gdtu,
                        gdt,
                        gA[n],
                        B[b, t, n],
                        C[b, t, n],
                    )
                finish_token(
                    u[b, t], dt_raw[b, t], bias, D, dt[k], gs, gdtu, gdt, gu[b, t], gdt_raw[b, t], gD, gbias
                )
