"""NetMamba's logits as fast as this CPU gives them: in float32 the module's to 1e-5, in bfloat16 close to them.

What is saved, all of it exact: in the last block only the class tokens are computed (their gate, output and
projection), because nothing else is read; the norm's weight is folded into the projection after it, the scaling of the
bytes into the embedding; dt is projected inside the scan; every buffer is allocated once per thread.

Matrix products: :mod:`models.nets.frozen_block`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from models.nets import conv_kernels, inference_kernels
from models.nets.frozen_block import (
    PRODUCT_DTYPES,
    BlockWeights,
    Scratch,
    add_product,
    block_weights,
    product,
)
from models.nets.rms_norm import EPS, RMSNorm
from models.nets.workers import for_ranges

if TYPE_CHECKING:
    from models.nets.mamba import MambaBlock
    from models.nets.netmamba import NetMambaClassifier, StrideEmbedding

MICRO_BATCH: Final = 4
"""Most flows at a time: enough rows for the matrix products, few enough for the caches."""

MICRO_BATCH_BYTES: Final = 4 << 20
"""Of the widest buffer, beyond which fewer flows are faster: the paper's size takes 2 at a time, +5 % over 4."""


class Encoder(Protocol):
    """What is read of a classifier, whatever its family."""

    inference_precision: str
    config: Any

    @property
    def blocks(self) -> nn.ModuleList:
        """Mamba blocks, in order."""

    @property
    def norm_f(self) -> RMSNorm:
        """After the last block."""

    @property
    def head(self) -> nn.Linear:
        """From features to logits."""


class _Buffers:
    """Intermediate arrays of one micro-batch of F flows, for one thread."""

    def __init__(self, n_flows: int, n_tokens: int, n_outputs: int, block: BlockWeights) -> None:
        width, channels = block.in_x.values.shape
        n_selection = block.selection.values.shape[1]
        self.x = torch.empty(n_flows, n_tokens, width)
        self.normed = torch.empty(n_flows * n_tokens, width)
        self.xz = torch.empty(n_flows * n_tokens, 2 * channels)
        self.u = torch.empty(n_flows, n_tokens, channels)
        self.selection = torch.empty(n_flows * n_tokens, n_selection)
        self.z = torch.empty(n_flows, n_outputs, channels)
        self.y = torch.empty(n_flows, n_outputs, channels)
        self.scratch = Scratch(block, n_flows * n_tokens)


