"""The packets representation against its naive twin, and what a prefix, a policy and another flow may not change."""

from __future__ import annotations

import numpy as np
import pytest

from capture.errors import TokenizeError
from capture.field_policy import FIELD_GROUPS, NAMED_POLICIES
from capture.flow_batch import FLOW_DTYPE, PACKET_DTYPE, FlowBatch
from capture.representations import build
from capture.representations.packets import HEADER_BYTES, PacketsRepresentation
from tests.reference.packet_tokens import Seen, tokens

K, M, P = 9, 5, 7


def random_flows(seed: int, n: int = 60) -> FlowBatch:
    """Flows with every protocol, times that run back, and sequence numbers near both ends of their range."""
    rng = np.random.default_rng(seed)
    records, packets = np.zeros(n, FLOW_DTYPE), np.zeros((n, K), PACKET_DTYPE)
    data = np.zeros((n, M, HEADER_BYTES + P), np.uint8)
    for f in range(n):
        protocol = int(rng.choice([6, 6, 6, 17, 1, 58, 132, 47]))
        version = 6 if protocol == 58 else 4
        n_kept = int(rng.integers(1, K + 1))
        records["protocol"][f], records["ip_version"][f], records["n_kept"][f] = protocol, version, n_kept
        records["client_port"][f], records["server_port"][f] = (
            rng.choice([50000, 4789]),
            rng.choice([53, 443, 40000, 2152]),
        )
        start = int(rng.integers(0, 2**60))
        gaps = rng.integers(-5_000_000, 10**9, n_kept) if f % 2 else rng.integers(0, 10**14, n_kept)
        l4 = 40 if version == 6 else 20
        header_len = l4 + {6: 20 + 4 * int(rng.integers(0, 11)), 17: 8, 1: 8, 58: 8, 132: 12}.get(protocol, 0)
        seq = [int(rng.choice([5, 2**32 - 20])), int(rng.integers(0, 2**32))]
        for k in range(n_kept):
            p = packets[f, k]
            p["ts_ns"] = start + int(gaps[: k + 1].sum())
            p["direction"] = rng.integers(0, 2)
            p["payload_len"] = rng.choice([0, 0, 3, 20, 1400])
            p["header_len"], p["l4_offset"] = header_len, l4
            p["ip_len"] = header_len + p["payload_len"]
            p["tos"], p["ttl"] = rng.integers(0, 256, 2)
            if protocol == 6:
                p["tcp_window"], p["tcp_flags"] = rng.integers(0, 65536), rng.choice([2, 16, 18, 17, 24])
                move = int(rng.choice([0, 0, 0, -5, 7, 1400]))
                p["tcp_seq"] = (seq[p["direction"]] + move) % 2**32
                seq[p["direction"]] = (int(p["tcp_seq"]) + int(p["payload_len"])) % 2**32
            if k < M:
                row = data[f, k]
                row[:header_len] = rng.integers(0, 256, min(header_len, HEADER_BYTES))
                row[0] = version << 4 | 5
                at = l4 + 20
                while protocol == 6 and at + 1 < header_len:
                    row[at], row[at + 1] = (
                        rng.choice([0, 1, 2, 3, 4, 5, 8, 30], p=[0.05] + [0.15] * 5 + [0.1] * 2),
                        2,
                    )
                    at += 1 if row[at] == 1 else int(rng.choice([2, 2, 4]))
                if protocol in (1, 58):
                    row[l4] = rng.choice([0, 8, 3, 128, 129, 135, 255])
                n_payload = min(int(p["payload_len"]), P)
                row[HEADER_BYTES : HEADER_BYTES + n_payload] = rng.integers(0, 256, n_payload)
    return FlowBatch(records, packets, data)


def as_seen(flows: FlowBatch, f: int, k: int) -> Seen:
    p = flows.packets[f, k]
    row = flows.data[f, k].tobytes() if k < M else b""
    l4, end = int(p["l4_offset"]), min(int(p["header_len"]), HEADER_BYTES)
    return Seen(
        *(
            int(p[name])
            for name in ("ts_ns", "direction", "ip_len", "payload_len", "tcp_window", "tcp_flags")
        ),
        *(int(p[name]) for name in ("tos", "ttl", "tcp_seq")),
        row[min(l4 + 20, HEADER_BYTES) : end],
        row[l4] if row else None,
        row[HEADER_BYTES:],
    )


