"""Low-rank adapters: every path sees the adapted weight, and the backbone comes back untouched."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from capture.errors import CheckpointError
from models.nets import netmamba_inference
from models.nets.adapters import (
    Adapter,
    AdapterSlot,
    adapter_of,
    add_low_rank,
    dense_layers,
    merged_state,
)
from models.nets.netmamba import NetMambaClassifier
from models.nets.netmamba_config import NetMambaConfig

SMALL = NetMambaConfig(n_bytes=80, stride=4, d_model=32, n_layers=2, d_state=8)


def classifier(seed: int = 0, n_labels: int = 3) -> NetMambaClassifier:
    torch.manual_seed(seed)
    model = NetMambaClassifier(SMALL, n_labels).eval()
    with torch.no_grad():
        model.head.weight.normal_()
    return model


def some_bytes(n_flows: int = 5) -> Tensor:
    return torch.randint(0, 256, (n_flows, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))


def trained_adapter(seed: int, n_labels: int = 3, rank: int = 2) -> Adapter:
    """An adapter with changes in every layer, as training would leave them."""
    model = classifier(seed=9, n_labels=n_labels)
    torch.manual_seed(seed)
    add_low_rank(model, rank, alpha=4.0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return adapter_of(model, rank, 4.0)


@torch.inference_mode()
def fast(model: nn.Module, flows: Tensor) -> Tensor:
    logits: Tensor = model(flows)
    return logits


@torch.no_grad()
def module(model: nn.Module, flows: Tensor) -> Tensor:
    logits: Tensor = model(flows)
    return logits


def test_every_projection_that_the_fused_paths_read_is_adapted_and_nothing_else() -> None:
    names = {name.split(".mixer.")[-1] for name in dense_layers(classifier())}
    assert names == {"patch_embed.proj", "in_proj", "x_proj", "dt_proj", "out_proj"}
    assert len(dense_layers(classifier())) == 1 + 4 * SMALL.n_layers


def test_a_fresh_adapter_changes_no_output() -> None:
    model, flows = classifier(), some_bytes()
    before = module(model, flows)
    add_low_rank(model, 4, 8.0)
    assert torch.equal(module(model, flows), before)


@pytest.mark.parametrize("layer", ["patch_embed.proj", "in_proj", "x_proj", "dt_proj", "out_proj"])
def test_trap_19_a_change_in_each_projection_changes_the_fused_and_the_fast_path(layer: str) -> None:
    model, flows = classifier(), some_bytes()
    plain = module(model, flows)
    add_low_rank(model, 2, 4.0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if layer in name and name.endswith(".up"):
                parameter.normal_(std=0.3)
    adapted = module(model, flows)
    assert (adapted - plain).abs().max() > 1e-4
    assert netmamba_inference.covers(model)
    assert (fast(model, flows) - adapted).abs().max() < 1e-5


def test_gradients_reach_every_part_of_the_adapter_and_no_weight_of_the_body() -> None:
    model = classifier()
    add_low_rank(model, 2, 4.0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".up"):
                parameter.normal_(std=0.1)
    model(some_bytes()).square().sum().backward()
    for name, parameter in model.named_parameters():
        learns = name.startswith("head.") or name.endswith((".up", ".down"))
        assert (parameter.grad is not None and bool((parameter.grad != 0).any())) == learns, name


def test_the_fast_path_follows_every_step_of_an_optimiser() -> None:
    model, flows = classifier(), some_bytes()
    add_low_rank(model, 2, 4.0)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(3):
        before = fast(model, flows)
        optimiser.zero_grad()
        model(flows).square().sum().backward()
        optimiser.step()
        after = fast(model, flows)
        assert (after - before).abs().max() > 1e-3
        assert (after - module(model, flows)).abs().max() < 1e-5


def test_a_merged_network_is_a_plain_one_with_the_same_answers() -> None:
    base, flows = classifier(), some_bytes()
    slot = AdapterSlot(base)
    slot.apply(trained_adapter(1))
    state = merged_state(base)
    plain = classifier(seed=5)
    assert state.keys() == plain.state_dict().keys()
    plain.load_state_dict(state)
    assert torch.equal(module(plain, flows), module(base, flows))
    slot.remove()
    same = [name for name, tensor in base.state_dict().items() if torch.equal(tensor, state[name])]
    assert "pos_embed" in same
    assert "blocks.0.mixer.A_log" in same
    assert "blocks.0.mixer.x_proj.weight" not in same


def test_a_then_b_then_a_answers_as_a_bit_for_bit_and_removing_gives_the_base_back() -> None:
    model, flows = classifier(), some_bytes()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plain, plain_fast = module(model, flows), fast(model, flows)
    a, b = trained_adapter(1), trained_adapter(2, n_labels=5, rank=3)
    slot = AdapterSlot(model)
    slot.apply(a)
    first, first_fast = module(model, flows), fast(model, flows)
    slot.apply(b)
    second, second_fast = module(model, flows), fast(model, flows)
    assert (first.shape, second.shape) == ((5, 3), (5, 5))
    assert (second - second_fast).abs().max() < 1e-5
    slot.apply(a)
    assert torch.equal(module(model, flows), first)
    assert torch.equal(fast(model, flows), first_fast)
    slot.remove()
    assert torch.equal(module(model, flows), plain)
    assert torch.equal(fast(model, flows), plain_fast)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_switching_often_never_leaves_the_fast_path_with_an_old_adapter() -> None:
    # Freed weights make room for new ones at the same address.
    model, flows = classifier(), some_bytes(2)
    slot = AdapterSlot(model)
    for seed in range(8):
        slot.apply(trained_adapter(seed))
        assert (fast(model, flows) - module(model, flows)).abs().max() < 1e-5


def test_a_rank_above_that_of_a_matrix_is_capped() -> None:
    adapter = trained_adapter(0, rank=30)
    assert adapter.tensors["patch_embed.proj.down"].shape == (4, 4)
    assert adapter.tensors["blocks.0.mixer.in_proj.up"].shape == (128, 30)
    AdapterSlot(classifier()).apply(adapter)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks.0.mixer.x_proj.up": None}, r"'blocks\.0\.mixer\.x_proj\.up': got no such tensor, expected"),
        (
            {"blocks.7.mixer.x_proj.up": torch.zeros(2, 2)},
            r"'blocks\.7.*got \(2, 2\), expected no such tensor",
        ),
        ({"head.weight": torch.zeros(3, 7)}, r"'head\.weight': got \(3, 7\), expected \(3, 32\)"),
    ],
)
def test_an_adapter_of_another_network_is_refused_and_changes_nothing(
    change: dict[str, Tensor | None], message: str
) -> None:
    model, flows = classifier(), some_bytes()
    slot = AdapterSlot(model)
    good = trained_adapter(1)
    slot.apply(good)
    expected = module(model, flows)
    tensors = {name: t for name, t in ({**good.tensors, **change}).items() if t is not None}
    with pytest.raises(CheckpointError, match=message):
        slot.apply(replace(good, tensors=tensors))
    assert torch.equal(module(model, flows), expected)
