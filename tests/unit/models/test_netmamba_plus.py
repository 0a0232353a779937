"""NetMamba+: sizes of the paper, both networks against the float64 twin, the fast path, and what must not matter."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from capture.representations import build
from capture.representations.base import TokenBatch
from models.families import FAMILIES
from models.learning.batches import LabelledTokens
from models.learning.finetune import FinetuneSettings, finetune
from models.learning.losses import ldam_margins, training_loss
from models.learning.pretrain import PretrainSettings, pretrain
from models.nets import netmamba_plus_inference
from models.nets.adapters import add_low_rank
from models.nets.netmamba_inference import covers
from models.nets.netmamba_plus import (
    NetMambaPlusClassifier,
    NetMambaPlusConfig,
    NetMambaPlusPretrainer,
    cosine_embedding,
    layer_index,
)
from tests.reference import netmamba_plus as twin
from tests.unit.models.test_int8 import needs_int8
from tests.unit.models.test_netmamba import in_float64, n_parameters, shaken

SMALL = NetMambaPlusConfig(
    n_bytes=80, n_sequence_packets=6, d_model=32, n_layers=3, decoder_d_model=16, d_state=8
)
PUBLISHED = NetMambaPlusConfig(n_size_ids=1503, iat_scale=1.0)
TINY = replace(SMALL, n_bytes=16, n_sequence_packets=3, d_model=16, n_layers=1, drop_path=0.0, mask_ratio=0.5)


def some_flows(n_flows: int, config: NetMambaPlusConfig = SMALL, seed: int = 0) -> list[Tensor]:
    """The representation's arrays of flows of 1, 2, ... packets, as it would make them."""
    rng = np.random.default_rng(seed)
    n, none = config.n_sequence_packets, config.n_size_ids - 2
    n_packets = np.arange(n_flows)[:, None] % n + 1
    present = np.arange(n) < n_packets
    after_another = present & (np.arange(n) > 0)
    sizes = np.where(present, rng.integers(0, none, (n_flows, n)), none).astype(np.int16)
    iats = np.where(after_another, rng.uniform(1, 40, (n_flows, n)), 0).astype(np.float32)
    flow_bytes = rng.integers(0, 256, (n_flows, config.n_bytes), dtype=np.uint8)
    return [torch.from_numpy(array) for array in (flow_bytes, sizes, iats, present, after_another)]


def as_arrays(flows: list[Tensor]) -> twin.Arrays:
    return tuple(array.numpy() for array in flows)  # type: ignore[return-value]


def classifier(config: NetMambaPlusConfig = SMALL, n_labels: int = 5) -> NetMambaPlusClassifier:
    torch.manual_seed(0)
    return shaken(NetMambaPlusClassifier(config, n_labels)).eval()


def fast(model: NetMambaPlusClassifier, flows: list[Tensor]) -> Tensor:
    with torch.inference_mode():
        return model(*flows)


def test_the_sequence_has_443_tokens_with_class_tokens_behind_each_modality() -> None:
    config = NetMambaPlusConfig()
    assert (config.n_tokens, config.class_tokens) == (443, (20, 41, 442))
    assert (config.n_kept, config.n_shown) == (39, 17)


def test_the_number_of_parameters_is_that_of_the_published_code() -> None:
    """NetMamba's encoder, 42 positions, and five vectors (two class tokens, three modalities) of 256 more."""
    assert n_parameters(NetMambaPlusClassifier(PUBLISHED, 10), without="head.") == 1_856_512 + (42 + 5) * 256
    more = (42 + 5) * 256 + (256 * 1503 + 1503) + (256 + 1)
    assert n_parameters(NetMambaPlusPretrainer(PUBLISHED)) == 2_174_724 + more == 2_573_284
    assert n_parameters(NetMambaPlusPretrainer(NetMambaPlusConfig())) == 2_573_284 + 1500 * 257


