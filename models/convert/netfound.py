"""netFound's published checkpoints (version 2) to ours: a table of names, and what no answer depends on left behind.

Left behind are the token types and the burst positions of each layer, which the published code builds and never reads,
and second copies of weights that are shared (the token table in the language-model head).

The rotary tables are taken from the file and not from the formula: the published initialisation overwrites them with
random numbers, which are never trained, so the weights belong to whatever stands there.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from capture.errors import CheckpointError
from capture.representations import build
from capture.representations import netfound_layout as layout
from models.checkpoint_verify import build_config, expected_tensors
from models.convert.netmamba import Converted, PublishedShapes, check_labels, compare, take
from models.convert.source import Source
from models.families import FAMILIES
from models.nets.netfound_config import SIZES, NetFoundConfig

if TYPE_CHECKING:
    from torch import nn

FAMILY: Final = "netfound"

_BODY: Final = "base_transformer."
_NAMES: Final = {
    "base_transformer.embeddings.word_embeddings": "embeddings.word",
    "base_transformer.embeddings.LayerNorm": "embeddings.norm",
    "base_transformer.embeddings.metaEmbeddingLayer1": "embeddings.meta_in",
    "base_transformer.embeddings.metaEmbeddingLayer2": "embeddings.meta_out",
    "base_transformer.embeddings.protoEmbedding": "embeddings.protocol",
    "base_transformer.embeddings.compressEmbeddings": "embeddings.compress",
    "base_transformer.encoder.burst_positions.weight": "burst_positions",
    "base_transformer.encoder.flow_positions.weight": "flow_positions",
    "attentivePooling.lin_proj": "pooling.projection",
    "attentivePooling.v": "pooling.score",
    "hiddenLayer": "hidden_in",
    "hiddenLayer2": "hidden_out",
    "classifier": "head",
    "lm_head.dense": "token_head.dense",
    "lm_head.layer_norm": "token_head.norm",
    "lm_head.bias": "token_head.bias",
    "swappedClassifierHiddenLayer": "swap_head",
    "linearMetadataPred": "metadata_head",
    "dirPred": "direction_head",
}
_LAYER: Final = re.compile(r"base_transformer\.encoder\.layer\.(\d{1,4})\.(burst_encoder|flow_encoder)\.(.+)")
_OF_LAYER: Final = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "out",
    "attention.output.LayerNorm": "attention_norm",
    "mlp_norm": "mlp_norm",
    "mlp.Wi": "mlp_in",
    "mlp.Wo": "mlp_out",
}
_UNREAD: Final = re.compile(
    r"base_transformer\.(embeddings\.(token_type_embeddings\.weight|position_ids)"
    r"|encoder\.layer\.\d{1,4}\.position_embeddings\.weight)"
)
_COPIES: Final = {
    "lm_head.decoder.weight": "base_transformer.embeddings.word_embeddings.weight",
    "lm_head.decoder.bias": "lm_head.bias",
}


def our_name(published: str) -> str | None:
    """Our name of a published tensor; None for one that we do not have."""
    layer = _LAYER.fullmatch(published)
    if layer:
        part, _, leaf = layer[3].rpartition(".")
        ours = _OF_LAYER.get(part)
        return f"layers.{layer[1]}.{layer[2]}.{ours}.{leaf}" if ours else None
    if published in _NAMES:
        return _NAMES[published]
    module, _, leaf = published.rpartition(".")
    return f"{_NAMES[module]}.{leaf}" if module in _NAMES else None


def n_published_parameters(network: nn.Module, config: NetFoundConfig) -> int:
    """How many numbers the published network of this size has: ours, and the two tables that it never reads.

    Args:
        network: a classifier or pre-training network.
        config: of it.
    """
    ours: int = sum(tensor.numel() for tensor in network.state_dict().values())
    return ours + (2 + config.n_bursts + 1) * config.d_model


def from_published(source: Source, *, n_labels: int | None = None, field_policy: str = "none") -> Converted:
    """Map a published netFound to ours.

    Args:
        source: as read.
        n_labels: how many names the operator gave; None = no names.
        field_policy: of the input; ``none`` is the published one, whose tokens hold no address and no port.

    Raises:
        CheckpointError: if the tensors are not those of a netFound without payload, or not finite.
        UsageError: if the labels do not fit the weights.
    """
    names, dropped = _named(source)
    kind = _kind(source, names)
    if kind == "classifier":
        dropped += [{"name": n, "what": "tensor of pre-training"} for o, n in names.items() if _pretrains(o)]
        names = {ours: name for ours, name in names.items() if not _pretrains(ours)}
    shapes = {ours: tuple(source.tensors[name].shape) for ours, name in names.items()}
    config = build_config(FAMILIES[FAMILY], _sizes(source, shapes), str(source.path))
    settings = {"n_bursts": config.n_bursts, "field_policy": field_policy, "strict_v2": True}
    n_rows = shapes["head.weight"][0] if kind == "classifier" else 0
    check_labels(source, kind, n_rows, n_labels)
    expected = expected_tensors(FAMILIES[FAMILY], config, kind, n_rows, str(source.path))
    compare(source, shapes, {name: shape for name, (_, shape) in expected.items()}, kind, "netFound")
    state, mapped = take(source, {ours: names[ours] for ours in expected})
    built = build(FAMILIES[FAMILY].representation, settings).settings()
    return Converted(kind, config, built, state, mapped, dropped, FAMILY)


def _named(source: Source) -> tuple[dict[str, str], list[dict[str, str]]]:
    """Our name -> the source's, and what is left behind; an unknown tensor keeps its name, so that it is reported."""
    names, dropped = {}, list(source.dropped)
    for name in source.tensors:
        plain = name.removeprefix("module.").removeprefix("_orig_mod.")
        if _UNREAD.fullmatch(plain):
            dropped.append({"name": name, "what": "tensor that the published code never reads"})
        elif plain in _COPIES:
            _check_copy(source, name, _COPIES[plain])
            dropped.append({"name": name, "what": f"copy of {_COPIES[plain]}"})
        else:
            names[our_name(plain) or plain] = name
    return names, dropped


