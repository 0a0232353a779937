"""Causal depthwise convolution followed by SiLU, as Mamba uses it before the scan.

Dimensions: batch B, tokens L, channels E, taps K.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from models.nets.scan import FLOWS_PER_TASK, flat_rows
from models.nets.workers import for_ranges, ranges


def causal_conv_silu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """silu(causal convolution of each channel along the tokens). Differentiable in all three.

    On a CPU in float32 (or narrower) by the kernels of :mod:`models.nets.conv_kernels`, else by torch.

    Args:
        x: float (B, L, E). May be a view whose last axis is contiguous.
        weight: float (E, 1, K), as ``nn.Conv1d(groups=E)`` holds it; the last tap is the present token.
        bias: float (E,).

    Returns:
        float (B, L, E), dtype of ``x``.
    """
    if x.device.type == "cpu" and x.dtype != torch.float64 and x.numel() > 0:
        y: Tensor = _CpuConv.apply(x.float(), weight.float(), bias.float())  # type: ignore[no-untyped-call]
        return y.to(x.dtype)
    n_taps = weight.shape[-1]
    padded = functional.pad(x.transpose(1, 2), (n_taps - 1, 0))
    return functional.silu(functional.conv1d(padded, weight, bias, groups=weight.shape[0])).transpose(1, 2)


class _CpuConv(torch.autograd.Function):
    """The numba kernels as one differentiable operation; float32 throughout."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        from models.nets import conv_kernels as kernels

        taps = weight.detach()[:, 0].t().contiguous()
        bias = bias.detach().contiguous()
        y = torch.empty(x.shape)
        flat, layout = flat_rows(x)
        taps_, bias_, y_ = taps.numpy(), bias.numpy(), y.numpy()

        def work(first: int, last: int) -> None:
            kernels.conv_forward(flat, layout, taps_, bias_, y_, first, last)

        for_ranges(work, x.shape[0], FLOWS_PER_TASK)
        ctx.save_for_backward(x, taps, bias)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        from models.nets import conv_kernels as kernels

        x, taps, bias = ctx.saved_tensors
        n_tasks = len(ranges(x.shape[0], FLOWS_PER_TASK))
        gx = torch.zeros(x.shape)
        # One row per task, summed in order afterwards: the same sum whatever the number of threads.
        gtaps, gbias = torch.zeros(n_tasks, *taps.shape), torch.zeros(n_tasks, *bias.shape)
        flat, layout = flat_rows(x)
        gy_, taps_, bias_ = gradients[0].contiguous().numpy(), taps.numpy(), bias.numpy()
        gx_, gtaps_, gbias_ = gx.numpy(), gtaps.numpy(), gbias.numpy()

        def work(first: int, last: int) -> None:
            task = first // FLOWS_PER_TASK
            kernels.conv_backward(
                gy_, flat, layout, taps_, bias_, gx_, gtaps_[task], gbias_[task], first, last
            )

        for_ranges(work, x.shape[0], FLOWS_PER_TASK)
        return gx, gtaps.sum(0).t().unsqueeze(1), gbias.sum(0)
