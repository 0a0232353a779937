"""Fields exchanged on raw packets, shortcuts that are planted and found, unknowns that are told from knowns."""

from __future__ import annotations

import socket
import struct

import numpy as np
import pytest

from capture.flow_batch import FLOW_DTYPE, PACKET_DTYPE, FlowBatch
from capture.representations import build
from netcls.datasets.capture_flows import process_capture
from netcls.evaluation.field_exchange import FIELDS, IDENTITY, exchange
from netcls.evaluation.field_removal import remove
from netcls.evaluation.raw_flows import RawFlows
from netcls.evaluation.retraining import fields_that_matter
from netcls.evaluation.trained_rows import RowChoice, linear_discriminant
from netcls.evaluation.unknowns import ClassMeans, auroc, false_alarms_at, found_at
from tests.pcap_writer import SYN, tcp, udp, write_pcap

H, P = 80, 16


@pytest.fixture(scope="module")
def flows(tmp_path_factory) -> FlowBatch:
    """Eight TCP and eight UDP flows of three packets, every field of every flow different."""
    packets = []
    for number in range(8):
        client, port = f"10.0.0.{number + 1}", 3000 + number
        for packet in range(3):
            ends = (client, port, "10.9.0.1", 80) if packet != 1 else ("10.9.0.1", 80, client, port)
            at = 1e9 + number + packet * (number + 1) / 100
            payload = bytes([number + 1]) * (8 + 9 * number + packet)
            packets.append((at, with_ttl(udp(*ends, payload), 64 + number)))
            packets.append((at, with_ttl(tcp(*ends, SYN if packet == 0 else 16, payload), 64 + number)))
    path = write_pcap(tmp_path_factory.mktemp("exchange") / "a.pcap", packets)
    raw = RawFlows.for_all([build("netmamba", {"header_bytes": H, "payload_bytes": P})])
    made = process_capture(path, raw)
    return FlowBatch(made.records, made.packets, made.tokens.arrays["data"])


def with_ttl(frame: bytes, ttl: int) -> bytes:
    return frame[:22] + bytes([ttl]) + frame[23:]


def tokens(flows: FlowBatch, policy) -> np.ndarray:
    settings = {"header_bytes": H, "payload_bytes": P, "field_policy": policy, "mark_direction": True}
    return build("netmamba", settings).tokenize(flows).arrays["bytes"]


@pytest.mark.parametrize("field", FIELDS)
def test_the_given_flows_stay_as_they_are(flows, field):
    before = (flows.records.copy(), flows.packets.copy(), flows.data.copy())
    exchange(flows, field, H, np.random.default_rng(0))
    remove(flows, field, H)
    for array, copy in zip((flows.records, flows.packets, flows.data), before, strict=True):
        assert np.array_equal(array, copy)


def test_a_ttl_comes_from_another_flow_of_the_same_protocol_and_nothing_else_moves(flows):
    changed = exchange(flows, "ttl", H, np.random.default_rng(1))
    assert np.array_equal(np.sort(changed.data[:, 0, 8]), np.sort(flows.data[:, 0, 8]))
    assert (changed.data[:, 0, 8] != flows.data[:, 0, 8]).any()
    assert np.array_equal(changed.packets["ttl"][:, 0], changed.data[:, 0, 8])
    rest = np.delete(np.arange(H + P), 8)
    assert np.array_equal(changed.data[:, :, rest], flows.data[:, :, rest])


@pytest.mark.parametrize("field", [name for name in IDENTITY if name not in ("ip_version", "opening")])
def test_a_field_that_the_policy_hides_changes_no_input(flows, field):
    changed = exchange(flows, field, H, np.random.default_rng(2))
    assert not np.array_equal(changed.data, flows.data) or field in (
        "ip_id",
        "seq_ack",
        "timestamps",
        "checksums",
    )
    assert np.array_equal(tokens(changed, "leak_free"), tokens(flows, "leak_free"))


