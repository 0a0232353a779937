"""Narrow products answer nearly as float32, only where asked or vouched for, and are never chosen by a clock."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import models.precision
from capture.errors import UsageError
from models.nets.netmamba import NetMambaClassifier, NetMambaConfig
from models.precision import choose_precision, compare
from models.predictor import Predictor
from tests.reference import netmamba as twin
from tests.unit.models.test_netmamba import in_float64, some_bytes
from tests.unit.models.test_predictor import TOKENS, make, netmamba
from tests.unit.models.tiny_family import registered

GOOD = {"precision": {"bf16": {"flows": 1000, "labels_equal": 1.0, "largest_logit_change": 0.02}}}


@pytest.fixture
def with_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that multiplies bf16 and not int8."""
    monkeypatch.setattr(models.precision, "cpu_multiplies_bf16", lambda: True)
    monkeypatch.setattr(models.precision, "cpu_multiplies_int8", lambda: False)


def random_model() -> NetMambaClassifier:
    torch.manual_seed(3)
    model = NetMambaClassifier(NetMambaConfig(n_bytes=160, d_model=64, n_layers=3, mask_ratio=0.5), 6).eval()
    torch.nn.init.normal_(model.head.weight, std=0.15)
    return model


def answers(model: NetMambaClassifier, flows: torch.Tensor, precision: str) -> np.ndarray[Any, Any]:
    model.inference_precision = precision
    with torch.inference_mode():
        return model(flows).numpy()


def test_bf16_logits_are_near_the_float64_twin_and_are_not_those_of_fp32() -> None:
    model, flows = random_model(), some_bytes(16, 160)
    exact = twin.logits(flows.numpy(), in_float64(model))
    assert exact.std() > 0.5
    change = np.abs(answers(model, flows, "bf16") - exact).max()
    assert 1e-4 < change < 0.06, "bf16 has 8 bits: above 1e-4 it ran, below 0.06 it is right"
    assert np.abs(answers(model, flows, "fp32") - exact).max() < 1e-5


def test_a_flow_s_bf16_logits_do_not_depend_on_its_batch_mates() -> None:
    model, flows = random_model(), some_bytes(7, 160)
    together = answers(model, flows, "bf16")
    alone = np.concatenate([answers(model, flow[None], "bf16") for flow in flows])
    # A product blocked otherwise may round to the next of 8 bits.
    assert np.abs(together - alone).max() < 0.05
    assert np.array_equal(together.argmax(axis=1), alone.argmax(axis=1))


def test_training_computes_in_float32_whatever_the_inference_precision() -> None:
    model, flows = random_model(), some_bytes(2, 160)
    plain = model(flows)
    model.inference_precision = "bf16"
    assert torch.equal(model(flows), plain)


def test_the_predictor_runs_the_precision_it_says(tmp_path: Path, with_bf16: None) -> None:
    with registered():
        checkpoint = netmamba(tmp_path)
    logits = {}
    for wanted in ("fp32", "bf16", "auto"):
        with Predictor(checkpoint, threads=1, device="cpu", precision=wanted) as predictor:
            assert predictor.precision == ("bf16" if wanted == "bf16" else "fp32")
            logits[wanted] = predictor.logits(TOKENS)
    assert np.array_equal(logits["auto"], logits["fp32"])
    assert 0 < np.abs(logits["bf16"] - logits["fp32"]).max() < 0.3


def test_the_comparison_of_precisions_counts_flows_labels_and_the_largest_change(
    tmp_path: Path, with_bf16: None
) -> None:
    with registered():
        checkpoint = netmamba(tmp_path)
    measured = compare(checkpoint, TOKENS, threads=1)
    assert list(measured) == ["bf16"]
    measured = measured["bf16"]
    assert measured["speed"] > 0
    assert measured["flows"] == len(TOKENS)
    assert 0.9 < measured["labels_equal"] <= 1.0
    assert 0 < measured["largest_logit_change"] < 0.3
    with pytest.raises(UsageError, match="got no flows to compare precisions on, expected at least one"):
        compare(checkpoint, TOKENS.take(slice(0, 0)))


def test_where_nothing_narrow_exists_there_is_nothing_to_compare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("bf16", "int8"):
        monkeypatch.setattr(models.precision, f"cpu_multiplies_{name}", lambda: False)
    with registered():
        checkpoint = netmamba(tmp_path)
    with pytest.raises(UsageError, match="got a CPU or a model family without narrow precisions"):
        compare(checkpoint, TOKENS, threads=1)


