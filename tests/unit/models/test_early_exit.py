"""Early answers rarely change later, are those of the prefix, and never cost more than the full pass."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch

from capture.errors import CheckpointError, UsageError
from capture.representations import TokenBatch, build
from models.checkpoint import Calibration, load_checkpoint, save_checkpoint
from models.checkpoint_files import ExitLevel, read_files
from models.early_exit import answers_early, fit_levels
from models.families import family
from models.learning.calibration import softmax
from models.nets import packed_kernels
from models.nets.packet_inference import FastPacketMamba
from models.predictor import Predictor
from tests.unit.models.test_packet_inference import classifier
from tests.unit.models.test_packet_mamba import some_tokens

NEVER = tuple(ExitLevel(k, 1.0, 1.0) for k in (1, 2, 4))
ALWAYS = (ExitLevel(2, 1.5, 0.0),)


def arrays_and_lengths(n_flows=30):
    tokens = tuple(t.numpy() for t in some_tokens(n_flows))
    return tokens, (tokens[1][..., 0] > 0).sum(axis=1)


def test_an_early_answer_is_that_of_the_prefix_at_its_own_temperature():
    model = classifier()
    tokens, n_packets = arrays_and_lengths()
    with torch.inference_mode():
        prefixes = model.prefix_logits(*some_tokens(30)).numpy()
    got, used = answers_early(FastPacketMamba(model), tokens, n_packets, ALWAYS, 2.0)
    np.testing.assert_array_equal(used, np.minimum(n_packets, 2))
    temperature = np.where(n_packets > 2, 1.5, 2.0)[:, None]
    np.testing.assert_allclose(got, prefixes[np.arange(30), used - 1] / temperature, atol=1e-5)


def test_who_leaves_is_sure_and_who_stays_gets_the_full_answer():
    model = classifier()
    torch.nn.init.normal_(model.head.weight, std=0.3)
    tokens, n_packets = arrays_and_lengths(60)
    with torch.inference_mode():
        prefixes = model.prefix_logits(*some_tokens(60)).numpy()
    levels = (ExitLevel(1, 1.0, 0.6), ExitLevel(3, 1.2, 0.5))
    got, used = answers_early(FastPacketMamba(model), tokens, n_packets, levels, 1.0)
    expected_used, expected = n_packets.copy(), prefixes[np.arange(60), n_packets - 1]
    for level in reversed(levels):
        after = prefixes[:, level.packets - 1] / level.temperature
        leaves = (n_packets > level.packets) & (softmax(after).max(axis=1) >= level.threshold)
        expected_used[leaves], expected[leaves] = level.packets, after[leaves]
    np.testing.assert_array_equal(used, expected_used)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert {1, 3, 7} < set(used.tolist())


def test_a_sender_that_keeps_the_model_unsure_costs_the_full_pass_and_no_more(monkeypatch):
    model = FastPacketMamba(classifier())
    tokens, n_packets = arrays_and_lengths()
    rows, outputs = [], []
    scan = packed_kernels.scan

    def counted(u, *more):
        rows.append(len(u))
        outputs.append(len(more[-1]))
        return scan(u, *more)

    monkeypatch.setattr(packed_kernels, "scan", counted)
    model(*some_tokens(30))
    full = sum(rows)
    rows.clear()
    _, used = answers_early(model, tokens, n_packets, NEVER, 1.0)
    np.testing.assert_array_equal(used, n_packets)
    assert sum(rows) == full == n_packets.sum() * 2, "each packet once in each of the two blocks"
    rows.clear()
    answers_early(model, tokens, n_packets, ALWAYS, 1.0)
    assert sum(rows) == np.minimum(n_packets, 2).sum() * 2


def test_batch_mates_do_not_change_when_a_flow_is_answered():
    model = classifier()
    torch.nn.init.normal_(model.head.weight, std=1.0)
    fast = FastPacketMamba(model)
    tokens, n_packets = arrays_and_lengths()
    levels = (ExitLevel(1, 1.0, 0.6), ExitLevel(3, 1.2, 0.5))
    together, used = answers_early(fast, tokens, n_packets, levels, 1.0)
    for f in range(30):
        alone, used_alone = answers_early(
            fast, tuple(t[f : f + 1] for t in tokens), n_packets[f : f + 1], levels, 1.0
        )
        np.testing.assert_allclose(alone[0], together[f], atol=1e-5)
        assert used_alone[0] == used[f]


def test_thresholds_keep_early_answers_at_what_the_full_input_says():
    """400 flows; the surer half of the early answers never changes, of the others every second one does."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 400)
    final = 4.0 * np.eye(3)[labels]
    sure = np.arange(400) < 200
    early = (
        np.where(sure[:, None], 6.0 + rng.random((400, 1)), 1.0 + rng.random((400, 1))) * np.eye(3)[labels]
    )
    turned = ~sure & (np.arange(400) % 2 == 0)
    early[turned] = np.roll(early[turned], 1, axis=1)
    n_packets = np.full(400, 9)
    (level,) = fit_levels(np.stack([early]), final, labels, n_packets, (4,))
    leaves = softmax(early, level.temperature).max(axis=1) >= level.threshold
    assert level.packets == 4
    assert leaves[sure].all()
    assert (early[leaves].argmax(axis=1) == labels[leaves]).mean() >= 0.99
    assert 200 <= leaves.sum() <= 204
    assert fit_levels(np.stack([early]), final, labels, np.full(400, 4), (4,)) == (), "no flow is still open"
    assert fit_levels(np.stack([np.roll(early, 1, axis=1)]), final, labels, n_packets, (4,)) == ()


