"""The field-policy kernel against its naive twin, over packets that are mostly sensible and partly absurd."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from capture.field_policy import FIELD_GROUPS, NAMED_POLICIES, FieldPolicy
from capture.flow_batch import FLOW_DTYPE, PACKET_DTYPE
from capture.kernels import field_policy as kernel
from tests.reference.field_policy import hide

PROTOCOLS = (6, 6, 6, 17, 17, 1, 58, 132, 50, 4, 41, 47, 2, 89)


def random_rows(seed: int, n: int, header_bytes: int, payload_bytes: int):
    """n one-packet flows: random bytes, but with version, lengths and options that lead into every branch."""
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, (n, 1, header_bytes + payload_bytes), dtype=np.uint8)
    flows = np.zeros(n, FLOW_DTYPE)
    packets = np.zeros((n, 1), PACKET_DTYPE)
    for i in range(n):
        version = int(rng.choice([4, 6]))
        protocol = int(rng.choice(PROTOCOLS))
        row = data[i, 0]
        row[0] = version << 4 | 5
        if version == 4:
            l4 = 20 + 4 * int(rng.choice([0, 0, 0, 1, 3, 10]))
            seed_options(rng, row, 20, l4, (7, 68, 131, 1, 0))
        else:
            row[6] = rng.choice([0, 43, 44, 51, 60, protocol])
            l4 = 40 + 8 * int(rng.choice([0, 0, 1, 3, 5]))
            at = 40
            while at + 2 < min(l4, header_bytes):
                row[at], row[at + 1] = (
                    rng.choice([0, 43, 44, 51, 60, protocol]),
                    rng.choice([0, 0, 1, 2, 255]),
                )
                if at + 4 < header_bytes:
                    row[at + 2], row[at + 3] = rng.choice([201, 0, 1]), rng.choice([16, 0, 4])
                at += 8
        transport = {6: 20 + 4 * int(rng.integers(0, 11)), 17: 8, 1: 8, 58: 8, 132: 12}.get(protocol, 0)
        if protocol == 6:
            seed_options(rng, row, l4 + 20, l4 + transport, (8, 5, 30, 34, 2, 1, 0))
        if protocol in (1, 58) and l4 < header_bytes:
            row[l4] = rng.choice([0, 8, 128, 129, 3, 5, 135])
        flows["protocol"][i], flows["ip_version"][i] = protocol, version
        flows["client_port"][i] = rng.choice([443, 4789, 51000])
        flows["server_port"][i] = rng.choice([53, 2152, 3544])
        flows["n_kept"][i] = 1
        packets["l4_offset"][i], packets["header_len"][i] = l4, l4 + transport
    return data, flows, packets


def seed_options(rng, row, start, stop, kinds):
    at = start
    while at + 1 < min(stop, len(row)):
        row[at] = rng.choice(kinds)
        row[at + 1] = rng.choice([2, 4, 10, 0, 1, 255], p=[0.2, 0.3, 0.3, 0.1, 0.05, 0.05])
        at += 1 if row[at] == 1 else max(int(row[at + 1]), 2)


def assert_equal_to_twin(seed: int, n: int, header_bytes: int, payload_bytes: int, hidden: set[str]) -> None:
    data, flows, packets = random_rows(seed, n, header_bytes, payload_bytes)
    out = np.zeros((n, header_bytes + payload_bytes), np.uint8)
    before = data.copy()
    kernel.tokens_with_policy(
        data, flows, packets, 1, header_bytes, FieldPolicy.parse(hidden).bits(), False, out
    )
    for i in range(n):
        raw = data[i, 0].tobytes()
        expected = hide(
            raw[:header_bytes],
            raw[header_bytes:],
            int(flows["protocol"][i]),
            int(packets["l4_offset"][i, 0]),
            int(packets["header_len"][i, 0]),
            (int(flows["client_port"][i]), int(flows["server_port"][i])),
            hidden,
        )
        assert out[i].tobytes() == expected, (i, hidden, flows[i], packets[i])
    assert np.array_equal(data, before), "the flow table's bytes were written to"


@pytest.mark.parametrize("seed", range(4))
def test_each_policy_hides_what_the_naive_twin_hides(seed):
    for hidden in [{group} for group in FIELD_GROUPS] + [set(NAMED_POLICIES["leak_free"]), set()]:
        assert_equal_to_twin(seed, 300, 80, 16, hidden)


@pytest.mark.parametrize("header_bytes", [1, 20, 41, 60])
def test_a_short_header_part_is_never_overrun(header_bytes):
    assert_equal_to_twin(9, 300, max(header_bytes, 8), 8, set(FIELD_GROUPS))


def test_the_bits_of_kernel_and_policy_are_the_same():
    for group in FIELD_GROUPS:
        assert getattr(kernel, group.upper()) == FieldPolicy.parse([group]).bits()


@pytest.mark.parametrize("setting", [{"NUMBA_BOUNDSCHECK": "1"}, {"NUMBA_DISABLE_JIT": "1"}])
def test_no_index_runs_past_a_row_and_uncompiled_python_agrees(setting, tmp_path):
    code = (
        "from capture.field_policy import FIELD_GROUPS\n"
        "from tests.property.test_field_policy import assert_equal_to_twin\n"
        "assert_equal_to_twin(5, 100, 80, 16, set(FIELD_GROUPS))\n"
        "assert_equal_to_twin(6, 100, 24, 0, set(FIELD_GROUPS))\n"
    )
    environment = {**os.environ, **setting, "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
