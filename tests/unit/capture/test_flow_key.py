"""Addresses as text, ICMP pairs, and the keyed hash."""

from __future__ import annotations

import ipaddress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capture.flow_key import ICMP_COUNTERPART, ICMP_PAIRS, ICMPV6_COUNTERPART, ICMPV6_PAIRS, format_address
from capture.kernels.siphash import siphash_id, siphash_key
from tests.flows_builder import ip4
from tests.reference.siphash import siphash

KEY = bytes(range(16))


def test_addresses_are_written_as_the_version_says() -> None:
    assert format_address(ip4("192.0.2.1"), 4) == "192.0.2.1"
    assert format_address(ip4("192.0.2.1"), 6) == str(ipaddress.IPv6Address("::ffff:192.0.2.1"))
    address = ipaddress.IPv6Address("2001:db8::1")
    assert format_address(np.frombuffer(address.packed, np.uint8), 6) == "2001:db8::1"


@pytest.mark.parametrize(
    ("table", "pairs"), [(ICMP_COUNTERPART, ICMP_PAIRS), (ICMPV6_COUNTERPART, ICMPV6_PAIRS)]
)
def test_icmp_types_answer_each_other_or_nobody(
    table: np.ndarray, pairs: tuple[tuple[int, int], ...]
) -> None:
    assert {kind: int(table[kind]) for kind in range(256) if table[kind] >= 0} == dict(
        [*pairs, *((right, left) for left, right in pairs)]
    )


# Reference vectors of the authors (github.com/veorq/SipHash, vectors.h): key 00..0f, message 00..n-1, SipHash-2-4.
@pytest.mark.parametrize(
    ("n", "digest"),
    [
        (0, "310e0edd47db6f72"),
        (1, "fd67dc93c539f874"),
        (7, "37d1018bf50002ab"),
        (8, "6224939a79f5f593"),
        (15, "e545be4961ca29a1"),
    ],
)
def test_the_plain_siphash_gives_the_published_values(n: int, digest: str) -> None:
    assert siphash(KEY, bytes(range(n)), 2, 4).to_bytes(8, "little").hex() == digest


@settings(max_examples=50, deadline=None)
@given(st.binary(min_size=16, max_size=16), st.binary(min_size=50, max_size=50))
def test_the_kernels_equal_the_plain_siphash(key: bytes, message: bytes) -> None:
    k0, k1 = np.frombuffer(key, "<u8")
    words = np.frombuffer(message[:48], "<u8")
    tail = np.uint64(int.from_bytes(message[48:], "little"))
    short = message[:40] + message[48:]
    assert int(siphash_key(k0, k1, *words[:5], tail)) == siphash(key, short, 1, 3)
    assert int(siphash_id(k0, k1, *words, tail)) == siphash(key, message, 1, 3)
