"""The traps found in the published code of NetMamba and netFound, each held shut from the outside.

The packets are built with scapy, an implementation that is not ours, so that checksums and lengths are right.
"""

from __future__ import annotations

import numpy as np
import pytest
from scapy.layers.dns import DNS, DNSQR
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import GRE, CookedLinux, Dot1Q, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

from capture.block import LINK_ETHERNET, LINK_LINUX_SLL, LINK_RAW
from capture.decode import decode
from capture.flow_batch import FlowBatch
from capture.flow_table import FlowTable, FlowTableConfig
from capture.representations import build
from tests.packets import block_of

SECRET = bytes([203, 0, 113, 77])


def ready_flows(
    packets: list[Packet], link_type: int = LINK_ETHERNET, policy: str = "leak_free", **settings
) -> tuple:
    """The ready flows of the packets as one FlowBatch, and their tokens uint8 (F, n_packets, row)."""
    representation = build("netmamba", {"field_policy": policy, **settings})
    table = FlowTable(FlowTableConfig(), representation.keep)
    block = block_of([bytes(packet) for packet in packets], link_type)
    decoded = decode(block)
    assert not decoded.reject.any(), decoded.reject
    steps = [*table.push(block, decoded), *table.flush()]
    parts = ("records", "packets", "data")
    flows = FlowBatch(*(np.concatenate([getattr(step.ready, part) for step in steps]) for part in parts))
    tokens = representation.tokenize(flows).arrays["bytes"]
    return flows, tokens.reshape(len(flows), representation.n_packets, -1)


def tokens_of(packets: list[Packet], link_type: int = LINK_ETHERNET, **settings) -> np.ndarray:
    return ready_flows(packets, link_type, **settings)[1]


def dialogue(
    client: str, server: str, sport: int = 40000, dport: int = 443, layer=IP, payload: bytes = b"hello"
):
    """A TCP opening and one message each way."""

    def to_server(**fields):
        return Ether() / layer(src=client, dst=server) / TCP(sport=sport, dport=dport, **fields)

    def to_client(**fields):
        return Ether() / layer(src=server, dst=client) / TCP(sport=dport, dport=sport, **fields)

    return [
        to_server(flags="S", seq=1000),
        to_client(flags="SA", seq=9000, ack=1001),
        to_server(flags="A", seq=1001, ack=9001),
        to_server(flags="PA", seq=1001, ack=9001) / Raw(payload),
        to_client(flags="PA", seq=9001, ack=1006) / Raw(payload),
    ]


def test_trap_1_checksums_do_not_betray_hidden_addresses():
    assert np.array_equal(
        tokens_of(dialogue("10.0.0.1", "203.0.113.77")), tokens_of(dialogue("172.16.9.8", "198.51.100.3"))
    )


def test_trap_2_ports_are_hidden_where_the_policy_says_so():
    here, there = (dialogue("10.0.0.1", "203.0.113.77", *ports) for ports in ((40000, 443), (51111, 8080)))
    assert np.array_equal(tokens_of(here), tokens_of(there))
    assert not np.array_equal(tokens_of(here, policy="paper"), tokens_of(there, policy="paper"))


def test_trap_3_direction_survives_hidden_addresses():
    flows, tokens = ready_flows(dialogue("10.0.0.1", "203.0.113.77"), mark_direction=True)
    assert flows.packets["direction"][0].tolist() == [0, 1, 0, 0, 1]
    assert (tokens[0, :, 0] >> 7).tolist() == [0, 1, 0, 0, 1]
    assert flows.records["packets"][0].tolist() == [3, 2]


def test_trap_4_padding_never_looks_like_a_packet():
    tokens = tokens_of(dialogue("10.0.0.1", "203.0.113.77")[:2])
    assert tokens[0, :2, 0].all(), "a packet begins with its IP version"
    assert not tokens[0, 2:].any()


def test_trap_5_a_payload_of_one_zero_byte_does_not_eat_into_the_header():
    packet = dialogue("10.0.0.1", "203.0.113.77", payload=b"\0")[3]
    tokens = tokens_of([packet], policy="none")
    assert tokens[0, 0, :40].tobytes() == bytes(packet[IP])[:40]


@pytest.mark.parametrize("wrap", ["vlan", "qinq", "raw", "cooked"])
def test_trap_6_the_link_layer_does_not_move_the_fields(wrap):
    plain = dialogue("10.0.0.1", "203.0.113.77")
    link_type, wrapped = {
        "vlan": (LINK_ETHERNET, [Ether() / Dot1Q(vlan=7) / p[IP] for p in plain]),
        "qinq": (LINK_ETHERNET, [Ether(type=0x88A8) / Dot1Q(vlan=7) / Dot1Q(vlan=9) / p[IP] for p in plain]),
        "raw": (LINK_RAW, [p[IP] for p in plain]),
        "cooked": (LINK_LINUX_SLL, [CookedLinux() / p[IP] for p in plain]),
    }[wrap]
    assert np.array_equal(tokens_of(plain), tokens_of(wrapped, link_type))


def test_trap_7_an_application_message_is_payload_not_header():
    query = (
        Ether()
        / IP(src="10.0.0.1", dst="9.9.9.9")
        / UDP(sport=5353, dport=53)
        / DNS(qd=DNSQR(qname="example.org"))
    )
    tokens = tokens_of([query], policy="none")
    assert not tokens[0, 0, 28:80].any()
    message = bytes(query[DNS])
    assert tokens[0, 0, 80 : 80 + len(message)].tobytes() == message


def test_trap_8_ipv6_is_not_turned_into_zeros():
    tokens = tokens_of(dialogue("2001:db8::1", "2001:db8::2", layer=IPv6))
    assert (tokens[0, :, 0] >> 4 == 6).all()
    assert tokens[0, 0, 53] == 2, "the SYN flag stands behind the 40-byte header"
    assert not tokens[0, :, 8:40].any()


INNER = IP(src="203.0.113.77", dst="203.0.113.77") / UDP(sport=1, dport=2) / Raw(b"inner")
TUNNELS = {
    "ip in ip": IP(src="10.0.0.1", dst="10.0.0.2") / INNER,
    "gre": IP(src="10.0.0.1", dst="10.0.0.2") / GRE() / INNER,
    "vxlan": IP(src="10.0.0.1", dst="10.0.0.2")
    / UDP(sport=5555, dport=4789)
    / VXLAN(vni=7)
    / Ether()
    / INNER,
    "icmp error": IP(src="10.0.0.1", dst="10.0.0.2") / ICMP(type=3, code=1) / INNER,
    "icmp redirect": IP(src="10.0.0.1", dst="10.0.0.2") / ICMP(type=5, code=1, gw="203.0.113.77") / INNER,
}


@pytest.mark.parametrize("tunnel", TUNNELS)
def test_trap_9_inner_addresses_of_tunnels_are_hidden(tunnel):
    packet = Ether() / TUNNELS[tunnel]
    assert SECRET in tokens_of([packet], policy="none").tobytes()
    assert SECRET not in tokens_of([packet]).tobytes()