def test_names_and_shapes_are_those_of_the_published_code() -> None:
    shapes = {name: tuple(t.shape) for name, t in NetMambaPlusPretrainer(PUBLISHED).state_dict().items()}
    mixer = ("A_log", "D", "in_proj.weight", "conv1d.weight", "conv1d.bias", "x_proj.weight")
    mixer += ("dt_proj.weight", "dt_proj.bias", "out_proj.weight")
    blocks = [f"encoder_blocks.{i}" for i in range(4)] + [f"byte_decoder_blocks.{i}" for i in range(2)]
    expected = {f"{b}.mixer.{name}" for b in blocks for name in mixer} | {f"{b}.norm.weight" for b in blocks}
    for modality in ("byte", "size", "iat"):
        expected |= {f"{modality}_cls_token", f"{modality}_indicator"}
    expected |= {"pos_embed", "byte_embed.proj.weight", "byte_embed.proj.bias", "norm_f.weight"}
    expected |= {"byte_mask_token", "byte_decoder_pos_embed", "decoder_norm_f.weight"}
    for linear in ("byte_decoder_embed", "byte_decoder_pred", "size_decoder_pred", "iat_decoder_pred"):
        expected |= {f"{linear}.weight", f"{linear}.bias"}
    assert set(shapes) == expected
    assert shapes["pos_embed"] == (1, 443, 256)
    assert shapes["size_indicator"] == (1, 1, 256)
    assert shapes["size_decoder_pred.weight"] == (1503, 256)
    assert shapes["iat_decoder_pred.weight"] == (1, 256)
    assert shapes["byte_decoder_pos_embed"] == (1, 401, 128)


def test_values_are_embedded_as_pairs_of_sine_and_cosine() -> None:
    embedded = cosine_embedding(torch.tensor([0, 3000], dtype=torch.int16), 4)
    assert embedded[0].tolist() == [0.0, 1.0, 0.0, 1.0]
    expected = [np.sin(3000), np.cos(3000), np.sin(30), np.cos(30)]
    np.testing.assert_allclose(embedded[1].numpy(), expected, atol=1e-9)


