"""Change every address, outside and inside: the leak-free model input stays the same, whatever the tunnel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from capture.decode import DecodeOptions, Decoder
from capture.flow_table import FlowTable, FlowTableConfig
from capture.representations import build
from tests import encapsulations as e
from tests import frames as f
from tests.packets import block_of

Ends = dict[str, str]
Wrap = Callable[[bytes, Ends], bytes]


def wrap4(payload: bytes, protocol: int, ends: Ends) -> bytes:
    return f.ethernet(f.ipv4(payload, protocol, src=ends["o4"], dst=ends["p4"]))


def in_udp(payload: bytes, port: int, ends: Ends) -> bytes:
    return f.ethernet(e.in_udp(payload, port, src=ends["o4"], dst=ends["p4"]))


WRAPS: dict[str, Wrap] = {
    "none": lambda inner, _: f.ethernet(inner),
    "ipip": lambda inner, ends: wrap4(inner, 4, ends),
    "4in6": lambda inner, ends: f.ethernet(f.ipv6(inner, 4, src=ends["o6"], dst=ends["p6"]), f.ETHER_IPV6),
    "gre": lambda inner, ends: wrap4(e.gre(inner), e.GRE, ends),
    "gre of nothing known": lambda inner, ends: wrap4(e.gre(inner, 0x1234), e.GRE, ends),
    "erspan": lambda inner, ends: wrap4(e.erspan(f.ethernet(inner)), e.GRE, ends),
    "etherip": lambda inner, ends: wrap4(b"\x30\x00" + f.ethernet(inner), e.ETHERIP, ends),
    "l2tpv3": lambda inner, ends: wrap4(e.l2tpv3(f.ethernet(inner)), e.L2TP, ends),
    "mpls in ip": lambda inner, ends: wrap4(e.mpls(inner, 16), e.MPLS, ends),
    "mpls in udp": lambda inner, ends: in_udp(e.mpls(inner, 16), 6635, ends),
    "gre in udp": lambda inner, ends: in_udp(e.gre(inner), 4754, ends),
    "vxlan": lambda inner, ends: in_udp(e.vxlan(f.ethernet(inner)), 4789, ends),
    "vxlan of something cut": lambda inner, ends: in_udp(e.vxlan(f.ethernet(inner)[:40]), 4789, ends),
    "vxlan-gpe": lambda inner, ends: in_udp(e.vxlan_gpe(inner, 1), 4790, ends),
    "geneve": lambda inner, ends: in_udp(e.geneve(inner, 0x0800), 6081, ends),
    "gtp-u": lambda inner, ends: in_udp(e.gtpu(inner), 2152, ends),
    "l2tp": lambda inner, ends: in_udp(e.l2tp(e.ppp(inner)), 1701, ends),
    "teredo": lambda inner, ends: in_udp(
        e.teredo(f.ipv6(inner, 4, src=ends["o6"], dst=ends["p6"])), 3544, ends
    ),
    "pppoe": lambda inner, _: f.ethernet(e.pppoe(e.ppp(inner, framed=False)), 0x8864),
}

ONE: Ends = {
    "o4": "10.0.0.1",
    "p4": "10.0.0.2",
    "o6": "2001:db8::1",
    "p6": "2001:db8::2",
    "i4": "192.168.0.1",
    "j4": "192.168.0.2",
}
OTHER: Ends = {
    "o4": "10.9.8.7",
    "p4": "10.3.3.3",
    "o6": "2001:db8::77",
    "p6": "2001:db8::99",
    "i4": "172.16.5.4",
    "j4": "172.16.9.9",
}


def tokens_of(frames: list[bytes], decap: str, name: str = "netmamba") -> NDArray[np.uint8]:
    """Everything a model sees of these packets, as bytes, one row a flow."""
    representation = build(name, {"field_policy": "leak_free"})
    table, decoder = FlowTable(FlowTableConfig(), representation.keep), Decoder(DecodeOptions(decap=decap))
    block = block_of(frames)
    decoded = decoder.decode(block)
    assert not decoded.reject.any()
    steps = [*table.push(block, decoded), *table.flush()]
    batches = [representation.tokenize(step.ready) for step in steps if len(step.ready)]
    return np.concatenate([_as_bytes(batch.arrays, len(batch)) for batch in batches])


def _as_bytes(arrays: dict[str, NDArray[Any]], n: int) -> NDArray[np.uint8]:
    columns = [np.ascontiguousarray(array).reshape(n, -1).view(np.uint8) for array in arrays.values()]
    return np.concatenate(columns, axis=1)


def dialogue(wrap: Wrap, ends: Ends) -> list[bytes]:
    there = {"src": ends["i4"], "dst": ends["j4"]}
    inner = f.ipv4(f.tcp(b"some payload"), f.TCP, **there)
    first = f.ipv4(f.udp(bytes(16), length=400), fragment=0x2000, ident=9, **there)
    later = f.ipv4(b"later piece.", fragment=3, ident=9, **there)
    return [wrap(packet, ends) for packet in (inner, first, later, inner)]


@pytest.mark.parametrize("representation", ["netmamba", "netfound"])
@pytest.mark.parametrize("decap", ["inner", "outer"])
@pytest.mark.parametrize("name", WRAPS)
def test_no_address_of_any_header_reaches_leak_free_input(name: str, decap: str, representation: str) -> None:
    one, other = (tokens_of(dialogue(WRAPS[name], ends), decap, representation) for ends in (ONE, OTHER))
    assert one.any()
    assert np.array_equal(one, other)


@pytest.mark.parametrize("name", ["vxlan", "gre", "4in6"])
def test_no_address_of_a_fragmented_tunnel_reaches_leak_free_input(name: str) -> None:
    """Later pieces of the tunnel's packet are part of the inner flow; their header is the outer one, of any version."""

    def pieces(ends: Ends) -> list[bytes]:
        whole = WRAPS[name](f.ipv4(f.tcp(bytes(range(100))), f.TCP, src=ends["i4"], dst=ends["j4"]), ends)[
            14:
        ]
        if whole[0] >> 4 == 4:
            body, protocol = whole[20:], whole[9]
            ips = [
                f.ipv4(body[:104], protocol, src=ends["o4"], dst=ends["p4"], fragment=0x2000),
                f.ipv4(body[104:], protocol, src=ends["o4"], dst=ends["p4"], fragment=13),
            ]
            return [f.ethernet(ip) for ip in ips]
        body, protocol = whole[40:], whole[6]
        heads = [f.fragment_header(protocol, more=True), f.fragment_header(protocol, offset=13)]
        parts = [heads[0] + body[:104], heads[1] + body[104:]]
        return [
            f.ethernet(f.ipv6(part, f.FRAGMENT, src=ends["o6"], dst=ends["p6"]), f.ETHER_IPV6)
            for part in parts
        ]

    one, other = tokens_of(pieces(ONE), "inner"), tokens_of(pieces(OTHER), "inner")
    assert len(one) == 1
    assert np.array_equal(one, other)
