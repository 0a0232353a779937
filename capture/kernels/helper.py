"""How functions that only kernels call are compiled."""

from __future__ import annotations

from numba import njit

# Without the two wrappers by which Python or C would call it, a helper takes half as long to compile, and it is
# cached as part of the kernel that calls it.
helper = njit(nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
