"""RMSNorm (arXiv 1910.07467) that makes one pass over its rows on a CPU; torch's makes one per elementary operation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from models.nets.workers import for_ranges, ranges

EPS = 1e-5

ROWS_PER_TASK = 512
"""Rows that one thread takes at a time; also the unit in which the weight's gradient is summed."""


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + 1e-5) * weight, over the last axis.

    Args:
        width: D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise float (..., D); the dtype is kept."""
        if x.device.type == "cpu" and x.dtype == self.weight.dtype == torch.float32 and x.numel() > 0:
            y: Tensor = _CpuRMSNorm.apply(x, self.weight)  # type: ignore[no-untyped-call]
            return y
        return functional.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), EPS)


class _CpuRMSNorm(torch.autograd.Function):
    """The numba kernels as one differentiable operation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        from models.nets import norm_kernels as kernels

        rows = x.detach().reshape(-1, x.shape[-1]).contiguous()
        y, roots = torch.empty_like(rows), torch.empty(len(rows))
        x_, weight_, y_, roots_ = rows.numpy(), weight.detach().numpy(), y.numpy(), roots.numpy()

        def work(first: int, last: int) -> None:
            kernels.norm_forward(x_, weight_, EPS, y_, roots_, first, last)

        for_ranges(work, len(rows), ROWS_PER_TASK)
        ctx.save_for_backward(rows, weight, roots)
        return y.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        from models.nets import norm_kernels as kernels

        rows, weight, roots = ctx.saved_tensors
        gy = gradients[0]
        # One row per task, summed in order afterwards: the same sum whatever the number of threads.
        gx, gweight = (
            torch.empty_like(rows),
            torch.zeros(len(ranges(len(rows), ROWS_PER_TASK)), rows.shape[1]),
        )
        gy_, x_ = gy.reshape(rows.shape).contiguous().numpy(), rows.numpy()
        weight_, roots_, gx_, gweight_ = weight.detach().numpy(), roots.numpy(), gx.numpy(), gweight.numpy()

        def work(first: int, last: int) -> None:
            kernels.norm_backward(
                gy_, x_, weight_, roots_, gx_, gweight_[first // ROWS_PER_TASK], first, last
            )

        for_ranges(work, len(rows), ROWS_PER_TASK)
        return gx.view(gy.shape), gweight.sum(0)
