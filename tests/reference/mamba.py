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
    """(B, L, D) to (B, L, D); ``w`` has the names of mamba_ssm's Mamba."""
    d_inner, d_state = w["A_log"].shape
    rank = w["dt_proj.weight"].shape[1]
    xz = x @ w["in_proj.weight"].T
    u = causal_conv_silu(xz[..., :d_inner], w["conv1d.weight"], w["conv1d.bias"])
    selection = u @ w["x_proj.weight"].T
    y = scan(
        ScanInputs(
            u=u,
            dt=selection[..., :rank] @ w["dt_proj.weight"].T,
            A=-np.exp(w["A_log"]),
            B=selection[..., rank : rank + d_state],
            C=selection[..., rank + d_state :],
            D=w["D"],
            z=xz[..., d_inner:],
            dt_bias=w["dt_proj.bias"],
        )
    )
    return y @ w["out_proj.weight"].T


def block(x: F64, w: Weights) -> F64:
    """x + mixer(norm(x))."""
    return x + mixer(rms_norm(x, w["norm.weight"]), under(w, "mixer."))


def under(w: Weights, prefix: str) -> dict[str, F64]:
    """The weights whose names start with ``prefix``, without it."""
    return {name.removeprefix(prefix): value for name, value in w.items() if name.startswith(prefix)}
