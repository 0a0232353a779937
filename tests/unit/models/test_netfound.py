"""netFound's network: equal to its twin and to itself padded, blind to batch mates; its objectives and their traps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from capture.errors import UsageError
from capture.representations import netfound_layout as layout
from models.convert.netfound import n_published_parameters
from models.families import FAMILIES
from models.learning.finetune import freeze
from models.learning.start import load_body
from models.nets.netfound import NetFoundClassifier
from models.nets.netfound_bursts import Tokens
from models.nets.netfound_config import NetFoundConfig, sized
from models.nets.netfound_hiding import hide
from models.nets.netfound_pretrainer import NetFoundPretrainer
from tests.reference import netfound as reference
from tests.unit.models.netfound_flows import some_flows

SMALL: dict[str, Any] = {"d_model": 16, "n_layers": 2, "n_heads": 2, "d_mlp": 12, "d_meta": 8}
PUBLISHED: dict[str, Any] = {"factorised": False, "log_metadata": False, "head_hidden": True}


def shaken(network: nn.Module, seed: int = 0) -> nn.Module:
    """Weights large enough that every part matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return network.eval()


def doubled(tokens: Tokens) -> Tokens:
    return Tokens(*(array.double() if array.is_floating_point() else array for array in tokens))


@pytest.mark.parametrize("fields", [{}, PUBLISHED], ids=["ours", "published"])
def test_logits_are_those_of_the_plain_twin(fields: dict[str, Any]) -> None:
    config = NetFoundConfig(**{**SMALL, **fields})
    network = shaken(NetFoundClassifier(config, 5)).double()
    tokens = Tokens(*some_flows(5, n_bursts=3))
    pooled = network._pooled(doubled(tokens))  # type: ignore[operator]
    if config.head_hidden:
        pooled = network.hidden_out(nn.functional.gelu(network.hidden_in(pooled)))  # type: ignore[operator]
    ours = network.head(pooled)  # type: ignore[operator]
    state = network.state_dict()
    flows = [dict(zip(layout.ARRAYS, (array[row] for array in tokens), strict=True)) for row in range(5)]
    twin = torch.stack([reference.logits(state, config, flow) for flow in flows])
    torch.testing.assert_close(ours, twin, rtol=0, atol=1e-10)
    assert twin.std() > 0.1


@pytest.mark.parametrize("fields", [{}, PUBLISHED], ids=["ours", "published"])
def test_each_objectives_loss_is_that_of_the_plain_twin(fields: dict[str, Any]) -> None:
    config = NetFoundConfig(**{**SMALL, **fields})
    network = shaken(NetFoundPretrainer(config)).double()
    # Ten flows: two of each protocol, so that a burst can be swapped.
    hidden = hide(Tokens(*some_flows(10, seed=1, n_bursts=4)), config, torch.Generator().manual_seed(2))
    assert hidden.metadata_hidden.any()
    assert hidden.swapped.any()
    hidden = dataclasses.replace(hidden, tokens=doubled(hidden.tokens), metadata=hidden.metadata.double())
    loss, parts, _ = network.compare(hidden)  # type: ignore[operator]
    twin = reference.losses(network.state_dict(), config, hidden)
    for name, value in twin.items():
        assert float(parts[name]) == pytest.approx(value, rel=1e-5), name
    weighted = twin["mlm_loss"] + twin["swap_loss"] + 0.4 * twin["metadata_loss"] + twin["direction_loss"]
    assert float(loss.detach()) == pytest.approx(weighted, rel=1e-5)


def test_packed_is_padded_and_no_batch_mate_is_read() -> None:
    network = shaken(NetFoundClassifier(NetFoundConfig(**SMALL), 5))
    arrays = some_flows(20, seed=3)
    with torch.inference_mode():
        together = network(*arrays)
        alone = torch.cat([network(*(array[row : row + 1] for array in arrays)) for row in range(20)])
        network.packed = False
        padded = network(*arrays)
    torch.testing.assert_close(together, padded, rtol=0, atol=1e-5)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_published_pooling_groups_flows_so_that_nothing_padded_is_pooled() -> None:
    config = NetFoundConfig(**SMALL, published_pooling=True)
    network = shaken(NetFoundClassifier(config, 5))
    arrays = some_flows(12, seed=4)
    with torch.inference_mode():
        packed = network(*arrays)
        network.packed = False
        torch.testing.assert_close(network(*arrays), packed, rtol=0, atol=1e-5)


