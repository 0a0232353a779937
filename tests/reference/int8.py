"""Products of rows and columns in 8 bits, one number at a time; imports nothing from ``models``."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]


def quantise_rows(x: F32) -> tuple[NDArray[np.int8], F32]:
    """Whole numbers from -127 to 127 and what 1 of each row is worth."""
    q = np.zeros(x.shape, np.int8)
    steps = np.zeros(len(x), np.float32)
    for i, row in enumerate(x):
        largest = max(abs(value) for value in row)
        if largest == 0:
            continue
        steps[i] = largest / np.float32(127)
        for j, value in enumerate(row):
            q[i, j] = round(float(value * (np.float32(127) / largest)))  # to the even one of two equally near
    return q, steps


def product(x: F32, weight: F32) -> F32:
    """x @ weight with each row of x and each column of weight in 8 bits of its own scale."""
    rows, row_steps = quantise_rows(x)
    columns, column_steps = quantise_rows(weight.T)
    y = np.zeros((len(x), weight.shape[1]), np.float32)
    for i in range(len(rows)):
        for k in range(len(columns)):
            total = sum(int(a) * int(b) for a, b in zip(rows[i], columns[k], strict=True))
            y[i, k] = total * float(row_steps[i]) * float(column_steps[k])
    return y
