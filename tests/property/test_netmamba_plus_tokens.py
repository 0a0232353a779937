"""NetMamba+'s sequences against their naive twin, over packets that are mostly sensible and partly absurd."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from capture.errors import TokenizeError
from capture.flow_batch import FLOW_DTYPE, PACKET_DTYPE, FlowBatch
from capture.representations import build
from capture.representations.netmamba_plus import n_size_ids
from tests.reference import netmamba_plus as twin

SMALL = {"n_packets": 2, "header_bytes": 8, "payload_bytes": 0}


def random_flows(seed: int, n_flows: int, n_packets: int) -> FlowBatch:
    """Flows of 0 to ``n_packets`` packets; gaps from 0 ns to hours, backwards now and then, and hostile clocks."""
    rng = np.random.default_rng(seed)
    records = np.zeros(n_flows, FLOW_DTYPE)
    records["ip_version"], records["protocol"] = 4, 6
    records["n_kept"] = rng.integers(0, n_packets + 1, n_flows)
    packets = np.zeros((n_flows, n_packets), PACKET_DTYPE)
    shape = packets.shape
    gaps = rng.choice([0, 1, 900, 1_000, 250_000, 10**6, 10**9, 5 * 10**12, -(10**6)], shape)
    ts_ns = 1_700_000_000 * 10**9 + np.cumsum(gaps, axis=1)
    absurd = rng.random(shape) < 0.02
    extremes = rng.choice(np.array([-(2**63), 2**63 - 1, 0]), shape)
    packets["ts_ns"] = np.where(absurd, extremes, ts_ns)
    packets["ip_len"] = rng.choice([20, 40, 52, 576, 1499, 1500, 1501, 65_535, 2**32 - 1, 0], shape)
    packets["wire_len"] = packets["ip_len"].astype(np.int64).clip(max=2**32 - 15) + 14
    packets["direction"] = rng.integers(0, 2, shape)
    kept = np.arange(n_packets) < records["n_kept"][:, None]
    packets[~kept] = np.zeros((), PACKET_DTYPE)
    data = rng.integers(0, 256, (n_flows, 2, 8), dtype=np.uint8)
    return FlowBatch(records, packets, data)


def arrays_of(flows: FlowBatch, **settings: Any) -> dict[str, np.ndarray]:
    return build("netmamba_plus", SMALL | settings).tokenize(flows).arrays


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("n", [1, 7, 20])
def test_sizes_times_and_presence_are_those_of_the_naive_twin(n: int, signed: bool) -> None:
    flows = random_flows(n, 300, 20)
    arrays = arrays_of(flows, n_sequence_packets=n, signed_sizes=signed)
    for f in range(len(flows)):
        rows = twin.rows_of(flows.packets[f], flows.records["n_kept"][f], "ip_len")
        sizes, iats, sizes_present, iats_present = twin.sequences(rows, n, signed)
        assert arrays["sizes"][f].tolist() == sizes
        assert arrays["iats"][f] == pytest.approx(iats, rel=1e-7)
        assert arrays["sizes_present"][f].tolist() == sizes_present
        assert arrays["iats_present"][f].tolist() == iats_present


@pytest.mark.parametrize("signed", [True, False])
def test_the_published_transform_is_that_of_the_naive_twin(signed: bool) -> None:
    flows = random_flows(3, 300, 20)
    arrays = arrays_of(flows, signed_sizes=signed, published_transform=True)
    for f in range(len(flows)):
        rows = twin.rows_of(flows.packets[f], flows.records["n_kept"][f], "wire_len")
        sizes, iats = twin.published_sequences(rows, 20, signed)
        assert arrays["sizes"][f].tolist() == sizes
        assert arrays["iats"][f] == pytest.approx(iats, rel=1e-6)
    assert arrays["sizes_present"].all()
    assert arrays["iats_present"].all()


@pytest.mark.parametrize("signed", [True, False])
def test_what_is_not_there_has_a_value_that_no_packet_has(signed: bool) -> None:
    arrays = arrays_of(random_flows(5, 500, 20), signed_sizes=signed)
    there, not_there = arrays["sizes"][arrays["sizes_present"]], arrays["sizes"][~arrays["sizes_present"]]
    assert there.min() >= 0
    assert there.max() <= n_size_ids(signed) - 3
    assert set(not_there.tolist()) == {n_size_ids(signed) - 2}
    assert arrays["iats"][arrays["iats_present"]].min() >= 1.0
    assert set(arrays["iats"][~arrays["iats_present"]].tolist()) == {0.0}
    assert np.isfinite(arrays["iats"]).all()


def test_a_flow_s_row_does_not_depend_on_its_batch_mates_or_on_packets_beyond() -> None:
    flows = random_flows(6, 40, 24)
    together = arrays_of(flows)
    for f in (0, 17, 39):
        alone = arrays_of(
            FlowBatch(flows.records[f : f + 1], flows.packets[f : f + 1, :20], flows.data[f : f + 1])
        )
        for name, array in together.items():
            assert np.array_equal(array[f], alone[name][0]), name


def test_the_bytes_are_netmamba_s() -> None:
    flows = random_flows(7, 50, 20)
    expected = build("netmamba", SMALL).tokenize(flows).arrays["bytes"]
    assert np.array_equal(arrays_of(flows)["bytes"], expected)


def test_packets_used_counts_those_of_the_sequences() -> None:
    flows = random_flows(8, 50, 20)
    used = build("netmamba_plus", SMALL | {"n_sequence_packets": 9}).tokenize(flows).packets_used
    assert used.tolist() == np.minimum(flows.records["n_kept"], 9).tolist()


def test_no_flows_give_no_rows_of_the_same_shapes() -> None:
    arrays = arrays_of(random_flows(9, 0, 20))
    assert {name: (array.dtype.str, array.shape) for name, array in arrays.items()} == {
        "bytes": ("|u1", (0, 16)),
        "sizes": ("<i2", (0, 20)),
        "iats": ("<f4", (0, 20)),
        "sizes_present": ("|b1", (0, 20)),
        "iats_present": ("|b1", (0, 20)),
    }


def test_a_table_that_kept_too_few_packets_is_refused() -> None:
    with pytest.raises(
        TokenizeError, match=r"hold the fields of 12 packets, expected at least 20; build the flow"
    ):
        arrays_of(random_flows(1, 3, 12))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_sequence_packets": 0}, "n_sequence_packets is 0, expected a whole number from 1 to 4096"),
        ({"n_sequence_packets": True}, "n_sequence_packets is True, expected a whole number from 1 to 4096"),
        ({"signed_sizes": 1}, "signed_sizes is 1, expected true or false"),
        ({"published_transform": "no"}, "published_transform is 'no', expected true or false"),
        ({"stride": 3}, "stride 3 does not divide the 8 bytes kept of a packet"),
        ({"n_timed": 3}, "representation netmamba_plus has no setting 'n_timed'; it has n_packets, "),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenizeError, match=message):
        build("netmamba_plus", SMALL | wrong)


def test_settings_build_the_same_representation_again() -> None:
    made = build("netmamba_plus", {"n_sequence_packets": 30, "field_policy": ["ttl", "ports"]})
    assert build("netmamba_plus", made.settings()).settings() == made.settings()
    assert (made.keep.n_packets, made.keep.n_byte_packets, made.keep.row_bytes) == (30, 5, 320)
    assert build("netmamba_plus", {"n_packets": 9, "n_sequence_packets": 3}).keep.n_packets == 9
