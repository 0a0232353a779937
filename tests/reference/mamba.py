"""One Mamba block in float64 numpy, token by token, from a state dict; imports nothing from ``models``."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from tests.reference.selective_scan import ScanInputs, scan, sigmoid

F64 = NDArray[np.float64]
Weights = Mapping[str, F64]


def rms_norm(x: F64, weight: F64) -> F64:
    """Over the last axis, eps 1e-5."""
    normed: F64 = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * weight
    return normed


def causal_conv_silu(x: F64, weight: F64, bias: F64) -> F64:
    """(B, L, E) with taps (E, 1, K); the last tap is the present token."""
    n_taps = weight.shape[2]
    y = np.zeros_like(x)
    for t in range(x.shape[1]):
        total = np.broadcast_to(bias, x[:, t].shape).copy()
        for k in range(n_taps):
            source = t - (n_taps - 1) + k
            if source >= 0:
                total += weight[:, 0, k] * x[:, source]
        y[:, t] = total * sigmoid(total)
    return y


def mixer(x: F64, w: Weights) -> F64:
    """(B, L, D) to (B, L, D); ``w`` has the names of mamba_ssm's Mamba, and Vision Mamba's of a second direction."""
    xz = x @ w["in_proj.weight"].T
    y = _one_direction(xz, w, "A_log", "")
    if "A_b_log" in w:
        y = y + _one_direction(xz[:, ::-1], w, "A_b_log", "_b")[:, ::-1]
    return y @ w["out_proj.weight"].T


def _one_direction(xz: F64, w: Weights, a_log: str, suffix: str) -> F64:
    """From the first token of ``xz`` to its last."""
    d_inner, d_state = w[a_log].shape
    rank = w[f"dt_proj{suffix}.weight"].shape[1]
    u = causal_conv_silu(xz[..., :d_inner], w[f"conv1d{suffix}.weight"], w[f"conv1d{suffix}.bias"])
    selection = u @ w[f"x_proj{suffix}.weight"].T
    return scan(
        ScanInputs(
            u=u,
            dt=selection[..., :rank] @ w[f"dt_proj{suffix}.weight"].T,
            A=-np.exp(w[a_log]),
            B=selection[..., rank : rank + d_state],
            C=selection[..., rank + d_state :],
            D=w[f"D{suffix}"],
            z=xz[..., d_inner:],
            dt_bias=w[f"dt_proj{suffix}.bias"],
        )
    )


def block(x: F64, w: Weights) -> F64:
    """x + mixer(norm(x))."""
    return x + mixer(rms_norm(x, w["norm.weight"]), under(w, "mixer."))


def under(w: Weights, prefix: str) -> dict[str, F64]:
    """The weights whose names start with ``prefix``, without it."""
    return {name.removeprefix(prefix): value for name, value in w.items() if name.startswith(prefix)}
