"""The two ablations that change the network: two directions, and no positions."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from capture.errors import CheckpointError, UsageError
from capture.representations import build
from models.checkpoint import Calibration, Checkpoint, load_checkpoint, save_checkpoint
from models.families import family
from models.learning.schedules import parameter_groups
from models.nets import netmamba_inference
from models.nets.mamba import MambaBlock
from models.nets.netmamba import NetMambaClassifier, NetMambaConfig, NetMambaPretrainer
from models.predictor import Predictor
from tests.reference import mamba as mamba_twin
from tests.reference import netmamba as twin
from tests.unit.models.test_netmamba import SMALL, in_float64, shaken, some_bytes

TWO_WAYS = replace(SMALL, bidirectional=True)
NOWHERE = replace(SMALL, positions=False)
ABLATED = pytest.mark.parametrize("config", [TWO_WAYS, NOWHERE, replace(TWO_WAYS, positions=False)])


def two_way_block() -> MambaBlock:
    torch.manual_seed(0)
    return shaken(MambaBlock(24, d_state=8, bidirectional=True))


def test_a_block_of_two_directions_equals_the_float64_twin() -> None:
    block = two_way_block()
    tokens = torch.randn(2, 9, 24)
    expected = mamba_twin.block(tokens.double().numpy(), in_float64(block))
    np.testing.assert_allclose(block(tokens).detach().numpy(), expected, atol=3e-6)


def test_gradients_of_two_directions_equal_the_plain_loop_in_float64() -> None:
    block, tokens = two_way_block(), torch.randn(2, 9, 24)
    block(tokens).square().sum().backward()
    fast = {name: p.grad.clone() for name, p in block.named_parameters() if p.grad is not None}
    block.double().zero_grad()
    block(tokens.double()).square().sum().backward()
    for name, parameter in block.named_parameters():
        assert parameter.grad is not None
        scale = float(parameter.grad.abs().max())
        assert (fast[name] - parameter.grad).abs().max() < 1e-5 * max(scale, 1.0), name


def test_the_first_token_sees_the_last_one_with_two_directions_only() -> None:
    tokens = torch.randn(1, 9, 24)
    changed = tokens.clone()
    changed[:, -1] += 1.0
    both = two_way_block()
    assert (both(changed) - both(tokens))[:, 0].abs().max() > 1e-4
    one = shaken(MambaBlock(24, d_state=8))
    assert torch.equal(one(changed)[:, :-1], one(tokens)[:, :-1])


def test_two_directions_share_the_projections_and_have_no_step_form() -> None:
    names = set(two_way_block().mixer.state_dict()) - set(MambaBlock(24, d_state=8).mixer.state_dict())
    weights = {"conv1d_b.weight", "conv1d_b.bias", "x_proj_b.weight", "dt_proj_b.weight", "dt_proj_b.bias"}
    assert names == weights | {"A_b_log", "D_b"}, "those of Vision Mamba"
    with pytest.raises(ValueError, match="a bidirectional mixer cannot go token by token"):
        two_way_block().initial_state(1)


def test_weight_decay_spares_the_decay_rates_of_both_directions() -> None:
    block = two_way_block()
    spared = [g["params"] for g in parameter_groups(block, 0.05) if g["weight_decay"] == 0.0]
    addresses = {p.data_ptr() for group in spared for p in group}
    assert {block.mixer.A_log.data_ptr(), block.mixer.A_b_log.data_ptr()} <= addresses


@ABLATED
def test_classifier_and_autoencoder_equal_the_float64_twin(config: NetMambaConfig) -> None:
    torch.manual_seed(0)
    model = shaken(NetMambaClassifier(config, 5)).eval()
    flows = some_bytes(3, config.n_bytes)
    expected = twin.logits(flows.numpy(), in_float64(model))
    np.testing.assert_allclose(model(flows).detach().numpy(), expected, atol=2e-5)
    pretrainer = shaken(NetMambaPretrainer(config)).eval()
    loss, predicted, mask = pretrainer(flows, generator=torch.Generator().manual_seed(1))
    noise = torch.rand(3, config.n_strides, generator=torch.Generator().manual_seed(1))
    kept = noise.argsort(dim=1)[:, : config.n_kept]
    expected, expected_loss = twin.masked_prediction(flows.numpy(), in_float64(pretrainer), kept.numpy())
    np.testing.assert_allclose(predicted.detach().numpy(), expected, atol=3e-5)
    assert float(loss.detach()) == pytest.approx(expected_loss, rel=1e-5)
    assert mask.sum(1).tolist() == [config.n_strides - config.n_kept] * 3


@ABLATED
def test_inference_gives_the_module_s_logits_or_hands_over_to_it(config: NetMambaConfig) -> None:
    torch.manual_seed(0)
    model = shaken(NetMambaClassifier(config, 5)).eval()
    assert netmamba_inference.covers(model) is not config.bidirectional
    flows = some_bytes(6, config.n_bytes)
    with torch.inference_mode():
        answer = model(flows)
    assert (answer - model(flows)).abs().max() < 1e-5


def test_without_positions_there_are_none() -> None:
    names = set(NetMambaPretrainer(SMALL).state_dict()) - set(NetMambaPretrainer(NOWHERE).state_dict())
    assert names == {"pos_embed", "decoder_pos_embed"}


def saved(folder: Path, **sizes: Any) -> Checkpoint:
    settings = build("netmamba", {"n_packets": 2, "header_bytes": 8, "payload_bytes": 0}).settings()
    netmamba = family("netmamba")
    config = netmamba.config_for(settings, d_model=16, n_layers=2, d_state=4, mask_ratio=0.5, **sizes)
    return save_checkpoint(
        folder,
        kind="classifier",
        family="netmamba",
        model_config=asdict(config),
        representation="netmamba",
        representation_settings=settings,
        labels=["a", "b"],
        calibration=Calibration(),
        card={},
        state=netmamba.build_classifier(config, 2).state_dict(),
    )


@pytest.mark.parametrize(("flag", "value"), [("bidirectional", True), ("positions", False)])
def test_a_checkpoint_has_the_ablation_in_its_config_and_is_refused_under_another(
    tmp_path: Path, flag: str, value: bool
) -> None:
    checkpoint = saved(tmp_path / "model", **{flag: value})
    assert load_checkpoint(tmp_path / "model").model_config[flag] is value
    with Predictor(checkpoint, threads=1, device="cpu") as predictor:
        assert predictor.checkpoint.model_config[flag] is value
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    config["model"][flag] = not value
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"missing tensors, expected the \d+ of a netmamba classifier"):
        load_checkpoint(tmp_path / "model")
    config["model"][flag] = "yes"
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=f"got model.{flag} = 'yes', expected true or false"):
        load_checkpoint(tmp_path / "model")


def test_a_checkpoint_from_before_the_flags_is_the_paper_s_network(tmp_path: Path) -> None:
    saved(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    del config["model"]["bidirectional"], config["model"]["positions"]
    path.write_text(json.dumps(config))
    with Predictor(load_checkpoint(tmp_path / "model"), threads=1, device="cpu") as predictor:
        assert predictor is not None
    del config["model"]["d_model"]
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="got no key 'd_model'"):
        load_checkpoint(tmp_path / "model")


@pytest.mark.parametrize("flag", ["bidirectional", "positions"])
def test_a_flag_that_is_neither_true_nor_false_is_refused(flag: str) -> None:
    with pytest.raises((UsageError, ValueError), match=f"{flag} is 'maybe'; expected true or false"):
        replace(SMALL, **{flag: "maybe"})
