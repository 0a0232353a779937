"""What makes two packets belong to one flow: the canonical key, and addresses as text.

The key is (low address, high address, low port, high port, protocol, IP version, outer VLAN, inner VLAN, tunnel path),
and the tunnel's id where each direction has one of its own (:mod:`capture.tunnel`).
*Low* is the endpoint whose (address, port) is smaller in network byte order, so both directions give one key.

ICMP and ICMPv6 have no ports; type and code stand in for them as in Community ID v1 (and Zeek): a type
that has a counterpart (echo and echo reply) gives the ports (type, counterpart), so that a request and its
reply meet in one key; any other type gives (type, code) and is never reordered, so each direction is its own flow.
"""

from __future__ import annotations

import ipaddress
from typing import Final

import numpy as np
from numpy.typing import NDArray

ICMP: Final = 1
TCP: Final = 6
UDP: Final = 17
ICMPV6: Final = 58
SCTP: Final = 132

# Request and reply types (RFC 792, 950, 1256); the pairs of Zeek's ICMP analyzer.
ICMP_PAIRS: Final = ((8, 0), (13, 14), (15, 16), (10, 9), (17, 18))
# RFC 4443, 2710, 4861, 4620, 6275.
ICMPV6_PAIRS: Final = ((128, 129), (130, 131), (133, 134), (135, 136), (139, 140), (144, 145))

ONE_WAY: Final = -1


def _counterparts(pairs: tuple[tuple[int, int], ...]) -> NDArray[np.int16]:
    """int16 (256,): the type that answers each type, ``ONE_WAY`` where none does."""
    table = np.full(256, ONE_WAY, np.int16)
    for request, reply in pairs:
        table[request], table[reply] = reply, request
    table.setflags(write=False)
    return table


ICMP_COUNTERPART: Final = _counterparts(ICMP_PAIRS)
ICMPV6_COUNTERPART: Final = _counterparts(ICMPV6_PAIRS)


def format_address(address: bytes | NDArray[np.uint8], ip_version: int) -> str:
    """An address of a record as text: ``192.0.2.1``, ``2001:db8::1``.

    Args:
        address: 16 bytes in network order; IPv4 in the last four (``::ffff:a.b.c.d``).
        ip_version: 4 or 6. An IPv6 packet may carry a mapped address, so the bytes alone do not tell.

    Returns:
        Dotted decimal, or the form of RFC 5952.
    """
    raw = bytes(address)
    if ip_version == 4:
        return f"{raw[12]}.{raw[13]}.{raw[14]}.{raw[15]}"
    return ipaddress.IPv6Address(raw).compressed


def parse_address(text: str) -> bytes:
    """An address as records hold it: 16 bytes in network order; IPv4 as ::ffff:a.b.c.d.

    Raises:
        ValueError: for text that is no IPv4 or IPv6 address.
    """
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv4Address):
        return b"\0" * 10 + b"\xff\xff" + address.packed
    return address.packed
