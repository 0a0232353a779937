"""The netfound representation against its naive twin, and what a policy or another flow may not change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from capture.errors import TokenizeError
from capture.flow_batch import FLOW_DTYPE, PACKET_DTYPE, FlowBatch
from capture.representations import build
from capture.representations.netfound import HEADER_BYTES, NetFoundRepresentation
from capture.representations.netfound_layout import (
    CLS,
    ICMPV6_ROW,
    N_VALUES,
    PACKET_FIELDS,
    PAD,
    TCP_ROW,
    protocol_row,
)
from capture.representations.places import FIELDS
from tests.reference.netfound_tokens import Seen, bursts_of

K = 40
SIZES = {6: 20, 17: 8, 1: 8, 58: 8}
MS = 1_000_000


def random_flows(seed: int, n: int = 80) -> FlowBatch:
    """Every protocol; equal times, times that run back, gaps of exactly 10 ms, and later fragments."""
    rng = np.random.default_rng(seed)
    records, packets = np.zeros(n, FLOW_DTYPE), np.zeros((n, K), PACKET_DTYPE)
    data = rng.integers(0, 256, (n, K, HEADER_BYTES), dtype=np.uint8)
    for f in range(n):
        protocol = int(rng.choice([6, 6, 6, 17, 1, 58, 132]))
        version = 6 if protocol == 58 else int(rng.choice([4, 6]))
        n_kept = int(rng.integers(1, K + 1))
        records["protocol"][f], records["ip_version"][f], records["n_kept"][f] = protocol, version, n_kept
        for side in ("client", "server"):
            records[side][f] = rng.integers(0, 2, 16)
            records[side][f, :4] = rng.integers(0, 2, 4) // 2
        gaps = rng.choice([0, 1, 4 * MS, 10 * MS, 10 * MS + 1, 50 * MS, 2**40, -20 * MS], n_kept - 1)
        start = int(rng.integers(0, 2**60))
        for k in range(n_kept):
            p, row = packets[f, k], data[f, k]
            p["ts_ns"] = start + int(gaps[:k].sum())
            p["direction"] = rng.integers(0, 2) if k or rng.integers(0, 8) == 0 else 0
            p["l4_offset"] = 4 * int(rng.integers(5, 16)) if version == 4 else int(rng.choice([40, 48, 72]))
            p["header_len"] = p["l4_offset"] + (SIZES.get(protocol, 0) if rng.integers(0, 6) else 0)
            p["ip_len"] = int(rng.choice([60, 1500, 65575, 9000]))
            p["tos"], p["ttl"] = rng.integers(0, 256, 2)
            row[0] = version << 4 | (int(p["l4_offset"]) // 4 if version == 4 else 0)
            if protocol == 6:
                p["tcp_window"] = rng.integers(0, 65536)
                p["tcp_flags"] = rng.choice([2, 16, 18, 17, 24, 4])
                p["tcp_seq"] = rng.choice([0, 5, 2**31, 2**32 - 20, 12345])
                p["tcp_ack"] = rng.choice([0, 0, 7, 2**32 - 1])
        data[f, n_kept:] = 0
    return FlowBatch(records, packets, data)


def as_seen(flows: FlowBatch, f: int, k: int) -> Seen:
    p = flows.packets[f, k]
    names = (
        *("l4_offset", "header_len", "ip_len", "tos", "ttl"),
        *("tcp_flags", "tcp_window", "tcp_seq", "tcp_ack"),
    )
    return Seen(
        int(p["ts_ns"]), int(p["direction"]), flows.data[f, k].tobytes(), *(int(p[name]) for name in names)
    )


def same_address(record: Any) -> bool:
    ends = [record[side].tobytes() for side in ("client", "server")]
    part = slice(12, 16) if record["ip_version"] == 4 else slice(0, 4)
    return ends[0][part] == ends[1][part]


def as_lists(arrays: dict[str, Any], f: int) -> list[tuple[list[int], int, float, float, float]]:
    """Of one flow: (values of tokens, direction, bytes, packets, IAT) of each burst, the layout checked on the way."""
    found = []
    ids, there = arrays["ids"][f], arrays["direction"][f] != 0
    assert np.array_equal(np.sort(there)[::-1], there)
    for name in ("bytes", "packets", "iat"):
        assert not arrays[name][f, ~there].any()
    assert (ids[~there] == PAD).all()
    n_tokens = len(PACKET_FIELDS[int(arrays["protocol"][f])])
    for b in range(there.sum()):
        n = int(arrays["packets"][f, b]) * n_tokens
        assert ids[b, 0] == CLS
        assert (ids[b, 1 + n :] == PAD).all()
        values = ids[b, 1 : 1 + n] - 1
        assert ((values >= 0) & (values < N_VALUES)).all()
        found.append(
            (values.tolist(), *(float(arrays[m][f, b]) for m in ("direction", "bytes", "packets", "iat")))
        )
    return found


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("policy", ["leak_free", "paper", ["ttl"], ["seq_ack"]])
@pytest.mark.parametrize("seed", range(3))
def test_the_kernel_says_what_the_naive_twin_says(seed: int, policy: Any, strict: bool) -> None:
    flows = random_flows(seed)
    representation = NetFoundRepresentation(K, field_policy=policy, strict_v2=strict)
    arrays = representation.tokenize(flows).arrays
    for f in range(len(flows)):
        record = flows.records[f]
        seen = [as_seen(flows, f, k) for k in range(int(record["n_kept"]))]
        expected = bursts_of(
            seen,
            int(record["protocol"]),
            strict=strict,
            hidden=set(representation.field_policy.hidden),
            same_address=same_address(record),
        )
        assert arrays["protocol"][f] == protocol_row(int(record["protocol"]))
        assert as_lists(arrays, f) == [
            (b.tokens, 1.0 if b.is_forward else -1.0, b.n_bytes, b.n_packets, np.float32(b.iat_ms))
            for b in expected
        ], f


@pytest.mark.parametrize("sizes", [(1, 1), (3, 2), (20, 9)])
def test_other_numbers_of_bursts_and_packets_are_the_beginning_of_the_same(sizes: tuple[int, int]) -> None:
    flows = random_flows(5)
    n_bursts, burst_packets = sizes
    arrays = NetFoundRepresentation(K, n_bursts, burst_packets).tokenize(flows).arrays
    assert arrays["ids"].shape == (len(flows), n_bursts, 1 + 12 * burst_packets)
    for f in range(len(flows)):
        seen = [as_seen(flows, f, k) for k in range(int(flows.records["n_kept"][f]))]
        expected = bursts_of(
            seen,
            int(flows.records["protocol"][f]),
            strict=False,
            hidden={"ttl", "seq_ack"},
            n_bursts=n_bursts,
            burst_packets=burst_packets,
        )
        assert [burst[0] for burst in as_lists(arrays, f)] == [b.tokens for b in expected]


def test_a_flow_does_not_depend_on_other_flows_or_on_packets_behind_the_first_k() -> None:
    flows = random_flows(7)
    representation = NetFoundRepresentation(10)
    whole = representation.tokenize(flows).arrays
    shorter = flows.records.copy()
    shorter["n_kept"] = np.minimum(shorter["n_kept"], 10)
    other = FlowBatch(shorter[::-1], flows.packets[::-1, :10], np.ascontiguousarray(flows.data[::-1, :10]))
    for name, array in representation.tokenize(other).arrays.items():
        assert np.array_equal(array[::-1], whole[name]), name


def test_what_the_leak_free_policy_hides_cannot_be_read_from_the_tokens() -> None:
    """Addresses, ports, TTL, IP id, checksums, the clock, and where sequence numbers begin."""
    flows = random_flows(11)
    rng = np.random.default_rng(0)
    records, packets, data = flows.records.copy(), flows.packets.copy(), flows.data.copy()
    for name in ("client", "server", "client_port", "server_port"):
        records[name] = rng.integers(0, 256, records[name].shape)
    packets["ttl"] = rng.integers(0, 256, packets["ttl"].shape)
    shift = rng.integers(0, 2**32, (len(records), 2), dtype=np.uint64)
    own = packets["direction"].astype(np.intp)
    packets["tcp_seq"] = (packets["tcp_seq"] + np.take_along_axis(shift, own, axis=1)) % 2**32
    packets["tcp_ack"] = (packets["tcp_ack"] + np.take_along_axis(shift, 1 - own, axis=1)) % 2**32
    packets["tcp_ack"][packets["tcp_flags"] & 16 == 0] = rng.integers(0, 2**32)
    packets["ts_ns"] += 10**15
    is_v4 = data[:, :, 0] >> 4 == 4
    for at in (4, 5, 8, 10, 11, *range(12, 20)):
        data[:, :, at] = np.where(is_v4, rng.integers(0, 256, is_v4.shape), data[:, :, at])
    for at in (1, 2, 3, 7, *range(8, 40)):
        data[:, :, at] = np.where(is_v4, data[:, :, at], rng.integers(0, 256, is_v4.shape))
    changed = FlowBatch(records, packets, data)
    before, after = (NetFoundRepresentation(K).tokenize(x).arrays for x in (flows, changed))
    for name in before:
        assert np.array_equal(before[name], after[name]), name
    shown = NetFoundRepresentation(K, field_policy="paper").tokenize(changed).arrays["ids"]
    assert not np.array_equal(shown, before["ids"])


def test_direction_is_that_of_the_internal_network_if_one_is_given() -> None:
    flows = random_flows(3)
    flows.records["client"] = np.frombuffer(bytes(10) + b"\xff\xff\x0a\x00\x00\x01", np.uint8)
    flows.records["server"] = np.frombuffer(bytes(10) + b"\xff\xff\xc0\xa8\x00\x01", np.uint8)
    by_client = NetFoundRepresentation(K).tokenize(flows).arrays["direction"]
    inside = {
        networks: NetFoundRepresentation(K, internal_networks=networks).tokenize(flows).arrays["direction"]
        for networks in (("10.0.0.0/8",), ("192.168.0.0/16",), ("::/0",), ("10.0.0.2/32", "2001:db8::/32"))
    }
    assert np.array_equal(inside[("10.0.0.0/8",)], by_client)
    # Bursts that begin at the same time change places, so only what they are made of can be compared.
    assert np.array_equal(-np.sort(-inside[("192.168.0.0/16",)]), -np.sort(by_client))
    assert np.array_equal(inside[("::/0",)], by_client)  # both are inside
    assert np.array_equal(inside[("10.0.0.2/32", "2001:db8::/32")], by_client)  # neither is


def test_every_token_says_which_packet_and_field_it_is() -> None:
    flows = random_flows(13)
    representation = NetFoundRepresentation(K, field_policy="none")
    arrays, places = representation.tokenize(flows).arrays, representation.token_places(flows)
    ids = places["ids"]
    there = ids.field >= 0
    assert np.array_equal(there, (arrays["ids"] != PAD) & (arrays["ids"] != CLS))
    assert np.array_equal(ids.packet >= 0, there)
    f, b, t = (int(x) for x in np.argwhere(there & (ids.field == FIELDS.index("tos")))[-1])
    assert arrays["ids"][f, b, t] == flows.packets[f, ids.packet[f, b, t]]["tos"] + 1
    for name in ("direction", "bytes", "packets", "iat"):
        assert np.array_equal(places[name].field >= 0, arrays["direction"] != 0)
        assert places[name].packet.shape == arrays[name].shape
    hidden = NetFoundRepresentation(K).token_places(flows)["ids"]
    assert FIELDS.index("ttl") in ids.field
    assert FIELDS.index("ttl") not in hidden.field


def test_settings_make_the_same_representation_again_and_odd_ones_are_refused() -> None:
    representation = NetFoundRepresentation(50, 3, 2, "paper", ["10.0.0.0/8", "2001:db8::/32"], True)
    assert build("netfound", representation.settings()).settings() == representation.settings()
    for odd in ({"n_packets": 0}, {"n_packets": 1025}, {"n_bursts": 65}, {"burst_packets": True}):
        with pytest.raises(TokenizeError, match="expected a whole number from 1 to"):
            NetFoundRepresentation(**odd)
    with pytest.raises(TokenizeError, match="strict_v2 is 1, expected true or false"):
        NetFoundRepresentation(strict_v2=1)
    with pytest.raises(TokenizeError, match=r"internal network '10\.0\.0\.1/8' is none"):
        NetFoundRepresentation(internal_networks=["10.0.0.1/8"])
    with pytest.raises(TokenizeError, match="expected a list of networks"):
        NetFoundRepresentation(internal_networks="10.0.0.0/8")
    with pytest.raises(TokenizeError, match="build the flow table with this representation's keep"):
        NetFoundRepresentation(K + 1).tokenize(random_flows(1, 3))


def test_an_icmpv6_packet_has_a_row_of_its_own_and_a_type() -> None:
    flows = random_flows(17)
    arrays = NetFoundRepresentation(K).tokenize(flows).arrays
    rows = arrays["protocol"] == ICMPV6_ROW
    assert rows.sum() == (flows.records["protocol"] == 58).sum() > 0
    assert (arrays["protocol"] == TCP_ROW).any()
