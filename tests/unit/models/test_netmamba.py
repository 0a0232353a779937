"""NetMamba: the paper's sizes, and both networks against the float64 twin."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from capture.errors import UsageError
from models.families import FAMILIES, family
from models.nets.netmamba import (
    NetMambaClassifier,
    NetMambaConfig,
    NetMambaPretrainer,
    layer_index,
    random_masking,
)
from tests.reference import netmamba as twin

M = TypeVar("M", bound=nn.Module)

SMALL = NetMambaConfig(n_bytes=80, d_model=32, n_layers=3, decoder_d_model=16, d_state=8)


def some_bytes(n_flows: int, n_bytes: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n_flows, n_bytes), dtype=torch.uint8, generator=generator)


def shaken(model: M) -> M:
    """Every weight off its initial value, or one that is never used would not show."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def in_float64(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.double().numpy() for name, value in model.state_dict().items()}


def n_parameters(model: nn.Module, without: str = "nothing") -> int:
    return sum(p.numel() for name, p in model.named_parameters() if not name.startswith(without))


def test_the_encoder_has_the_published_number_of_parameters() -> None:
    assert n_parameters(NetMambaClassifier(NetMambaConfig(), 10), without="head.") == 1_856_512


def test_the_pretraining_model_has_the_published_number_of_parameters() -> None:
    assert n_parameters(NetMambaPretrainer(NetMambaConfig())) == 2_174_724


def test_names_and_shapes_are_those_of_the_published_checkpoint() -> None:
    shapes = {
        name: tuple(value.shape) for name, value in NetMambaPretrainer(NetMambaConfig()).state_dict().items()
    }
    mixer = (
        "A_log",
        "D",
        "in_proj.weight",
        "conv1d.weight",
        "conv1d.bias",
        "x_proj.weight",
        "dt_proj.weight",
    )
    mixer += ("dt_proj.bias", "out_proj.weight")
    blocks = [f"blocks.{i}" for i in range(4)] + [f"decoder_blocks.{i}" for i in range(2)]
    expected = {f"{block}.mixer.{name}" for block in blocks for name in mixer} | {
        f"{b}.norm.weight" for b in blocks
    }
    expected |= {
        "cls_token",
        "pos_embed",
        "patch_embed.proj.weight",
        "patch_embed.proj.bias",
        "norm_f.weight",
    }
    expected |= {"mask_token", "decoder_embed.weight", "decoder_embed.bias", "decoder_pos_embed"}
    expected |= {"decoder_norm_f.weight", "decoder_pred.weight", "decoder_pred.bias"}
    assert set(shapes) == expected
    assert shapes["pos_embed"] == (1, 401, 256)
    assert shapes["patch_embed.proj.weight"] == (256, 1, 4)
    assert shapes["decoder_blocks.0.mixer.dt_proj.weight"] == (256, 8)
    assert shapes["decoder_pred.weight"] == (4, 128)


def test_a_classifier_takes_the_encoder_of_a_pretrainer() -> None:
    backbone = NetMambaPretrainer(SMALL).state_dict()
    result = NetMambaClassifier(SMALL, 3).load_state_dict(backbone, strict=False)
    assert set(result.missing_keys) == {"head.weight", "head.bias"}
    assert all(name.startswith(("decoder", "mask_token")) for name in result.unexpected_keys)


def test_logits_equal_the_float64_twin() -> None:
    model = shaken(NetMambaClassifier(SMALL, 5)).eval()
    flows = some_bytes(3, SMALL.n_bytes)
    np.testing.assert_allclose(
        model(flows).detach().numpy(), twin.logits(flows.numpy(), in_float64(model)), atol=1e-5
    )


def test_header_only_flows_of_400_bytes_give_100_strides() -> None:
    config = replace(SMALL, n_bytes=400)
    model = shaken(NetMambaClassifier(config, 5)).eval()
    flows = some_bytes(2, 400)
    assert model.pos_embed.shape == (1, 101, 32)
    np.testing.assert_allclose(
        model(flows).detach().numpy(), twin.logits(flows.numpy(), in_float64(model)), atol=1e-5
    )


def test_pretraining_equals_the_float64_twin() -> None:
    config = replace(SMALL, mask_ratio=0.7)
    model = shaken(NetMambaPretrainer(config)).eval()
    flows = some_bytes(3, config.n_bytes)
    loss, predicted, mask = model(flows, torch.Generator().manual_seed(5))
    kept, same_mask = random_masking(
        3, config.n_strides, config.n_kept, torch.Generator().manual_seed(5), "cpu"
    )
    assert torch.equal(mask, same_mask)
    expected, expected_loss = twin.masked_prediction(flows.numpy(), in_float64(model), kept.numpy())
    np.testing.assert_allclose(predicted.detach().numpy(), expected, atol=2e-5)
    assert float(loss.detach()) == pytest.approx(expected_loss, rel=1e-5)


