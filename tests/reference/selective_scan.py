"""The selective scan written down as its equations, one number at a time where it can be, in float64 numpy.

Independent of ``models``: nothing is imported from there. The gradient is the adjoint recurrence, written by hand.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]


class ScanInputs(NamedTuple):
    """B flows, L tokens, E channels, N states."""

    u: F64  # (B, L, E)
    dt: F64  # (B, L, E)
    A: F64  # (E, N)
    B: F64  # (B, L, N)
    C: F64  # (B, L, N)
    D: F64  # (E,)
    z: F64  # (B, L, E)
    dt_bias: F64  # (E,)


def sigmoid(x: F64) -> F64:
    return 1.0 / (1.0 + np.exp(-x))


def scan(inputs: ScanInputs) -> F64:
    """The output (B, L, E)."""
    u, dt, A, B, C, D, z, bias = inputs
    step = np.logaddexp(0.0, dt + bias)
    y = np.zeros_like(u)
    for b in range(u.shape[0]):
        for e in range(u.shape[2]):
            h = np.zeros(A.shape[1])
            for t in range(u.shape[1]):
                h = np.exp(step[b, t, e] * A[e]) * h + step[b, t, e] * B[b, t] * u[b, t, e]
                y[b, t, e] = (C[b, t] @ h + D[e] * u[b, t, e]) * z[b, t, e] * sigmoid(z[b, t, e])
    return y


def scan_gradients(inputs: ScanInputs, gy: F64) -> ScanInputs:
    """Gradients of sum(gy * scan(inputs)) with respect to every input."""
    u, dt, A, B, C, D, z, bias = inputs
    g = ScanInputs(*(np.zeros_like(x) for x in inputs))
    gate = z * sigmoid(z)
    gate_slope = sigmoid(z) * (1.0 + z * (1.0 - sigmoid(z)))
    step = np.logaddexp(0.0, dt + bias)
    n_flows, n_tokens, n_channels = u.shape
    for b in range(n_flows):
        for e in range(n_channels):
            h = np.zeros((n_tokens + 1, A.shape[1]))
            for t in range(n_tokens):
                h[t + 1] = np.exp(step[b, t, e] * A[e]) * h[t] + step[b, t, e] * B[b, t] * u[b, t, e]
            gh = np.zeros(A.shape[1])
            for t in reversed(range(n_tokens)):
                d, x = step[b, t, e], u[b, t, e]
                g.z[b, t, e] = gy[b, t, e] * (C[b, t] @ h[t + 1] + D[e] * x) * gate_slope[b, t, e]
                gs = gy[b, t, e] * gate[b, t, e]
                g.D[e] += gs * x
                g.C[b, t] += gs * h[t + 1]
                gh = gh + gs * C[b, t]
                decay = np.exp(d * A[e])
                g.A[e] += gh * h[t] * decay * d
                g.B[b, t] += gh * d * x
                g.u[b, t, e] = gs * D[e] + d * (gh @ B[b, t])
                gstep = (gh * h[t] * decay) @ A[e] + x * (gh @ B[b, t])
                g.dt[b, t, e] = gstep * sigmoid(dt[b, t, e] + bias[e])
                gh = gh * decay
    np.copyto(g.dt_bias, g.dt.sum((0, 1)))
    return g
