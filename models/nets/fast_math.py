"""Elementary functions in float32 that LLVM can vectorise; building blocks of the kernels, inlined into them.

numba's ``math.exp`` and ``math.log1p`` are calls into libm, one number at a time. Those below are a polynomial and a
few integer operations, so a loop over a row becomes AVX2 or AVX-512 code, whichever the CPU has.

The coefficients are minimax fits of the relative error (linear programming on 4001 Chebyshev nodes); the error stated
is that of the polynomial in exact arithmetic, float32 rounding adds about 1e-7. NaN goes in, NaN comes out of whatever
is multiplied with the result: only the exponent is clamped.
"""

from __future__ import annotations

from typing import Any

from numba import float32, int32, njit, types
from numba.extending import intrinsic

# Only what does not change the meaning of NaN and infinity: contraction to FMA and reciprocal division.
FAST: set[str] = {"contract", "nsz", "arcp", "afn"}
# Sums along a row (gradients of B and C) need reordering to vectorise.
FAST_SUM: set[str] = FAST | {"reassoc"}

LOG2_E = 1.4426950408889634


@intrinsic
def bits_of(_typing: Any, _x: Any) -> Any:
    """The bits of a float32 as int32."""

    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(types.int32))

    return types.int32(types.float32), codegen


@intrinsic
def from_bits(_typing: Any, _x: Any) -> Any:
    """The float32 that has these bits."""

    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(types.float32))

    return types.float32(types.int32), codegen


@intrinsic
def _round(_typing: Any, _x: Any) -> Any:
    """The nearest whole number. An instruction; adding a magic constant would not survive reassociation."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        rint = builder.module.declare_intrinsic("llvm.rint", [args[0].type])
        return builder.call(rint, args)

    return types.float32(types.float32), codegen


@intrinsic
def _to_int(_typing: Any, _x: Any) -> Any:
    """A float32 cut to int32; the caller keeps it in range."""

    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.fptosi(args[0], context.get_value_type(types.int32))

    return types.int32(types.float32), codegen


@njit(inline="always", fastmath=FAST)
def exp2_of_negative(t: Any) -> Any:
    """2**t for t <= 0, float32. Relative error 9.2e-8; below -126 it stays at 2**-126; exactly 1 at t = 0.

    The constant term is exactly 1 because a decay of 1 must still be 1 after 400 steps.
    """
    t = t if t > float32(-126.0) else float32(-126.0)
    whole = _round(t)
    f = t - whole
    p = float32(9.671512642e-3) + f * float32(1.326472749e-3)
    p = float32(5.550733742e-2) + f * p
    p = float32(2.402224209e-1) + f * p
    p = float32(6.931469776e-1) + f * p
    p = float32(1.0) + f * p
    # Adding to the exponent field multiplies by 2**whole.
    return from_bits(bits_of(p) + (_to_int(whole) << int32(23)))


@njit(inline="always", fastmath=FAST)
def softplus(x: Any) -> Any:
    """log(1 + exp(x)), float32. Relative error below 3e-7 for every x, the small results included."""
    e = exp2_of_negative(-abs(x) * float32(LOG2_E))
    # log1p(e) = e * q(e) on [0, 1]; q fitted to 3.0e-8.
    q = float32(-2.950515204e-2) + e * float32(5.232673849e-3)
    q = float32(7.822580016e-2) + e * q
    q = float32(-1.366323172e-1) + e * q
    q = float32(1.910599933e-1) + e * q
    q = float32(-2.484297999e-1) + e * q
    q = float32(3.331909646e-1) + e * q
    q = float32(-4.999949312e-1) + e * q
    q = float32(9.999999699e-1) + e * q
    return (x if x > float32(0.0) else float32(0.0)) + e * q


@njit(inline="always", fastmath=FAST)
def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x)), float32."""
    e = exp2_of_negative(-abs(x) * float32(LOG2_E))
    return (float32(1.0) if x >= float32(0.0) else e) / (float32(1.0) + e)
