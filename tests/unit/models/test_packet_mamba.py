"""packet-mamba against its float64 twin, and what a causal model of packets promises."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.families import family
from models.nets.packet_mamba import (
    PacketMambaClassifier,
    PacketMambaConfig,
    PacketMambaPretrainer,
    layer_index,
)
from tests.reference import packet_mamba as twin

CONFIG = PacketMambaConfig(n_packets=7, payload_bytes=5, d_model=32, n_layers=2, d_byte=4, predicted_bytes=3)


def some_tokens(n_flows=6, n_packets=7, seed=0):
    rng = np.random.default_rng(seed)
    numbers = np.exp(rng.uniform(0, 21, (n_flows, n_packets, 5))).astype(np.int64).clip(0, 2**31 - 1)
    numbers[rng.random(numbers.shape) < 0.2] = 0
    flags = rng.integers(0, 256, (n_flows, n_packets, 10)).astype(np.uint8)
    flags[..., 0], flags[..., 5], flags[..., 7] = 1 + flags[..., 0] % 2, flags[..., 5] % 3, flags[..., 7] % 5
    flags[..., 9] %= 6
    payload = rng.integers(0, 256, (n_flows, n_packets, 5)).astype(np.uint8)
    for f in range(n_flows):
        n = n_packets - f % n_packets
        numbers[f, n:], flags[f, n:], payload[f, n:] = 0, 0, 0
    return [torch.from_numpy(a) for a in (numbers.astype(np.int32), flags, payload)]


def built(kind, *more):
    torch.manual_seed(0)
    return kind(CONFIG, *more).eval()


def float64_weights(model):
    return {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}


def test_the_answers_after_every_packet_are_the_float64_twin_s():
    model, tokens = built(PacketMambaClassifier, 4), some_tokens()
    expected = twin.prefix_logits(*(t.numpy() for t in tokens), float64_weights(model))
    with torch.inference_mode():
        got = model.prefix_logits(*tokens).numpy()
    np.testing.assert_allclose(got, expected, atol=2e-5 * np.abs(expected).max())


def test_the_pretraining_loss_is_the_float64_twin_s_part_by_part():
    model, tokens = built(PacketMambaPretrainer), some_tokens()
    expected = twin.pretraining_parts(*(t.numpy() for t in tokens), float64_weights(model), 3)
    loss, parts, mask = model(*tokens)
    assert {name: pytest.approx(value, rel=1e-5) for name, value in expected.items()} == {
        name: part.item() for name, part in parts.items()
    }
    assert loss.item() == pytest.approx(sum(expected.values()), rel=1e-5)
    assert mask.sum().item() == sum(max(int((flow[:, 0] > 0).sum()) - 1, 0) for flow in tokens[1])


def test_flows_of_one_packet_are_no_error_in_pretraining():
    tokens = [t[:, :1] for t in some_tokens()]
    loss, parts, mask = built(PacketMambaPretrainer)(*tokens)
    assert (loss.item(), parts, mask.numel()) == (0.0, {}, 0)
    loss.backward()


def test_step_by_step_gives_the_answers_of_the_whole_sequence():
    model, tokens = built(PacketMambaClassifier, 4), some_tokens()
    with torch.inference_mode():
        whole = model.prefix_logits(*tokens)
        state = model.initial_state(len(whole))
        for k in range(whole.shape[1]):
            state, logits = model.step(state, *(t[:, k] for t in tokens))
            torch.testing.assert_close(logits, whole[:, k], atol=1e-5, rtol=1e-5)


def test_the_state_of_a_flow_does_not_grow():
    model, tokens = built(PacketMambaClassifier, 4), some_tokens()
    state = model.initial_state(6)
    before = [part.numel() for block in state for part in (block.conv, block.scan)]
    for k in range(7):
        state, _ = model.step(state, *(t[:, k] for t in tokens))
    assert [part.numel() for block in state for part in (block.conv, block.scan)] == before


def test_the_answer_is_that_of_the_last_packet_and_padding_and_batch_mates_do_not_change_it():
    model, tokens = built(PacketMambaClassifier, 4), some_tokens()
    with torch.inference_mode():
        together, prefixes = model(*tokens), model.prefix_logits(*tokens)
        for f in range(6):
            n = int((tokens[1][f, :, 0] > 0).sum())
            alone = model(*(t[f : f + 1, :n] for t in tokens))
            torch.testing.assert_close(together[f], prefixes[f, n - 1], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(together[f], alone[0], atol=1e-5, rtol=1e-5)


def test_training_answers_after_early_packets_too():
    model, tokens = built(PacketMambaClassifier, 4), some_tokens(1)
    with torch.inference_mode():
        prefixes = model.prefix_logits(*tokens)[0]
    model.train()
    for block in model.blocks:
        block.drop_path = 0.0
    model.config = replace(CONFIG, head_dropout=0.0)
    answered = set()
    for seed in range(60):
        torch.manual_seed(seed)
        distance = (model(*tokens)[0] - prefixes).abs().amax(-1)
        assert distance.min() < 1e-4
        answered.add(int(distance.argmin()))
    assert answered == set(range(7))


def test_every_weight_learns():
    model, tokens = built(PacketMambaClassifier, 4).train(), some_tokens(40)
    model(*tokens).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    pretrainer = built(PacketMambaPretrainer).train()
    pretrainer(*tokens)[0].backward()
    assert [name for name, p in pretrainer.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_tokens_of_another_kind_are_refused():
    model, (numbers, flags, payload) = built(PacketMambaClassifier, 4), some_tokens()
    for odd in (
        (numbers.long(), flags, payload),
        (numbers, flags[..., :9], payload),
        (numbers, flags, payload[:, :, :4]),
        (numbers[:3], flags, payload),
    ):
        with pytest.raises(ValueError, match="expected numbers, flags and payload like"):
            model(*odd)


def test_the_family_takes_its_sizes_from_the_representation_and_sorts_its_depths():
    kind = family("packet-mamba")
    config = kind.config_for({"n_packets": 9, "payload_bytes": 3}, d_model=16)
    assert (config.n_packets, config.payload_bytes, config.d_model) == (9, 3, 16)
    depths = {name: layer_index(name, CONFIG) for name in built(PacketMambaClassifier, 4).state_dict()}
    assert {depths[name] for name in depths if name.startswith("embed.")} == {0}
    assert depths["blocks.1.norm.weight"] == 2
    assert depths["head.weight"] == depths["norm_f.weight"] == 3
    for odd in ({"n_layers": 0}, {"payload_bytes": -1}, {"prefix_share": 1.0}):
        with pytest.raises(ValueError, match="expected a"):
            PacketMambaConfig(**odd)
