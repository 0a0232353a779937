"""The selective scan: kernels and torch loop against the float64 twin, outputs and gradients."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models.nets import scan as scan_module
from models.nets.scan import scan_backend, selective_scan
from models.nets.scan_kernels import CHUNK
from tests.reference import selective_scan as twin

NAMES = ("u", "dt", "A", "B", "C", "D", "z", "dt_bias")


def make_inputs(B: int, L: int, E: int, N: int, seed: int = 0, dt_shift: float = -2.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    A = -torch.exp(normal(E, N))
    u, z, dt = normal(B, L, E), normal(B, L, E), normal(B, L, E) + dt_shift
    return [u, dt, A, normal(B, L, N), normal(B, L, N), normal(E), z, normal(E)]


def in_float64(inputs: list[Tensor]) -> twin.ScanInputs:
    return twin.ScanInputs(*(x.double().numpy() for x in inputs))


def relative_error(got: Tensor, expected: np.ndarray) -> float:
    """Largest difference, as a share of the largest value."""
    difference = np.abs(got.detach().double().numpy() - expected).max()
    return float(difference / max(np.abs(expected).max(), 1e-30))


def output_and_gradients(inputs: list[Tensor], gy: Tensor, backend: str) -> tuple[Tensor, dict[str, Tensor]]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    y = selective_scan(*leaves, backend=backend)
    y.backward(gy)
    return y, {name: leaf.grad for name, leaf in zip(NAMES, leaves, strict=True)}


# Shapes on both sides of a chunk's end; one token; widths that no vector length divides.
SHAPES = [(2, 2 * CHUNK + 3, 24, 16), (3, CHUNK, 17, 8), (1, 1, 5, 4), (5, CHUNK + 1, 16, 4)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_output_and_all_gradients_equal_the_float64_twin(
    shape: tuple[int, int, int, int], backend: str
) -> None:
    inputs = make_inputs(*shape)
    gy = torch.randn(shape[:3], generator=torch.Generator().manual_seed(1))
    y, gradients = output_and_gradients(inputs, gy, backend)
    assert relative_error(y, twin.scan(in_float64(inputs))) < 2e-6
    expected = twin.scan_gradients(in_float64(inputs), gy.double().numpy())
    for name in NAMES:
        assert relative_error(gradients[name], getattr(expected, name)) < 1e-5, name


def test_the_twin_s_gradients_are_right_by_finite_differences() -> None:
    inputs = in_float64(make_inputs(2, 5, 3, 4))
    gy = np.random.default_rng(0).standard_normal((2, 5, 3))
    analytic = twin.scan_gradients(inputs, gy)
    for name in NAMES:
        direction = np.random.default_rng(1).standard_normal(getattr(inputs, name).shape)
        up = inputs._replace(**{name: getattr(inputs, name) + 1e-6 * direction})
        down = inputs._replace(**{name: getattr(inputs, name) - 1e-6 * direction})
        slope = ((twin.scan(up) - twin.scan(down)) * gy).sum() / 2e-6
        assert slope == pytest.approx((getattr(analytic, name) * direction).sum(), rel=1e-6), name


def test_gradients_stay_within_1e_5_over_401_tokens() -> None:
    inputs = make_inputs(1, 401, 8, 16, dt_shift=-5.0)
    gy = torch.ones(1, 401, 8)
    y, gradients = output_and_gradients(inputs, gy, "cpu")
    assert relative_error(y, twin.scan(in_float64(inputs))) < 5e-6
    expected = twin.scan_gradients(in_float64(inputs), gy.double().numpy())
    for name in NAMES:
        assert relative_error(gradients[name], getattr(expected, name)) < 1e-5, name


@pytest.mark.parametrize("dt_shift", [-40.0, 40.0])
def test_extreme_steps_neither_overflow_nor_lose_the_answer(dt_shift: float) -> None:
    inputs = make_inputs(1, 40, 16, 4, dt_shift=dt_shift)
    gy = torch.ones(1, 40, 16)
    y, gradients = output_and_gradients(inputs, gy, "cpu")
    assert relative_error(y, twin.scan(in_float64(inputs))) < 5e-6
    expected = twin.scan_gradients(in_float64(inputs), gy.double().numpy())
    for name in ("u", "dt", "B", "C", "D", "z"):
        assert relative_error(gradients[name], getattr(expected, name)) < 1e-5, name


def test_a_decay_of_one_stays_one_over_400_steps() -> None:
    u, dt, A, B, C, D, z, bias = make_inputs(1, 400, 16, 4)
    # Only the first token enters; with A = 0 nothing is forgotten, so every output is the same.
    u[:, 1:] = 0.0
    y = selective_scan(
        u,
        dt,
        torch.zeros_like(A),
        B[:, :1].expand_as(B),
        C[:, :1].expand_as(C),
        D * 0,
        z[:, :1].expand_as(z),
        bias,
    )
    assert torch.equal(y, y[:, :1].expand_as(y))


@pytest.mark.parametrize(
    ("dtype", "n_states", "positive"),
    [(torch.float64, 16, False), (torch.float32, 5, False), (torch.float32, 4, True)],
)
def test_what_the_kernels_do_not_cover_is_still_right(
    dtype: torch.dtype, n_states: int, positive: bool
) -> None:
    inputs = make_inputs(2, 9, 6, n_states)
    if positive:
        inputs[2] = -0.1 * inputs[2]
    y = selective_scan(*(x.to(dtype) for x in inputs), backend="cpu")
    assert y.dtype == dtype
    assert relative_error(y, twin.scan(in_float64(inputs))) < (1e-12 if dtype == torch.float64 else 2e-6)


def test_bfloat16_is_computed_in_float32_and_given_back_as_bfloat16() -> None:
    inputs = [x.bfloat16() for x in make_inputs(2, 20, 16, 4)]
    y = selective_scan(*inputs)
    assert y.dtype == torch.bfloat16
    assert relative_error(y, twin.scan(in_float64(inputs))) < 2**-8


def test_the_gate_may_be_half_of_a_projection() -> None:
    inputs = make_inputs(3, 21, 16, 4)
    both = torch.cat([torch.full_like(inputs[6], 99.0), inputs[6]], dim=2).requires_grad_()
    whole = inputs[6].clone().requires_grad_()
    selective_scan(*inputs[:6], both[..., 16:], inputs[7]).square().sum().backward()
    y = selective_scan(*inputs[:6], whole, inputs[7])
    y.square().sum().backward()
    assert torch.equal(both.grad[..., 16:], whole.grad)
    assert torch.count_nonzero(both.grad[..., :16]) == 0
    transposed = inputs[6].transpose(0, 1).contiguous().transpose(0, 1)
    columns = inputs[6].transpose(1, 2).contiguous().transpose(1, 2)
    for view in (transposed, columns):
        assert torch.equal(selective_scan(*inputs[:6], view, inputs[7]), y)


def test_the_number_of_threads_never_changes_a_bit() -> None:
    inputs = make_inputs(11, 33, 32, 4)
    gy = torch.ones(11, 33, 32)
    before = torch.get_num_threads()
    results = []
    try:
        for n_threads in (1, 2, 3):
            torch.set_num_threads(n_threads)
            results.append(output_and_gradients(inputs, gy, "cpu"))
    finally:
        torch.set_num_threads(before)
    for y, gradients in results[1:]:
        assert torch.equal(y, results[0][0])
        assert all(torch.equal(gradients[name], results[0][1][name]) for name in NAMES)


def test_a_flow_s_output_does_not_depend_on_its_batch_mates() -> None:
    inputs = make_inputs(6, 20, 16, 4)
    alone = [x[2:3] if x.dim() == 3 else x for x in inputs]
    assert torch.equal(selective_scan(*inputs)[2:3], selective_scan(*alone))


def test_a_token_never_sees_a_later_one() -> None:
    inputs = make_inputs(1, 40, 16, 4)
    changed = [x.clone() for x in inputs]
    for i in (0, 1, 3, 4, 6):
        changed[i][:, 25:] += 1.0
    before, after = selective_scan(*inputs), selective_scan(*changed)
    assert torch.equal(before[:, :25], after[:, :25])
    assert not torch.equal(before[:, 25:], after[:, 25:])


def test_nan_in_one_flow_stays_in_that_flow_and_is_not_hidden() -> None:
    inputs = make_inputs(2, 20, 16, 4)
    inputs[0][0, 3] = float("nan")
    y = selective_scan(*inputs)
    assert bool(y[0, 3:].isnan().all())
    assert bool(y[1].isfinite().all())
    assert bool(y[0, :3].isfinite().all())


def test_without_gradients_no_states_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    empty = torch.empty

    def watch(*args: int, **kwargs: object) -> Tensor:
        made = empty(*args, **kwargs)
        sizes.append(made.numel())
        return made

    inputs = make_inputs(2, 64, 16, 4)
    monkeypatch.setattr(scan_module.torch, "empty", watch)
    selective_scan(*inputs)
    assert max(sizes) <= inputs[0].numel()


def test_the_auto_backend_of_a_cpu_is_the_kernels() -> None:
    assert scan_backend("cpu") == "cpu"
    assert scan_backend(torch.device("meta")) == "reference"
    if not torch.cuda.is_available():
        assert scan_backend("cuda") == "reference"


def test_mamba_ssm_is_given_its_own_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its function gets (batch, channels, tokens) and answers so; the adapter turns both ways."""
    inputs = make_inputs(2, 7, 8, 4)
    expected = selective_scan(*inputs, backend="reference")

    def fake(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):  # type: ignore[no-untyped-def]
        assert u.shape == (2, 8, 7)
        assert B.shape == (2, 4, 7)
        assert delta_softplus
        rows = [x.transpose(1, 2) for x in (u, delta, B, C, z)]
        y = selective_scan(rows[0], rows[1], A, rows[2], rows[3], D, rows[4], delta_bias, backend="reference")
        return y.transpose(1, 2)

    monkeypatch.setattr(scan_module, "_mamba_ssm_scan", lambda: fake)
    with pytest.raises(
        ValueError, match=r"needs a CUDA tensor and the package mamba_ssm; got a tensor on cpu"
    ):
        selective_scan(*inputs, backend="mamba_ssm")
    monkeypatch.setattr(scan_module, "_on_cuda", lambda _: True)
    assert torch.allclose(selective_scan(*inputs, backend="mamba_ssm"), expected)


