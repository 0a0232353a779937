"""A plain thread pool for the compiled kernels: ranges of flows, one thread each, no numba threading layer.

The kernels release the GIL, so threads are enough, and they do not meet torch's OpenMP threads: those wait meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

_pools: dict[int, ThreadPoolExecutor] = {}
# A forked child has the pool's object but none of its threads.
os.register_at_fork(after_in_child=_pools.clear)


def ranges(n_flows: int, size: int) -> list[tuple[int, int]]:
    """Half-open ranges of ``size`` flows (the last may be shorter) that cover ``n_flows``."""
    return [(first, min(first + size, n_flows)) for first in range(0, n_flows, size)]


def for_ranges(work: Callable[[int, int], None], n_flows: int, size: int) -> None:
    """Call ``work(first, last)`` for every range of ``size`` flows, on ``torch.get_num_threads()`` threads.

    Which flows form a range depends on ``size`` only, so a sum per range does not depend on the number of threads.

    Raises:
        Whatever ``work`` raises, once every range is done.
    """
    todo = ranges(n_flows, size)
    n_threads = min(torch.get_num_threads(), len(todo))
    if n_threads < 2:
        for first, last in todo:
            work(first, last)
        return
    pool = _pools.get(n_threads)
    if pool is None:
        pool = _pools.setdefault(n_threads, ThreadPoolExecutor(n_threads, thread_name_prefix="kernel"))
    futures = [pool.submit(work, first, last) for first, last in todo]
    errors = [future.exception() for future in futures]
    for error in errors:
        if error is not None:
            raise error
