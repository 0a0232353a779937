"""NetMamba's logits as fast as this CPU gives them; the same numbers as the module, to 1e-5.

What is saved, all of it exact: in the last block only the class token is computed (its gate, its output, its
projection), because nothing else is read; the norm's weight is folded into the projection after it, the scaling of the
bytes into the embedding; dt is projected inside the scan; every buffer is allocated once per thread.

Matrix products go through :func:`_product`, the one place that a narrower type would change.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from models.nets import conv_kernels, inference_kernels
from models.nets.fast_math import LOG2_E
from models.nets.rms_norm import EPS
from models.nets.workers import for_ranges

if TYPE_CHECKING:
    from models.nets.mamba import MambaBlock
    from models.nets.netmamba import NetMambaClassifier

MICRO_BATCH = 4
"""Flows at a time: enough rows for the matrix products, few enough for the caches."""


@dataclass(frozen=True, slots=True)
class _BlockWeights:
    """One block's weights, laid out as the kernels read them (see :func:`_block_weights`)."""

    in_x: Tensor  # (D, E), the norm's weight folded in; likewise in_z
    in_z: Tensor
    in_xz: Tensor  # (D, 2 E), both
    taps: Tensor  # (K, E)
    conv_bias: Tensor  # (E,)
    selection: Tensor  # (E, R + 2 N), R rounded up to a multiple of 4
    dt_weight: Tensor  # (R, E)
    dt_bias: Tensor  # (E,)
    A2: Tensor  # (N, E), A * log2(e)
    D: Tensor  # (E,)
    out: Tensor  # (E, D)


def _block_weights(block: MambaBlock) -> _BlockWeights:
    mixer = block.mixer
    in_xz = (mixer.in_proj.weight * block.norm.weight).t().contiguous()
    in_x, in_z = (half.contiguous() for half in in_xz.chunk(2, dim=1))
    # Zero rows bring the rank to a multiple of 4, which the kernel takes per pass.
    spare = -mixer.dt_rank % 4
    low_rank, rest = mixer.x_proj.weight[: mixer.dt_rank], mixer.x_proj.weight[mixer.dt_rank :]
    selection = torch.cat([functional.pad(low_rank, (0, 0, 0, spare)), rest]).t().contiguous()
    return _BlockWeights(
        in_x=in_x,
        in_z=in_z,
        in_xz=in_xz,
        taps=mixer.conv1d.weight[:, 0].t().contiguous(),
        conv_bias=mixer.conv_bias.clone(),
        selection=selection,
        dt_weight=functional.pad(mixer.dt_proj.weight.t(), (0, 0, 0, spare)).contiguous(),
        dt_bias=mixer.dt_proj.bias.clone(),
        A2=(-torch.exp(mixer.A_log) * LOG2_E).t().contiguous(),
        D=mixer.D.clone(),
        out=mixer.out_proj.weight.t().contiguous(),
    )


class _Buffers:
    """Intermediate arrays of one micro-batch of F flows, for one thread."""

    def __init__(self, n_flows: int, n_tokens: int, width: int, channels: int, n_selection: int) -> None:
        self.x = torch.empty(n_flows, n_tokens, width)
        self.normed = torch.empty(n_flows * n_tokens, width)
        self.xz = torch.empty(n_flows * n_tokens, 2 * channels)
        self.u = torch.empty(n_flows, n_tokens, channels)
        self.selection = torch.empty(n_flows * n_tokens, n_selection)
        self.z = torch.empty(n_flows, channels)
        self.y = torch.empty(n_flows, channels)


class FastNetMamba:
    """A frozen copy of a classifier's weights, ready to run. May be called from several threads at once.

    Args:
        model: on the CPU, float32, with ``d_state`` a multiple of 4.
    """

    @torch.no_grad()
    def __init__(self, model: NetMambaClassifier) -> None:
        config = model.config
        weight = model.patch_embed.proj.weight[:, 0].t()
        bias = model.patch_embed.proj.bias
        assert bias is not None  # it is made with one
        # A byte b enters as b * 2 / 255 - 1.
        self._embed_weight = (weight * (2 / 255)).contiguous()
        positions = model.pos_embed[0].clone()
        positions[:-1] += bias - weight.sum(0)
        positions[-1] += model.cls_token[0, 0]
        self._positions = positions
        self._blocks = [_block_weights(block) for block in cast("list[MambaBlock]", list(model.blocks))]
        self._norm_weight = model.norm_f.weight.clone()
        self._head_weight, self._head_bias = model.head.weight.clone(), model.head.bias.clone()
        self._n_tokens = config.n_strides + 1
        self._local = threading.local()

    def __call__(self, flow_bytes: Tensor) -> Tensor:
        """Logits: uint8 (F, n_bytes) to float32 (F, C)."""
        return functional.linear(self.features(flow_bytes), self._head_weight, self._head_bias)

    def features(self, flow_bytes: Tensor) -> Tensor:
        """What the head reads: uint8 (F, n_bytes) to float32 (F, D)."""
        features = flow_bytes.new_empty(len(flow_bytes), len(self._norm_weight), dtype=torch.float32)
        for first in range(0, len(flow_bytes), MICRO_BATCH):
            part = slice(first, first + MICRO_BATCH)
            features[part] = self._class_token(flow_bytes[part].contiguous())
        return functional.rms_norm(features, (features.shape[1],), self._norm_weight, EPS)

    def _buffers(self, n_flows: int) -> _Buffers:
        kept: dict[int, _Buffers] = self._local.__dict__.setdefault("buffers", {})
        if n_flows not in kept:
            block = self._blocks[0]
            kept[n_flows] = _Buffers(
                n_flows, self._n_tokens, block.in_x.shape[0], block.in_x.shape[1], block.selection.shape[1]
            )
        return kept[n_flows]

    def _class_token(self, flow_bytes: Tensor) -> Tensor:
        """The class token before the final norm: uint8 (F, n_bytes) to float32 (F, D), a view of a buffer."""
        buffers = self._buffers(len(flow_bytes))
        x = buffers.x
        inference_kernels.embed(
            flow_bytes.numpy(), self._embed_weight.numpy(), self._positions.numpy(), x.numpy()
        )
        for block in self._blocks[:-1]:
            _run_block(block, buffers)
        _run_last_block(self._blocks[-1], buffers)
        return x[:, -1]


