"""The Mamba mixer and block against the float64 twin, whole and token by token."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.nets.causal_conv import causal_conv_silu
from models.nets.mamba import DT_MAX, DT_MIN, MambaBlock, MambaMixer
from models.nets.rms_norm import RMSNorm
from tests.reference import mamba as twin


def seeded(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def weights_in_float64(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.double().numpy() for name, value in module.state_dict().items()}


@pytest.fixture
def block() -> MambaBlock:
    torch.manual_seed(0)
    block = MambaBlock(d_model=24, d_state=8)
    # Every weight off its initial value, or a forgotten one would not show.
    with torch.no_grad():
        for parameter in block.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return block


@pytest.mark.parametrize(
    "shape", [(2, 9, 20, 4), (1, 1, 8, 4), (3, 2, 5, 4), (2, 6, 16, 2), (2, 8, 16, 5), (1, 4, 16, 1)]
)
def test_the_convolution_equals_its_twin(shape: tuple[int, int, int, int]) -> None:
    *wide, n_taps = shape
    x, weight, bias = seeded(tuple(wide)), seeded((wide[2], 1, n_taps), 1), seeded((wide[2],), 2)
    expected = twin.causal_conv_silu(x.double().numpy(), weight.double().numpy(), bias.double().numpy())
    np.testing.assert_allclose(causal_conv_silu(x, weight, bias).numpy(), expected, atol=3e-6)
    doubled = causal_conv_silu(x.double(), weight.double(), bias.double())
    np.testing.assert_allclose(doubled.numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("n_taps", [2, 4])
def test_the_convolution_s_gradients_equal_autograd_of_conv1d(n_taps: int) -> None:
    leaves = [seeded((5, 11, 2 * 12)), seeded((12, 1, n_taps), 1), seeded((12,), 2)]
    fast = [x.clone().requires_grad_() for x in leaves]
    slow = [x.double().requires_grad_() for x in leaves]
    gy = seeded((5, 11, 12), 3)
    # The second half of a projection: a view, read in place.
    causal_conv_silu(fast[0][..., 12:], fast[1], fast[2]).backward(gy)
    causal_conv_silu(slow[0][..., 12:], slow[1], slow[2]).backward(gy.double())
    for got, expected in zip(fast, slow, strict=True):
        torch.testing.assert_close(got.grad, expected.grad.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 700, 20), (2, 7), (1, 1, 5)])
def test_the_norm_and_its_gradients_equal_torch_in_float64(shape: tuple[int, ...]) -> None:
    norm, x, gy = RMSNorm(shape[-1]), seeded(shape).requires_grad_(), seeded(shape, 1)
    with torch.no_grad():
        norm.weight += seeded((shape[-1],), 2)
    y = norm(x)
    y.backward(gy)
    leaf, weight = x.detach().double().requires_grad_(), norm.weight.detach().double().requires_grad_()
    expected = nn.functional.rms_norm(leaf, shape[-1:], weight, 1e-5)
    expected.backward(gy.double())
    torch.testing.assert_close(y, expected.float(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        y.detach().numpy(),
        twin.rms_norm(x.detach().double().numpy(), weight.detach().numpy()),
        rtol=1e-5,
        atol=1e-6,
    )
    torch.testing.assert_close(x.grad, leaf.grad.float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.weight.grad, weight.grad.float(), rtol=1e-5, atol=1e-4)


def test_the_mixer_equals_the_float64_twin(block: MambaBlock) -> None:
    x = seeded((2, 19, 24))
    expected = twin.mixer(x.double().numpy(), weights_in_float64(block.mixer))
    np.testing.assert_allclose(block.mixer(x).detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_the_block_equals_the_float64_twin(block: MambaBlock) -> None:
    x = seeded((2, 19, 24))
    expected = twin.block(x.double().numpy(), weights_in_float64(block))
    np.testing.assert_allclose(block(x).detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_every_gradient_of_a_block_equals_the_plain_loop_in_float64(block: MambaBlock) -> None:
    x, gy = seeded((3, 19, 24)), seeded((3, 19, 24), 1)
    block(x).backward(gy)
    plain = MambaBlock(d_model=24, d_state=8).double()
    plain.load_state_dict(block.state_dict())
    plain(x.double()).backward(gy.double())
    for (name, got), expected in zip(block.named_parameters(), plain.parameters(), strict=True):
        assert (got.grad - expected.grad).abs().max() <= 1e-5 * expected.grad.abs().max(), name


def test_step_by_step_equals_the_whole_sequence(block: MambaBlock) -> None:
    x = seeded((3, 23, 24))
    whole = block(x)
    state, outputs = block.initial_state(3), []
    for t in range(x.shape[1]):
        state, out = block.step(state, x[:, t])
        outputs.append(out)
    torch.testing.assert_close(torch.stack(outputs, 1), whole, rtol=1e-5, atol=1e-5)
    assert state.conv.shape == (3, 3, 48)
    assert state.scan.shape == (3, 48, 8)


def test_a_step_leaves_the_state_it_was_given_as_it_was(block: MambaBlock) -> None:
    state, _ = block.step(block.initial_state(2), seeded((2, 24)))
    conv, scan = state.conv.clone(), state.scan.clone()
    first = block.step(state, seeded((2, 24), 1))[1]
    assert torch.equal(state.conv, conv)
    assert torch.equal(state.scan, scan)
    assert torch.equal(block.step(state, seeded((2, 24), 1))[1], first)


def test_names_and_shapes_are_those_of_mamba_ssm() -> None:
    shapes = {name: tuple(value.shape) for name, value in MambaMixer(256).state_dict().items()}
    assert shapes == {
        "A_log": (512, 16),
        "D": (512,),
        "in_proj.weight": (1024, 256),
        "conv1d.weight": (512, 1, 4),
        "conv1d.bias": (512,),
        "x_proj.weight": (48, 512),
        "dt_proj.weight": (512, 16),
        "dt_proj.bias": (512,),
        "out_proj.weight": (256, 512),
    }


def test_the_state_starts_as_the_paper_says() -> None:
    mixer = MambaMixer(64)
    torch.testing.assert_close(mixer.A_log.exp(), torch.arange(1.0, 17.0).expand(128, 16))
    assert torch.equal(mixer.D, torch.ones(128))
    steps = nn.functional.softplus(mixer.dt_proj.bias)
    assert bool((steps > 0.99 * DT_MIN).all())
    assert bool((steps < 1.01 * DT_MAX).all())
    # Log-uniform: about half of them below the geometric mean.
    assert 0.25 < float((steps < (DT_MIN * DT_MAX) ** 0.5).float().mean()) < 0.75


def test_drop_path_skips_whole_flows_in_training_and_none_in_evaluation() -> None:
    torch.manual_seed(0)
    block = MambaBlock(16, d_state=4, drop_path=0.5)
    x = seeded((200, 3, 16))
    with torch.no_grad():
        full = block.eval()(x) - x
        trained = block.train()(x) - x
    skipped = (trained == 0).flatten(1).all(1)
    assert 60 < int(skipped.sum()) < 140
    torch.testing.assert_close(trained[~skipped], 2 * full[~skipped], rtol=1e-4, atol=1e-5)


def test_autocast_keeps_the_residual_in_float32(block: MambaBlock) -> None:
    x = seeded((2, 9, 24))
    with torch.autocast("cpu", torch.bfloat16):
        y = block(x)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, block(x), rtol=0.05, atol=0.05)
    y.sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in block.parameters())