def test_logits_equal_the_float64_twin() -> None:
    model, flows = classifier(), some_flows(7)
    expected = twin.logits(as_arrays(flows), in_float64(model))
    np.testing.assert_allclose(model(*flows).detach().numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(("d_model", "n_layers"), [(32, 3), (40, 2), (24, 1)])
def test_the_fast_path_gives_the_logits_of_the_module(d_model: int, n_layers: int) -> None:
    config = replace(SMALL, d_model=d_model, n_layers=n_layers)
    model, flows = classifier(config), some_flows(7)
    assert covers(model)
    answer = fast(model, flows)
    assert (answer - model(*flows)).abs().max() < 1e-5
    np.testing.assert_allclose(answer.numpy(), twin.logits(as_arrays(flows), in_float64(model)), atol=1e-5)


def test_the_paper_s_size_gives_the_logits_of_the_module() -> None:
    config = NetMambaPlusConfig()
    model = NetMambaPlusClassifier(config, 10).eval()
    torch.nn.init.normal_(model.head.weight, std=0.1)
    flows = some_flows(2, config)
    expected = model(*flows)
    assert float(expected.detach().std()) > 0.5
    assert (fast(model, flows) - expected).abs().max() < 1e-5


def test_the_fast_path_runs_under_inference_mode_only(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    run = netmamba_plus_inference.FastNetMambaPlus.features

    def counted(self: netmamba_plus_inference.FastNetMambaPlus, *arrays: Tensor) -> Tensor:
        calls.append(len(arrays[0]))
        return run(self, *arrays)

    monkeypatch.setattr(netmamba_plus_inference.FastNetMambaPlus, "features", counted)
    model, flows = classifier(), some_flows(2)
    with torch.no_grad():
        model(*flows)
    with torch.inference_mode():
        model.train()(*flows)
    assert calls == []
    fast(model.eval(), flows)
    assert calls == [2]


def test_bf16_logits_are_near_those_of_fp32_and_are_not_the_same() -> None:
    model, flows = classifier(), some_flows(7)
    exact = fast(model, flows)
    model.inference_precision = "bf16"
    assert 1e-4 < float((fast(model, flows) - exact).abs().max()) < 0.1


@needs_int8
def test_int8_logits_are_near_those_of_fp32_and_are_not_the_same() -> None:
    model, flows = classifier(), some_flows(7)
    assert model.inference_precisions == ("fp32", "bf16", "int8")
    exact = fast(model, flows)
    model.inference_precision = "int8"
    assert 1e-3 < float((fast(model, flows) - exact).abs().max()) < 0.05 * float(exact.abs().max())


def test_changed_weights_change_the_fast_answer() -> None:
    model, flows = classifier(), some_flows(2)
    before = fast(model, flows)
    with torch.no_grad():
        model.iat_indicator += 0.3
    assert (fast(model, flows) - model(*flows)).abs().max() < 1e-5
    assert (fast(model, flows) - before).abs().max() > 1e-3


@pytest.mark.parametrize("way", ["module", "fast"])
def test_trap_14_batch_mates_do_not_change_an_answer(way: str) -> None:
    model, flows = classifier(), some_flows(11)
    answer = fast if way == "fast" else (lambda model, flows: model(*flows).detach())
    together = answer(model, flows)
    alone = torch.cat([answer(model, [array[f : f + 1] for array in flows]) for f in range(11)])
    assert (together - alone).abs().max() < 1e-5


@pytest.mark.parametrize("way", ["module", "fast"])
def test_trap_14_what_stands_where_no_packet_is_does_not_change_an_answer(way: str) -> None:
    model, flows = classifier(), some_flows(6)
    other = [array.clone() for array in flows]
    other[1][~flows[3]] = 7
    other[2][~flows[4]] = 33.0
    answer = fast if way == "fast" else (lambda model, flows: model(*flows).detach())
    assert torch.equal(answer(model, flows), answer(model, other))
    other[1][flows[3]] += 1
    assert not torch.allclose(answer(model, flows), answer(model, other))


def test_trap_4_no_legal_size_or_time_looks_to_the_network_like_no_packet() -> None:
    model = classifier()
    sizes = torch.arange(SMALL.n_size_ids - 2, dtype=torch.int16)[None]
    iats = torch.linspace(1, 64, 2000)[None]
    for values in (sizes, iats):
        there = model.embedded_values(values, torch.ones_like(values, dtype=torch.bool))
        gone = model.embedded_values(values, torch.zeros_like(values, dtype=torch.bool))
        assert torch.count_nonzero(gone) == 0
        # Sine and cosine of every pair: the length is that of a circle.
        torch.testing.assert_close(there.square().sum(-1), torch.full(values.shape, 16.0))


def test_every_weight_of_the_classifier_gets_a_gradient() -> None:
    model = classifier()
    model(*some_flows(6)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 0, name


def test_a_classifier_takes_the_encoder_of_a_pretrainer() -> None:
    backbone = NetMambaPlusPretrainer(SMALL).state_dict()
    result = NetMambaPlusClassifier(SMALL, 3).load_state_dict(backbone, strict=False)
    assert set(result.missing_keys) == {"head.weight", "head.bias"}
    assert all("decoder" in name or name == "byte_mask_token" for name in result.unexpected_keys)


def test_pretraining_equals_the_float64_twin() -> None:
    config = replace(
        SMALL, mask_ratio=0.7, sequence_mask_ratio=0.5, size_loss_weight=0.5, iat_loss_weight=3.0
    )
    model, flows = shaken(NetMambaPlusPretrainer(config)).eval(), some_flows(7)
    loss, predicted, mask = model(*flows, torch.Generator().manual_seed(5))
    kept, same_mask, *hidden = model.masks(7, torch.Generator().manual_seed(5), "cpu")
    assert torch.equal(mask, same_mask)
    expected, *losses = twin.pretraining(
        as_arrays(flows), in_float64(model), kept.numpy(), hidden[0].numpy(), hidden[1].numpy(), 32.0
    )
    np.testing.assert_allclose(predicted.detach().numpy(), expected, atol=2e-5)
    got = [float(model.losses[name]) for name in ("byte_loss", "size_loss", "iat_loss")]
    assert got == pytest.approx(losses, rel=1e-4)
    assert float(loss.detach()) == pytest.approx(losses[0] + 0.5 * losses[1] + 3.0 * losses[2], rel=1e-5)


def test_masks_hide_361_strides_3_sizes_and_3_times_and_come_from_the_generator_alone() -> None:
    model = NetMambaPlusPretrainer(NetMambaPlusConfig())
    first, again, other = (model.masks(8, torch.Generator().manual_seed(s), "cpu") for s in (1, 1, 2))
    kept, mask, sizes_hidden, iats_hidden = first
    assert kept.shape == (8, 39)
    assert mask.sum(1).tolist() == [361.0] * 8
    assert sizes_hidden.sum(1).tolist() == iats_hidden.sum(1).tolist() == [3] * 8
    assert not torch.equal(sizes_hidden, iats_hidden)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(mask, other[1])


def test_what_is_hidden_reaches_no_prediction() -> None:
    model, flows = shaken(NetMambaPlusPretrainer(SMALL)).eval(), some_flows(6)
    encoded: list[Tensor] = []
    model.norm_f.register_forward_hook(lambda _module, _inputs, output: encoded.append(output))
    _, predicted, mask = model(*flows, torch.Generator().manual_seed(3))
    _, _, sizes_hidden, iats_hidden = model.masks(6, torch.Generator().manual_seed(3), "cpu")
    hidden = mask.repeat_interleave(SMALL.stride, dim=1).bool()
    changed = [
        torch.where(hidden, 255 - flows[0], flows[0]),
        torch.where(sizes_hidden, 77, flows[1]).to(torch.int16),
        torch.where(iats_hidden, 3.5, flows[2]),
        *flows[3:],
    ]
    assert not torch.equal(changed[1], flows[1])
    assert not torch.equal(changed[2], flows[2])
    assert torch.equal(model(*changed, torch.Generator().manual_seed(3))[1], predicted)
    assert torch.equal(*encoded)


def test_packets_that_are_not_there_are_never_predicted() -> None:
    model, flows = shaken(NetMambaPlusPretrainer(SMALL)).eval(), some_flows(4)
    none = torch.zeros_like(flows[3])
    loss, _, _ = model(*flows[:3], none, none, torch.Generator().manual_seed(3))
    assert float(model.losses["size_loss"]) == float(model.losses["iat_loss"]) == 0.0
    assert float(loss.detach()) == float(model.losses["byte_loss"])
    loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def test_pretraining_reaches_every_weight_but_the_last_class_token_s() -> None:
    """The class tokens of sizes and times stand before the strides, whose predictions depend on them."""
    config = replace(SMALL, mask_ratio=0.5, sequence_mask_ratio=0.5)
    model = shaken(NetMambaPlusPretrainer(config)).eval()
    model(*some_flows(12), torch.Generator().manual_seed(0))[0].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert (float(parameter.grad.abs().max()) > 0) == (name != "byte_cls_token"), name
    assert torch.count_nonzero(model.pos_embed.grad[:, -1]) == 0


def test_skipped_draws_leave_the_generator_where_the_masks_would() -> None:
    model = NetMambaPlusPretrainer(SMALL)
    generator = torch.Generator().manual_seed(4)
    model.skip_draws(generator, 3)
    after = model.masks(2, generator, "cpu")
    whole = model.masks(5, torch.Generator().manual_seed(4), "cpu")
    assert all(torch.equal(a, b[3:]) for a, b in zip(after, whole, strict=True))


def test_depth_for_layer_decay_covers_every_parameter() -> None:
    config = NetMambaPlusConfig()
    model = NetMambaPlusClassifier(config, 2)
    depths = {name: layer_index(name, config) for name, _ in model.named_parameters()}
    modalities = {f"{m}_{part}" for m in ("byte", "size", "iat") for part in ("cls_token", "indicator")}
    assert {depths[name] for name in modalities | {"pos_embed", "byte_embed.proj.bias"}} == {0}
    assert [depths[f"encoder_blocks.{i}.mixer.A_log"] for i in range(4)] == [1, 2, 3, 4]
    assert {depths["norm_f.weight"], depths["head.weight"], depths["head.bias"]} == {5}


@pytest.mark.parametrize(
    ("place", "array", "message"),
    [
        (0, torch.zeros(2, 79, dtype=torch.uint8), r"expected torch.uint8 of shape \(flows, 80\)"),
        (1, torch.zeros(2, 6), r"sizes: got torch.float32 of shape \(2, 6\), expected torch.int16"),
        (2, torch.zeros(2, 5), r"iats: got torch.float32 of shape \(2, 5\), expected .* of shape \(2, 6\)"),
        (4, torch.zeros(3, 6, dtype=torch.bool), r"iats_present: got torch.bool of shape \(3, 6\)"),
    ],
)
def test_arrays_of_another_kind_are_refused(place: int, array: Tensor, message: str) -> None:
    flows = some_flows(2)
    flows[place] = array
    with pytest.raises(ValueError, match=message):
        classifier()(*flows)
    with pytest.raises(ValueError, match=message):
        NetMambaPlusPretrainer(SMALL)(*flows)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"d_model": 33}, "d_model is 33; expected an even number"),
        ({"stride": 3}, "stride 3 does not divide n_bytes 1600; choose a divisor such as 4"),
        ({"n_sequence_packets": 0}, "n_sequence_packets is 0; expected a whole number of 1 or more"),
        ({"sequence_mask_ratio": 1.0}, "sequence_mask_ratio is 1.0; expected a rate from 0 up to but not 1"),
        ({"iat_loss_weight": -1.0}, "iat_loss_weight is -1.0; expected 0 or more"),
        ({"iat_scale": 0.0}, "iat_scale is 0.0; expected more than 0"),
        ({"n_size_ids": 2}, "n_size_ids is 2; expected 3 or more: a size, none, and hidden"),
        ({"mask_ratio": 0.999}, "mask_ratio 0.999 leaves none of 400 strides; choose a smaller one"),
    ],
)
def test_contradicting_sizes_are_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        NetMambaPlusConfig(**wrong)  # type: ignore[arg-type]


