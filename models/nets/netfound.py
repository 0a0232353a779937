"""netFound (arXiv 2310.17025, version 2 of the published code): a transformer of bursts and of flows.

Each layer lets the tokens of a burst read one another, then the bursts' class tokens of a flow; what these learn of the
other bursts replaces them. The answer is a learned mean of the class tokens.

Dimensions: flows F, bursts B of each, tokens T of a burst; N bursts and M tokens that are there; width h, classes C.

Tokens run packed (:mod:`models.nets.netfound_bursts`), and of the last layer the class tokens alone. Padding is never
read, so a flow's answer is its own. Names of parameters are ours; :mod:`models.convert.netfound` knows the published.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from capture.representations import netfound_layout as layout
from models.nets.netfound_bursts import Packed, Tokens, pack
from models.nets.netfound_config import NetFoundConfig
from models.nets.netfound_layers import (
    ATTENTION_NORM_EPS,
    AttentivePooling,
    NetFoundLayer,
    rotary_table,
)

__all__ = ["NetFoundClassifier", "NetFoundConfig", "NetFoundEncoder", "layer_index", "part_of"]

N_SPECIAL = layout.VOCABULARY - layout.CLS
"""Ids behind the values: class token, mask, end, and some that nobody uses."""

# log(1 + x) of bytes, packets and milliseconds is divided by these, so that numbers are about 1.
_LOG_SCALES = (1.0, 7.0, 1.0, 7.0)


class FactorisedEmbedding(nn.Module):
    """A 16-bit value as the sum of a row for its high byte and one for its low byte; special ids have a row each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.high = nn.Embedding(256 + N_SPECIAL, width)
        self.low = nn.Embedding(257, width)  # 256: no value

    def forward(self, ids: Tensor) -> Tensor:
        """From int (...) to float (..., h); padding has the last special row."""
        high, low = high_and_low(ids)
        embedded: Tensor = self.high(high) + self.low(low)
        return embedded


