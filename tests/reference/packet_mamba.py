"""packet-mamba in float64 numpy, one packet and one field at a time; imports nothing from ``models``."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from tests.reference.mamba import F64, Weights, block, rms_norm, under

# Buckets of an octave and number of buckets: IP length, payload length, gap, gap of the direction, window.
OCTAVES = ((8, 128), (8, 128), (3, 96), (3, 96), (2, 34))
FLAG_ROWS = (3, 256, 256, 256, 256, 3, 256, 5, 256)
SCALES = (7.3, 7.3, 13.8, 13.8, 11.1)


def bucket(value: int, column: int) -> int:
    steps, n = OCTAVES[column]
    return min(math.floor(np.log2(np.float32(value) + np.float32(1)) * np.float32(steps)), n - 1)


def embed(
    numbers: NDArray[np.int32], flags: NDArray[np.uint8], payload: NDArray[np.uint8], w: Weights
) -> F64:
    """One packet: (5,), (10,), (P,) to (D,)."""
    table = w["embed.fields.weight"]
    rows = [n for _, n in OCTAVES] + list(FLAG_ROWS)
    index = [bucket(int(v), c) for c, v in enumerate(numbers)] + [int(v) for v in flags[:9]]
    x = sum(table[sum(rows[:field]) + index[field]] for field in range(len(rows)))
    logs = np.array([math.log1p(int(v)) / scale for v, scale in zip(numbers, SCALES, strict=True)])
    x = x + w["embed.scalars.weight"] @ logs + w["embed.scalars.bias"]
    if len(payload):
        shown = [int(byte) + 1 if place < flags[9] else 0 for place, byte in enumerate(payload)]
        x = x + w["embed.payload.weight"] @ np.concatenate([w["embed.bytes.weight"][i] for i in shown])
    return rms_norm(x, w["embed.norm.weight"])


def encode(numbers, flags, payload, w: Weights) -> F64:
    """(F, K, D)."""
    x = np.array(
        [
            [embed(numbers[f, k], flags[f, k], payload[f, k], w) for k in range(numbers.shape[1])]
            for f in range(len(numbers))
        ]
    )
    for i in range(len({name.split(".")[1] for name in w if name.startswith("blocks.")})):
        x = block(x, under(w, f"blocks.{i}."))
    return rms_norm(x, w["norm_f.weight"])


def prefix_logits(numbers, flags, payload, w: Weights) -> F64:
    """(F, K, C)."""
    return encode(numbers, flags, payload, w) @ w["head.weight"].T + w["head.bias"]


def pretraining_parts(numbers, flags, payload, w: Weights, n_bytes: int) -> dict[str, float]:
    """Mean cross entropy of each part over all packets that have one before them."""
    encoded = encode(numbers, flags, payload, w)
    parts: dict[str, list[float]] = {name: [] for name in ("direction", "size", "gap", "tcp_flags", "bytes")}
    for f in range(len(numbers)):
        for k in range(1, numbers.shape[1]):
            if flags[f, k, 0] == 0:
                continue
            x = encoded[f, k - 1]
            parts["direction"].append(_cross_entropy(_linear(x, w, "next_direction"), flags[f, k, 0] - 1))
            parts["size"].append(_cross_entropy(_linear(x, w, "next_size"), bucket(int(numbers[f, k, 0]), 0)))
            parts["gap"].append(_cross_entropy(_linear(x, w, "next_gap"), bucket(int(numbers[f, k, 2]), 2)))
            parts["tcp_flags"].append(_cross_entropy(_linear(x, w, "next_tcp_flags"), flags[f, k, 2]))
            for place, code in enumerate(_linear(x, w, "next_bytes").reshape(n_bytes, 16)):
                value = int(payload[f, k, place]) + 1 if place < flags[f, k, 9] else 0
                parts["bytes"].append(
                    _cross_entropy(_linear(code / (1 + np.exp(-code)), w, "byte_values"), value)
                )
    return {name: float(np.mean(values)) for name, values in parts.items()}


def _linear(x: F64, w: Weights, name: str) -> F64:
    return w[f"{name}.weight"] @ x + w[f"{name}.bias"]


def _cross_entropy(logits: F64, target: int) -> float:
    return float(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[target])
