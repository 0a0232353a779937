"""The memory by which later fragments find the flow of their first one; its kernels: ``capture.kernels.fragments``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from capture.kernels.fragments import DATAGRAM_DTYPE, FRAGMENTS_DTYPE, N_SETS, N_WAYS

FRAGMENT_LIMIT_S: Final = 30.0  # Linux's net.ipv4.ipfrag_time

# Stands for no table at all.
NO_FRAGMENTS: Final = (np.zeros(0, FRAGMENTS_DTYPE), np.zeros(0, DATAGRAM_DTYPE))


@dataclass(frozen=True, slots=True)
class FragmentCounters:
    """What a fragment table has done so far.

    Attributes:
        datagrams: first fragments that were remembered.
        joined: later fragments that found their flow.
        complete: datagrams of which every byte was seen.
        expired: incomplete ones found too old.
        evicted: incomplete ones that made room for another.
    """

    datagrams: int = 0
    joined: int = 0
    complete: int = 0
    expired: int = 0
    evicted: int = 0


class FragmentTable:
    """2,048 datagrams (2.4 MiB at most, used as they come).

    Args:
        limit_s: how long a first fragment is remembered, packet clock, seconds.
        hash_key: 16 bytes. None: random.
    """

    def __init__(self, limit_s: float, hash_key: bytes | None = None) -> None:
        key = os.urandom(16) if hash_key is None else hash_key
        self._table: NDArray[Any] = np.zeros(1, FRAGMENTS_DTYPE)
        self._table["k0"] = int.from_bytes(key[:8], "little")
        self._table["k1"] = int.from_bytes(key[8:16], "little")
        self._table["limit_ns"] = round(limit_s * 1e9)
        self._entries: NDArray[Any] = np.zeros(N_SETS * N_WAYS, DATAGRAM_DTYPE)

    @property
    def memory(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """FRAGMENTS_DTYPE (1,) and DATAGRAM_DTYPE (2048,), as the kernel takes them."""
        return self._table, self._entries

    @property
    def counters(self) -> FragmentCounters:
        """A snapshot."""
        state = self._table[0]
        return FragmentCounters(*(int(state[name]) for name in FragmentCounters.__slots__))
