"""packet-mamba's answers as fast as this CPU gives them: in float32 the module's to 1e-5.

What is saved, all of it exact: flows lie packed one after the other, so that a flow of six packets costs six tokens; in
the last block only each flow's last packet has a gate, an output and a projection; a payload byte at its place is one
row of a table; the norm's weight is folded into the projection after it; dt is projected inside the scan; every buffer
is allocated once per thread. Matrix products: :mod:`models.nets.frozen_block`.

:meth:`FastPacketMamba.advance` goes on from where a flow was left, by one packet or by many.

Dimensions: F flows, K packets, P payload bytes, D width, E inner width, N states, B blocks, C classes.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from capture.kernels.packet_tokens import DIRECTION, N_NUMBERS
from models.nets import inference_kernels, packed_kernels
from models.nets.frozen_block import (
    PRODUCT_DTYPES,
    BlockWeights,
    Scratch,
    add_product,
    block_weights,
    product,
)
from models.nets.rms_norm import EPS

if TYPE_CHECKING:
    from models.nets.mamba import MambaBlock
    from models.nets.packet_mamba import PacketEmbedding, PacketMambaClassifier

ROWS: Final = 512
"""Packets at a time (or one flow, if it has more): enough for the matrix products, few enough for the caches."""

MAX_BYTE_TABLE: Final = 16 << 20
"""Bytes; a network whose table of payload bytes would be larger is left to the module."""


@dataclass(frozen=True, slots=True)
class FlowStates:
    """What is remembered of open flows; its size does not grow with their packets.

    Attributes:
        conv: float32 (B, slots, d_conv - 1, E), the last inputs of each convolution, oldest first.
        scan: float32 (B, slots, N, E), the states of each scan.
    """

    conv: NDArray[np.float32]
    scan: NDArray[np.float32]

    def __len__(self) -> int:
        return int(self.conv.shape[1])

    @property
    def bytes_per_flow(self) -> int:
        """Memory of one flow's state."""
        return self.conv[:, :1].nbytes + self.scan[:, :1].nbytes


class _Embedding:
    """A frozen copy of the embedding, as :func:`models.nets.packed_kernels.embed_packets` reads it."""

    def __init__(self, layer: PacketEmbedding) -> None:
        from models.nets.packet_mamba import _SCALES

        self._scales = torch.tensor(_SCALES)
        self._thresholds = bucket_thresholds()
        self._guesses = bucket_guesses(self._thresholds)
        self._table = layer.fields.weight.clone().numpy()
        self._starts = layer.starts.numpy().astype(np.int64)
        self._scalar_weight = layer.scalars.weight.t().contiguous().numpy()
        bias = layer.scalars.bias.clone()
        width = len(bias)
        byte_table = torch.zeros(1, 256, width)
        if layer.payload_bytes:
            weight = layer.payload.weight.view(width, layer.payload_bytes, -1)
            # (P, 257, D): the embedding of a byte, times its place's share of the projection.
            placed = torch.einsum("vb,dpb->pvd", layer.bytes.weight, weight)
            bias += placed[:, 0].sum(0)
            byte_table = placed[:, 1:] - placed[:, :1]
        self._bias = bias.numpy()
        self._byte_table = byte_table.contiguous().numpy()
        self._norm_weight = layer.norm.weight.clone().numpy()

    def __call__(
        self,
        numbers: NDArray[np.int32],
        flags: NDArray[np.uint8],
        payload: NDArray[np.uint8],
        first: NDArray[np.int64],
        starts: NDArray[np.int64],
        x: Tensor,
    ) -> None:
        """Write the tokens of packed flows into ``x``, float32 (R, D); the arguments are the kernel's."""
        longest = int((first + np.diff(starts)).max())
        logs = torch.log1p(torch.from_numpy(numbers[:, :longest]).float()) / self._scales
        packed_kernels.embed_packets(
            numbers,
            flags,
            payload,
            logs.numpy(),
            first,
            starts,
            self._guesses,
            self._thresholds,
            self._table,
            self._starts,
            self._scalar_weight,
            self._bias,
            self._byte_table,
            self._norm_weight,
            EPS,
            x.numpy(),
        )


class _Buffers:
    """Intermediate arrays of at most R packets of at most F flows, for one thread; used from their beginnings."""

    def __init__(self, n_rows: int, n_flows: int, block: BlockWeights) -> None:
        width, channels = block.in_x.values.shape
        self.n_rows, self.n_flows = n_rows, n_flows
        self.x = torch.empty(n_rows, width)
        self.normed = torch.empty(n_rows, width)
        self.xz = torch.empty(n_rows * 2 * channels)
        self.u = torch.empty(n_rows, channels)
        self.selection = torch.empty(n_rows, block.selection.values.shape[1])
        self.z = torch.empty(n_flows, channels)
        self.y = torch.empty(n_flows, channels)
        self.scratch = Scratch(block, n_rows)


