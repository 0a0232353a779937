"""The inference path of NetMamba gives the module's logits, whatever the batch, and follows its weights."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from models.nets import netmamba_inference
from models.nets.netmamba import NetMambaClassifier, NetMambaConfig
from tests.reference import netmamba as twin
from tests.unit.models.test_netmamba import SMALL, in_float64, shaken, some_bytes


def classifier(config: NetMambaConfig = SMALL) -> NetMambaClassifier:
    torch.manual_seed(0)
    return shaken(NetMambaClassifier(config, 5)).eval()


def fast(model: NetMambaClassifier, flows: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(flows)


@pytest.mark.parametrize(("d_model", "n_layers"), [(32, 3), (40, 2), (24, 1)])
def test_the_fast_path_gives_the_logits_of_the_module(d_model: int, n_layers: int) -> None:
    model = classifier(replace(SMALL, d_model=d_model, n_layers=n_layers))
    flows = some_bytes(6, SMALL.n_bytes)
    answer = fast(model, flows)
    assert (answer - model(flows)).abs().max() < 1e-5
    np.testing.assert_allclose(answer.numpy(), twin.logits(flows.numpy(), in_float64(model)), atol=1e-5)


def test_the_paper_s_size_gives_the_logits_of_the_module() -> None:
    model = NetMambaClassifier(NetMambaConfig(), 10).eval()
    torch.nn.init.normal_(model.head.weight, std=0.1)
    flows = some_bytes(2, 1600)
    expected = model(flows)
    assert float(expected.detach().std()) > 0.5
    assert (fast(model, flows) - expected).abs().max() < 1e-5


@pytest.mark.parametrize(("d_conv", "stride"), [(2, 2), (3, 1)])
def test_other_taps_and_strides_are_right_too(d_conv: int, stride: int) -> None:
    model = classifier(replace(SMALL, d_conv=d_conv, stride=stride))
    flows = some_bytes(2, SMALL.n_bytes)
    assert (fast(model, flows) - model(flows)).abs().max() < 1e-5


def test_it_runs_under_inference_mode_only(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    run = netmamba_inference.FastNetMamba.__call__

    def counted(self: netmamba_inference.FastNetMamba, flows: Tensor) -> Tensor:
        calls.append(len(flows))
        return run(self, flows)

    monkeypatch.setattr(netmamba_inference.FastNetMamba, "__call__", counted)
    model, flows = classifier(), some_bytes(2, 80)
    with torch.no_grad():
        model(flows)
    with torch.inference_mode():
        model.train()(flows)
    assert calls == []
    fast(model.eval(), flows)
    assert calls == [2]


@pytest.mark.parametrize("change", [{"d_state": 6}, {}])
def test_what_it_does_not_cover_goes_through_the_module(change: dict[str, int]) -> None:
    model = classifier(replace(SMALL, **change))
    model = model if change else model.double()
    flows = some_bytes(2, 80)
    assert not netmamba_inference.covers(model)
    expected = twin.logits(flows.numpy(), in_float64(model))
    np.testing.assert_allclose(fast(model, flows).numpy(), expected, atol=1e-5)


def test_a_wrapped_projection_is_not_bypassed() -> None:
    class Doubled(torch.nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    model, flows = classifier(), some_bytes(2, 80)
    plain = fast(model, flows)
    wrapped = Doubled(64, 32, bias=False)
    wrapped.load_state_dict(model.blocks[1].mixer.out_proj.state_dict())
    model.blocks[1].mixer.out_proj = wrapped
    assert (fast(model, flows) - plain).abs().max() > 1e-3
    assert torch.equal(fast(model, flows), model(flows))


def test_a_flow_s_logits_do_not_depend_on_its_batch_mates() -> None:
    model = classifier()
    flows = some_bytes(11, 80)
    together = fast(model, flows)
    alone = torch.cat([fast(model, flow[None]) for flow in flows])
    assert (together - alone).abs().max() < 1e-5
    backwards = fast(model, flows.flip(0)).flip(0)
    assert (together - backwards).abs().max() < 1e-5


def test_a_call_leaves_nothing_behind_for_the_next() -> None:
    model = classifier()
    flows = some_bytes(4, 80)
    first = fast(model, flows)
    kept = first.clone()
    fast(model, some_bytes(4, 80, seed=1))
    assert torch.equal(first, kept), "an answer is not a view of a buffer"
    assert torch.equal(fast(model, flows), kept)


def test_changed_weights_change_the_answer() -> None:
    model, flows = classifier(), some_bytes(2, 80)
    before = fast(model, flows)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(flows).square().sum().backward()
    optimizer.step()
    stepped = fast(model, flows)
    assert (stepped - model(flows)).abs().max() < 1e-5
    assert (stepped - before).abs().max() > 1e-3
    model.load_state_dict(classifier().state_dict())
    assert torch.equal(fast(model, flows), before)


def test_models_can_be_copied_and_forgotten() -> None:
    model, flows = classifier(), some_bytes(2, 80)
    answer = fast(model, flows)
    assert torch.equal(fast(copy.deepcopy(model), flows), answer)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_threads_share_a_model_and_not_their_buffers() -> None:
    model = classifier()
    batches = [some_bytes(1 + i % 5, 80, seed=i) for i in range(12)]
    expected = [fast(model, batch) for batch in batches]
    answers: dict[int, Tensor] = {}

    def work(i: int) -> None:
        for _ in range(5):
            answers[i] = fast(model, batches[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((answers[i] - expected[i]).abs().max() < 1e-5 for i in range(len(batches)))


def test_no_flows_give_no_logits() -> None:
    assert fast(classifier(), some_bytes(0, 80)).shape == (0, 5)