class FastEncoder:
    """A frozen copy of a classifier's blocks and final norm, and what runs them on micro-batches.

    Args:
        model: on the CPU, float32, with ``d_state`` a multiple of 4.
        n_tokens: L, of a flow.
        outputs: the tokens whose outputs are read, rising.
        precision: of the matrix products, a key of :data:`PRODUCT_DTYPES`.
    """

    @torch.no_grad()
    def __init__(self, model: Encoder, n_tokens: int, outputs: tuple[int, ...], precision: str) -> None:
        dtype = PRODUCT_DTYPES[precision]
        self._blocks = [block_weights(block, dtype) for block in cast("list[MambaBlock]", list(model.blocks))]
        self._norm_weight = model.norm_f.weight.clone()
        self._n_tokens = n_tokens
        self._outputs = np.array(outputs, np.int64)
        flow_bytes = n_tokens * self._blocks[0].in_xz.values.shape[1] * self._norm_weight.element_size()
        self._micro_batch = max(1, min(MICRO_BATCH, MICRO_BATCH_BYTES // flow_bytes))
        self._local = threading.local()

    def outputs(self, n_flows: int, embed: Callable[[slice, Tensor], None]) -> Tensor:
        """Run the blocks.

        Args:
            n_flows: F.
            embed: (flows, x) writes the embeddings of these flows, float32 (flows, L, D), into ``x``.

        Returns:
            float32 (F, outputs, D), normalised.
        """
        width = len(self._norm_weight)
        found = torch.empty(n_flows, len(self._outputs), width)
        for first in range(0, n_flows, self._micro_batch):
            part = slice(first, min(first + self._micro_batch, n_flows))
            buffers = self._buffers(part.stop - part.start)
            embed(part, buffers.x)
            for block in self._blocks[:-1]:
                _run_block(block, buffers)
            _run_last_block(self._blocks[-1], buffers, self._outputs)
            found[part] = buffers.x[:, self._outputs.tolist()]
        return functional.rms_norm(found, (width,), self._norm_weight, EPS)

    def _buffers(self, n_flows: int) -> _Buffers:
        kept: dict[int, _Buffers] = self._local.__dict__.setdefault("buffers", {})
        if n_flows not in kept:
            kept[n_flows] = _Buffers(n_flows, self._n_tokens, len(self._outputs), self._blocks[0])
        return kept[n_flows]


class FastNetMamba(FastEncoder):
    """A frozen copy of a classifier's weights, ready to run. May be called from several threads at once.

    Args:
        model: on the CPU, float32, with ``d_state`` a multiple of 4.
        precision: of the matrix products, a key of :data:`PRODUCT_DTYPES`.
    """

    @torch.no_grad()
    def __init__(self, model: NetMambaClassifier, precision: str = "fp32") -> None:
        config = model.config
        super().__init__(model, config.n_strides + 1, (config.n_strides,), precision)
        self._embed_weight, bias = byte_embedding(model.patch_embed)
        if config.positions:
            positions = model.pos_embed[0].clone()
        else:
            positions = torch.zeros(config.n_strides + 1, config.d_model)
        positions[:-1] += bias
        positions[-1] += model.cls_token[0, 0]
        self._positions = positions
        self._head_weight, self._head_bias = model.head.weight.clone(), model.head.bias.clone()

    def __call__(self, flow_bytes: Tensor) -> Tensor:
        """Logits: uint8 (F, n_bytes) to float32 (F, C)."""
        return functional.linear(self.features(flow_bytes), self._head_weight, self._head_bias)

    def features(self, flow_bytes: Tensor) -> Tensor:
        """What the head reads: uint8 (F, n_bytes) to float32 (F, D)."""

        def embed(part: slice, x: Tensor) -> None:
            inference_kernels.embed(
                flow_bytes[part].contiguous().numpy(),
                self._embed_weight.numpy(),
                self._positions.numpy(),
                0,
                x.numpy(),
            )

        return self.outputs(len(flow_bytes), embed)[:, 0]


def byte_embedding(layer: StrideEmbedding) -> tuple[Tensor, Tensor]:
    """Weight float32 (S, D) and bias (D,) of an embedding of strides, with the scaling of the bytes folded in."""
    weight, bias = layer.proj.weight[:, 0].t(), layer.proj.bias
    assert bias is not None  # it is made with one
    # A byte b enters as b * 2 / 255 - 1.
    return (weight * (2 / 255)).contiguous(), bias - weight.sum(0)


def _run_block(block: BlockWeights, buffers: _Buffers) -> None:
    """One block, in place in ``buffers.x``."""
    _, n_tokens, width = buffers.x.shape
    rows = buffers.x.view(-1, width)
    inference_kernels.normalise(rows.numpy(), buffers.normed.numpy(), EPS)
    product(buffers.normed, block.in_xz, buffers.xz, buffers.scratch)
    channels = block.in_x.values.shape[1]
    layout = (n_tokens * 2 * channels, 2 * channels)
    flat = buffers.xz.view(-1)
    y = buffers.u.view(-1).numpy()  # each row of u is read before its output is written over it
    _convolve_and_select(block, buffers, flat, layout)
    every = np.arange(n_tokens)
    _scan(block, buffers, flat[channels:], layout, every, y, (n_tokens * channels, channels))
    add_product(buffers.u.view(-1, channels), block.out, rows, buffers.scratch)


def _run_last_block(block: BlockWeights, buffers: _Buffers, outputs: NDArray[np.int64]) -> None:
    """The last block, in place in the rows ``outputs`` of ``buffers.x``; the other rows are not updated."""
    n_flows, n_tokens, width = buffers.x.shape
    inference_kernels.normalise(buffers.x.view(-1, width).numpy(), buffers.normed.numpy(), EPS)
    channels = block.in_x.values.shape[1]
    x = buffers.xz.view(-1)[: n_flows * n_tokens * channels]
    product(buffers.normed, block.in_x, x.view(-1, channels), buffers.scratch)
    normed = buffers.normed.view(n_flows, n_tokens, width)
    for k, token in enumerate(outputs):
        product(normed[:, token], block.in_z, buffers.z[:, k], buffers.scratch)
    _convolve_and_select(block, buffers, x, (n_tokens * channels, channels))
    layout = (len(outputs) * channels, channels)
    _scan(block, buffers, buffers.z.view(-1), layout, outputs, buffers.y.view(-1).numpy(), layout)
    for k, token in enumerate(outputs):
        add_product(buffers.y[:, k], block.out, buffers.x[:, token], buffers.scratch)


def _convolve_and_select(block: BlockWeights, buffers: _Buffers, x: Tensor, layout: tuple[int, int]) -> None:
    """The convolution of ``x`` into ``buffers.u``, and from that dt's low rank, B and C."""
    taps, bias, u, flat = block.taps.numpy(), block.conv_bias.numpy(), buffers.u.numpy(), x.numpy()

    def work(first: int, last: int) -> None:
        conv_kernels.conv_forward(flat, layout, taps, bias, u, first, last)

    for_ranges(work, len(u), 1)
    product(buffers.u.view(-1, u.shape[2]), block.selection, buffers.selection, buffers.scratch)


def _scan(
    block: BlockWeights,
    buffers: _Buffers,
    z: Tensor,
    z_layout: tuple[int, int],
    outputs: NDArray[np.int64],
    y: object,
    y_layout: tuple[int, int],
) -> None:
    n_flows, n_tokens, _ = buffers.u.shape
    selection = buffers.selection.view(n_flows, n_tokens, -1).numpy()
    weights = (block.dt_weight.numpy(), block.dt_bias.numpy(), block.A2.numpy(), block.D.numpy())
    u, gates = buffers.u.numpy(), z.numpy()

    def work(first: int, last: int) -> None:
        inference_kernels.fused_scan(
            u, selection, *weights, gates, z_layout, outputs, y, y_layout, first, last
        )

    for_ranges(work, n_flows, 1)


@dataclass(frozen=True, slots=True)
class _Ready:
    """A model's fast form and what it was made from."""

    stamp: tuple[str, tuple[tuple[int, int], ...]]
    sources: list[Tensor]  # kept alive, so that no other weight can come to lie at one of these addresses
    fast: object


_ready: WeakKeyDictionary[nn.Module, _Ready] = WeakKeyDictionary()

M = TypeVar("M", bound=nn.Module)
E = TypeVar("E")


def covers(model: Encoder) -> bool:
    """Whether :class:`FastEncoder` can run this model: CPU, float32, states in fours, one direction, plain layers.

    A wrapped projection (a quantised layer) computes more than its ``weight`` says, so it is left to the module. A
    parametrized one (:mod:`models.nets.adapters`) is plain: its ``weight`` is the effective one.
    """
    weight = model.head.weight
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or model.config.d_state % 4:
        return False
    mixers = [block.mixer for block in cast("list[MambaBlock]", list(model.blocks))]
    if any(mixer.bidirectional for mixer in mixers):  # the last block needs the other tokens, too
        return False
    linears = [layer for m in mixers for layer in (m.in_proj, m.x_proj, m.dt_proj, m.out_proj)]
    return all(
        parametrize.type_before_parametrizations(layer) is nn.Linear for layer in (*linears, model.head)
    )


def precisions(model: Encoder) -> tuple[str, ...]:
    """What ``model.inference_precision`` may be: fp32 alone for a network that only the module itself computes."""
    return tuple(PRODUCT_DTYPES) if covers(model) else ("fp32",)


def fast_form(model: M, make: Callable[[M, str], E]) -> E:
    """The model's fast form; made on the first call and again when a weight or its precision has changed since.

    Args:
        model: that :func:`covers` says yes to.
        make: (model, precision) -> its fast form.
    """
    # In-place changes count up the version; tensors made in inference mode have none and are told by their address.
    parameters = list(model.parameters())
    versions = tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in parameters)
    precision = cast("Encoder", model).inference_precision
    stamp = (precision, versions)
    known = _ready.get(model)
    if known is None or known.stamp != stamp:
        known = _Ready(stamp, [p.detach() for p in parameters], make(model, precision))
        _ready[model] = known
    return cast("E", known.fast)