def test_every_weight_of_the_classifier_gets_a_gradient() -> None:
    model = shaken(NetMambaClassifier(SMALL, 5)).eval()
    model(some_bytes(4, 80)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 0, name


def test_pretraining_reaches_every_weight_but_the_class_token_s() -> None:
    """The class token is last and everything is causal: no stride's prediction can depend on it."""
    model = shaken(NetMambaPretrainer(replace(SMALL, mask_ratio=0.5))).eval()
    model(some_bytes(4, 80))[0].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert (float(parameter.grad.abs().max()) > 0) == (name != "cls_token"), name
    assert torch.count_nonzero(model.pos_embed.grad[:, -1]) == 0
    assert torch.count_nonzero(model.decoder_pos_embed.grad[:, -1]) == 0


def test_masking_keeps_39_of_400_strides_as_the_paper_s_arithmetic_does() -> None:
    config = NetMambaConfig()
    assert config.n_kept == 39
    kept, mask = random_masking(6, 400, config.n_kept, torch.Generator().manual_seed(0), "cpu")
    assert kept.shape == (6, 39)
    assert torch.equal(mask.sum(1), torch.full((6,), 361.0))
    for row, indices in zip(mask, kept, strict=True):
        assert set((row == 0).nonzero()[:, 0].tolist()) == set(indices.tolist())
        assert not torch.equal(indices, indices.sort().values), "the kept strides are read in shuffled order"


def test_masks_come_from_the_generator_alone() -> None:
    model = NetMambaPretrainer(SMALL).eval()
    flows = some_bytes(4, 80)
    masks = [model(flows, torch.Generator().manual_seed(seed))[2] for seed in (1, 1, 2)]
    torch.manual_seed(99)
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_the_loss_counts_hidden_strides_only() -> None:
    model = shaken(NetMambaPretrainer(SMALL)).eval()
    flows = some_bytes(4, 80)
    loss, predicted, mask = model(flows, torch.Generator().manual_seed(3))
    error = (predicted - model.scaled_strides(flows)).square().mean(-1)
    torch.testing.assert_close(loss, error[mask == 1].mean())
    assert not torch.isclose(loss, error.mean())


def test_a_hidden_stride_never_reaches_the_encoder() -> None:
    model = shaken(NetMambaPretrainer(SMALL)).eval()
    flows = some_bytes(4, 80)
    _, predicted, mask = model(flows, torch.Generator().manual_seed(3))
    hidden = mask.repeat_interleave(SMALL.stride, dim=1).bool()
    changed = torch.where(hidden, 255 - flows, flows)
    assert not torch.equal(changed, flows)
    assert torch.equal(model(changed, torch.Generator().manual_seed(3))[1], predicted)


def test_padding_bytes_become_minus_one_and_255_becomes_one() -> None:
    model = NetMambaClassifier(SMALL, 2)
    flows = torch.tensor([[0, 255] * 40], dtype=torch.uint8)
    assert model.scaled_strides(flows)[0, 0].tolist() == [-1.0, 1.0, -1.0, 1.0]


def test_drop_path_grows_from_nothing_to_the_rate_after_the_last_block() -> None:
    model = NetMambaClassifier(NetMambaConfig(), 2)
    assert [block.drop_path for block in model.blocks] == pytest.approx([0.0, 1 / 30, 2 / 30, 0.1])
    assert all(block.drop_path == 0.0 for block in NetMambaPretrainer(NetMambaConfig()).decoder_blocks)


@pytest.mark.parametrize("shape", [(2, 79), (2, 84), (160,)])
def test_flows_of_another_length_are_refused(shape: tuple[int, ...]) -> None:
    model = NetMambaClassifier(SMALL, 2).eval()
    flows = torch.zeros(shape, dtype=torch.uint8)
    expected = r"got torch.uint8 of shape \(.*\), expected torch.uint8 of shape \(flows, 80\)"
    with pytest.raises(ValueError, match=expected):
        model(flows)
    with torch.inference_mode(), pytest.raises(ValueError, match=expected):
        model(flows)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"stride": 3}, "stride 3 does not divide n_bytes 1600; choose a divisor such as 4"),
        ({"n_layers": 0}, "n_layers is 0; expected a whole number of 1 or more"),
        ({"drop_path": 1.0}, "drop_path is 1.0; expected a rate from 0 up to but not 1"),
        ({"mask_ratio": 0.999}, "mask_ratio 0.999 leaves none of 400 strides; choose a smaller one"),
    ],
)
def test_contradicting_sizes_are_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        NetMambaConfig(**wrong)


def test_depth_for_layer_decay_covers_every_parameter() -> None:
    config = NetMambaConfig()
    depths = {name: layer_index(name, config) for name, _ in NetMambaClassifier(config, 2).named_parameters()}
    assert {depths["cls_token"], depths["pos_embed"], depths["patch_embed.proj.weight"]} == {0}
    assert [depths[f"blocks.{i}.mixer.A_log"] for i in range(4)] == [1, 2, 3, 4]
    assert {depths["norm_f.weight"], depths["head.weight"], depths["head.bias"]} == {5}
    assert set(depths.values()) == {0, 1, 2, 3, 4, 5}


def test_the_family_builds_what_its_representation_s_settings_say() -> None:
    netmamba = FAMILIES["netmamba"]
    settings = {
        "n_packets": 5,
        "header_bytes": 80,
        "payload_bytes": 0,
        "stride": 4,
        "field_policy": "leak_free",
    }
    config = netmamba.config_for(settings, d_model=32, n_layers=2)
    assert (config.n_bytes, config.stride, config.d_model, config.n_layers) == (400, 4, 32, 2)
    assert netmamba.build_classifier(config, 3).eval()(some_bytes(2, 400)).shape == (2, 3)
    assert netmamba.build_pretrainer(config)(some_bytes(2, 400))[2].shape == (2, 100)
    assert netmamba.layer_index("head.bias", config) == 3
    assert netmamba.config_for({**settings, "payload_bytes": 240}) == NetMambaConfig()


def test_an_unknown_family_is_named_with_those_that_exist() -> None:
    with pytest.raises(
        UsageError, match="unknown model family 'netmumba'; expected one of: netfound, netmamba"
    ):
        family("netmumba")
