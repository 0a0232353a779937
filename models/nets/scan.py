"""The selective scan of Mamba, in three forms behind one function.

    ``reference``   a loop over time in torch; any device, any dtype, any size; slow and obviously right
    ``cpu``         numba kernels with their own backward pass (:mod:`models.nets.scan_kernels`); float32 arithmetic
    ``mamba_ssm``   the CUDA kernel of the package mamba_ssm, when both are there

Dimensions, as in the paper (arXiv 2312.00752): batch B, tokens L, channels E (``d_inner``), states N (``d_state``).
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from models.nets.workers import for_ranges, ranges

Backend = Literal["auto", "reference", "cpu", "mamba_ssm"]

FLOWS_PER_TASK = 4
"""Flows that one thread takes at a time; also the unit in which weight gradients are summed."""


@cache
def _mamba_ssm_scan() -> Any | None:
    """``selective_scan_fn`` of mamba_ssm, or None. Its import needs CUDA, triton and a compiled extension."""
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except (ImportError, OSError, RuntimeError):
        return None
    return selective_scan_fn


def scan_backend(device: torch.device | str) -> str:
    """The form that ``backend="auto"`` runs on ``device``: ``cpu``, ``mamba_ssm`` or ``reference``."""
    kind = torch.device(device).type
    if kind == "cpu":
        return "cpu"
    if kind == "cuda" and _mamba_ssm_scan() is not None:
        return "mamba_ssm"
    return "reference"


def selective_scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    dt_bias: Tensor,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """Scan ``u`` with input-dependent steps, add the skip, apply the gate. Differentiable in all eight tensors.

        dt'[t] = softplus(dt[t] + dt_bias)
        h[t] = exp(dt'[t] A) h[t-1] + dt'[t] B[t] u[t],   h[-1] = 0
        y[t] = (C[t] h[t] + D u[t]) * silu(z[t])

    Args:
        u: float (B, L, E), after convolution and SiLU.
        dt: float (B, L, E), before bias and softplus.
        A: float (E, N). Negative in every Mamba.
        B: float (B, L, N).
        C: float (B, L, N).
        D: float (E,).
        z: float (B, L, E), the gate before SiLU. May be a view whose last axis is contiguous.
        dt_bias: float (E,).
        backend: which form; ``auto`` asks :func:`scan_backend`. ``cpu`` computes in float32; what its kernels do not
            cover (float64, N not a multiple of 4, a positive A) goes through the reference.

    Returns:
        float (B, L, E), dtype of ``u``.

    Raises:
        ValueError: if shapes do not fit each other, or the backend is unknown or not installed.
    """
    _check_shapes(u, dt, A, B, C, D, z, dt_bias)
    name = scan_backend(u.device) if backend == "auto" else backend
    if name == "cpu":
        if not _kernels_cover(u, A):
            return _scan_reference(u, dt, A, B, C, D, z, dt_bias)
        tensors = [x.float() for x in (u, dt, A, B, C, D, z, dt_bias)]
        y: Tensor = _CpuScan.apply(*tensors)  # type: ignore[no-untyped-call]
        return y.to(u.dtype)
    if name == "mamba_ssm":
        return _scan_mamba_ssm(u, dt, A, B, C, D, z, dt_bias)
    if name == "reference":
        return _scan_reference(u, dt, A, B, C, D, z, dt_bias)
    raise ValueError(f"unknown scan backend {name!r}; choose auto, reference, cpu or mamba_ssm")


def _check_shapes(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, dt_bias: Tensor
) -> None:
    if u.dim() != 3 or A.dim() != 2:
        raise ValueError(
            f"u has shape {tuple(u.shape)} and A {tuple(A.shape)}; expected (B, L, E) and (E, N)"
        )
    wide, small, channels = tuple(u.shape), (*u.shape[:2], A.shape[1]), (u.shape[2],)
    expected = {"dt": (dt, wide), "z": (z, wide), "B": (B, small), "C": (C, small), "D": (D, channels)}
    expected |= {"dt_bias": (dt_bias, channels), "A": (A, (u.shape[2], A.shape[1]))}
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {shape} beside u {wide}")


def _kernels_cover(u: Tensor, A: Tensor) -> bool:
    """Whether the CPU kernels can take it: not float64, states in fours, only decays (their exp2 is for t <= 0)."""
    return (
        u.device.type == "cpu"
        and u.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and A.shape[1] % 4 == 0
        and u.numel() > 0
        and bool((A.detach() <= 0).all())
    )


def _scan_reference(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, dt_bias: Tensor
) -> Tensor:
    """The equations of :func:`selective_scan`, one token at a time."""
    dt = functional.softplus(dt + dt_bias)
    h = u.new_zeros(u.shape[0], *A.shape)
    outputs = []
    for t in range(u.shape[1]):
        decay = torch.exp(dt[:, t, :, None] * A)
        h = decay * h + (dt[:, t] * u[:, t])[..., None] * B[:, t, None, :]
        outputs.append((h * C[:, t, None, :]).sum(-1))
    s = torch.stack(outputs, 1) if outputs else u.new_zeros(u.shape)
    return (s + D * u) * functional.silu(z)


def _on_cuda(x: Tensor) -> bool:
    return x.device.type == "cuda"


def _scan_mamba_ssm(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, dt_bias: Tensor
) -> Tensor:
    """mamba_ssm keeps the tokens last, (B, E, L): transpose on the way in and out."""
    scan = _mamba_ssm_scan()
    if scan is None or not _on_cuda(u):
        raise ValueError(
            f"scan backend mamba_ssm needs a CUDA tensor and the package mamba_ssm; got a tensor on {u.device}, "
            f"package {'absent' if scan is None else 'present'}; choose backend auto"
        )
    wide = [x.transpose(1, 2).contiguous() for x in (u, dt, B, C, z)]
    y: Tensor = scan(
        wide[0],
        wide[1],
        A.float(),
        wide[2],
        wide[3],
        D.float(),
        z=wide[4],
        delta_bias=dt_bias.float(),
        delta_softplus=True,
    )
    return y.transpose(1, 2)


def flat_rows(x: Tensor) -> tuple[NDArray[np.float32], tuple[int, int]]:
    """A (B, L, E) tensor as the kernels address it: its storage from the first element on, flat, and two strides.

    Half of a projection, ``xz[..., E:]``, needs no copy this way. A tensor whose last axis is not contiguous is copied.

    Returns:
        float32 (span,) and (elements from flow to flow, elements from token to token).
    """
    if x.stride(2) != 1 and x.shape[2] > 1:
        x = x.contiguous()
    n_flows, n_tokens, width = x.shape
    span = (n_flows - 1) * x.stride(0) + (n_tokens - 1) * x.stride(1) + width
    flat = torch.as_strided(x.detach(), (span,), (1,), x.storage_offset())
    return flat.numpy(), (x.stride(0), x.stride(1))


class _CpuScan(torch.autograd.Function):
    """The numba kernels as one differentiable operation; float32 throughout."""

    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        z: Tensor,
        dt_bias: Tensor,
    ) -> Tensor:
        from models.nets import scan_kernels as kernels
        from models.nets.fast_math import LOG2_E

        u, dt, B, C, D, dt_bias = (x.contiguous() for x in (u, dt, B, C, D, dt_bias))
        rows_of_A = A.detach().t().contiguous()
        n_flows, n_tokens, width = u.shape
        n_chunks = -(-n_tokens // kernels.CHUNK) if any(ctx.needs_input_grad) else 0
        checkpoints = torch.empty(n_flows, n_chunks, A.shape[1], width)
        y = torch.empty_like(u)
        z_flat, z_layout = flat_rows(z)
        scaled_A = (rows_of_A * LOG2_E).numpy()
        arrays = [x.detach().numpy() for x in (u, dt, B, C, D, dt_bias, y, checkpoints)]
        u_, dt_, B_, C_, D_, bias_, y_, kept = arrays

        def work(first: int, last: int) -> None:
            kernels.scan_forward(
                u_, dt_, scaled_A, B_, C_, D_, z_flat, z_layout, bias_, y_, kept, first, last
            )

        for_ranges(work, n_flows, FLOWS_PER_TASK)
        ctx.save_for_backward(u, dt, rows_of_A, B, C, D, z, dt_bias, checkpoints)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        from models.nets import scan_kernels as kernels

        u, dt, rows_of_A, B, C, D, z, dt_bias, checkpoints = ctx.saved_tensors
        n_tasks = len(ranges(u.shape[0], FLOWS_PER_TASK))
        gy = gradients[0].contiguous()
        gu, gdt, gz = torch.empty_like(u), torch.empty_like(u), torch.empty_like(u)
        gB, gC = torch.empty_like(B), torch.empty_like(C)
        # One row per task, summed in order afterwards: the same sum whatever the number of threads.
        gA = torch.zeros(n_tasks, *rows_of_A.shape)
        gD, gbias = torch.zeros(n_tasks, D.shape[0]), torch.zeros(n_tasks, D.shape[0])
        z_flat, z_layout = flat_rows(z)
        gy_, u_, dt_, A_, B_, C_, D_, bias_ = (
            x.detach().numpy() for x in (gy, u, dt, rows_of_A, B, C, D, dt_bias)
        )
        gu_, gdt_, gB_, gC_, gz_ = (x.numpy() for x in (gu, gdt, gB, gC, gz))
        gA_, gD_, gbias_, kept = (x.numpy() for x in (gA, gD, gbias, checkpoints))

        def work(first: int, last: int) -> None:
            task = first // FLOWS_PER_TASK
            inputs = (gy_, u_, dt_, A_, B_, C_, D_, z_flat, z_layout, bias_, kept)
            outputs = (gu_, gdt_, gA_[task], gB_, gC_, gD_[task], gz_, gbias_[task])
            kernels.scan_backward(*inputs, *outputs, first, last)

        for_ranges(work, u.shape[0], FLOWS_PER_TASK)
        return gu, gdt, gA.sum(0).t(), gB, gC, gD.sum(0), gz, gbias.sum(0)