def saved(folder, early_exit=(), name="packet-mamba"):
    kind = family(name)
    settings = build(kind.representation).settings()
    config = kind.config_for(settings, d_model=16, n_layers=1)
    torch.manual_seed(0)
    state = kind.build_classifier(config, 3).state_dict()
    return save_checkpoint(
        folder,
        kind="classifier",
        family=name,
        model_config=asdict(config),
        representation=kind.representation,
        representation_settings=settings,
        labels=["a", "b", "c"],
        calibration=Calibration(1.3, 0.9, early_exit),
        card={},
        state=state,
    )


def test_levels_are_kept_in_the_checkpoint_and_change_its_digest_only_where_there_are_some(tmp_path):
    levels = (ExitLevel(1, 1.5, 0.99), ExitLevel(4, 1.25, 0.75))
    without, with_levels = saved(tmp_path / "without"), saved(tmp_path / "with", levels)
    assert "early_exit" not in json.loads((tmp_path / "without/calibration.json").read_text())
    assert load_checkpoint(tmp_path / "with").calibration.early_exit == levels
    assert with_levels.digest != without.digest
    path = tmp_path / "with/calibration.json"
    document = json.loads(path.read_text())
    for wrong, said in (
        ([{"packets": 0, "temperature": 1.0, "threshold": 0.5}], "rising"),
        (document["early_exit"][::-1], "rising"),
        ([{"packets": 1, "temperature": 0.0, "threshold": 0.5}], "temperature"),
        ([{"packets": 1, "temperature": 1.0, "threshold": 1.5}], "threshold"),
        ([{"packets": 1, "temperature": 1.0}], "threshold"),
        ({"packets": 1}, "list"),
        ([document["early_exit"][0]] * 33, "at most 32"),
    ):
        path.write_text(json.dumps(document | {"early_exit": wrong}))
        with pytest.raises(CheckpointError, match=said):
            read_files(tmp_path / "with")


def test_the_predictor_answers_early_where_the_checkpoint_allows_it(tmp_path):
    tokens = random_tokens(100)
    checkpoint = saved(tmp_path / "x", (ExitLevel(1, 1.0, 0.0),))
    with (
        Predictor(checkpoint, threads=1, device="cpu", early_exit=True) as early,
        Predictor(checkpoint, threads=1, device="cpu") as whole,
    ):
        said, full = early.predict(tokens), whole.predict(tokens)
        after_one = whole.logits_after(tokens, 1)
    np.testing.assert_array_equal(full.packets_used, tokens.packets_used)
    np.testing.assert_array_equal(said.packets_used, np.minimum(tokens.packets_used, 1))
    temperature = np.where(tokens.packets_used > 1, 1.0, 1.3)[:, None]
    np.testing.assert_allclose(said.probabilities, softmax(after_one / temperature), atol=1e-5)


def test_the_predictor_says_what_cannot_answer_early(tmp_path):
    with pytest.raises(UsageError, match="has no thresholds for early answers"):
        Predictor(saved(tmp_path / "x"), device="cpu", early_exit=True)
    other = saved(tmp_path / "y", (ExitLevel(1, 1.0, 0.5),), "netmamba")
    with pytest.raises(UsageError, match="expected a packet-mamba of classes on a CPU"):
        Predictor(other, device="cpu", early_exit=True)
    with Predictor(other, device="cpu") as predictor, pytest.raises(UsageError, match="whole inputs only"):
        predictor.logits_after(TokenBatch({}, np.zeros(0, np.uint16)), 1)


def random_tokens(n_flows, seed=0):
    """Of the default representation: 32 packets, 12 payload bytes."""
    rng = np.random.default_rng(seed)
    numbers = np.exp(rng.uniform(0, 12, (n_flows, 32, 5))).astype(np.int32)
    flags = np.zeros((n_flows, 32, 10), np.uint8)
    flags[..., 0], flags[..., 1], flags[:, :12, 9] = rng.integers(1, 3, (n_flows, 32)), 6, 12
    payload = rng.integers(0, 256, (n_flows, 32, 12)).astype(np.uint8)
    n_packets = rng.integers(1, 33, n_flows)
    gone = np.arange(32) >= n_packets[:, None]
    numbers[gone], flags[gone], payload[gone] = 0, 0, 0
    return TokenBatch({"numbers": numbers, "flags": flags, "payload": payload}, n_packets.astype(np.uint16))
