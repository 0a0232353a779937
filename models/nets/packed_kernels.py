"""What packet-mamba's inference needs: embedding, convolution and scan over flows of different lengths, packed.

The packets of F flows lie one after the other in R rows, those of flow f in ``starts[f] : starts[f + 1]``; nothing is
padded, and no row knows of another flow. A flow may go on from where an earlier call left it: what it remembers is the
last K - 1 inputs of the convolution and the state of the scan.

Dimensions: F flows, R rows (packets), D width, E channels (d_inner), N states, K taps, Q rank of dt (a multiple of 4).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import float32, int32, njit
from numpy.typing import NDArray

from capture.kernels.packet_tokens import N_NUMBERS, N_SHOWN
from models.nets.conv_kernels import add_tap, four_taps, silu_row, start
from models.nets.fast_math import FAST, bits_of
from models.nets.inference_kernels import (
    add_4_scaled,
    add_scaled,
    advance_4_states_silently,
    copy_row,
    steps_of_token,
)
from models.nets.norm_kernels import inverse_root_mean_square, scale_row
from models.nets.scan_kernels import advance_4_states, gate

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
_ROW: dict[str, Any] = {"fastmath": FAST, "error_model": "numpy", "nogil": True, "cache": True}
_BLOCK: dict[str, Any] = {"error_model": "numpy", "nogil": True, "cache": True}


@njit(**_ROW)
def add_row(row: F32, other: F32) -> None:
    """Add (D,)."""
    for j in range(row.shape[0]):
        row[j] += other[j]


@njit(**_ROW)
def add_4_rows(row: F32, a: F32, b: F32, c: F32, d: F32) -> None:
    """Add four rows at once; all (D,)."""
    for j in range(row.shape[0]):
        row[j] += (a[j] + b[j]) + (c[j] + d[j])


@njit(**_BLOCK)
def bucket_of(value: int, guesses: NDArray[np.int64], thresholds: NDArray[np.int64]) -> Any:
    """The last bucket whose threshold is not above ``value``.

    Args:
        value: 0 to 2**31 - 1.
        guesses: int64 (1025,), the bucket of the least number of each cell: 32 cells an octave of value + 1.
        thresholds: int64 (buckets + 1,), the least number of each bucket, rising from 0; the last one is above all.
    """
    # Exponent and the first bits of the fraction of a float32 are the cell.
    bucket = guesses[(bits_of(float32(value) + float32(1.0)) >> int32(18)) - (127 << 5)]
    while thresholds[bucket] > value:  # rounded up into the next cell
        bucket -= 1
    while thresholds[bucket + 1] <= value:
        bucket += 1
    return bucket


@njit(**_BLOCK)
def embed_packets(
    numbers: NDArray[np.int32],
    flags: NDArray[np.uint8],
    payload: NDArray[np.uint8],
    logs: F32,
    first: I64,
    starts: I64,
    guesses: I64,
    thresholds: I64,
    table: F32,
    field_starts: I64,
    scalar_weight: F32,
    bias: F32,
    byte_table: F32,
    norm_weight: F32,
    eps: float,
    x: F32,
) -> None:
    """The tokens of F flows, one a row.

    Args:
        numbers: int32 (F, L, 5), of at least the packets wanted; likewise flags uint8 (F, L, 10), payload uint8
            (F, L, P), logs float32 (F, L, 5), the scaled logarithms of the numbers.
        flags: see numbers.
        payload: see numbers.
        logs: see numbers.
        first: int64 (F,), the packet of each flow that its first row is.
        starts: int64 (F + 1,).
        guesses: int64 (5, 1025), of each column; see :func:`bucket_of`.
        thresholds: int64 (5, most buckets + 1), likewise.
        table: float32 (fields' rows, D).
        field_starts: int64 (14,), where each field begins in ``table``.
        scalar_weight: float32 (5, D).
        bias: float32 (D,), of the scalars, and of payloads without a byte.
        byte_table: float32 (P, 256, D): a payload byte at its place, less what "no byte" gives there.
        norm_weight: float32 (D,).
        eps: of the norm.
        x: float32 (R, D), written.
    """
    n_fields = field_starts.shape[0]
    rows = np.empty(n_fields, np.int64)
    for f in range(starts.shape[0] - 1):
        for r in range(starts[f], starts[f + 1]):
            k = first[f] + r - starts[f]
            row = x[r]
            copy_row(bias, row)
            for c in range(N_NUMBERS):
                rows[c] = field_starts[c] + bucket_of(numbers[f, k, c], guesses[c], thresholds[c])
                add_scaled(row, logs[f, k, c], scalar_weight[c])
            for c in range(N_NUMBERS, n_fields):
                rows[c] = field_starts[c] + flags[f, k, c - N_NUMBERS]
            c = 0
            while c + 4 <= n_fields:
                add_4_rows(row, table[rows[c]], table[rows[c + 1]], table[rows[c + 2]], table[rows[c + 3]])
                c += 4
            while c < n_fields:
                add_row(row, table[rows[c]])
                c += 1
            n_shown = min(int(flags[f, k, N_SHOWN]), payload.shape[2])
            p = 0
            while p + 4 <= n_shown:
                add_4_rows(
                    row,
                    byte_table[p, payload[f, k, p]],
                    byte_table[p + 1, payload[f, k, p + 1]],
                    byte_table[p + 2, payload[f, k, p + 2]],
                    byte_table[p + 3, payload[f, k, p + 3]],
                )
                p += 4
            while p < n_shown:
                add_row(row, byte_table[p, payload[f, k, p]])
                p += 1
            scale_row(row, inverse_root_mean_square(row, eps), norm_weight, row)


@njit(**_BLOCK)
def convolve(
    x: F32,
    x_step: int,
    taps: F32,
    bias: F32,
    starts: I64,
    history: F32,
    slots: I64,
    goes_on: bool,
    u: F32,
) -> None:
    """Causal convolution with SiLU of each flow's rows.

    Args:
        x: float32 (anything,), flat: row r is at ``r * x_step``.
        x_step: elements from row to row.
        taps: float32 (K, E); the last tap is the present packet.
        bias: float32 (E,).
        starts: int64 (F + 1,).
        history: float32 (slots, K - 1, E), the inputs before a flow's first row, oldest first; brought up to date.
        slots: int64 (F,), where each flow's history is. Neither is looked at where the flows begin here.
        goes_on: whether there is a history.
        u: float32 (R, E), written.
    """
    n_taps, width = taps.shape
    for f in range(starts.shape[0] - 1):
        begin, end = starts[f], starts[f + 1]
        for r in range(begin, end):
            at = r * x_step
            if n_taps == 4 and r - begin >= 3:
                four_taps(
                    u[r],
                    x[at - 3 * x_step : at - 3 * x_step + width],
                    x[at - 2 * x_step : at - 2 * x_step + width],
                    x[at - x_step : at - x_step + width],
                    x[at : at + width],
                    taps,
                    bias,
                )
                continue
            start(u[r], bias)
            for k in range(n_taps):
                back = n_taps - 1 - k
                if r - back >= begin:
                    add_tap(u[r], x[at - back * x_step : at - back * x_step + width], taps[k])
                elif goes_on:
                    add_tap(u[r], history[slots[f], k + r - begin], taps[k])
            silu_row(u[r])
        if goes_on:
            _remember(x, x_step, begin, end, history[slots[f]])


@njit(**_BLOCK)
def _remember(x: F32, x_step: int, begin: int, end: int, history: F32) -> None:
    """Bring one flow's last inputs (K - 1, E) up to date."""
    n_kept, width = history.shape
    n_new = end - begin
    for k in range(n_kept):
        if k + n_new < n_kept:
            copy_row(history[k + n_new], history[k])
        else:
            at = (end - n_kept + k) * x_step
            copy_row(x[at : at + width], history[k])


@njit(**_BLOCK)
def scan(
    u: F32,
    selection: F32,
    dt_weight: F32,
    dt_bias: F32,
    A2: F32,
    D: F32,
    starts: I64,
    z: F32,
    z_step: int,
    last_only: bool,
    states: F32,
    slots: I64,
    goes_on: bool,
    y: F32,
) -> None:
    """Projection of dt, softplus, scan, skip and gate of each flow's rows.

    Args:
        u: float32 (R, E).
        selection: float32 (R, Q + 2 N): the low-rank dt, B and C of each row.
        dt_weight: float32 (Q, E).
        dt_bias: float32 (E,).
        A2: float32 (N, E), A * log2(e), all <= 0.
        D: float32 (E,).
        starts: int64 (F + 1,).
        z: float32 (anything,), flat: the gate of output i is at ``i * z_step``. Output i is row i, or the last row of
            flow i if ``last_only``.
        z_step: elements from gate to gate.
        last_only: only each flow's last row has an output.
        states: float32 (slots, N, E), the state before a flow's first row; brought up to date.
        slots: int64 (F,), where each flow's state is. Neither is looked at where the flows begin here.
        goes_on: whether there are states.
        y: float32 (outputs, E), written. May be the memory of ``u`` where every row has an output.
    """
    width = u.shape[1]
    n_states, rank = A2.shape[0], dt_weight.shape[0]
    h = np.empty((n_states, width), np.float32)
    dt, dtu, s = np.empty(width, np.float32), np.empty(width, np.float32), np.empty(width, np.float32)
    for f in range(starts.shape[0] - 1):
        begin, end = starts[f], starts[f + 1]
        for n in range(n_states):
            if goes_on:
                copy_row(states[slots[f], n], h[n])
            else:
                for j in range(width):
                    h[n, j] = 0.0
        for r in range(begin, end):
            low_rank = selection[r, 0:rank]
            B = selection[r, rank : rank + n_states]
            copy_row(dt_bias, dt)
            for q in range(0, rank, 4):
                add_4_scaled(dt, low_rank, dt_weight, q)
            steps_of_token(dt, u[r], D, dtu, s)
            if last_only and r + 1 < end:
                for n in range(0, n_states, 4):
                    advance_4_states_silently(h, A2, dt, dtu, B, n)
                continue
            C = selection[r, rank + n_states : rank + 2 * n_states]
            for n in range(0, n_states, 4):
                advance_4_states(h, A2, dt, dtu, s, B, C, n)
            i = f if last_only else r
            gate(s, z[i * z_step : i * z_step + width], y[i])
        if goes_on:
            for n in range(n_states):
                copy_row(h[n], states[slots[f], n])
