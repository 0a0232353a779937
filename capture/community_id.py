"""Community ID v1: one name for a flow in every tool (Zeek, Suricata, Arkime, netcls).

Version 1 is ``"1:" + base64(sha1(seed, low address, high address, protocol, 0, low port, high port))``: integers in
network byte order, addresses of 4 bytes for IPv4, no ports for protocols that have none. VLANs are not part of it.

Source: https://github.com/corelight/community-id-spec, with its mapping of ICMP to ports.
"""

from __future__ import annotations

import base64
import hashlib
import struct
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from capture.flow_key import ICMP, ICMP_COUNTERPART, ICMPV6, ICMPV6_COUNTERPART, ONE_WAY, SCTP, TCP, UDP

_HAS_PORTS: Final = frozenset((ICMP, TCP, UDP, ICMPV6, SCTP))


def community_id(
    src: bytes, dst: bytes, src_port: int, dst_port: int, protocol: int, *, ip_version: int, seed: int = 0
) -> str:
    """The Community ID of one flow, the same from either end.

    Args:
        src: 16 bytes as in a record, IPv4 in the last four.
        dst: the same of the other end.
        src_port: port; for ICMP and ICMPv6 the type of a packet that ``src`` sent.
        dst_port: port; for ICMP and ICMPv6 the code of that packet.
        protocol: IP protocol number.
        ip_version: 4 or 6.
        seed: 0 to 65535; a site that shares ids sets its own.

    Returns:
        For example ``1:LQU9qZlK+B5F3KDmev6m5PMibrg=``.
    """
    one_way = False
    if protocol in (ICMP, ICMPV6):
        table = ICMP_COUNTERPART if protocol == ICMP else ICMPV6_COUNTERPART
        counterpart = int(table[src_port & 0xFF])
        one_way = counterpart == ONE_WAY
        if not one_way:
            dst_port = counterpart
    skip = 12 if ip_version == 4 else 0
    ends = [(src[skip:], src_port), (dst[skip:], dst_port)]
    if not one_way:
        ends.sort()
    (low, low_port), (high, high_port) = ends
    message = struct.pack("!H", seed) + low + high + struct.pack("!BB", protocol, 0)
    if protocol in _HAS_PORTS:
        message += struct.pack("!HH", low_port, high_port)
    return "1:" + base64.b64encode(hashlib.sha1(message, usedforsecurity=False).digest()).decode("ascii")


def community_ids(records: NDArray[Any], *, seed: int = 0) -> list[str]:
    """The Community ID of each record (FLOW_DTYPE (F,)), in order."""
    columns = (records["client_port"], records["server_port"], records["protocol"], records["ip_version"])
    ports = zip(*(np.asarray(column).tolist() for column in columns), strict=True)
    client, server = records["client"].tobytes(), records["server"].tobytes()
    return [
        community_id(
            client[at : at + 16],
            server[at : at + 16],
            client_port,
            server_port,
            protocol,
            ip_version=version,
            seed=seed,
        )
        for at, (client_port, server_port, protocol, version) in zip(
            range(0, len(client), 16), ports, strict=True
        )
    ]
