"""netFound's encoder layer: rotary attention, then a gated MLP, over sequences that are packed or padded.

Dimensions: rows R (tokens or bursts), width h, heads H, width of a head d.

Source:
    arXiv 2310.17025, version 2 of the published code. Attention and its norm are RoFormer's (arXiv 2104.09864,
    post-norm), the MLP and its norm ModernBERT's (arXiv 2412.13663, pre-norm, GeGLU, no biases).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.nets.netfound_bursts import Group
from models.nets.netfound_config import NetFoundConfig

ATTENTION_NORM_EPS = 1e-12
MLP_NORM_EPS = 1e-5
LONGEST_PERIOD = 10_000.0


def rotary_table(n_places: int, width: int) -> Tensor:
    """Sine and cosine of every angle: float32 (n_places, width), sines in the first half.

    Source:
        RoFormer (arXiv 2104.09864), equation 15.
    """
    rates = LONGEST_PERIOD ** (torch.arange(0, width, 2, dtype=torch.float64) / -width)
    angles = torch.arange(n_places, dtype=torch.float64)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


def rotated(x: Tensor, angles: Tensor) -> Tensor:
    """Turn the pairs (0, 1), (2, 3), ... of every head by its place's angles.

    Args:
        x: float (..., H, d).
        angles: float (..., d) of :func:`rotary_table`.
    """
    sines, cosines = (half.to(x.dtype).unsqueeze(-2) for half in angles.chunk(2, dim=-1))
    first, second = x[..., 0::2], x[..., 1::2]
    turned = torch.stack([first * cosines - second * sines, second * cosines + first * sines], dim=-1)
    return turned.flatten(-2)


class EncoderLayer(nn.Module):
    """Attention among the rows of a sequence, then an MLP for each row.

    Args:
        config: sizes and rates.
    """

    def __init__(self, config: NetFoundConfig) -> None:
        super().__init__()
        h = config.d_model
        self.n_heads, self.attention_dropout = config.n_heads, config.attention_dropout
        self.query = nn.Linear(h, h)
        self.key = nn.Linear(h, h)
        self.value = nn.Linear(h, h)
        self.out = nn.Linear(h, h)
        self.attention_norm = nn.LayerNorm(h, eps=ATTENTION_NORM_EPS)
        self.mlp_norm = nn.LayerNorm(h, eps=MLP_NORM_EPS, bias=False)
        self.mlp_in = nn.Linear(h, 2 * config.d_mlp, bias=False)
        self.mlp_out = nn.Linear(config.d_mlp, h, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        self.mlp_dropout = nn.Dropout(config.mlp_dropout)

    def forward(self, x: Tensor, angles: Tensor, groups: Sequence[Group]) -> Tensor:
        """Packed sequences: every row answers.

        Args:
            x: float (R, h), the sequences behind one another.
            angles: float (R, d).
            groups: which rows are sequences, of equal length in a group.

        Returns:
            float (R, h).
        """
        heads = (self.n_heads, -1)
        query = rotated(self.query(x).unflatten(-1, heads), angles)
        key = rotated(self.key(x).unflatten(-1, heads), angles)
        value = self.value(x).unflatten(-1, heads)
        parts = []
        for group in groups:
            q, k, v = (
                part[group.rows].unflatten(0, (group.n, group.length)).transpose(1, 2)
                for part in (query, key, value)
            )
            parts.append(self._attend(q, k, v).transpose(1, 2).flatten(0, 1))
        return self._after_attention(x, torch.cat(parts).flatten(1))

    def first_rows(self, x: Tensor, starts: Tensor, angles: Tensor, groups: Sequence[Group]) -> Tensor:
        """Packed sequences: the first row of each answers, which is all that the last layer needs.

        Args:
            x: float (R, h).
            starts: int64 (N,), first row of each sequence.
            angles: float (R, d).
            groups: as of :meth:`forward`.

        Returns:
            float (N, h), the rows at ``starts`` of what :meth:`forward` returns.
        """
        heads = (self.n_heads, -1)
        first = x[starts]
        query = rotated(self.query(first).unflatten(-1, heads), angles[starts])
        key = rotated(self.key(x).unflatten(-1, heads), angles)
        value = self.value(x).unflatten(-1, heads)
        parts, done = [], 0
        for group in groups:
            k, v = (
                part[group.rows].unflatten(0, (group.n, group.length)).transpose(1, 2)
                for part in (key, value)
            )
            q = query[done : done + group.n, :, None]
            parts.append(self._attend(q, k, v)[:, :, 0])
            done += group.n
        return self._after_attention(first, torch.cat(parts).flatten(1))

    def padded(self, x: Tensor, angles: Tensor, present: Tensor) -> Tensor:
        """Padded sequences; rows that are not there are read by none, and mean nothing themselves.

        Args:
            x: float (S, L, h).
            angles: float (L, d).
            present: bool (S, L).

        Returns:
            float (S, L, h).
        """
        heads = (self.n_heads, -1)
        query = rotated(self.query(x).unflatten(-1, heads), angles).transpose(1, 2)
        key = rotated(self.key(x).unflatten(-1, heads), angles).transpose(1, 2)
        value = self.value(x).unflatten(-1, heads).transpose(1, 2)
        # Of a sequence without a row, every row counts: a softmax over nothing would be NaN.
        readable = present | ~present.any(1, keepdim=True)
        attended = self._attend(query, key, value, readable[:, None, None])
        return self._after_attention(x, attended.transpose(1, 2).flatten(2))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        rate = self.attention_dropout if self.training else 0.0
        return functional.scaled_dot_product_attention(query, key, value, mask, dropout_p=rate)

    def _after_attention(self, x: Tensor, attended: Tensor) -> Tensor:
        """Residual and norm behind attention, then the MLP with its norm in front."""
        x = self.attention_norm(x + self.dropout(self.out(attended)))
        inner, gate = self.mlp_in(self.mlp_norm(x)).chunk(2, dim=-1)
        hidden: Tensor = functional.gelu(inner, approximate="tanh") * gate
        output: Tensor = x + self.mlp_out(self.mlp_dropout(hidden))
        return output


class NetFoundLayer(nn.Module):
    """A burst encoder, then a flow encoder over the bursts' class tokens, whose output replaces them."""

    def __init__(self, config: NetFoundConfig) -> None:
        super().__init__()
        self.burst_encoder = EncoderLayer(config)
        self.flow_encoder = EncoderLayer(config)


class AttentivePooling(nn.Module):
    """Mean of a flow's bursts, weighted by a softmax of what is learned; weights are bounded by a tanh.

    Source:
        The published code, where no dropout is applied and padding is pooled too.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.projection = nn.Linear(width, width)
        self.score = nn.Linear(width, 1, bias=False)

    def forward(self, bursts: Tensor, present: Tensor | None = None) -> Tensor:
        """From float (F, B, h) and bool (F, B), or None for all, to float (F, h); zero for a flow without bursts."""
        scores = torch.tanh(self.score(self.projection(bursts)))[..., 0]
        if present is None:
            return (scores.softmax(-1)[..., None] * bursts).sum(1)
        readable = present | ~present.any(1, keepdim=True)  # of nothing a softmax would be NaN
        weights = scores.masked_fill(~readable, -math.inf).softmax(-1).masked_fill(~present, 0.0)
        return (weights[..., None] * bursts.masked_fill(~present[..., None], 0.0)).sum(1)
