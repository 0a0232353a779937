"""Community ID v1 against the reference package of its authors, and against the flow key."""

from __future__ import annotations

import communityid
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capture.community_id import community_id, community_ids
from capture.flow_batch import FLOW_DTYPE
from capture.flow_key import ICMP, ICMPV6, SCTP, TCP, UDP
from tests.flows_builder import A, B, S, icmp, ip4, udp
from tests.flows_run import run
from tests.reference.flow_table import key_of

PORT_PROTOCOLS = (ICMP, TCP, UDP, ICMPV6, SCTP)


def theirs(src: bytes, dst: bytes, sport: int, dport: int, protocol: int, version: int, seed: int = 0) -> str:
    skip = 12 if version == 4 else 0
    ports = (sport, dport) if protocol in PORT_PROTOCOLS else (None, None)
    flow = communityid.FlowTuple(protocol, src[skip:], dst[skip:], *ports)
    return communityid.CommunityID(seed).calc(flow)


def test_the_published_example() -> None:
    src, dst = ip4("128.232.110.120"), ip4("66.35.250.204")
    assert community_id(src, dst, 34855, 80, TCP, ip_version=4) == "1:LQU9qZlK+B5F3KDmev6m5PMibrg="
    assert community_id(dst, src, 80, 34855, TCP, ip_version=4) == "1:LQU9qZlK+B5F3KDmev6m5PMibrg="
    assert community_id(src, dst, 34855, 80, TCP, ip_version=4, seed=1) == "1:3V71V58M3Ksw/yuFALMcW0LAHvc="


@pytest.mark.parametrize("protocol", [ICMP, ICMPV6])
def test_every_icmp_type_equals_the_reference(protocol: int) -> None:
    version = 4 if protocol == ICMP else 6
    for kind in range(256):
        for src, dst in ((A, B), (B, A)):
            comp = community_id(src, dst, kind, 2, protocol, ip_version=version)
            assert comp == theirs(src, dst, kind, 2, protocol, version), (kind, src)


addresses = st.one_of(
    st.binary(min_size=16, max_size=16),
    st.sampled_from((A, B)),
    st.binary(min_size=4, max_size=4).map(lambda b: A[:12] + b),
)


@settings(max_examples=300, deadline=None)
@given(
    addresses,
    addresses,
    st.integers(0, 65535),
    st.integers(0, 65535),
    st.sampled_from((TCP, UDP, SCTP, 47, 50, 89)),
    st.sampled_from((4, 6)),
    st.sampled_from((0, 1, 65535)),
)
def test_any_flow_equals_the_reference(
    src: bytes, dst: bytes, sport: int, dport: int, protocol: int, version: int, seed: int
) -> None:
    comp = community_id(src, dst, sport, dport, protocol, ip_version=version, seed=seed)
    assert comp == theirs(src, dst, sport, dport, protocol, version, seed)
    assert comp == community_id(dst, src, dport, sport, protocol, ip_version=version, seed=seed)


def test_records_get_the_ids_of_their_packets() -> None:
    packets = [
        udp(S),
        udp(S, src=B, dst=A, src_port=53, dst_port=1001),
        icmp(S, 8),
        icmp(S, 0, src=B, dst=A),
        icmp(S, 3, 1),
        icmp(S, 3, 1, src=B, dst=A),
        udp(S, ip_version=6),
        udp(S, protocol=47, src_port=0, dst_port=0),
    ]
    out = run(packets)
    ref = [
        theirs(p.src, p.dst, p.src_port, p.dst_port, p.protocol, p.ip_version)
        for p in packets
        if p.src_port != 0 or p.protocol == 47  # the echo reply is in its request's flow
    ]
    assert community_ids(out.ended) == ref
    assert community_ids(np.zeros(0, FLOW_DTYPE)) == []


def test_one_id_is_one_key() -> None:
    packets = [
        icmp(S, kind, code, src=src, dst=dst)
        for kind in range(20)
        for code in (0, 1)
        for src, dst in ((A, B), (B, A))
    ]
    by_id: dict[str, set[object]] = {}
    for p in packets:
        name = community_id(p.src, p.dst, p.src_port, p.dst_port, p.protocol, ip_version=4)
        by_id.setdefault(name, set()).add(key_of(p, use_vlan=True))
    assert all(len(keys) == 1 for keys in by_id.values())
    assert len(by_id) == len({key_of(p, use_vlan=True) for p in packets})


def test_the_id_of_a_cut_icmp_dialogue_stays() -> None:
    from capture.flow_table import FlowTableConfig

    request = icmp(S, 8)
    reply = icmp(62 * S, 0, src=B, dst=A)
    out = run([request, reply], FlowTableConfig(active_timeout_s=60))
    first, second = community_ids(out.ended)
    assert first == second