def test_the_family_builds_what_its_representation_s_settings_say() -> None:
    plus = FAMILIES["netmamba-plus"]
    settings = build(plus.representation).settings()
    assert plus.config_for(settings) == NetMambaPlusConfig()
    published = settings | {"signed_sizes": False, "published_transform": True}
    assert plus.config_for(published) == PUBLISHED
    small = plus.config_for(settings | {"payload_bytes": 0, "n_sequence_packets": 6}, d_model=32, n_layers=2)
    assert (small.n_bytes, small.n_tokens) == (400, 7 + 7 + 101)
    assert plus.build_classifier(small, 3).eval()(*some_flows(2, small)).shape == (2, 3)
    assert plus.build_pretrainer(small)(*some_flows(2, small))[2].shape == (2, 100)
    assert plus.layer_index("head.bias", small) == 3


def labelled(n_flows: int, seed: int = 0) -> LabelledTokens:
    """Three classes of unlike number; the label is the size of the first packet, and all times are the same."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, n_flows, p=[0.7, 0.2, 0.1]).astype(np.int64)
    names = ("bytes", "sizes", "iats", "sizes_present", "iats_present")
    arrays = dict(zip(names, as_arrays(some_flows(n_flows, TINY, seed)), strict=True))
    arrays["sizes"][:, 0] = 100 + 400 * labels
    arrays["iats"][arrays["iats_present"]] = 16.0
    return LabelledTokens(TokenBatch(arrays, np.ones(n_flows, np.uint16)), labels, np.arange(n_flows))


def test_margins_by_class_size_reach_the_gradients_of_the_network() -> None:
    """With a head of zeros every class has the same logit, so the gradient of its bias is known in closed form."""
    data = labelled(60)
    share = np.bincount(data.labels) / 60
    margins = ldam_margins(np.bincount(data.labels)).astype(np.float64)
    flows = [torch.from_numpy(array) for array in data.tokens.arrays.values()]
    body: dict[str, Tensor] = {}
    for name, lowered in (("ce", np.zeros(3)), ("ldam", margins)):
        model = classifier(TINY, n_labels=3)
        torch.nn.init.zeros_(model.head.weight)
        torch.nn.init.zeros_(model.head.bias)
        loss = training_loss(name, data.labels, 3, 0.0, torch.device("cpu"))
        loss(model(*flows), torch.from_numpy(data.labels)).backward()
        scores = np.exp(-np.diag(lowered))  # row: true class, column: class
        said = (scores / scores.sum(1, keepdims=True) * share[:, None]).sum(0)
        assert model.head.bias.grad is not None
        np.testing.assert_allclose(model.head.bias.grad.numpy(), said - share, atol=1e-6)
        assert model.head.weight.grad is not None
        body[name] = model.head.weight.grad
    assert (body["ce"] - body["ldam"]).abs().max() > 0.01


def test_fine_tuning_uses_the_loss_it_is_asked_for(tmp_path: Path) -> None:
    """The published code makes the label-distribution-aware loss, and then trains with another one."""
    settings = FinetuneSettings(epochs=1, batch=16, balance=0.0, label_smoothing=0.0, threads=1)
    data = labelled(48)
    ends = {}
    for loss in ("ce", "ldam"):
        asked = replace(settings, loss=loss)
        ends[loss] = finetune("netmamba-plus", TINY, data, data, 3, asked, run_dir=tmp_path / loss)
    assert ends["ldam"].history[0]["loss"] > ends["ce"].history[0]["loss"] + 0.3
    changed = [
        name for name, weight in ends["ce"].state.items() if not torch.equal(weight, ends["ldam"].state[name])
    ]
    assert "head.weight" in changed
    assert "encoder_blocks.0.mixer.in_proj.weight" in changed


@pytest.mark.parametrize("loss", ["ce", "ldam"])
def test_fine_tuning_learns_a_label_that_only_the_sizes_tell(tmp_path: Path, loss: str) -> None:
    settings = FinetuneSettings(
        loss=loss, epochs=15, batch=16, learning_rate=1e-2, layer_decay=1.0, label_smoothing=0.0, threads=1
    )
    train, validation = labelled(120), labelled(60, seed=1)
    result = finetune("netmamba-plus", TINY, train, validation, 3, settings, run_dir=tmp_path / loss)
    assert result.history[result.best_epoch - 1]["val_macro_f1"] > 0.9


PRETRAINING = PretrainSettings(
    steps=40, batch=20, base_learning_rate=0.05, history_every_steps=10, threads=1, device="cpu"
)


def test_each_loss_is_reported_and_falls(tmp_path: Path) -> None:
    seen = []
    tokens = labelled(60).tokens
    result = pretrain(
        "netmamba-plus", TINY, tokens, PRETRAINING, run_dir=tmp_path / "run", on_progress=seen.append
    )
    names = ("byte_loss", "size_loss", "iat_loss")
    assert all(isinstance(details[name], float) for details in seen for name in names)
    first, last = result.history[0], result.history[-1]
    assert first["loss"] == pytest.approx(sum(first[name] for name in names), rel=1e-5)
    mean = np.mean([details["size_loss"] for details in seen[:10]])
    assert first["size_loss"] == pytest.approx(mean)
    # The strides are noise; first sizes are one of three, and times are all the same.
    assert last["size_loss"] < first["size_loss"] - 0.5
    assert last["iat_loss"] < 0.5 * first["iat_loss"]


def test_a_resumed_run_reports_and_learns_what_an_uninterrupted_one_does(tmp_path: Path) -> None:
    tokens, settings = labelled(60).tokens, replace(PRETRAINING, steps=15)
    whole = pretrain("netmamba-plus", TINY, tokens, settings, run_dir=tmp_path / "whole")

    def stop(details: dict[str, object]) -> None:
        if details["step"] == 13:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        pretrain("netmamba-plus", TINY, tokens, settings, run_dir=tmp_path / "run", on_progress=stop)
    resumed = pretrain("netmamba-plus", TINY, tokens, settings, run_dir=tmp_path / "run", resume=True)
    assert all(torch.equal(weight, resumed.state[name]) for name, weight in whole.state.items())
    for entry, again in zip(whole.history, resumed.history, strict=True):
        assert entry | {"elapsed_s": 0.0} == again | {"elapsed_s": 0.0}


@pytest.mark.parametrize("method", ["head", "lora"])
def test_head_and_adapter_learn_and_leave_a_plain_classifier(tmp_path: Path, method: str) -> None:
    base = NetMambaPlusPretrainer(TINY).state_dict()
    settings = FinetuneSettings(method=method, epochs=3, batch=16, learning_rate=1e-2, rank=2, threads=1)
    data = labelled(60)
    result = finetune(
        "netmamba-plus", TINY, data, data, 3, settings, init_state=base, run_dir=tmp_path / "run"
    )
    model = NetMambaPlusClassifier(TINY, 3).eval()
    model.load_state_dict(result.state)
    is_body_kept = all(
        torch.equal(base[name], weight)
        for name, weight in result.state.items()
        if not name.startswith("head.")
    )
    assert is_body_kept == (method == "head")
    flows = some_flows(5, TINY)
    assert (fast(model, flows) - model(*flows)).abs().max() < 1e-5


def test_the_fast_path_reads_the_adapter_that_a_model_carries() -> None:
    model, flows = classifier(), some_flows(4)
    before = fast(model, flows)
    add_low_rank(model, 2, 4.0)
    assert (fast(model, flows) - before).abs().max() < 1e-5, "an adapter starts by changing nothing"
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".up"):
                parameter += 0.1
    assert covers(model)
    assert (fast(model, flows) - before).abs().max() > 1e-3
    assert (fast(model, flows) - model(*flows)).abs().max() < 1e-5