@pytest.mark.parametrize(
    ("card", "chosen"),
    [
        (GOOD, "bf16"),
        ({}, "fp32"),
        ({"precision": "bf16"}, "fp32"),
        ({"precision": {"bf16": {"flows": 999, "labels_equal": 1.0}}}, "fp32"),
        ({"precision": {"bf16": {"flows": 5000, "labels_equal": 0.99}}}, "fp32"),
        ({"precision": {"bf16": {"flows": "many", "labels_equal": 1.0}}}, "fp32"),
        ({"precision": {"bf16": {"flows": 5000, "labels_equal": float("nan")}}}, "fp32"),
    ],
)
def test_auto_takes_bf16_only_where_the_card_vouches_for_it(
    card: dict[str, Any], chosen: str, with_bf16: None
) -> None:
    assert choose_precision("auto", random_model(), card, "cpu") == chosen


def table(**rows: tuple[int, float, float | None]) -> dict[str, Any]:
    """A card: flows, labels equal and speed by precision."""
    entry = {
        name: {"flows": flows, "labels_equal": equal} | ({} if speed is None else {"speed": speed})
        for name, (flows, equal, speed) in rows.items()
    }
    return {"precision": entry | {"measured": {"cpu": "x"}}}


@pytest.mark.parametrize(
    ("card", "chosen"),
    [
        (table(bf16=(1000, 1.0, 1.2), int8=(1000, 0.999, 1.4)), "int8"),
        (table(bf16=(1000, 1.0, 1.2), int8=(1000, 0.998, 1.4)), "bf16"),
        (table(bf16=(1000, 0.99, 1.2), int8=(1000, 1.0, 1.4)), "int8"),
        (table(bf16=(1000, 1.0, 1.2), int8=(1000, 1.0, 1.1)), "bf16"),
        (table(bf16=(1000, 1.0, 1.2), int8=(1000, 1.0, 1.2)), "bf16"),  # the more exact of two equally fast
        (table(bf16=(1000, 1.0, 0.9), int8=(1000, 1.0, 0.8)), "fp32"),
        (table(bf16=(1000, 1.0, None), int8=(1000, 1.0, None)), "bf16"),
        (table(int8=(999, 1.0, 2.0)), "fp32"),
        (table(int8=(1000, 1.0, float("nan"))), "fp32"),
        ({"precision": {"int8": {"flows": 1000, "labels_equal": 1.0, "speed": "fast"}}}, "fp32"),
    ],
)
def test_auto_takes_the_fastest_that_the_card_vouches_for(
    card: dict[str, Any], chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("bf16", "int8"):
        monkeypatch.setattr(models.precision, f"cpu_multiplies_{name}", lambda: True)
    assert choose_precision("auto", random_model(), card, "cpu") == chosen
    monkeypatch.setattr(models.precision, "cpu_multiplies_int8", lambda: False)
    assert choose_precision("auto", random_model(), card, "cpu") != "int8"
    with pytest.raises(UsageError, match="--precision: got int8, but this CPU has no int8 products"):
        choose_precision("int8", random_model(), card, "cpu")


def test_a_network_that_only_the_module_computes_has_no_narrow_form(with_bf16: None) -> None:
    config = NetMambaConfig(n_bytes=160, d_model=16, n_layers=1, mask_ratio=0.5, bidirectional=True)
    model = NetMambaClassifier(config, 3)
    assert model.inference_precisions == ("fp32",)
    assert choose_precision("auto", model, GOOD, "cpu") == "fp32"
    with pytest.raises(UsageError, match="got bf16, but this model has no bf16 form"):
        choose_precision("bf16", model, {}, "cpu")


def test_auto_stays_fp32_on_a_cpu_without_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.precision, "cpu_multiplies_bf16", lambda: False)
    assert choose_precision("auto", random_model(), GOOD, "cpu") == "fp32"
    with pytest.raises(UsageError, match="--precision: got bf16, but this CPU has no bf16 products"):
        choose_precision("bf16", random_model(), GOOD, "cpu")


def test_bf16_is_refused_where_it_does_not_exist(tmp_path: Path, with_bf16: None) -> None:
    with pytest.raises(UsageError, match="got bf16, but it is for the CPU only; use --precision fp32"):
        choose_precision("bf16", random_model(), GOOD, "cuda")
    with registered():
        checkpoint = make(tmp_path)
        with pytest.raises(UsageError, match="got bf16, but this model has no bf16 form"):
            Predictor(checkpoint, device="cpu", precision="bf16")
        with pytest.raises(
            UsageError, match="--precision: got 'int4', expected one of auto, fp32, bf16, int8"
        ):
            Predictor(checkpoint, device="cpu", precision="int4")
