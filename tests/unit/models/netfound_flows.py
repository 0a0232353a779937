"""Made-up model input for netFound, of every number of bursts and packets."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from capture.representations import netfound_layout as layout


def some_flows(n_flows: int, seed: int = 0, n_bursts: int | None = None) -> list[Tensor]:
    """Arrays of flows in the order of the layout; random values, all protocols in turn."""
    rng = np.random.default_rng(seed)
    shape = (n_flows, layout.MAX_BURSTS)
    ids = np.zeros((*shape, layout.NetFoundLayout().burst_tokens), np.int32)
    direction, protocol = np.zeros(shape, np.int8), np.zeros(n_flows, np.int16)
    numbers = [np.zeros(shape, np.float32) for _ in range(3)]
    rows = list(layout.PACKET_FIELDS)
    for flow in range(n_flows):
        protocol[flow] = rows[flow % len(rows)]
        n_fields = len(layout.PACKET_FIELDS[int(protocol[flow])])
        for burst in range(n_bursts or int(rng.integers(1, layout.MAX_BURSTS + 1))):
            n_packets = int(rng.integers(1, layout.BURST_PACKETS + 1))
            ids[flow, burst, 0] = layout.CLS
            ids[flow, burst, 1 : 1 + n_packets * n_fields] = rng.integers(1, 65537, n_packets * n_fields)
            direction[flow, burst] = 1 if burst % 2 == 0 else -1
            for array, value in zip(numbers, (400 * n_packets, n_packets, rng.integers(3000)), strict=True):
                array[flow, burst] = value
    return [torch.from_numpy(array) for array in (ids, direction, *numbers, protocol)]
