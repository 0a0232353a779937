"""RMSNorm, forward and backward, as numba kernels over rows.

    r[i] = 1 / sqrt(mean_j x[i, j]^2 + eps)      y[i, j] = x[i, j] * r[i] * weight[j]

Dimensions: rows I, width D.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import float32, njit
from numpy.typing import NDArray

from models.nets.fast_math import FAST, FAST_SUM

F32 = NDArray[np.float32]
_ROW: dict[str, Any] = {"fastmath": FAST, "error_model": "numpy", "nogil": True, "cache": True}
_ROW_SUM: dict[str, Any] = {**_ROW, "fastmath": FAST_SUM}


@njit(**_ROW_SUM)
def inverse_root_mean_square(x: F32, eps: float) -> Any:
    """The r of one row (D,)."""
    total = float32(0.0)
    for j in range(x.shape[0]):
        total += x[j] * x[j]
    return float32(1.0) / np.sqrt(total / float32(x.shape[0]) + float32(eps))


@njit(**_ROW)
def scale_row(x: F32, r: float, weight: F32, y: F32) -> None:
    """Write y = x * r * weight; (D,)."""
    for j in range(x.shape[0]):
        y[j] = x[j] * r * weight[j]


@njit(**_ROW_SUM)
def row_product(gy: F32, weight: F32, x: F32) -> Any:
    """The sum of gy * weight * x over one row (D,)."""
    total = float32(0.0)
    for j in range(x.shape[0]):
        total += gy[j] * weight[j] * x[j]
    return total


@njit(**_ROW)
def unscale_row(gy: F32, x: F32, r: float, weight: F32, pull: float, gx: F32, gweight: F32) -> None:
    """Write the gradient of x and add to that of the weight; (D,)."""
    for j in range(x.shape[0]):
        normed = x[j] * r
        gx[j] = r * (gy[j] * weight[j] - normed * pull)
        gweight[j] += gy[j] * normed


@njit(nogil=True, cache=True, error_model="numpy")
def norm_forward(x: F32, weight: F32, eps: float, y: F32, roots: F32, first: int, last: int) -> None:
    """Rows first .. last-1: float32 x (I, D), weight (D,); writes y (I, D) and roots (I,), the r of each row."""
    for i in range(first, last):
        r = inverse_root_mean_square(x[i], eps)
        roots[i] = r
        scale_row(x[i], r, weight, y[i])


@njit(nogil=True, cache=True, error_model="numpy")
def norm_backward(
    gy: F32, x: F32, weight: F32, roots: F32, gx: F32, gweight: F32, first: int, last: int
) -> None:
    """Rows first .. last-1: writes gx (I, D), adds to gweight (D,), the caller's own for this range."""
    width = float32(x.shape[1])
    for i in range(first, last):
        r = roots[i]
        pull = row_product(gy[i], weight, x[i]) * r / width
        unscale_row(gy[i], x[i], r, weight, pull, gx[i], gweight)
