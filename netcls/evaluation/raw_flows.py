"""Flows as they were captured, from which the input of any model can be made later.

One reading of the captures serves models of different representations on the very same flows, and what is changed
in the raw bytes (a field randomised, packets cut off) reaches every model through its own representation.
F is the number of flows, K the packets whose fields are kept, M those whose bytes are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from capture.flow_batch import FlowBatch, KeepSpec
from capture.representations.base import Representation, TokenBatch
from capture.representations.places import TokenPlaces
from netcls.datasets.stored_flows import narrowed


class RawFlows:
    """A representation that hides and changes nothing: array ``data``, uint8 (F, M, header + payload bytes).

    Args:
        keep: how much of each flow.
    """

    name: Final = "raw"
    version: Final = 1

    def __init__(self, keep: KeepSpec) -> None:
        self.keep = keep

    @classmethod
    def for_all(cls, representations: Iterable[Representation]) -> RawFlows:
        """What holds enough for each of the representations."""
        needs = [representation.keep for representation in representations]
        return cls(
            KeepSpec(
                max(need.n_packets for need in needs),
                max(need.n_byte_packets for need in needs),
                max(need.header_bytes for need in needs),
                max(need.payload_bytes for need in needs),
            )
        )

    def settings(self) -> dict[str, Any]:
        """What is kept of a flow."""
        keep = self.keep
        return {
            "n_packets": keep.n_packets,
            "n_byte_packets": keep.n_byte_packets,
            "header_bytes": keep.header_bytes,
            "payload_bytes": keep.payload_bytes,
        }

    def tokenize(self, flows: FlowBatch) -> TokenBatch:
        """Copies of the kept bytes."""
        data = flows.data[:, : self.keep.n_byte_packets].copy()
        return TokenBatch({"data": data}, flows.records["n_kept"].astype(np.uint16))

    def token_places(self, _flows: FlowBatch) -> dict[str, TokenPlaces]:
        """No model reads this, so there is nothing to explain."""
        return {}

    def tokens(self, flows: FlowBatch, representation: Representation) -> TokenBatch:
        """The input of one model.

        Args:
            flows: raw, ``data`` as from :meth:`tokenize`.
            representation: needs no more of a flow than was kept.
        """
        return representation.tokenize(narrowed(flows, self.keep, representation.keep))


def first_packets(flows: FlowBatch, n_packets: int) -> FlowBatch:
    """The same flows as if they had ended after ``n_packets`` packets: fields and bytes of later ones are zero."""
    records, packets, data = flows.records.copy(), flows.packets.copy(), flows.data.copy()
    records["n_kept"] = np.minimum(records["n_kept"], n_packets)
    packets[:, n_packets:] = np.zeros((), packets.dtype)
    data[:, n_packets:] = 0
    return FlowBatch(records, packets, data)


def take(flows: FlowBatch, rows: NDArray[np.intp] | slice) -> FlowBatch:
    """The given flows, in the given order; copies where ``rows`` is an array."""
    return FlowBatch(flows.records[rows], flows.packets[rows], flows.data[rows])