def test_the_direction_mark_is_never_exchanged(flows):
    """Bit 0x80 of a packet's first byte follows the flow's own directions, whatever is exchanged."""
    marks = tokens(flows, "leak_free").reshape(len(flows), -1, H + P)[:, :, 0] & 0x80
    for field in ("tos", "ttl", "sizes", "ip_version", "payload"):
        changed = exchange(flows, field, H, np.random.default_rng(3))
        again = tokens(changed, "leak_free").reshape(len(flows), -1, H + P)[:, :, 0] & 0x80
        assert np.array_equal(again, marks)


def test_the_ip_version_of_flows_of_one_version_stays(flows):
    changed = exchange(flows, "ip_version", H, np.random.default_rng(4))
    assert np.array_equal(changed.data, flows.data)


def both_versions(flows: FlowBatch) -> FlowBatch:
    """The flows twice, once called IPv6; what their bytes say is not looked at before they are translated."""
    six = FlowBatch(flows.records.copy(), flows.packets.copy(), flows.data.copy())
    six.records["ip_version"] = 6
    return FlowBatch(
        *(
            np.concatenate(pair)
            for pair in ((flows.records, six.records), (flows.packets, six.packets), (flows.data, six.data))
        )
    )


def test_an_ipv4_header_is_translated_to_ipv6_and_the_transport_header_follows(flows):
    changed = exchange(both_versions(flows), "ip_version", H, np.random.default_rng(4))
    moved = np.flatnonzero(changed.records["ip_version"][: len(flows)] == 6)
    assert 0 < len(moved) < len(flows)
    for flow in moved.tolist():
        old, new = flows.data[flow, 0], changed.data[flow, 0]
        assert new[0] >> 4 == 6
        assert new[6] == flows.records["protocol"][flow]
        assert new[7] == old[8]
        assert socket.inet_ntop(socket.AF_INET6, new[8:24].tobytes()).startswith("::ffff:10.0.0.")
        assert struct.unpack(">H", new[4:6].tobytes())[0] == flows.packets["ip_len"][flow, 0] - 20
        assert np.array_equal(new[40:H], old[20 : H - 20])
        assert changed.packets["l4_offset"][flow, 0] == 40
        assert changed.packets["ip_len"][flow, 0] == flows.packets["ip_len"][flow, 0] + 20
    stayed = np.flatnonzero(changed.records["ip_version"][: len(flows)] == 4)
    assert np.array_equal(changed.data[stayed], flows.data[stayed])


def test_times_are_those_of_another_flow_from_the_own_beginning(flows):
    changed = exchange(flows, "times", H, np.random.default_rng(5))
    gaps, new_gaps = (
        batch.packets["ts_ns"][:, 1] - batch.packets["ts_ns"][:, 0] for batch in (flows, changed)
    )
    assert np.array_equal(np.sort(gaps), np.sort(new_gaps))
    assert (gaps != new_gaps).any()
    assert np.array_equal(changed.packets["ts_ns"][:, 0], flows.packets["ts_ns"][:, 0])


def test_flows_without_bytes_have_their_columns_exchanged(flows):
    """A model may read sizes and times alone: then no byte of any packet is kept."""
    bare = FlowBatch(flows.records, flows.packets, flows.data[:, :0])
    for field in FIELDS:
        changed = exchange(bare, field, H, np.random.default_rng(1))
        assert changed.data.shape == bare.data.shape
    changed = exchange(bare, "ttl", H, np.random.default_rng(1))
    assert (changed.packets["ttl"] != flows.packets["ttl"]).any()


@pytest.mark.parametrize("field", ["addresses", "ports", "ttl", "ip_id", "seq_ack", "checksums"])
def test_a_removed_field_is_what_a_field_policy_hides(flows, field):
    assert np.array_equal(tokens(remove(flows, field, H), "none"), tokens(flows, [field]))