def high_and_low(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of the two tables of :class:`FactorisedEmbedding`: int (...) to int64 (...) twice."""
    value = ids.long() - layout.FIRST_VALUE
    is_value = (value >= 0) & (value < layout.N_VALUES)
    special = (ids.long() - layout.CLS) % N_SPECIAL
    high = torch.where(is_value, value >> 8, 256 + special)
    return high, torch.where(is_value, value & 255, 256)


class NetFoundEmbedding(nn.Module):
    """Token, metadata of its burst and protocol of its flow, side by side, to one vector.

    Args:
        config: sizes and rates.
    """

    def __init__(self, config: NetFoundConfig) -> None:
        super().__init__()
        h = config.d_model
        self.log_metadata = config.log_metadata
        self.word: nn.Module = (
            FactorisedEmbedding(h)
            if config.factorised
            else nn.Embedding(layout.VOCABULARY, h, padding_idx=layout.PAD)
        )
        self.meta_in = nn.Linear(len(layout.METADATA), config.d_meta)
        self.meta_out = nn.Linear(config.d_meta, h)
        self.protocol = nn.Embedding(layout.N_PROTOCOL_ROWS, h)
        self.compress = nn.Linear(3 * h, h)
        self.norm = nn.LayerNorm(h, eps=ATTENTION_NORM_EPS)
        self.dropout = nn.Dropout(config.dropout)

    def scaled(self, metadata: Tensor) -> Tensor:
        """Metadata as the network reads it: float (..., 4) to float (..., 4)."""
        if not self.log_metadata:
            return metadata / metadata.new_tensor((1.0, layout.BYTES_SCALE, 1.0, 1.0))
        amounts = torch.log1p(metadata[..., 1:].clamp(min=0.0))
        return torch.cat([metadata[..., :1], amounts / metadata.new_tensor(_LOG_SCALES[1:])], dim=-1)

    def forward(self, ids: Tensor, metadata: Tensor, protocol: Tensor, burst: Tensor) -> Tensor:
        """Embed tokens of bursts.

        The layer that joins the three is linear, so what all tokens of a burst share is computed once for it.

        Args:
            ids: int (M,).
            metadata: float (N, 4), as the representation has it.
            protocol: int (N,), of each burst's flow.
            burst: int64 (M,), of each token.

        Returns:
            float (M, h).
        """
        of_token, of_metadata, of_protocol = self.compress.weight.chunk(3, dim=1)
        dtype = self.compress.bias.dtype
        embedded = self.meta_out(functional.gelu(self.meta_in(self.scaled(metadata).to(dtype))))
        shared = functional.linear(embedded, of_metadata) + functional.linear(
            self.protocol(protocol.long()), of_protocol, self.compress.bias
        )
        x = functional.linear(self.word(ids.long()), of_token) + shared[burst]
        normed: Tensor = self.dropout(self.norm(x))
        return normed


class NetFoundEncoder(nn.Module):
    """Embedding and layers: what classifier and pre-training network share.

    Args:
        config: sizes and rates.
    """

    burst_positions: Tensor
    flow_positions: Tensor

    def __init__(self, config: NetFoundConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = NetFoundEmbedding(config)
        self.layers = nn.ModuleList(NetFoundLayer(config) for _ in range(config.n_layers))
        self.pooling = AttentivePooling(config.d_model)
        # In the checkpoint, as the published ones may hold other angles than the formula's.
        self.register_buffer("burst_positions", rotary_table(config.n_tokens, config.d_head))
        self.register_buffer("flow_positions", rotary_table(config.n_bursts + 1, config.d_head))
        self.apply(_start)

    def run_packed(self, tokens: Tokens, packed: Packed, *, whole_last: bool) -> tuple[Tensor, Tensor]:
        """All layers over the tokens that are there.

        Args:
            tokens: of F flows.
            packed: of ``tokens.ids``; at least one burst.
            whole_last: compute all tokens of the last layer, for pre-training; else the class tokens alone.

        Returns:
            Every token, float (M, h) (of the last but one layer unless ``whole_last``), and the class tokens, float
            (N, h), in the order of ``packed.flow_order``.
        """
        metadata = tokens.metadata()[packed.flow, packed.burst]
        protocol = tokens.protocol[packed.flow]
        x = self.embeddings(packed.take(tokens.ids), metadata, protocol, packed.token_burst)
        burst_angles = self.burst_positions[packed.token_place]
        flow_angles = self.flow_positions[packed.flow_place]
        places = packed.starts[packed.flow_order]
        class_tokens = x[places]
        for depth, layer in enumerate(self.layers, start=1):
            if depth == len(self.layers) and not whole_last:
                first = layer.burst_encoder.first_rows(  # type: ignore[union-attr,operator]
                    x, packed.starts, burst_angles, packed.burst_groups
                )
                class_tokens = first[packed.flow_order]
            else:
                x = layer.burst_encoder(x, burst_angles, packed.burst_groups)  # type: ignore[operator]
                class_tokens = x[places]
            class_tokens = layer.flow_encoder(class_tokens, flow_angles, packed.flow_groups)  # type: ignore[operator]
            if depth < len(self.layers) or whole_last:
                x = x.index_copy(0, places, class_tokens)
        return x, class_tokens

    def run_padded(self, tokens: Tokens) -> Tensor:
        """All layers over every place: slower, and the same where there is something.

        Args:
            tokens: of F flows.

        Returns:
            float (F, B, T, h).
        """
        n_flows, n_bursts, n_tokens = tokens.ids.shape
        places = torch.arange(n_flows * n_bursts, device=tokens.ids.device).repeat_interleave(n_tokens)
        protocol = tokens.protocol.repeat_interleave(n_bursts)
        x = self.embeddings(tokens.ids.flatten(), tokens.metadata().flatten(0, 1), protocol, places)
        x = x.view(n_flows * n_bursts, n_tokens, -1)
        present = (tokens.ids != layout.PAD).flatten(0, 1)
        bursts = present.any(1).view(n_flows, n_bursts)
        for layer in self.layers:
            x = layer.burst_encoder.padded(x, self.burst_positions[:n_tokens], present)  # type: ignore[union-attr,operator]
            class_tokens = layer.flow_encoder.padded(  # type: ignore[union-attr,operator]
                x[:, 0].reshape(n_flows, n_bursts, -1), self.flow_positions[:n_bursts], bursts
            )
            x = torch.cat([class_tokens.flatten(0, 1)[:, None], x[:, 1:]], dim=1)
        whole: Tensor = x.view(n_flows, n_bursts, n_tokens, -1)
        return whole

    def pool_packed(self, class_tokens: Tensor, packed: Packed, n_flows: int) -> Tensor:
        """One vector a flow, zero for a flow without bursts: float (N, h), in flow order, to float (F, h)."""
        parts = [
            self.pooling(class_tokens[group.rows].view(group.n, group.length, -1))
            for group in packed.flow_groups
        ]
        pooled = torch.cat(parts)
        return pooled.new_zeros(n_flows, pooled.shape[1]).index_copy(0, packed.flows, pooled)


class NetFoundClassifier(NetFoundEncoder):
    """Encoder, pooling and a linear head; between them two dense layers where the config has ``head_hidden``.

    Args:
        config: sizes and rates.
        n_labels: C.

    Attributes:
        packed: run the tokens that are there alone; False: every place, for comparison.
    """

    micro_batch = 32  # flows that the predictor gives at a time: bursts of equal length come together
    packed = True

    def __init__(self, config: NetFoundConfig, n_labels: int) -> None:
        super().__init__(config)
        h = config.d_model
        if config.head_hidden:
            self.hidden_in = nn.Linear(h, h)
            self.hidden_out = nn.Linear(h, h)
            self.hidden_dropout = nn.Dropout(config.mlp_dropout)
        self.head = nn.Linear(h, n_labels)
        self.head_dropout = nn.Dropout(config.head_dropout)
        self.apply(_start)

    def features(self, *arrays: Tensor) -> Tensor:
        """What the head reads: the representation's arrays, as :class:`Tokens` names them, to float32 (F, h).

        Raises:
            ValueError: if a dtype or shape is another.
        """
        tokens = Tokens(*arrays).checked(self.config.n_bursts, self.config.n_tokens)
        pooled = self._pooled(tokens)
        if self.config.head_hidden:
            pooled = self.hidden_out(self.hidden_dropout(functional.gelu(self.hidden_in(pooled))))
        return pooled

    def forward(self, *arrays: Tensor) -> Tensor:
        """Logits, float32 (F, C), of the arrays that :meth:`features` takes."""
        logits: Tensor = self.head(self.head_dropout(self.features(*arrays)))
        return logits.float()

    def _pooled(self, tokens: Tokens) -> Tensor:
        if not self.packed:
            return self._pooled_padded(tokens)
        packed = pack(tokens.ids)
        if len(packed.flow) == 0:
            return self.head.weight.new_zeros(len(tokens.ids), self.config.d_model)
        _, class_tokens = self.run_packed(tokens, packed, whole_last=False)
        return self.pool_packed(class_tokens, packed, len(tokens.ids))

    def _pooled_padded(self, tokens: Tokens) -> Tensor:
        present = (tokens.ids != layout.PAD).any(2)
        if not self.config.published_pooling:
            padded: Tensor = self.pooling(self.run_padded(tokens)[:, :, 0], present)
            return padded
        # As published, without a mask; flows of equally many bursts together have nothing to mask.
        counts = present.sum(1)
        pooled = self.head.weight.new_zeros(len(counts), self.config.d_model)
        for count in sorted(set(counts.tolist())):
            if count:
                rows = torch.nonzero(counts == count)[:, 0]
                part = Tokens(*(array[rows] for array in tokens))
                part = Tokens(*(a[:, :count] if a.ndim > 1 else a for a in part))
                pooled = pooled.index_copy(0, rows, self.pooling(self.run_padded(part)[:, :, 0]))
        return pooled


def _start(module: nn.Module) -> None:
    """First weights, as published: normal with a deviation of 0.02, biases and the row of padding 0."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        nn.init.zeros_(module.weight[module.padding_idx])


def layer_index(name: str, config: NetFoundConfig) -> int:
    """Depth of a parameter, for layer-wise learning-rate decay: 0 embedding, i + 1 layer i, then the rest."""
    if name.startswith("layers."):
        return int(name.split(".")[1]) + 1
    return 0 if name.startswith("embeddings.") else config.n_layers + 1


def part_of(name: str) -> str:
    """The part that ``--freeze`` calls a parameter's; empty for pooling and heads, which always learn."""
    if name.startswith("embeddings."):
        return "embeddings"
    for part in ("burst_encoder", "flow_encoder"):
        if f".{part}." in name:
            return part
    return ""