def test_shapes_that_do_not_fit_are_named() -> None:
    inputs = make_inputs(2, 7, 8, 4)
    wrong = [*inputs]
    wrong[3] = wrong[3][:, :-1]
    with pytest.raises(
        ValueError, match=r"B has shape \(2, 6, 4\), expected \(2, 7, 4\) beside u \(2, 7, 8\)"
    ):
        selective_scan(*wrong)
    with pytest.raises(
        ValueError, match="unknown scan backend 'fast'; choose auto, reference, cpu or mamba_ssm"
    ):
        selective_scan(*inputs, backend="fast")


def test_no_flow_and_no_token_give_no_output() -> None:
    for shape in ((0, 5, 8, 4), (2, 0, 8, 4)):
        assert selective_scan(*make_inputs(*shape)).shape == shape[:3]


def test_many_threads_may_scan_at_once() -> None:
    inputs = make_inputs(9, 33, 16, 4)
    expected = selective_scan(*inputs)
    answers: list[Tensor] = []
    threads = [threading.Thread(target=lambda: answers.append(selective_scan(*inputs))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 6
    assert all(torch.equal(answer, expected) for answer in answers)


def test_a_second_derivative_is_refused_and_never_silently_zero() -> None:
    inputs = [x.requires_grad_() for x in make_inputs(1, 5, 8, 4)]
    (gradient,) = torch.autograd.grad(selective_scan(*inputs).square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


EVERY_KERNEL = """
import torch
from tests.unit.models import test_int8, test_scan, test_mamba, test_netmamba_inference
for shape in test_scan.SHAPES[:2]:
    test_scan.test_output_and_all_gradients_equal_the_float64_twin(shape, "cpu")
for shape in ((2, 5, 6, 4), (3, 2, 5, 4)):
    test_mamba.test_the_convolution_equals_its_twin(shape)
test_mamba.test_the_convolution_s_gradients_equal_autograd_of_conv1d(4)
test_mamba.test_the_norm_and_its_gradients_equal_torch_in_float64((2, 7))
test_netmamba_inference.test_the_fast_path_gives_the_logits_of_the_module(40, 2)
test_int8.test_rows_are_rounded_as_the_twin_does(0)
test_int8.test_whole_products_come_back_as_the_twin_says()
print("all equal")
"""


def run_every_kernel(environment: dict[str, str], cache: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-c", EVERY_KERNEL]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_no_kernel_reads_or_writes_past_an_array(tmp_path: Path) -> None:
    done = run_every_kernel({"NUMBA_BOUNDSCHECK": "1"}, tmp_path)
    assert done.stdout == "all equal\n", done.stderr


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="names processors of x86-64")
@pytest.mark.parametrize("processor", ["haswell", "x86-64"])
def test_the_kernels_are_right_without_avx_512(processor: str, tmp_path: Path) -> None:
    done = run_every_kernel({"NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": ""}, tmp_path)
    assert done.stdout == "all equal\n", done.stderr
