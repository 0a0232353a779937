"""Rows of float32 to int8 and products back, as numba kernels.

    q[i, j] = round(x[i, j] / s[i]),   s[i] = max_j |x[i, j]| / 127        (symmetric: no zero point, -128 is not used)
    y[i, k] = (sum_j q[i, j] * w[j, k]) * s[i] * c[k]                       c[k]: what one step of column k is worth

The sum of products is exact in int32, so a row's result does not depend on the other rows.

Dimensions: rows I, width D, columns K.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import float32, int8, int32, njit
from numpy.typing import NDArray

from models.nets.fast_math import FAST, bits_of, from_bits

F32 = NDArray[np.float32]
I8 = NDArray[np.int8]
I32 = NDArray[np.int32]

LARGEST = 127
"""Of an int8; one side of the scale, so that both signs have the same steps."""

_ROW: dict[str, Any] = {"fastmath": FAST, "error_model": "numpy", "nogil": True, "cache": True}
_BLOCK: dict[str, Any] = {"error_model": "numpy", "nogil": True, "cache": True}


@njit(**_ROW)
def largest_magnitude(x: F32) -> Any:
    """Of one row (D,). Bits without their sign are ordered as the numbers are, and a maximum of integers vectorises."""
    largest = int32(0)
    for j in range(x.shape[0]):
        largest = max(largest, bits_of(x[j]) & int32(0x7FFFFFFF))
    return from_bits(largest)


@njit(**_ROW)
def round_row(x: F32, factor: float, q: I8) -> None:
    """Write q = round(x * factor), to the even one of two equally near; (D,)."""
    for j in range(x.shape[0]):
        q[j] = int8(np.rint(x[j] * factor))


@njit(**_BLOCK)
def quantise_rows(x: F32, q: I8, steps: F32) -> None:
    """Each row at its own scale.

    Args:
        x: float32 (I, D), finite.
        q: int8 (I, D), written.
        steps: float32 (I,), written: what 1 in q is worth; 0 for a row of zeros.
    """
    for i in range(x.shape[0]):
        largest = largest_magnitude(x[i])
        steps[i] = largest / float32(LARGEST)
        round_row(x[i], float32(LARGEST) / largest if largest > 0 else float32(0.0), q[i])


@njit(**_ROW)
def widen_row(total: I32, step: float, columns: F32, y: F32) -> None:
    """Write y = total * step * columns; (K,)."""
    for k in range(total.shape[0]):
        y[k] = float32(total[k]) * (step * columns[k])


@njit(**_ROW)
def add_widened_row(total: I32, step: float, columns: F32, y: F32) -> None:
    """Add total * step * columns to y; (K,)."""
    for k in range(total.shape[0]):
        y[k] += float32(total[k]) * (step * columns[k])


@njit(**_BLOCK)
def widen(totals: I32, steps: F32, columns: F32, y: F32) -> None:
    """Products of int8 to float32: int32 (I, K), steps float32 (I,) and (K,); writes y (I, K)."""
    for i in range(totals.shape[0]):
        widen_row(totals[i], steps[i], columns, y[i])


@njit(**_BLOCK)
def add_widened(totals: I32, steps: F32, columns: F32, y: F32) -> None:
    """As :func:`widen`, added to what is in ``y``."""
    for i in range(totals.shape[0]):
        add_widened_row(totals[i], steps[i], columns, y[i])