def test_a_flow_without_bursts_answers_the_heads_bias() -> None:
    network = shaken(NetFoundClassifier(NetFoundConfig(**SMALL), 5))
    arrays = some_flows(3)
    for array in arrays:
        array[1] = 0
    with torch.inference_mode():
        torch.testing.assert_close(network(*arrays)[1], network.head.bias)  # type: ignore[union-attr]
        nothing = network(*(torch.zeros_like(array) for array in arrays))
        torch.testing.assert_close(nothing, network.head.bias.expand(3, -1))  # type: ignore[union-attr,operator]
        network.packed = False
        torch.testing.assert_close(network(*arrays)[1], network.head.bias)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("size", "parameters"), [("small", 53_383_495), ("base", 174_683_335), ("large", 662_187_463)]
)
def test_published_sizes_have_the_published_parameters(size: str, parameters: int) -> None:
    config = sized(size)
    with torch.device("meta"):
        network = NetFoundPretrainer(config)
    assert n_published_parameters(network, config) == parameters


def test_arrays_of_another_representation_are_refused() -> None:
    network = NetFoundClassifier(NetFoundConfig(**SMALL), 5)
    arrays = some_flows(2)
    with pytest.raises(ValueError, match=r"direction: got torch\.int64 of shape"):
        network(arrays[0], arrays[1].long(), *arrays[2:])


def test_masking_is_80_10_10_of_30_percent_and_of_values_alone() -> None:
    tokens = Tokens(*some_flows(300, seed=5))
    config = NetFoundConfig(**SMALL, swap_share=0.0)
    hidden = hide(tokens, config, torch.Generator().manual_seed(0))
    asked = hidden.targets != layout.PAD
    values = (tokens.ids != layout.PAD) & (tokens.ids != layout.CLS)
    assert not (asked & ~values).any()
    assert torch.equal(hidden.targets[asked], tokens.ids[asked])
    assert torch.equal(hidden.tokens.ids[~asked], tokens.ids[~asked])
    became = hidden.tokens.ids[asked]
    is_mask, is_same = became == layout.MASK, became == tokens.ids[asked]
    assert float(asked.sum() / values.sum()) == pytest.approx(0.3, abs=0.005)
    assert float(is_mask.float().mean()) == pytest.approx(0.8, abs=0.01)
    assert float(is_same.float().mean()) == pytest.approx(0.1, abs=0.01)
    other = became[~is_mask & ~is_same]
    assert int(other.min()) >= 1
    assert int(other.max()) <= layout.N_VALUES


def _swapped(**fields: Any) -> tuple[Tokens, Any]:
    tokens = Tokens(*some_flows(200, seed=6))
    config = NetFoundConfig(**SMALL, mask_share=0.0, metadata_share=0.0, swap_share=0.9, **fields)
    return tokens, hide(tokens, config, torch.Generator().manual_seed(0))


def test_a_swapped_burst_brings_its_metadata_and_is_of_the_same_protocol() -> None:
    tokens, hidden = _swapped()
    changed = (hidden.tokens.ids != tokens.ids).any(2)
    assert torch.equal(changed.any(1), hidden.swapped)
    assert set(changed.sum(1).tolist()) == {0, 1}
    moved = 0
    for flow, burst in changed.nonzero().tolist():
        same = (tokens.ids == hidden.tokens.ids[flow, burst]).all(2).nonzero().tolist()
        assert len(same) == 1
        donor, of_donor = same[0]
        assert donor != flow
        assert tokens.protocol[donor] == tokens.protocol[flow]
        for name in layout.METADATA:
            assert getattr(hidden.tokens, name)[flow, burst] == getattr(tokens, name)[donor, of_donor]
        moved += 1
    assert moved > 150