_NO_STATES: Final = np.zeros((0, 0, 0), np.float32)


class FastPacketMamba:
    """A frozen copy of a classifier's weights, ready to run. May be called from several threads at once.

    Args:
        model: on the CPU, float32, that :func:`can_run` says yes to.
        precision: of the matrix products, a key of :data:`models.nets.frozen_block.PRODUCT_DTYPES`.
    """

    @torch.no_grad()
    def __init__(self, model: PacketMambaClassifier, precision: str = "fp32") -> None:
        dtype = PRODUCT_DTYPES[precision]
        self._embed = _Embedding(model.embed)
        self._blocks = [block_weights(block, dtype) for block in cast("list[MambaBlock]", list(model.blocks))]
        self._norm_weight = model.norm_f.weight.clone()
        self._head_weight, self._head_bias = model.head.weight.clone(), model.head.bias.clone()
        self._local = threading.local()

    def __call__(self, numbers: Tensor, flags: Tensor, payload: Tensor) -> Tensor:
        """Logits after each flow's last packet: the module's arguments to float32 (F, C)."""
        return self.logits_of(self.features(numbers, flags, payload))

    @property
    def n_labels(self) -> int:
        """C."""
        return len(self._head_bias)

    def logits_of(self, features: Tensor) -> Tensor:
        """float32 (F, D) to (F, C)."""
        return functional.linear(features, self._head_weight, self._head_bias)

    def features(self, numbers: Tensor, flags: Tensor, payload: Tensor) -> Tensor:
        """What is known after each flow's last packet: float32 (F, D)."""
        arrays = numbers.contiguous().numpy(), flags.contiguous().numpy(), payload.contiguous().numpy()
        n_packets = np.maximum((arrays[1][..., DIRECTION] > 0).sum(axis=1), 1)
        return self._run(*arrays, np.zeros_like(n_packets), n_packets, None)

    def new_states(self, n_slots: int) -> FlowStates:
        """Of flows before their first packet; setting a slot to zero lets it begin anew."""
        block = self._blocks[0]
        n_states, channels = block.A2.shape
        n_history = len(block.taps) - 1
        shape = (len(self._blocks), n_slots)
        return FlowStates(
            np.zeros((*shape, n_history, channels), np.float32),
            np.zeros((*shape, n_states, channels), np.float32),
        )

    def advance(
        self,
        states: FlowStates,
        slots: NDArray[np.int64],
        numbers: NDArray[np.int32],
        flags: NDArray[np.uint8],
        payload: NDArray[np.uint8],
        first: NDArray[np.int64],
        n_packets: NDArray[np.int64],
    ) -> Tensor:
        """More packets of open flows.

        Args:
            states: after the packets before; brought up to date in place.
            slots: int64 (F,), the slot of each flow; no two of them equal.
            numbers: int32 (F, K, 5).
            flags: uint8 (F, K, 10).
            payload: uint8 (F, K, P).
            first: int64 (F,), index of each flow's first new packet in these arrays.
            n_packets: int64 (F,), new packets of each, 1 or more.

        Returns:
            What is known after the last of them: float32 (F, D).
        """
        return self._run(numbers, flags, payload, first, n_packets, (states, slots))

    def _run(
        self,
        numbers: NDArray[np.int32],
        flags: NDArray[np.uint8],
        payload: NDArray[np.uint8],
        first: NDArray[np.int64],
        n_packets: NDArray[np.int64],
        states: tuple[FlowStates, NDArray[np.int64]] | None,
    ) -> Tensor:
        width = len(self._norm_weight)
        found = torch.empty(len(n_packets), width)
        ends = np.cumsum(n_packets)
        at = 0
        while at < len(n_packets):
            before = int(ends[at - 1]) if at else 0
            to = max(int(np.searchsorted(ends, before + ROWS, side="right")), at + 1)
            starts = np.concatenate([[0], ends[at:to] - before]).astype(np.int64)
            part = slice(at, to)
            buffers = self._buffers(int(starts[-1]), to - at)
            x = buffers.x[: starts[-1]]
            self._embed(numbers[part], flags[part], payload[part], first[part], starts, x)
            for number, block in enumerate(self._blocks):
                state = None
                if states is not None:
                    kept, slots = states
                    state = (kept.conv[number], kept.scan[number], slots[part])
                is_last = number == len(self._blocks) - 1
                _run_block(block, buffers, starts, state, is_last)
            found[part] = buffers.x[starts[1:] - 1]
            at = to
        return functional.rms_norm(found, (width,), self._norm_weight, EPS)

    def _buffers(self, n_rows: int, n_flows: int) -> _Buffers:
        kept: _Buffers | None = getattr(self._local, "buffers", None)
        if kept is None or kept.n_rows < n_rows or kept.n_flows < n_flows:
            kept = _Buffers(max(n_rows, ROWS), max(n_flows, ROWS), self._blocks[0])
            self._local.buffers = kept
        return kept


State = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]


def _run_block(
    block: BlockWeights, buffers: _Buffers, starts: NDArray[np.int64], state: State | None, is_last: bool
) -> None:
    """One block, in place in the first rows of ``buffers.x``; if it is the last one, only in each flow's last row."""
    n_rows, n_flows = int(starts[-1]), len(starts) - 1
    channels = block.in_x.values.shape[1]
    x, normed, u = buffers.x[:n_rows], buffers.normed[:n_rows], buffers.u[:n_rows]
    selection = buffers.selection[:n_rows]
    inference_kernels.normalise(x.numpy(), normed.numpy(), EPS)
    step = channels if is_last else 2 * channels
    flat = buffers.xz[: n_rows * step]
    product(normed, block.in_x if is_last else block.in_xz, flat.view(n_rows, step), buffers.scratch)
    history, states, slots = (_NO_STATES, _NO_STATES, starts) if state is None else state
    goes_on = state is not None
    packed_kernels.convolve(
        flat.numpy(),
        step,
        block.taps.numpy(),
        block.conv_bias.numpy(),
        starts,
        history,
        slots,
        goes_on,
        u.numpy(),
    )
    product(u, block.selection, selection, buffers.scratch)
    weights: tuple[Any, ...] = (block.dt_weight, block.dt_bias, block.A2, block.D)
    fixed = (u.numpy(), selection.numpy(), *(weight.numpy() for weight in weights), starts)
    if not is_last:
        gates = flat[channels:].numpy()
        packed_kernels.scan(*fixed, gates, step, False, states, slots, goes_on, u.numpy())
        add_product(u, block.out, x, buffers.scratch)
        return
    last = torch.from_numpy(starts[1:] - 1)
    z, y, outputs = buffers.z[:n_flows], buffers.y[:n_flows], x[last]
    product(normed[last], block.in_z, z, buffers.scratch)
    packed_kernels.scan(*fixed, z.view(-1).numpy(), channels, True, states, slots, goes_on, y.numpy())
    add_product(y, block.out, outputs, buffers.scratch)
    x[last] = outputs


def bucket_thresholds() -> NDArray[np.int64]:
    """The least number of each bucket of each column, by asking the module itself: int64 (5, buckets + 1).

    From a column's last bucket on stand numbers that no packet has.
    """
    from models.nets.packet_mamba import _NUMBER_ROWS, buckets

    most = max(_NUMBER_ROWS) + 1
    wanted = torch.arange(most)[:, None].expand(most, N_NUMBERS)
    low, high = torch.full((most, N_NUMBERS), -1), torch.full((most, N_NUMBERS), 2**31 - 1)
    # Between low (bucket below the wanted) and high (not below, or the largest number there is).
    while int((high - low).max()) > 1:
        middle = (low + high).div(2, rounding_mode="floor")
        reached = buckets(middle.int()) >= wanted
        low, high = torch.where(reached, low, middle), torch.where(reached, middle, high)
    unreachable = buckets(high.int()) < wanted
    thresholds = torch.where(unreachable, torch.iinfo(torch.int64).max, high)
    return thresholds.t().contiguous().numpy()


def bucket_guesses(thresholds: NDArray[np.int64]) -> NDArray[np.int64]:
    """What :func:`models.nets.packed_kernels.bucket_of` begins with: int64 (5, 1025)."""
    cell = np.arange(32 * 32 + 1)
    least = np.ceil(2.0 ** (cell // 32) * (1 + cell % 32 / 32)).astype(np.int64) - 1
    return np.array([np.searchsorted(row, least, side="right") - 1 for row in thresholds])


def can_run(model: PacketMambaClassifier) -> bool:
    """Whether the fast form can run this model: what :func:`covers` asks, plain embeddings, a table that fits."""
    from models.nets.netmamba_inference import covers

    config = model.config
    table_bytes = 4 * 256 * config.payload_bytes * config.d_model
    return covers(model) and table_bytes <= MAX_BYTE_TABLE
