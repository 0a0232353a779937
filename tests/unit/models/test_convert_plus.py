"""Weights of the published NetMamba+ come in bit for bit, and read what the published code showed them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from capture.errors import CheckpointError, UsageError
from capture.representations.base import TokenBatch
from models.checkpoint import load_checkpoint
from models.convert import netmamba
from models.convert.netmamba import mixer_state, to_published
from models.convert.netmamba_plus import from_published
from models.convert.source import Source
from models.families import FAMILIES
from models.predictor import Predictor
from netcls.cli.main import main
from tests.property.test_netmamba_plus_tokens import random_flows
from tests.reference import netmamba_plus as twin
from tests.unit.models import published_netmamba
from tests.unit.models import published_netmamba_plus as published

Capfd = pytest.CaptureFixture[str]
N = published.N_SEQUENCE


def source_of(tensors: dict[str, Tensor]) -> Source:
    return Source(Path("x.pth"), "0" * 64, 1, tensors, [])


def in_float64(state: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.double().numpy() for name, tensor in state.items()}


def published_arrays(n_flows: int) -> dict[str, np.ndarray]:
    """Bytes, and what the published code makes of sizes and times; by the naive twin."""
    flows = random_flows(1, n_flows, N)
    rows = [
        twin.published_sequences(
            twin.rows_of(flows.packets[f], flows.records["n_kept"][f], "wire_len"), N, signed=False
        )
        for f in range(n_flows)
    ]
    present = np.ones((n_flows, N), bool)
    rng = np.random.default_rng(0)
    return {
        "bytes": rng.integers(0, 256, (n_flows, published.N_BYTES), dtype=np.uint8),
        "sizes": np.array([sizes for sizes, _ in rows], np.int16),
        "iats": np.array([iats for _, iats in rows], np.float32),
        "sizes_present": present,
        "iats_present": present.copy(),
    }


def test_a_converted_backbone_loses_what_the_float64_twin_does() -> None:
    given = published.state()
    converted = from_published(source_of(given), n_sequence_packets=N)
    config = converted.config
    assert (converted.kind, converted.family, converted.dropped) == ("backbone", "netmamba-plus", [])
    assert (config.n_bytes, config.n_sequence_packets, config.n_size_ids, config.d_model) == (
        400,
        N,
        1503,
        24,
    )
    assert (config.n_layers, config.decoder_d_model, config.decoder_layers) == (2, 16, 1)
    assert all(torch.equal(converted.state[name], tensor) for name, tensor in given.items())
    settings = converted.settings
    assert (settings["published_transform"], settings["signed_sizes"]) == (True, False)
    assert (settings["payload_bytes"], settings["field_policy"]) == (0, "paper")
    model = FAMILIES["netmamba-plus"].build_pretrainer(config).eval()
    model.load_state_dict(converted.state)
    arrays = published_arrays(3)
    model(*(torch.from_numpy(a) for a in arrays.values()), torch.Generator().manual_seed(2))
    kept, _, *hidden = model.masks(3, torch.Generator().manual_seed(2), "cpu")  # type: ignore[operator]
    _, *losses = twin.pretraining(
        tuple(arrays.values()),  # type: ignore[arg-type]
        in_float64(given),
        kept.numpy(),
        hidden[0].numpy(),
        hidden[1].numpy(),
        1.0,
    )
    got = [float(model.losses[name]) for name in ("byte_loss", "size_loss", "iat_loss")]  # type: ignore[index,union-attr]
    assert got == pytest.approx(losses, rel=1e-4)


def test_a_converted_classifier_answers_what_the_float64_twin_does(tmp_path: Path, capfd: Capfd) -> None:
    given = published.state(n_classes=3)
    save_file(given, tmp_path / "x.safetensors")
    (tmp_path / "labels.txt").write_text("web\nvideo\nmail\n")
    out = str(tmp_path / "mine")
    arguments = ["convert", "netmamba-plus", str(tmp_path / "x.safetensors"), "--out", out]
    arguments += ["--labels", str(tmp_path / "labels.txt"), "--n-sequence-packets", str(N)]
    assert main([*arguments, "--json"]) == 0
    said = json.loads(capfd.readouterr().out)
    assert (said["family"], said["kind"], said["missing"]) == ("netmamba-plus", "classifier", ["head.bias"])
    assert {row["name"]: tuple(row["shape"]) for row in said["mapped"]} == published.shapes(3)
    arrays = published_arrays(5)
    weights = in_float64(given) | {"head.bias": np.zeros(3)}
    expected = twin.logits(tuple(arrays.values()), weights)  # type: ignore[arg-type]
    assert expected.std() > 0.3
    with Predictor(load_checkpoint(out), threads=1, device="cpu") as predictor:
        logits = predictor.logits(TokenBatch(arrays, np.full(5, N, np.uint16)))
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert main(arguments) == 0
    assert capfd.readouterr().out.splitlines()[-1].endswith("missing and set to 0: head.bias")


def test_the_way_back_changes_no_bit_and_leaves_a_bias_of_zeros_out() -> None:
    backbone, classifier = published.state(), published.state(n_classes=3)
    converted = from_published(source_of(classifier), n_labels=3, n_sequence_packets=N)
    for given, state in (
        (backbone, from_published(source_of(backbone), n_sequence_packets=N).state),
        (classifier, converted.state),
    ):
        back = to_published(state, "netmamba-plus")
        assert back.keys() == given.keys()
        assert all(torch.equal(back[name], tensor) for name, tensor in given.items())
    trained = converted.state | {"head.bias": torch.ones(3)}
    assert to_published(trained, "netmamba-plus").keys() == trained.keys()
    assert (
        mixer_state(backbone, "encoder_blocks.1").keys() == mixer_state(backbone, "encoder_blocks.0").keys()
    )


def test_each_command_sends_the_other_family_s_file_to_the_other() -> None:
    with pytest.raises(CheckpointError, match="use `netcls convert netmamba-plus`"):
        netmamba.from_published(source_of(published.state()))
    with pytest.raises(CheckpointError, match="use `netcls convert netmamba`"):
        from_published(source_of(published_netmamba.state()))


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        ({"size_cls_token": None}, {}, CheckpointError, "expected those of a published NetMamba\\+"),
        (
            {"iat_indicator": None},
            {},
            CheckpointError,
            "got 1 \\('iat_indicator'\\) missing and no unknown tensors",
        ),
        ({"extra": torch.zeros(1)}, {}, CheckpointError, "1 \\('extra'\\) unknown tensors"),
        (
            {"iat_decoder_pred.bias": torch.zeros(2)},
            {},
            CheckpointError,
            "got shape \\[2\\], expected \\[1\\]",
        ),
        ({"norm_f.weight": torch.full((24,), torch.nan)}, {}, CheckpointError, "got NaN or infinity"),
        (
            {"size_decoder_pred.weight": torch.zeros(99, 24)},
            {},
            CheckpointError,
            "got 99 sizes, expected 1503",
        ),
        ({}, {"signed_sizes": True}, UsageError, "--signed-sizes: got true, but .* tells 1503 sizes apart"),
        (
            {},
            {"n_sequence_packets": 60},
            UsageError,
            "--n-sequence-packets: got 60, expected a number that leaves",
        ),
        ({}, {"n_sequence_packets": 7}, UsageError, "expected sizes that fit the 392 bytes"),
        ({}, {"n_labels": 2}, UsageError, "--labels: got names for a backbone"),
    ],
)
def test_what_does_not_fit_is_refused(
    change: dict[str, Any], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    tensors = {name: t for name, t in (published.state() | change).items() if t is not None}
    with pytest.raises(error, match=message):
        from_published(source_of(tensors), **({"n_sequence_packets": N} | options))
