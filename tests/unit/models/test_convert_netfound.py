"""Published netFound weights by their published names, made here, through the converter and the command."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from capture.errors import CheckpointError, UsageError
from models.checkpoint import load_checkpoint
from models.convert import hub
from models.convert.netfound import from_published
from models.convert.source import read_source
from models.nets.netfound import NetFoundClassifier
from models.nets.netfound_config import sized
from models.nets.netfound_pretrainer import NetFoundPretrainer
from netcls.cli.main import main
from tests.unit.models.netfound_flows import some_flows

CONFIG = sized("small", d_model=16, n_layers=2, n_heads=2, d_mlp=12, d_meta=8)

# Written by hand from the published module tree, and not taken from the converter.
_EMBEDDINGS = {
    "word": "word_embeddings",
    "norm": "LayerNorm",
    "meta_in": "metaEmbeddingLayer1",
    "meta_out": "metaEmbeddingLayer2",
    "protocol": "protoEmbedding",
    "compress": "compressEmbeddings",
}
_ENCODER = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "mlp_norm": "mlp_norm",
    "mlp_in": "mlp.Wi",
    "mlp_out": "mlp.Wo",
}
_HEADS = {
    "pooling.projection": "attentivePooling.lin_proj",
    "pooling.score": "attentivePooling.v",
    "hidden_in": "hiddenLayer",
    "hidden_out": "hiddenLayer2",
    "head": "classifier",
    "token_head.dense": "lm_head.dense",
    "token_head.norm": "lm_head.layer_norm",
    "swap_head": "swappedClassifierHiddenLayer",
    "metadata_head": "linearMetadataPred",
    "direction_head": "dirPred",
}


def published_name(ours: str) -> str:
    if ours in ("burst_positions", "flow_positions"):
        return f"base_transformer.encoder.{ours}.weight"
    if ours == "token_head.bias":
        return "lm_head.bias"
    module, _, leaf = ours.rpartition(".")
    if module.startswith("embeddings."):
        return f"base_transformer.embeddings.{_EMBEDDINGS[module.split('.')[1]]}.{leaf}"
    if module.startswith("layers."):
        _, depth, part, layer = module.split(".")
        return f"base_transformer.encoder.layer.{depth}.{part}.{_ENCODER[layer]}.{leaf}"
    return f"{_HEADS[module]}.{leaf}"


def published(network: nn.Module) -> dict[str, Tensor]:
    """A network's tensors as the published code saves them, with what it never reads and its copies."""
    tensors = {published_name(name): tensor.clone() for name, tensor in network.state_dict().items()}
    tensors["base_transformer.embeddings.token_type_embeddings.weight"] = torch.ones(2, CONFIG.d_model)
    for depth in range(CONFIG.n_layers):
        tensors[f"base_transformer.encoder.layer.{depth}.position_embeddings.weight"] = torch.ones(13, 16)
    return tensors


def test_a_published_backbone_is_ours_tensor_for_tensor(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    torch.manual_seed(0)
    network = NetFoundPretrainer(CONFIG)
    network.burst_positions.normal_()  # as the published initialisation leaves them
    tensors = published(network)
    tensors["lm_head.decoder.weight"] = tensors["base_transformer.embeddings.word_embeddings.weight"].clone()
    tensors["lm_head.decoder.bias"] = tensors["lm_head.bias"].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    out = tmp_path / "converted"
    assert main(["convert", "netfound", str(tmp_path), "--out", str(out), "--json"]) == 0
    report = json.loads(capfdbinary.readouterr().out)
    assert report["missing"] == []
    assert report["representation"]["settings"]["strict_v2"] is True
    assert {row["name"] for row in report["dropped"]} == {
        "base_transformer.embeddings.token_type_embeddings.weight",
        "base_transformer.encoder.layer.0.position_embeddings.weight",
        "base_transformer.encoder.layer.1.position_embeddings.weight",
        "lm_head.decoder.weight",
        "lm_head.decoder.bias",
    }
    checkpoint = load_checkpoint(str(out))
    for name, tensor in network.state_dict().items():
        assert torch.equal(checkpoint.state[name], tensor), name
    assert checkpoint.card["licence"].startswith("MIT")


def test_a_published_classifier_answers_as_the_network_it_came_from(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = NetFoundClassifier(CONFIG, 3).eval()
    save_file(published(network), tmp_path / "tuned.safetensors")
    converted = from_published(read_source(tmp_path / "tuned.safetensors"), n_labels=3)
    assert converted.kind == "classifier"
    again = NetFoundClassifier(converted.config, 3).eval()
    again.load_state_dict(converted.state)
    arrays = some_flows(4)
    with torch.inference_mode():
        torch.testing.assert_close(again(*arrays), network(*arrays), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lm_head.decoder.weight": torch.zeros(65600, 16)}, "got other values than"),
        ({"base_transformer.encoder.burst_positions.weight": torch.zeros(109, 8)}, "bursts of 109 tokens"),
        ({"dirPred.weight": torch.full((2, 16), float("nan"))}, "got NaN or infinity"),
        ({"someone.else": torch.zeros(1)}, "1 \\('someone.else'\\) unknown tensors"),
    ],
    ids=["untied", "payload", "nan", "unknown"],
)
def test_what_is_no_published_netfound_is_refused(
    tmp_path: Path, change: dict[str, Tensor], message: str
) -> None:
    save_file(published(NetFoundPretrainer(CONFIG)) | change, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        from_published(read_source(tmp_path / "model.safetensors"))


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    save_file({"cls_token": torch.zeros(1, 1, 4)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="it is of another model"):
        from_published(read_source(tmp_path / "model.safetensors"))


def test_a_name_on_the_hub_without_a_network_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(*_: str) -> str:
        raise LocalEntryNotFoundError("cannot find the requested files in the disk cache\nand more")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(
        CheckpointError, match=r"cannot be fetched from the hub .*fetch model\.safetensors elsewhere"
    ):
        hub.weights_file("snlucsb/netFound-small")


def test_a_name_without_the_hubs_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UsageError, match=r"install netcls\[hub\]"):
        hub.weights_file("snlucsb/netFound-small")


def test_a_fetched_name_and_a_folder_give_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repo, file: str(tmp_path / repo / file))
    expected = tmp_path / "snlucsb/netFound-small/model.safetensors"
    assert hub.weights_file("snlucsb/netFound-small") == expected
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert hub.weights_file(str(tmp_path)) == tmp_path / "model.safetensors"
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="expected one of them"):
        hub.weights_file(str(tmp_path / "empty"))