@pytest.mark.parametrize("policy", [*NAMED_POLICIES, ["ports"], ["ttl", "embedded"]])
@pytest.mark.parametrize("seed", range(3))
def test_the_kernel_says_what_the_naive_twin_says(seed, policy):
    flows = random_flows(seed)
    representation = PacketsRepresentation(K, M, P, policy)
    got = representation.tokenize(flows).arrays
    for f in range(len(flows)):
        n = int(flows.records["n_kept"][f])
        ports = int(flows.records["client_port"][f]), int(flows.records["server_port"][f])
        seen = [as_seen(flows, f, k) for k in range(n)]
        numbers, flags, payload = tokens(
            seen, int(flows.records["protocol"][f]), ports, set(representation.field_policy.hidden), M, P
        )
        assert got["numbers"][f, :n].tolist() == numbers, f
        assert got["flags"][f, :n].tolist() == flags, f
        assert [row.tobytes() for row in got["payload"][f, :n]] == payload, f
        assert not any(array[f, n:].any() for array in got.values())


def test_a_packet_s_token_does_not_depend_on_later_packets_or_on_other_flows():
    flows = random_flows(7)
    representation = PacketsRepresentation(K, M, P)
    whole = representation.tokenize(flows).arrays
    for n in (1, 3, 6):
        shorter = flows.records.copy()
        shorter["n_kept"] = np.minimum(shorter["n_kept"], n)
        part = representation.tokenize(FlowBatch(shorter[::-1], flows.packets[::-1], flows.data[::-1]))
        for name, array in part.arrays.items():
            assert np.array_equal(array[::-1][:, :n], whole[name][:, :n]), name


def test_what_the_leak_free_policy_hides_cannot_be_read_from_the_tokens():
    flows = random_flows(11)
    representation = PacketsRepresentation(K, M, P)
    before = representation.tokenize(flows).arrays
    rng = np.random.default_rng(0)
    records, packets = flows.records.copy(), flows.packets.copy()
    for side in ("client", "server"):
        records[side] = rng.integers(0, 256, records[side].shape)
    # Ports that are no tunnel's stay no tunnel's; everything else about them may change.
    for side in ("client_port", "server_port"):
        moved = ~np.isin(records[side], (4789, 2152))
        records[side][moved] = rng.integers(10_000, 60_000, moved.sum())
    packets["ttl"] = rng.integers(0, 256, packets["ttl"].shape)
    shift = rng.integers(0, 2**32, (len(records), 2), dtype=np.uint64)
    of_packet = np.take_along_axis(shift, packets["direction"].astype(np.intp), axis=1)
    packets["tcp_seq"] = (packets["tcp_seq"] + of_packet) % 2**32
    packets["tcp_ack"] = rng.integers(0, 2**32, packets["tcp_ack"].shape)
    packets["ts_ns"] += 10**15
    after = representation.tokenize(FlowBatch(records, packets, flows.data)).arrays
    for name in before:
        assert np.array_equal(before[name], after[name]), name
    shown = PacketsRepresentation(K, M, P, [g for g in FIELD_GROUPS if g != "ttl"]).tokenize(
        FlowBatch(records, packets, flows.data)
    )
    assert not np.array_equal(shown.arrays["flags"], before["flags"])


def test_settings_make_the_same_representation_again_and_odd_ones_are_refused():
    representation = PacketsRepresentation(8, 4, 6, "paper")
    assert build("packets", representation.settings()).settings() == representation.settings()
    assert PacketsRepresentation(4, 0, 0).keep.row_bytes == 0
    for odd in ({"n_packets": 0}, {"n_byte_packets": 33}, {"payload_bytes": 256}, {"n_packets": True}):
        with pytest.raises(TokenizeError, match="expected a whole number"):
            PacketsRepresentation(**odd)
    with pytest.raises(TokenizeError, match="build the flow table with"):
        PacketsRepresentation().tokenize(random_flows(1, 3))