def test_what_is_removed_is_the_same_in_every_flow(flows):
    two = both_versions(flows)
    assert (remove(two, "ip_version", H).records["ip_version"] == 4).all()
    assert not remove(flows, "ports", H).records["client_port"].any()
    assert not np.diff(remove(flows, "times", H).packets["ts_ns"], axis=1)[:, :2].any()
    assert np.unique(remove(flows, "sizes", H).packets["ip_len"][:, :3]).tolist() == [1500]
    assert not remove(flows, "payload", H).data[:, :, H:].any()
    assert not remove(flows, "window", H).packets["tcp_window"].any()
    opening = remove(flows, "opening", H)
    is_tcp = flows.records["protocol"] == 6
    assert not opening.packets["ip_len"][is_tcp, 0].any()
    assert not opening.data[is_tcp, 0].any()
    assert np.array_equal(opening.packets[~is_tcp], flows.packets[~is_tcp])


def test_fields_that_matter_are_the_certain_ones_shortcuts_first():
    checks = [
        {"group": name, "drop": drop, "drop_interval": [low, 1.0], "is_shortcut": is_shortcut}
        for name, drop, low, is_shortcut in (
            ("payload", 0.5, 0.4, False),
            ("ttl", 0.1, 0.05, True),
            ("sizes", 0.3, -0.1, False),
            ("tos", 0.01, 0.005, False),
            ("flags", 0.2, 0.1, False),
        )
    ]
    assert fields_that_matter(checks, 5) == ["ttl", "payload", "flags"]
    assert fields_that_matter(checks, 1) == ["ttl"]


def test_no_flows_are_no_trouble():
    empty = FlowBatch(
        np.zeros(0, FLOW_DTYPE), np.zeros((0, 3), PACKET_DTYPE), np.zeros((0, 3, H + P), np.uint8)
    )
    for field in FIELDS:
        assert len(exchange(empty, field, H, np.random.default_rng(0))) == 0
        assert len(remove(empty, field, H)) == 0


def test_auroc_and_error_rates_of_scores_that_can_be_counted_by_hand():
    known, unknown = np.array([0.0, 1.0, 2.0, 3.0]), np.array([2.0, 4.0])
    # Pairs: 2 beats 0 and 1, ties with 2, loses to 3; 4 beats all four.
    assert auroc(known, unknown) == pytest.approx((2.5 + 4) / 8)
    assert auroc(unknown, known) == pytest.approx(1 - (2.5 + 4) / 8)
    assert false_alarms_at(known, unknown, found=1.0) == 0.5
    assert false_alarms_at(known, unknown, found=0.5) == 0.5
    assert found_at(known, unknown, false_alarms=0.25) == 0.5
    assert auroc(known, known) == 0.5


def test_distances_to_class_means_tell_a_far_point_from_near_ones():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 50)
    features = (rng.normal(0, 1, (100, 4)) + np.where(labels[:, None] == 0, 5, -5)).astype(np.float32)
    means = ClassMeans.of(features, labels)
    near = means.scores(features)
    far = means.scores(np.array([[5, -5, 5, -5]], np.float32))
    for name in ("cosine", "mahalanobis"):
        assert far[name][0] > near[name].max()


def test_the_closed_form_head_is_the_nearest_mean_in_units_of_the_spread():
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 2], 30)
    x = rng.normal(0, [1.0, 100.0], (60, 2)) + np.where(labels[:, None] == 0, [3, 0], [-3, 0])
    weight, bias = linear_discriminant(x, labels, 3)
    answers = (x @ weight.T + bias).argmax(axis=1)
    assert np.mean(answers == labels) > 0.95  # the second feature is large and says nothing
    assert 1 not in answers  # no flow of it was seen
    one_each = linear_discriminant(x[[0, 59]], labels[[0, 59]], 3)
    assert (x[[0, 59]] @ one_each[0].T + one_each[1]).argmax(axis=1).tolist() == [0, 2]


def test_rows_are_named_with_their_seeds():
    assert RowChoice.parse("full:1") == RowChoice("full", 1)
    assert RowChoice.parse("head") == RowChoice("head", None)
    for wrong, message in (
        ("big", "row 'big' is not known"),
        ("full:0", "got '0' seeds"),
        ("full:x", "got 'x' seeds"),
    ):
        with pytest.raises(Exception, match=message):
            RowChoice.parse(wrong)
