"""packet-mamba's inference path gives the module's and the twin's answers, packed, in pieces, packet by packet."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.nets import packed_kernels, packet_inference
from models.nets.packet_inference import FastPacketMamba, bucket_guesses, bucket_thresholds
from models.nets.packet_mamba import PacketMambaClassifier, buckets
from models.precision import cpu_multiplies_bf16
from tests.reference import packet_mamba as twin
from tests.unit.models.test_packet_mamba import CONFIG, float64_weights, some_tokens


def classifier(config=CONFIG):
    torch.manual_seed(0)
    return PacketMambaClassifier(config, 4).eval()


def fast(model, tokens):
    with torch.inference_mode():
        return model(*tokens)


@pytest.mark.parametrize("change", [{}, {"d_model": 40, "n_layers": 1}, {"d_conv": 2, "n_layers": 3}])
def test_the_fast_path_gives_the_answers_of_module_and_twin(change):
    model, tokens = classifier(replace(CONFIG, **change)), some_tokens(20)
    got, numpy_tokens = fast(model, tokens), [t.numpy() for t in tokens]
    assert (got - model(*tokens)).abs().max() < 1e-5
    last = np.maximum((numpy_tokens[1][..., 0] > 0).sum(axis=1), 1) - 1
    expected = twin.prefix_logits(*numpy_tokens, float64_weights(model))[np.arange(20), last]
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-5)


def test_the_shipped_sizes_give_the_answers_of_the_module():
    model = classifier(replace(CONFIG, d_model=128, d_byte=8))
    torch.nn.init.normal_(model.head.weight, std=0.1)
    tokens = some_tokens(9)
    expected = model(*tokens)
    assert float(expected.detach().std()) > 0.5
    assert (fast(model, tokens) - expected).abs().max() < 1e-5


def test_flows_without_payload_bytes_and_without_packets_are_answered():
    model, tokens = classifier(replace(CONFIG, payload_bytes=0)), some_tokens()
    numbers, flags, payload = tokens[0], tokens[1], tokens[2][..., :0]
    flags[2] = 0
    assert (fast(model, (numbers, flags, payload)) - model(numbers, flags, payload)).abs().max() < 1e-5
    assert fast(model, [t[:0] for t in (numbers, flags, payload)]).shape == (0, 4)


def test_batch_mates_order_and_pieces_do_not_change_an_answer(monkeypatch):
    model, tokens = classifier(), some_tokens(30)
    together = fast(model, tokens)
    alone = torch.cat([fast(model, [t[f : f + 1] for t in tokens]) for f in range(30)])
    assert (together - alone).abs().max() < 1e-5
    assert (together - fast(model, [t.flip(0) for t in tokens]).flip(0)).abs().max() < 1e-5
    monkeypatch.setattr(packet_inference, "ROWS", 5)  # also fewer than some flows have packets
    assert (together - fast(classifier(), tokens)).abs().max() < 1e-5


def test_an_answer_is_no_view_of_a_buffer():
    model, tokens = classifier(), some_tokens()
    first = fast(model, tokens)
    kept = first.clone()
    fast(model, some_tokens(seed=1))
    assert torch.equal(first, kept)


def test_every_bucket_is_the_module_s():
    thresholds = bucket_thresholds()
    guesses = bucket_guesses(thresholds)
    rng = np.random.default_rng(0)
    for column in range(5):
        edges = thresholds[column][thresholds[column] < 2**31]
        values = np.concatenate(
            [edges, edges[1:] - 1, 2 ** np.arange(31), np.exp(rng.uniform(0, 21.48, 3000)).astype(np.int64)]
        )
        values = np.append(values.clip(0, 2**31 - 1), 2**31 - 1)
        expected = buckets(torch.from_numpy(values).int()[:, None].expand(-1, 5))[:, column].numpy()
        got = [packed_kernels.bucket_of(int(v), guesses[column], thresholds[column]) for v in values]
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("n_at_once", [1, 2, 5])
def test_flows_that_go_on_get_the_answers_of_the_whole_sequence(n_at_once):
    model, tokens = classifier(), some_tokens()
    model_fast, arrays = FastPacketMamba(model), [t.numpy() for t in tokens]
    states = model_fast.new_states(6)
    with torch.inference_mode():
        whole = model.prefix_logits(*tokens)
        for k in range(0, 7, n_at_once):
            n = min(n_at_once, 7 - k)
            features = model_fast.advance(states, np.arange(6), *arrays, np.full(6, k), np.full(6, n))
            torch.testing.assert_close(
                model_fast.logits_of(features), whole[:, k + n - 1], atol=1e-5, rtol=1e-5
            )


def test_the_state_of_an_open_flow_is_of_one_size_and_its_cost_that_of_the_new_packets(monkeypatch):
    """small: 2 blocks of 16 scan states and 3 inputs of 256 channels, 4 bytes each: 38 KiB, after any packet."""
    model = FastPacketMamba(classifier(replace(CONFIG, d_model=128, n_layers=2)))
    states = model.new_states(3)
    assert states.bytes_per_flow == 2 * (16 + 3) * 256 * 4 == 38_912
    assert states.conv.nbytes + states.scan.nbytes == 3 * 38_912
    rows = []
    scan = packed_kernels.scan
    monkeypatch.setattr(packed_kernels, "scan", lambda u, *more: (rows.append(len(u)), scan(u, *more)))
    arrays = [t.numpy() for t in some_tokens(3)]
    for age in range(200):
        model.advance(states, np.arange(3), *arrays, np.full(3, age % 5), np.ones(3, np.int64))
    assert set(rows) == {3}, "each call computes the new packets and nothing else"
    assert len(rows) == 200 * 2
    assert states.conv.nbytes + states.scan.nbytes == 3 * 38_912
    assert np.isfinite(states.scan).all()


def test_with_gradients_in_training_and_for_odd_sizes_the_module_computes():
    model, tokens = classifier(), some_tokens()
    assert model.fast_form() is None
    model(*tokens).sum().backward()
    assert model.head.weight.grad is not None
    with torch.inference_mode():
        assert model.fast_form() is not None
        assert model.train().fast_form() is None
        odd = classifier(replace(CONFIG, d_state=6))
        assert odd.fast_form() is None
        assert odd.inference_precisions == ("fp32",)
    assert fast(odd, tokens).shape == (6, 4)


def test_changed_weights_change_the_answer():
    model, tokens = classifier(), some_tokens()
    before = fast(model, tokens)
    with torch.no_grad():
        model.embed.bytes.weight.mul_(3)
    after = fast(model, tokens)
    assert (after - before).abs().max() > 1e-3
    assert (after - model(*tokens)).abs().max() < 1e-5


@pytest.mark.skipif(not cpu_multiplies_bf16(), reason="this CPU has no bf16 products")
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_narrow_products_stay_near(precision):
    model, tokens = classifier(replace(CONFIG, d_model=128)), some_tokens(40)
    exact = fast(model, tokens)
    assert precision in model.inference_precisions
    model.inference_precision = precision
    near = fast(model, tokens)
    assert 0 < (near - exact).abs().max() < 0.05 * exact.std()
