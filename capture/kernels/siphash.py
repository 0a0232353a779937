"""SipHash-1-3 of a flow key, unrolled over 64-bit words.

A keyed hash, so that nobody who does not know the key can choose packets that land in one place of
the flow index. One compression and three finalization rounds are what hash tables use (CPython, Rust);
nothing secret hangs on it here.

Source: Aumasson and Bernstein, "SipHash: a fast short-input PRF" (INDOCRYPT 2012), sections 2.1-2.4.
"""

from __future__ import annotations

import numpy as np
from numba import njit

_V0 = np.uint64(0x736F6D6570736575)
_V1 = np.uint64(0x646F72616E646F6D)
_V2 = np.uint64(0x6C7967656E657261)
_V3 = np.uint64(0x7465646279746573)
_LAST = np.uint64(0xFF)
_KEY_LENGTH = np.uint64(42 << 56)  # length byte of the last word: 5 words and 2 bytes
_ID_LENGTH = np.uint64(50 << 56)  # 6 words and 2 bytes


@njit(cache=True, nogil=True, inline="always")
def _rotate(x, n):  # type: ignore[no-untyped-def]
    return (x << np.uint64(n)) | (x >> np.uint64(64 - n))


@njit(cache=True, nogil=True)
def sip_round(v0, v1, v2, v3):  # type: ignore[no-untyped-def]
    """One SipRound (section 2.2) over four uint64."""
    v0 += v1
    v1 = _rotate(v1, 13) ^ v0
    v0 = _rotate(v0, 32)
    v2 += v3
    v3 = _rotate(v3, 16) ^ v2
    v0 += v3
    v3 = _rotate(v3, 21) ^ v0
    v2 += v1
    v1 = _rotate(v1, 17) ^ v2
    v2 = _rotate(v2, 32)
    return v0, v1, v2, v3


@njit(cache=True, nogil=True)
def _compress(v0, v1, v2, v3, word):  # type: ignore[no-untyped-def]
    v0, v1, v2, v3 = sip_round(v0, v1, v2, v3 ^ word)
    return v0 ^ word, v1, v2, v3


@njit(cache=True, nogil=True)
def _start(k0, k1, a, b, c, d, e):  # type: ignore[no-untyped-def]
    v0, v1, v2, v3 = k0 ^ _V0, k1 ^ _V1, k0 ^ _V2, k1 ^ _V3
    v0, v1, v2, v3 = _compress(v0, v1, v2, v3, a)
    v0, v1, v2, v3 = _compress(v0, v1, v2, v3, b)
    v0, v1, v2, v3 = _compress(v0, v1, v2, v3, c)
    v0, v1, v2, v3 = _compress(v0, v1, v2, v3, d)
    return _compress(v0, v1, v2, v3, e)


@njit(cache=True, nogil=True)
def _finish(v0, v1, v2, v3, last):  # type: ignore[no-untyped-def]
    v0, v1, v2, v3 = _compress(v0, v1, v2, v3, last)
    v0, v1, v2, v3 = sip_round(v0, v1, v2 ^ _LAST, v3)
    v0, v1, v2, v3 = sip_round(v0, v1, v2, v3)
    v0, v1, v2, v3 = sip_round(v0, v1, v2, v3)
    return v0 ^ v1 ^ v2 ^ v3


@njit(cache=True, nogil=True)
def siphash_key(k0, k1, a, b, c, d, e, tail):  # type: ignore[no-untyped-def]
    """SipHash-1-3 of 42 bytes: the words ``a`` to ``e`` (uint64, little-endian) and a 16-bit ``tail`` (uint64)."""
    v0, v1, v2, v3 = _start(k0, k1, a, b, c, d, e)
    return _finish(v0, v1, v2, v3, tail | _KEY_LENGTH)


@njit(cache=True, nogil=True)
def siphash_id(k0, k1, a, b, c, d, e, f, tail):  # type: ignore[no-untyped-def]
    """SipHash-1-3 of 50 bytes: the words ``a`` to ``f`` (uint64, little-endian) and a 16-bit ``tail`` (uint64)."""
    v0, v1, v2, v3 = _start(k0, k1, a, b, c, d, e)
    v0, v1, v2, v3 = _compress(v0, v1, v2, v3, f)
    return _finish(v0, v1, v2, v3, tail | _ID_LENGTH)