def _product(x: Tensor, weight: Tensor, out: Tensor) -> None:
    """Write out = x @ weight: float32 (rows, k), (k, n) to (rows, n)."""
    torch.mm(x, weight, out=out)


def _run_block(block: _BlockWeights, buffers: _Buffers) -> None:
    """One block, in place in ``buffers.x``."""
    _, n_tokens, width = buffers.x.shape
    rows = buffers.x.view(-1, width)
    inference_kernels.normalise(rows.numpy(), buffers.normed.numpy(), EPS)
    _product(buffers.normed, block.in_xz, buffers.xz)
    channels = block.in_x.shape[1]
    layout = (n_tokens * 2 * channels, 2 * channels)
    flat = buffers.xz.view(-1)
    y = buffers.u.view(-1).numpy()  # each row of u is read before its output is written over it
    _convolve_and_select(block, buffers, flat, layout)
    _scan(block, buffers, flat[channels:], layout, False, y, (n_tokens * channels, channels))
    rows.addmm_(buffers.u.view(-1, channels), block.out)


def _run_last_block(block: _BlockWeights, buffers: _Buffers) -> None:
    """The last block, in place in the class token's row of ``buffers.x``; the other rows are not updated."""
    n_flows, n_tokens, width = buffers.x.shape
    inference_kernels.normalise(buffers.x.view(-1, width).numpy(), buffers.normed.numpy(), EPS)
    channels = block.in_x.shape[1]
    x = buffers.xz.view(-1)[: n_flows * n_tokens * channels]
    _product(buffers.normed, block.in_x, x.view(-1, channels))
    _product(buffers.normed.view(n_flows, n_tokens, width)[:, -1], block.in_z, buffers.z)
    _convolve_and_select(block, buffers, x, (n_tokens * channels, channels))
    _scan(block, buffers, buffers.z.view(-1), (channels, 0), True, buffers.y.view(-1).numpy(), (channels, 0))
    buffers.x[:, -1] += torch.mm(buffers.y, block.out)


def _convolve_and_select(block: _BlockWeights, buffers: _Buffers, x: Tensor, layout: tuple[int, int]) -> None:
    """The convolution of ``x`` into ``buffers.u``, and from that dt's low rank, B and C."""
    taps, bias, u, flat = block.taps.numpy(), block.conv_bias.numpy(), buffers.u.numpy(), x.numpy()

    def work(first: int, last: int) -> None:
        conv_kernels.conv_forward(flat, layout, taps, bias, u, first, last)

    for_ranges(work, len(u), 1)
    _product(buffers.u.view(-1, u.shape[2]), block.selection, buffers.selection)


def _scan(
    block: _BlockWeights,
    buffers: _Buffers,
    z: Tensor,
    z_layout: tuple[int, int],
    last_only: bool,
    y: object,
    y_layout: tuple[int, int],
) -> None:
    n_flows, n_tokens, _ = buffers.u.shape
    selection = buffers.selection.view(n_flows, n_tokens, -1).numpy()
    weights = (block.dt_weight.numpy(), block.dt_bias.numpy(), block.A2.numpy(), block.D.numpy())
    u, gates = buffers.u.numpy(), z.numpy()

    def work(first: int, last: int) -> None:
        inference_kernels.fused_scan(
            u, selection, *weights, gates, z_layout, last_only, y, y_layout, first, last
        )

    for_ranges(work, n_flows, 1)


@dataclass(frozen=True, slots=True)
class _Ready:
    """A model's fast form and what it was made from."""

    stamp: tuple[tuple[int, int], ...]
    sources: list[Tensor]  # kept alive, so that no other weight can come to lie at one of these addresses
    fast: FastNetMamba


_ready: WeakKeyDictionary[NetMambaClassifier, _Ready] = WeakKeyDictionary()


def covers(model: NetMambaClassifier) -> bool:
    """Whether :class:`FastNetMamba` can run this model: on a CPU, float32, states in fours, every projection plain.

    A wrapped projection (a quantised layer) computes more than its ``weight`` says, so it is left to the module. A
    parametrized one (:mod:`models.nets.adapters`) is plain: its ``weight`` is the effective one.
    """
    weight = model.head.weight
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or model.config.d_state % 4:
        return False
    mixers = [block.mixer for block in cast("list[MambaBlock]", list(model.blocks))]
    linears = [layer for m in mixers for layer in (m.in_proj, m.x_proj, m.dt_proj, m.out_proj)]
    return all(
        parametrize.type_before_parametrizations(layer) is nn.Linear for layer in (*linears, model.head)
    )


def fast_netmamba(model: NetMambaClassifier) -> FastNetMamba:
    """The model's fast form; made on the first call and again when a weight has changed since."""
    # In-place changes count up the version; tensors made in inference mode have none and are told by their address.
    parameters = list(model.parameters())
    stamp = tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in parameters)
    known = _ready.get(model)
    if known is None or known.stamp != stamp:
        known = _Ready(stamp, [p.detach() for p in parameters], FastNetMamba(model))
        _ready[model] = known
    return known.fast
