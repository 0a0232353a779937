"""Products in 8 bits: rounded as the twin rounds, exact in between, and near the float64 network."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.nets import frozen_block, int8_kernels
from models.precision import cpu_multiplies_int8
from tests.reference import int8 as twin
from tests.reference import netmamba as netmamba_twin
from tests.unit.models.test_netmamba import in_float64, some_bytes
from tests.unit.models.test_precision import answers, random_model

needs_int8 = pytest.mark.skipif(not cpu_multiplies_int8(), reason="this CPU has no VNNI: torch may saturate")


def rows_of(n_rows: int, n_columns: int, seed: int = 0) -> np.ndarray:
    """Rows of very different size."""
    rng = np.random.default_rng(seed)
    return (rng.normal(0, 1, (n_rows, n_columns)) * 10.0 ** rng.integers(-6, 6, (n_rows, 1))).astype(
        np.float32
    )


def quantised(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    q, steps = np.full(x.shape, 99, np.int8), np.full(len(x), 99, np.float32)
    int8_kernels.quantise_rows(x, q, steps)
    return q, steps


@pytest.mark.parametrize("seed", [0, 1])
def test_rows_are_rounded_as_the_twin_does(seed: int) -> None:
    x = rows_of(40, 37, seed)
    x[3] = 0
    x[4, 1:] = 0  # one number alone
    x[5] = np.tile(np.float32([1.5, -2.5, 127.0]), 13)[:37]  # ties go to the even neighbour
    q, steps = quantised(x)
    expected, expected_steps = twin.quantise_rows(x)
    np.testing.assert_array_equal(steps, expected_steps)
    np.testing.assert_array_equal(q, expected)
    assert q.min() == -127
    assert q.max() == 127
    assert list(q[5, :3]) == [2, -2, 127]
    assert (np.abs(q * steps[:, None] - x) <= 0.501 * steps[:, None]).all()
    assert (steps[3], q[3].any()) == (0, False)


def test_a_number_that_is_none_is_not_hidden() -> None:
    x = rows_of(3, 8)
    x[1, 4] = np.nan
    _, steps = quantised(x)
    assert list(np.isnan(steps)) == [False, True, False]


def test_whole_products_come_back_as_the_twin_says() -> None:
    x, weight = rows_of(9, 24), rows_of(24, 11, seed=1) / 1e5
    rows, row_steps = quantised(x)
    columns, column_steps = quantised(np.ascontiguousarray(weight.T))
    totals = rows.astype(np.int32) @ columns.T.astype(np.int32)
    y = np.empty((9, 11), np.float32)
    int8_kernels.widen(totals, row_steps, column_steps, y)
    expected = twin.product(x, weight)
    np.testing.assert_allclose(y, expected, rtol=1e-6)
    before = rows_of(9, 11, seed=2)
    added = before.copy()
    int8_kernels.add_widened(totals, row_steps, column_steps, added)
    np.testing.assert_allclose(added, before + expected, rtol=1e-5)


@needs_int8
def test_the_product_of_the_network_is_the_twin_s() -> None:
    """Row by row, whatever stands in the other rows: sums of whole numbers are exact."""
    x, weight = rows_of(12, 32), rows_of(20, 32, seed=1)  # (n, k), as a projection holds it
    matrix = frozen_block._matrix(torch.from_numpy(weight), torch.int8)

    class Buffers:
        narrow_in = torch.empty(12 * 32, dtype=torch.int8)
        narrow_out = torch.empty(12 * 20, dtype=torch.int32)
        steps = torch.empty(12)

    def product(rows: np.ndarray) -> np.ndarray:
        out = torch.empty(len(rows), 20)
        frozen_block.product(torch.from_numpy(rows), matrix, out, Buffers)  # type: ignore[arg-type]
        return out.numpy()

    together = product(x)
    np.testing.assert_allclose(together, twin.product(x, np.ascontiguousarray(weight.T)), rtol=1e-6)
    for i in range(12):
        assert np.array_equal(product(x[i : i + 1])[0], together[i])


@needs_int8
def test_int8_logits_are_near_the_float64_twin_and_further_than_those_of_bf16() -> None:
    model, flows = random_model(), some_bytes(16, 160)
    exact = netmamba_twin.logits(flows.numpy(), in_float64(model))
    change = {name: np.abs(answers(model, flows, name) - exact).max() for name in ("fp32", "bf16", "int8")}
    assert change["fp32"] < 1e-5 < change["bf16"] < change["int8"] < 0.3


@needs_int8
def test_a_flow_s_int8_logits_do_not_depend_on_its_batch_mates() -> None:
    model, flows = random_model(), some_bytes(7, 160)
    together = answers(model, flows, "int8")
    alone = np.concatenate([answers(model, flow[None], "int8") for flow in flows])
    # The float32 parts may differ in the last bit, and then one rounding to 8 bits may.
    assert np.abs(together - alone).max() < 0.05
    assert np.array_equal(together.argmax(axis=1), alone.argmax(axis=1))
