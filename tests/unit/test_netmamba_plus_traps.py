"""The traps of NetMamba+'s published preprocessing (numbers of the list in the project's notes), each held shut.

Each test also shows that ``published_transform`` walks into the trap, so it would notice if ours did.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

from capture.decode import decode
from capture.flow_batch import FlowBatch
from capture.flow_table import FlowTable, FlowTableConfig
from capture.representations import build
from tests.packets import block_of
from tests.unit.test_published_traps import dialogue

MICROSECOND = 1_000


def arrays_of(
    packets: list[Packet], ts_ns: list[int] | None = None, **settings: Any
) -> dict[str, np.ndarray]:
    """The arrays of the one flow that the packets are."""
    representation = build("netmamba_plus", settings)
    table = FlowTable(FlowTableConfig(), representation.keep)
    block = block_of([bytes(packet) for packet in packets], ts_ns=ts_ns)
    decoded = decode(block)
    assert not decoded.reject.any()
    steps = [*table.push(block, decoded), *table.flush()]
    parts = ("records", "packets", "data")
    flows = FlowBatch(*(np.concatenate([getattr(step.ready, part) for step in steps]) for part in parts))
    assert len(flows) == 1
    return {name: array[0] for name, array in representation.tokenize(flows).arrays.items()}


def datagrams(n: int, ip_len: int) -> list[Packet]:
    """Of one sender, each ``ip_len`` bytes from the IP header on."""
    payload = Raw(bytes(ip_len - 28))
    return [Ether() / IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=1, dport=2) / payload for _ in range(n)]


def test_trap_3_the_sign_of_a_size_is_its_direction_though_addresses_are_hidden():
    packets = dialogue("203.0.113.77", "10.0.0.1")
    arrays = arrays_of(packets)
    signs = np.sign(arrays["sizes"][:5] - 1500)
    assert signs.tolist() == [1, -1, 1, 1, -1]
    assert not arrays["bytes"].reshape(5, 320)[:, 12:20].any(), "both addresses are hidden"
    other_way = arrays_of(dialogue("10.0.0.1", "203.0.113.77"))
    assert np.array_equal(other_way["sizes"], arrays["sizes"]), "who has the lower address does not matter"


def test_trap_4_a_flow_of_one_full_packet_is_not_like_one_of_twenty():
    one, twenty = (arrays_of(datagrams(n, 1500)) for n in (1, 20))
    assert one["sizes"][0] == twenty["sizes"][0] == 3000
    assert not np.isin(one["sizes"][1:], twenty["sizes"]).any()
    assert one["sizes_present"].sum() == 1
    published = [arrays_of(datagrams(n, 1486), published_transform=True)["sizes"] for n in (1, 20)]
    assert np.array_equal(*published), "frames of 1500 bytes cannot be told from padding"


def test_trap_4_a_time_that_is_not_there_is_no_legal_time():
    arrays = arrays_of(datagrams(3, 100), ts_ns=[0, 0, 10**10])
    assert arrays["iats_present"].tolist() == [False, True, True] + [False] * 17
    assert arrays["iats"][1] == 1.0, "no time between two packets is 1, not 0"
    assert set(arrays["iats"][[0, *range(3, 20)]].tolist()) == {0.0}


def test_trap_6_a_packet_s_size_does_not_depend_on_its_link_layer():
    plain = dialogue("10.0.0.1", "203.0.113.77")
    tagged = [Ether() / Dot1Q(vlan=7) / packet[IP] for packet in plain]
    assert np.array_equal(arrays_of(plain)["sizes"], arrays_of(tagged)["sizes"])
    moved = [arrays_of(packets, published_transform=True)["sizes"] for packets in (plain, tagged)]
    assert not np.array_equal(*moved)


def test_trap_17_times_below_a_millisecond_stay_apart():
    """Ten times as long is 3.3 more everywhere: as far apart at a microsecond as at a second."""
    gaps_ns = [1, 10, 100, MICROSECOND, 10_000, 100_000, 10**6, 10**7, 10**8, 10**9]
    ts_ns = np.cumsum([0, *gaps_ns]).tolist()
    iats = arrays_of(datagrams(11, 100), ts_ns)["iats"][1:11]
    steps = np.diff(iats)
    assert steps[0] > 2.4
    assert np.all(np.abs(steps[2:] - np.log2(10)) < 0.02)
    published = arrays_of(datagrams(11, 100), ts_ns, published_transform=True)["iats"][1:11]
    assert np.ptp(published[:7]) < 3e-4, "1 ns and 1 ms are the same to the published transform"


def test_trap_17_a_nanosecond_is_not_lost_in_a_long_capture():
    start = 1_790_000_000 * 10**9  # beyond what a float64 of seconds holds to the nanosecond
    iats = [arrays_of(datagrams(2, 100), [start, start + gap])["iats"][1] for gap in (1, 2, 3)]
    np.testing.assert_allclose(iats, [2.0, 1 + np.log2(3), 3.0], rtol=1e-6)


def test_sizes_of_several_packets_that_a_network_card_put_together_count_as_the_largest():
    big = Ether() / IP(src="10.0.0.1", dst="10.0.0.2") / TCP(sport=1, dport=2, flags="PA") / Raw(bytes(9000))
    assert arrays_of([big])["sizes"][0] == 3000
