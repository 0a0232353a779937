"""Answers before the last packet: fitted on the calibration part, then bounded by the full pass.

A model that answers after every packet need not read on when it is sure. At each level (after 1, 2, 4, ... packets) a
flow that has more packets gets its answer if the largest calibrated probability reaches the level's threshold. Every
packet is computed at most once, whatever the flow does: one that never lets the model be sure costs the full pass and
a head at each level.

F flows, L levels, C labels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from models.checkpoint_files import ExitLevel
from models.learning.calibration import fit_temperature, softmax

if TYPE_CHECKING:
    from models.nets.packet_inference import FastPacketMamba

LEVELS: Final = (1, 2, 4, 8, 16, 32)
"""Packets after which an early answer is thought of; the last one of a flow is no level."""

AGREEMENT: Final = 0.99
"""Least share of the early answers that are what the whole input says."""

LEAST_EXITS: Final = 100
"""Calibration flows that must reach a threshold; fewer cannot show an agreement of 0.99."""


def fit_levels(
    logits: NDArray[np.floating[Any]],
    final: NDArray[np.floating[Any]],
    labels: NDArray[np.int64],
    n_packets: NDArray[Any],
    packets: tuple[int, ...],
) -> tuple[ExitLevel, ...]:
    """A temperature and a threshold for each level.

    Args:
        logits: (L, F, C), after each level's packets.
        final: (F, C), after all packets.
        labels: int64 (F,), true ones, of flows that were not trained on.
        n_packets: (F,), packets of each flow in the input.
        packets: the L levels, rising.

    Returns:
        The levels at which enough flows can leave.
    """
    told = final.argmax(axis=1)
    levels = []
    for number, level in enumerate(packets):
        is_open = n_packets > level
        if is_open.sum() < LEAST_EXITS:
            continue
        temperature = fit_temperature(logits[number, is_open], labels[is_open])
        chances = softmax(logits[number, is_open], temperature)
        threshold = _threshold(chances.max(axis=1), chances.argmax(axis=1) == told[is_open])
        if threshold is not None:
            levels.append(ExitLevel(level, temperature, threshold))
    return tuple(levels)


def _threshold(confidence: NDArray[np.float64], agrees: NDArray[np.bool_]) -> float | None:
    """The least confidence at and above which enough answers agree; None where there is none."""
    order = np.argsort(-confidence, kind="stable")
    share = np.cumsum(agrees[order]) / np.arange(1, len(order) + 1)
    # Flows of equal confidence leave together.
    is_last = np.append(np.diff(confidence[order]) != 0, True)
    fits = np.flatnonzero((share >= AGREEMENT) & is_last & (np.arange(len(order)) + 1 >= LEAST_EXITS))
    return float(confidence[order][fits[-1]]) if len(fits) else None


def answers_early(
    fast: FastPacketMamba,
    arrays: tuple[NDArray[Any], NDArray[Any], NDArray[Any]],
    n_packets: NDArray[np.int64],
    levels: tuple[ExitLevel, ...],
    temperature: float,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Answers of F flows, each as soon as the model is sure.

    Args:
        fast: the network.
        arrays: numbers, flags, payload of the flows.
        n_packets: int64 (F,), packets of each.
        levels: rising; empty: every flow is read to its end.
        temperature: of answers after the last packet.

    Returns:
        Logits divided by the temperature that belongs to them, float32 (F, C); packets looked at, int64 (F,).
    """
    n_flows = len(n_packets)
    wanted = np.maximum(n_packets, 1).astype(np.int64)
    scaled: NDArray[np.float32] = np.empty((n_flows, fast.n_labels), np.float32)
    used = wanted.copy()
    rows, states, done = np.arange(n_flows), fast.new_states(n_flows), 0
    for level in (*levels, ExitLevel(int(wanted.max(initial=1)), temperature, 0.0)):
        if not len(rows):
            break
        upto = np.minimum(wanted[rows], level.packets)
        numbers, flags, payload = (array[rows] for array in arrays)
        begin = np.full(len(rows), done, np.int64)
        features = fast.advance(states, rows, numbers, flags, payload, begin, upto - done)
        is_complete = wanted[rows] <= level.packets
        each = np.where(is_complete, temperature, level.temperature).astype(np.float32)
        logits = fast.logits_of(features) / torch.from_numpy(each)[:, None]
        sure = torch.softmax(logits, dim=1).amax(dim=1).numpy() >= level.threshold
        leaves = is_complete | sure
        scaled[rows[leaves]], used[rows[leaves]] = logits.numpy()[leaves], upto[leaves]
        rows, done = rows[~leaves], level.packets
    return scaled, used