def test_the_published_swap_leaves_metadata_behind() -> None:
    tokens, hidden = _swapped(published_swap=True)
    assert hidden.swapped.sum() > 150
    for name in layout.METADATA:
        assert torch.equal(getattr(hidden.tokens, name), getattr(tokens, name))


def test_metadata_is_hidden_in_flows_of_more_than_three_bursts() -> None:
    tokens = Tokens(*some_flows(300, seed=7))
    config = NetFoundConfig(**SMALL, swap_share=0.0)
    hidden = hide(tokens, config, torch.Generator().manual_seed(1))
    counts = (tokens.direction != 0).sum(1)
    assert not hidden.metadata_hidden[counts < 4].any()
    present = (tokens.direction != 0) & (counts >= 4)[:, None]
    assert float(hidden.metadata_hidden.sum() / present.sum()) == pytest.approx(0.3, abs=0.03)
    for name in layout.METADATA:
        assert not getattr(hidden.tokens, name)[hidden.metadata_hidden].any()
    assert torch.equal(hidden.metadata, tokens.metadata())


def test_the_first_stage_counts_masked_tokens_alone() -> None:
    network = NetFoundPretrainer(NetFoundConfig(**SMALL, first_stage_share=0.5)).eval()

    def loss(progress: float) -> tuple[float, dict[str, Tensor]]:
        network.set_progress(progress)
        total, parts, _ = network(*some_flows(8), generator=torch.Generator().manual_seed(0))
        return float(total.detach()), parts

    first, parts = loss(0.4)
    assert first == pytest.approx(float(parts["mlm_loss"]))
    assert loss(0.6)[0] > first


def test_a_few_steps_learn_a_masked_constant() -> None:
    torch.manual_seed(0)
    network = NetFoundPretrainer(NetFoundConfig(**SMALL, swap_share=0.0, dropout=0.0, attention_dropout=0.0))
    arrays = some_flows(8)
    arrays[0][(arrays[0] != layout.PAD) & (arrays[0] != layout.CLS)] = 1501
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    for step in range(25):
        loss, parts, _ = network(*arrays, generator=torch.Generator().manual_seed(step))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert float(parts["mlm_accuracy"]) > 0.95


@pytest.mark.parametrize(
    ("parts", "is_frozen"),
    [
        (("embeddings",), lambda name: name.startswith("embeddings.")),
        (("burst_encoder",), lambda name: "burst_encoder" in name),
        (("flow_encoder",), lambda name: "flow_encoder" in name),
        (("all",), lambda name: name.startswith(("embeddings.", "layers."))),
    ],
)
def test_frozen_parts_do_not_learn_and_others_do(
    parts: tuple[str, ...], is_frozen: Callable[[str], bool]
) -> None:
    network = NetFoundClassifier(NetFoundConfig(**SMALL), 5)
    freeze(network, FAMILIES["netfound"], parts)
    for name, parameter in network.named_parameters():
        assert parameter.requires_grad != is_frozen(name), name


def test_an_unknown_part_is_refused_by_name() -> None:
    network = NetFoundClassifier(NetFoundConfig(**SMALL), 5)
    with pytest.raises(UsageError, match="got 'decoder' of family netfound, expected one of burst_encoder"):
        freeze(network, FAMILIES["netfound"], ("decoder",))


def test_a_classifier_starts_from_a_backbone_and_its_own_dense_layers_stay_random() -> None:
    config = NetFoundConfig(**SMALL, head_hidden=True)
    backbone, classifier = NetFoundPretrainer(config), NetFoundClassifier(config, 5)
    before = classifier.hidden_in.weight.clone()
    load_body(classifier, backbone.state_dict(), FAMILIES["netfound"], config)
    assert torch.equal(
        classifier.layers[1].flow_encoder.query.weight, backbone.layers[1].flow_encoder.query.weight
    )
    assert torch.equal(classifier.hidden_in.weight, before)
