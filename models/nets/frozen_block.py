"""A Mamba block's weights as inference reads them, and its matrix products in three precisions.

In bf16 a product narrows what goes in and widens what comes out; the copies cost 3 % of what they save, and everything
else (norm, convolution, scan, residual, head) stays float32. In int8 the products into and out of a block are of whole
numbers (:mod:`models.nets.int8_kernels`): each token row has a scale of its own, made as it comes, and so has every
column of the weight. The product that dt, B and C come from stays float32 there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor
from torch.nn import functional

from models.nets import int8_kernels
from models.nets.fast_math import LOG2_E

if TYPE_CHECKING:
    from models.nets.mamba import MambaBlock

PRODUCT_DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
"""Type of the matrix products by the name of a precision."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """The right side of a product.

    Attributes:
        values: (k, n), float32, bfloat16 or int8.
        steps: float32 (n,), what 1 in each column of int8 is worth; None for the other types.
    """

    values: Tensor
    steps: Tensor | None = None


@dataclass(frozen=True, slots=True)
class BlockWeights:
    """One block's weights, laid out as the kernels read them (see :func:`block_weights`)."""

    in_x: Matrix  # (D, E), the norm's weight folded in; likewise in_z
    in_z: Matrix
    in_xz: Matrix  # (D, 2 E), both
    taps: Tensor  # (K, E)
    conv_bias: Tensor  # (E,)
    selection: Matrix  # (E, R + 2 N), R rounded up to a multiple of 4
    dt_weight: Tensor  # (R, E)
    dt_bias: Tensor  # (E,)
    A2: Tensor  # (N, E), A * log2(e)
    D: Tensor  # (E,)
    out: Matrix  # (E, D)


def _matrix(weight: Tensor, dtype: torch.dtype) -> Matrix:
    """The transpose of a projection's weight (n, k), in the type of its products."""
    if dtype != torch.int8:
        return Matrix(weight.t().to(dtype).contiguous())
    values, steps = torch.empty(weight.shape, dtype=torch.int8), torch.empty(len(weight))
    int8_kernels.quantise_rows(weight.contiguous().numpy(), values.numpy(), steps.numpy())
    return Matrix(values.t().contiguous(), steps)


def block_weights(block: MambaBlock, dtype: torch.dtype) -> BlockWeights:
    """A frozen copy of a block's weights, for products of this type."""
    mixer = block.mixer
    in_xz = mixer.in_proj.weight * block.norm.weight
    in_x, in_z = in_xz.chunk(2)
    # Zero rows bring the rank to a multiple of 4, which the kernel takes per pass.
    spare = -mixer.dt_rank % 4
    low_rank, rest = mixer.x_proj.weight[: mixer.dt_rank], mixer.x_proj.weight[mixer.dt_rank :]
    selection = torch.cat([functional.pad(low_rank, (0, 0, 0, spare)), rest])
    return BlockWeights(
        in_x=_matrix(in_x, dtype),
        in_z=_matrix(in_z, dtype),
        in_xz=_matrix(in_xz, dtype),
        taps=mixer.conv1d.weight[:, 0].t().contiguous(),
        conv_bias=mixer.conv_bias.clone(),
        selection=_matrix(selection, torch.float32 if dtype == torch.int8 else dtype),
        dt_weight=functional.pad(mixer.dt_proj.weight.t(), (0, 0, 0, spare)).contiguous(),
        dt_bias=mixer.dt_proj.bias.clone(),
        A2=(-torch.exp(mixer.A_log) * LOG2_E).t().contiguous(),
        D=mixer.D.clone(),
        out=_matrix(mixer.out_proj.weight, dtype),
    )


class Scratch:
    """Both sides of a narrow product, for one thread; empty in fp32. Products of int8 are summed in int32.

    Args:
        block: whose products they are.
        n_rows: most rows of a product.
    """

    def __init__(self, block: BlockWeights, n_rows: int) -> None:
        width, channels = block.in_x.values.shape
        dtype = block.out.values.dtype
        n_narrow = 0 if dtype == torch.float32 else n_rows
        n_out = max(2 * channels, block.selection.values.shape[1])
        self.narrow_in = torch.empty(n_narrow * max(width, channels), dtype=dtype)
        self.narrow_out = torch.empty(n_narrow * n_out, dtype=torch.int32 if dtype == torch.int8 else dtype)
        self.steps = torch.empty(n_narrow if dtype == torch.int8 else 0)


def product(x: Tensor, weight: Matrix, out: Tensor, scratch: Scratch) -> None:
    """Write out = x @ weight: float32 (rows, k) and (k, n) of the products' type to float32 (rows, n)."""
    if weight.steps is not None:
        totals = _whole_product(x, weight.values, scratch)
        int8_kernels.widen(totals.numpy(), scratch.steps.numpy(), weight.steps.numpy(), out.numpy())
    elif weight.values.dtype == torch.float32:
        torch.mm(x, weight.values, out=out)
    else:
        out.copy_(_narrow_product(x, weight.values, scratch))


def add_product(x: Tensor, weight: Matrix, out: Tensor, scratch: Scratch) -> None:
    """As :func:`product`, added to what is in ``out``, in float32."""
    if weight.steps is not None:
        totals = _whole_product(x, weight.values, scratch)
        int8_kernels.add_widened(totals.numpy(), scratch.steps.numpy(), weight.steps.numpy(), out.numpy())
    elif weight.values.dtype == torch.float32:
        out.addmm_(x, weight.values)
    else:
        out.add_(_narrow_product(x, weight.values, scratch))


def _narrow_product(x: Tensor, weight: Tensor, scratch: Scratch) -> Tensor:
    """The product of ``x`` rounded to the weight's type, (rows, n) of that type: a view of a buffer."""
    rows, n = x.shape[0], weight.shape[1]
    narrow = scratch.narrow_in[: x.numel()].view(x.shape).copy_(x)
    return torch.mm(narrow, weight, out=scratch.narrow_out[: rows * n].view(rows, n))


def _whole_product(x: Tensor, weight: Tensor, scratch: Scratch) -> Tensor:
    """The product of ``x`` in int8, each row's step in ``scratch.steps``: int32 (rows, n), a view of a buffer."""
    rows, n = x.shape[0], weight.shape[1]
    narrow = scratch.narrow_in[: x.numel()].view(x.shape)
    int8_kernels.quantise_rows(x.contiguous().numpy(), narrow.numpy(), scratch.steps.numpy())
    totals: Tensor = torch._int_mm(narrow, weight, out=scratch.narrow_out[: rows * n].view(rows, n))
    return totals
