"""What other networks and programs would have done to the same flow: changes of `packets` tokens while training.

A model that has seen one laboratory leans on its link and its programs' exact sizes. Each change is drawn per flow:
delay and jitter, window scale, sizes moved by some bytes (padding, other texts), whole field groups hidden, lost
packets, a start in the middle of the flow. The label stays.

Arrays are those of :class:`capture.representations.packets.PacketsRepresentation`; F flows, K packets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capture.kernels.packet_tokens import (
    DIRECTION,
    GAP_SAME_US,
    GAP_US,
    IP_LEN,
    LARGEST,
    N_SHOWN,
    OPTIONS,
    PAYLOAD_LEN,
    TOS,
    WINDOW,
)

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Strength:
    """How much is changed; shares are of flows, deviations of a logarithm.

    Attributes:
        delay: deviation of the factor on all gaps of a flow.
        jitter: deviation of the factor on each gap.
        window: deviation of the factor on all windows of a flow.
        resized: share whose payloads get -8 to +16 bytes where they have more than 60.
        no_gaps, no_window, no_tos, no_options, no_payload: share without that field group.
        payload_lost: share of packets, of every flow, whose payload bytes are not shown.
        lossy: share that loses packets.
        lost: share of packets that such a flow loses.
        midstream: share without its first one to three packets.
    """

    delay: float = 0.7
    jitter: float = 0.25
    window: float = 0.5
    resized: float = 0.3
    no_gaps: float = 0.15
    no_window: float = 0.15
    no_tos: float = 0.3
    no_options: float = 0.3
    no_payload: float = 0.15
    payload_lost: float = 0.1
    lossy: float = 0.5
    lost: float = 0.05
    midstream: float = 0.1


def augment_packets(arrays: Arrays, rng: np.random.Generator, strength: Strength | None = None) -> Arrays:
    """Changed copies of a batch's arrays.

    Args:
        arrays: ``numbers`` int32 (F, K, 5), ``flags`` uint8 (F, K, 10), ``payload`` uint8 (F, K, P).
        rng: source of every draw.
        strength: None: the defaults.
    """
    s = strength or Strength()
    numbers, flags = arrays["numbers"].copy(), arrays["flags"].copy()
    n_flows, n_packets = numbers.shape[:2]

    def chosen(share: float) -> NDArray[np.bool_]:
        draws: NDArray[np.float64] = rng.random((n_flows,))
        return draws < share

    _change_link(numbers, rng, s)
    moved = rng.integers(-8, 17, (n_flows, n_packets)) * chosen(s.resized)[:, None]
    moved[numbers[..., PAYLOAD_LEN] <= 60] = 0
    numbers[..., PAYLOAD_LEN] += moved
    numbers[..., IP_LEN] += moved
    numbers[chosen(s.no_gaps), :, GAP_US : GAP_SAME_US + 1] = 0
    numbers[chosen(s.no_window), :, WINDOW] = 0
    flags[chosen(s.no_tos), :, TOS] = 0
    flags[chosen(s.no_options), :, OPTIONS] = 0
    flags[chosen(s.no_payload), :, N_SHOWN] = 0
    flags[rng.random((n_flows, n_packets)) < s.payload_lost, N_SHOWN] = 0
    lost = (rng.random((n_flows, n_packets)) < s.lost) & chosen(s.lossy)[:, None]
    first = rng.integers(1, 4, n_flows) * chosen(s.midstream)
    lost |= np.arange(n_packets) < first[:, None]
    return without({"numbers": numbers, "flags": flags, "payload": arrays["payload"]}, lost)


def _change_link(numbers: NDArray[np.int32], rng: np.random.Generator, s: Strength) -> None:
    """Another delay, another jitter, another receive window; in place."""
    n_flows, n_packets = numbers.shape[:2]
    factor = np.exp(
        rng.normal(0, s.delay, (n_flows, 1, 1)) + rng.normal(0, s.jitter, (n_flows, n_packets, 2))
    )
    gaps = numbers[..., GAP_US : GAP_SAME_US + 1] * factor
    numbers[..., GAP_US : GAP_SAME_US + 1] = np.minimum(gaps, LARGEST)
    window = numbers[..., WINDOW] * np.exp(rng.normal(0, s.window, (n_flows, 1)))
    numbers[..., WINDOW] = np.minimum(window, 65535)


def without(arrays: Arrays, lost: NDArray[np.bool_]) -> Arrays:
    """The flows without some packets: the others move up, and a lost packet's gap is added to the next one's.

    A flow that would lose every packet keeps its first.

    Args:
        arrays: as in :func:`augment_packets`.
        lost: bool (F, K).
    """
    flags: NDArray[np.uint8] = arrays["flags"]
    present = flags[..., DIRECTION] > 0
    kept = present & ~lost
    nothing = present.any(axis=1) & ~kept.any(axis=1)
    kept[nothing, 0] = True
    numbers = arrays["numbers"].astype(np.int64)
    # Time since the flow's first packet; a gap between kept packets is a difference of two of these.
    at = np.cumsum(numbers[..., GAP_US], axis=1)
    order = np.argsort(~kept, axis=1, kind="stable")
    row = np.arange(len(order))[:, None]
    at = at[row, order]
    numbers, flags, payload = numbers[row, order], flags[row, order], arrays["payload"][row, order]
    numbers[:, 1:, GAP_US] = np.diff(at, axis=1)
    numbers[:, 0, GAP_US] = 0
    numbers[..., GAP_SAME_US] = _gap_same(at, flags[..., DIRECTION])
    gone = np.arange(kept.shape[1]) >= kept.sum(axis=1)[:, None]
    flags[gone], payload[gone], numbers[gone] = 0, 0, 0
    return {
        "numbers": np.clip(numbers, 0, LARGEST).astype(np.int32),
        "flags": flags,
        "payload": payload,
    }


def _gap_same(at: NDArray[np.int64], direction: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Time since the packet before in the same direction, or since the flow's first; int64 (F, K)."""
    gap = np.zeros_like(at)
    for way in (1, 2):
        mine = direction == way
        # The newest time of this direction before each packet: times never fall.
        newest = np.maximum.accumulate(np.where(mine, at, at[:, :1]), axis=1)
        before = np.concatenate([at[:, :1], newest[:, :-1]], axis=1)
        gap = np.where(mine, at - before, gap)
    return gap
