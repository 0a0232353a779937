"""Which bursts there are and where their tokens stand: the packed form of a batch of netFound's input.

Dimensions: flows F, bursts of a flow B, tokens of a burst T; N bursts that are there, M tokens that are there.

Packed, the M tokens of a batch stand in one row, bursts of equal length side by side, so every matrix product and every
attention runs over tokens that are there and nothing is padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from capture.representations import netfound_layout as layout


class Tokens(NamedTuple):
    """The representation's arrays of F flows, in the order of :data:`netfound_layout.ARRAYS`."""

    ids: Tensor
    direction: Tensor
    bytes: Tensor
    packets: Tensor
    iat: Tensor
    protocol: Tensor

    def checked(self, n_bursts: int, n_tokens: int) -> Tokens:
        """These arrays, if they are those of the representation.

        Raises:
            ValueError: if a dtype or shape is another, or a protocol has no row.
        """
        n_flows = len(self.ids)
        expected = [
            (torch.int32, (n_flows, n_bursts, n_tokens)),
            (torch.int8, (n_flows, n_bursts)),
            *[(torch.float32, (n_flows, n_bursts))] * 3,
            (torch.int16, (n_flows,)),
        ]
        for name, array, (dtype, shape) in zip(self._fields, self, expected, strict=True):
            if array.dtype != dtype or tuple(array.shape) != shape:
                raise ValueError(
                    f"{name}: got {array.dtype} of shape {tuple(array.shape)}, expected {dtype} of shape {shape}"
                )
        return self

    def metadata(self) -> Tensor:
        """Direction, bytes, packets, iat: float32 (F, B, 4)."""
        return torch.stack([self.direction.float(), self.bytes, self.packets, self.iat], dim=-1)


@dataclass(frozen=True, slots=True)
class Group:
    """Rows of equal length that stand behind one another.

    Attributes:
        first: row at which the group begins.
        n: how many sequences it holds.
        length: of each, rows.
    """

    first: int
    n: int
    length: int

    @property
    def rows(self) -> slice:
        """The group's rows."""
        return slice(self.first, self.first + self.n * self.length)


@dataclass(frozen=True, slots=True)
class Packed:
    """The bursts of a batch, sorted by length, and its flows, sorted by number of bursts.

    Attributes:
        flow: int64 (N,), of each burst.
        burst: int64 (N,), which one of its flow.
        length: int64 (N,), tokens of each.
        starts: int64 (N,), row of each burst's class token.
        token_burst: int64 (M,), which of the N bursts a token belongs to.
        token_place: int64 (M,), its place in the burst.
        burst_groups: bursts of equal length; rows are tokens.
        flow_order: int64 (N,), bursts in the order of ``flow_groups``.
        flow_place: int64 (N,), place of each burst in its flow, in that order.
        flow_groups: flows with equally many bursts; rows are bursts in ``flow_order``.
        flows: int64 (F',), the flows in the order of ``flow_groups``; those without a burst are not among them.
    """

    flow: Tensor
    burst: Tensor
    length: Tensor
    starts: Tensor
    token_burst: Tensor
    token_place: Tensor
    burst_groups: tuple[Group, ...]
    flow_order: Tensor
    flow_place: Tensor
    flow_groups: tuple[Group, ...]
    flows: Tensor

    def take(self, ids: Tensor) -> Tensor:
        """The tokens that are there of an array (F, B, T), in their packed order: (M,)."""
        return ids[self.flow[self.token_burst], self.burst[self.token_burst], self.token_place]


def pack(ids: Tensor) -> Packed:
    """Where the tokens are: int32 (F, B, T) to their packed order. A burst has no gaps."""
    lengths = (ids != layout.PAD).sum(2)
    flow, burst = torch.nonzero(lengths, as_tuple=True)
    length = lengths[flow, burst]
    length, order = length.sort(stable=True)
    flow, burst = flow[order], burst[order]
    starts = length.cumsum(0) - length
    token_burst = torch.repeat_interleave(torch.arange(len(length), device=ids.device), length)
    token_place = torch.arange(len(token_burst), device=ids.device) - starts[token_burst]
    counts = (lengths > 0).sum(1)
    # By number of bursts, then flow, then burst; one number holds all three.
    n_flows, n_bursts = lengths.shape
    flow_order = ((counts[flow] * n_flows + flow) * n_bursts + burst).argsort()
    there, flows = counts.sort(stable=True)
    flows = flows[there > 0]
    first_of_flow = (counts[flows].cumsum(0) - counts[flows]).repeat_interleave(counts[flows])
    flow_place = torch.arange(len(flow), device=ids.device) - first_of_flow
    return Packed(
        flow,
        burst,
        length,
        starts,
        token_burst,
        token_place,
        _groups(length),
        flow_order,
        flow_place,
        _groups(counts[flows]),
        flows,
    )


def _groups(sorted_lengths: Tensor) -> tuple[Group, ...]:
    """Runs of equal lengths."""
    values, counts = torch.unique_consecutive(sorted_lengths, return_counts=True)
    groups, first = [], 0
    for length, n in zip(values.tolist(), counts.tolist(), strict=True):
        groups.append(Group(first, n, length))
        first += n * length
    return tuple(groups)


def n_rows(groups: Sequence[Group]) -> int:
    """Rows of all groups together."""
    return sum(group.n * group.length for group in groups)