def _check_copy(source: Source, name: str, original: str) -> None:
    """A second copy must be one: the published head shares its weights with the token table."""
    import torch

    first = source.tensors.get(
        name.removesuffix(name.split("lm_head.")[-1]).removesuffix("lm_head.") + original
    )
    if first is None or not torch.equal(first, source.tensors[name]):
        raise CheckpointError(
            f"{source.path}: tensor {name!r}: got other values than {original!r}, expected the same ones; the head of "
            "a published netFound shares them"
        )


def _pretrains(name: str) -> bool:
    return name.startswith(("token_head.", "swap_head.", "metadata_head.", "direction_head."))


def _kind(source: Source, names: Mapping[str, str]) -> str:
    """What the names say it is: with a head a classifier, with a language-model head a backbone."""
    if {
        "embeddings.word.weight",
        "embeddings.meta_in.weight",
        "layers.0.flow_encoder.query.weight",
    } <= names.keys():
        if "head.weight" in names:
            return "classifier"
        if "token_head.dense.weight" in names:
            return "backbone"
        raise CheckpointError(
            f"{source.path}: got an encoder alone, expected one with a head of pre-training (lm_head.*) or of "
            "fine-tuning (classifier.*); convert the model that the published code saved"
        )
    shown = ", ".join(repr(name[:60]) for name in list(source.tensors)[:3])
    raise CheckpointError(
        f"{source.path}: got {len(source.tensors)} tensors ({shown}{', ...' if len(source.tensors) > 3 else ''}), "
        "expected those of a published netFound (base_transformer.embeddings.word_embeddings.weight, ...); "
        "it is of another model"
    )


def _sizes(source: Source, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The configuration that these shapes belong to; rates and weights, which no shape shows, are the paper's."""
    read = PublishedShapes(source.path, shapes, "netFound")
    d_model, d_head = read.size("embeddings.word.weight", 1, 2), read.size("burst_positions", 1, 2)
    n_tokens, expected = read.size("burst_positions", 0, 2), layout.NetFoundLayout().burst_tokens
    if n_tokens != expected:
        raise CheckpointError(
            f"{source.path}: got bursts of {n_tokens} tokens, expected {expected}: a netFound without payload and TCP "
            "options, like the published small, base and large"
        )
    return dataclasses.asdict(NetFoundConfig()) | {
        **SIZES["small"],
        "d_model": d_model,
        "n_layers": read.n_blocks("layers."),
        "n_heads": max(1, d_model // d_head),
        "d_mlp": read.size("layers.0.burst_encoder.mlp_out.weight", 1, 2),
        "d_meta": read.size("embeddings.meta_in.weight", 0, 2),
        "n_bursts": read.size("flow_positions", 0, 2) - 1,
        "n_tokens": n_tokens,
        "published_pooling": True,
        "published_swap": True,
    }
