"""NetMamba+ (arXiv 2601.21792): packet sizes and inter-arrival times in front of NetMamba's strides.

Parameter names and shapes are those of the published code, so its weights load; the head alone has a bias more.

Dimensions: flows F, packets of a sequence n, bytes of a flow ``n_bytes``, stride S bytes, strides m = n_bytes / S,
width D, tokens L = 2 (n + 1) + m + 1. A sequence is sizes, class token, times, class token, strides, class token; the
scan is causal, so each class token has seen what stands before it, and the last one everything.

A packet that is not there has no embedding: its token is position and modality alone. The published code embeds a
legal size in its place.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.nets.mamba import MambaBlock, rescale_residual_projections
from models.nets.netmamba import StrideEmbedding, check_bytes, masks_from, scaled_strides, with_hidden
from models.nets.netmamba_plus_config import NetMambaPlusConfig
from models.nets.rms_norm import RMSNorm

if TYPE_CHECKING:
    from models.nets.netmamba_plus_inference import FastNetMambaPlus

__all__ = [
    "NetMambaPlusClassifier",
    "NetMambaPlusConfig",
    "NetMambaPlusPretrainer",
    "cosine_embedding",
    "layer_index",
]

LONGEST_PERIOD = 10_000.0
"""Of the slowest pair of an embedding of values, over 2 pi."""

HIDDEN_IAT = 0.0
"""Stands over a hidden time; no time that is there has this value."""


def cosine_embedding(values: Tensor, width: int) -> Tensor:
    """Sine and cosine of each value at frequencies from 1 down to 1 / ``LONGEST_PERIOD``, in pairs.

    Args:
        values: any number type, (...).
        width: D, even.

    Returns:
        float64 (..., D). In float64, because a size of 3000 in float32 would miss the angle by 3e-4.

    Source:
        The published code; positions are embedded like this in arXiv 1706.03762, section 3.5.
    """
    pairs = torch.arange(0, width, 2, dtype=torch.float64, device=values.device)
    angles = values.double()[..., None] * torch.exp(pairs * (-math.log(LONGEST_PERIOD) / width))
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)


class _Encoder(nn.Module):
    """What classifier and pre-training network share: embeddings, positions, class tokens, blocks, final norm."""

    def __init__(self, config: NetMambaPlusConfig) -> None:
        super().__init__()
        self.config = config
        width = config.d_model
        self.byte_embed = StrideEmbedding(config.stride, width)
        self.size_cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.iat_cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.byte_cls_token = nn.Parameter(torch.zeros(1, 1, width))
        # A vector for each modality, added to all its tokens.
        self.size_indicator = nn.Parameter(torch.zeros(1, 1, width))
        self.iat_indicator = nn.Parameter(torch.zeros(1, 1, width))
        self.byte_indicator = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.n_tokens, width))
        rates = torch.linspace(0.0, config.drop_path, config.n_layers).tolist()
        if config.n_layers == 1:
            rates = [config.drop_path]
        blocks = [MambaBlock(width, config.d_state, config.d_conv, config.expand, rate) for rate in rates]
        rescale_residual_projections(blocks)
        self.encoder_blocks = nn.ModuleList(blocks)
        self.norm_f = RMSNorm(width)
        for name, parameter in self.named_parameters():
            if name.endswith(("cls_token", "indicator", "pos_embed")):
                nn.init.trunc_normal_(parameter, std=0.02)

    @property
    def blocks(self) -> nn.ModuleList:
        """The encoder's blocks under the name that :mod:`models.nets.netmamba_inference` reads."""
        return self.encoder_blocks

    def check_input(
        self, bytes: Tensor, sizes: Tensor, iats: Tensor, sizes_present: Tensor, iats_present: Tensor
    ) -> None:
        """Refuse arrays that are not those of the representation.

        Raises:
            ValueError: if a dtype or shape is another.
        """
        check_bytes(bytes, self.config.n_bytes)
        shape = (len(bytes), self.config.n_sequence_packets)
        for name, array, dtype in (
            ("sizes", sizes, torch.int16),
            ("iats", iats, torch.float32),
            ("sizes_present", sizes_present, torch.bool),
            ("iats_present", iats_present, torch.bool),
        ):
            if array.dtype != dtype or tuple(array.shape) != shape:
                raise ValueError(
                    f"{name}: got {array.dtype} of shape {tuple(array.shape)}, expected {dtype} of shape {shape}"
                )

    def embedded_values(self, values: Tensor, present: Tensor) -> Tensor:
        """Sizes or times (F, n) without position or modality: float (F, n, D), zero where nothing is present."""
        embedded = cosine_embedding(values, self.config.d_model).to(self.pos_embed.dtype)
        return embedded * present[..., None]

    def embedded_strides(self, strides: Tensor) -> Tensor:
        """Strides (F, m, S) with positions and modality, without class token: float (F, m, D)."""
        positions = self.pos_embed[:, self.config.first_stride : -1]
        embedded: Tensor = self.byte_embed(strides) + self.byte_indicator + positions
        return embedded

    def encode(self, sizes: Tensor, iats: Tensor, strides: Tensor) -> Tensor:
        """Put the sequence together and run the blocks.

        Args:
            sizes: float (F, n, D), of :meth:`embedded_values`.
            iats: likewise.
            strides: float (F, k, D), of :meth:`embedded_strides`, all of them or some.

        Returns:
            float (F, 2 (n + 1) + k + 1, D), normalised.
        """
        n_flows, after_sizes = len(sizes), self.config.n_sequence_packets + 1
        parts = [
            torch.cat([sizes, self.size_cls_token.expand(n_flows, -1, -1)], dim=1) + self.size_indicator,
            torch.cat([iats, self.iat_cls_token.expand(n_flows, -1, -1)], dim=1) + self.iat_indicator,
        ]
        parts[0] = parts[0] + self.pos_embed[:, :after_sizes]
        parts[1] = parts[1] + self.pos_embed[:, after_sizes : self.config.first_stride]
        last = self.byte_cls_token + self.byte_indicator + self.pos_embed[:, -1:]
        x = torch.cat([*parts, strides, last.expand(n_flows, -1, -1)], dim=1)
        for block in self.encoder_blocks:
            x = block(x)
        normed: Tensor = self.norm_f(x)
        return normed


class NetMambaPlusClassifier(_Encoder):
    """Encoder and a linear head on the sum of the three class tokens.

    Args:
        config: sizes.
        n_labels: C, classes.

    Attributes:
        inference_precision: one of :attr:`inference_precisions`, as of NetMamba.
    """

    inference_precision = "fp32"

    def __init__(self, config: NetMambaPlusConfig, n_labels: int) -> None:
        super().__init__(config)
        self.head = nn.Linear(config.d_model, n_labels)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    @property
    def inference_precisions(self) -> tuple[str, ...]:
        """See :func:`models.nets.netmamba_inference.precisions`."""
        from models.nets.netmamba_inference import precisions

        return precisions(self)

    def features(
        self, bytes: Tensor, sizes: Tensor, iats: Tensor, sizes_present: Tensor, iats_present: Tensor
    ) -> Tensor:
        """What the head reads: the representation's arrays to float32 (F, D); as fast as :meth:`forward`.

        Args:
            bytes: uint8 (F, n_bytes).
            sizes: int16 (F, n).
            iats: float32 (F, n).
            sizes_present: bool (F, n).
            iats_present: bool (F, n).

        Raises:
            ValueError: if a dtype or shape is another.
        """
        self.check_input(bytes, sizes, iats, sizes_present, iats_present)
        values = (self.embedded_values(sizes, sizes_present), self.embedded_values(iats, iats_present))
        fast = self._fast()
        if fast is not None:
            return fast.features(bytes, *values)
        strides = scaled_strides(bytes, self.config.stride, self.pos_embed.dtype)
        encoded = self.encode(*values, self.embedded_strides(strides))
        return encoded[:, list(self.config.class_tokens)].sum(1)

    def forward(
        self, bytes: Tensor, sizes: Tensor, iats: Tensor, sizes_present: Tensor, iats_present: Tensor
    ) -> Tensor:
        """Logits, float32 (F, C), of the arrays that :meth:`features` takes."""
        features = self.features(bytes, sizes, iats, sizes_present, iats_present)
        logits: Tensor = self.head(functional.dropout(features, self.config.head_dropout, self.training))
        return logits.float()

    def _fast(self) -> FastNetMambaPlus | None:
        """The fast form, where it may run."""
        if self.training or not torch.is_inference_mode_enabled():
            return None
        from models.nets.netmamba_inference import covers, fast_form
        from models.nets.netmamba_plus_inference import FastNetMambaPlus

        return fast_form(self, FastNetMambaPlus) if covers(self) else None


class NetMambaPlusPretrainer(_Encoder):
    """The masked autoencoder of three modalities: hide most strides, and some sizes and times; predict what is hidden.

    Args:
        config: sizes.

    Attributes:
        losses: of the last forward pass, each float32 () and without its weight: ``byte_loss``, mean squared error of
            hidden strides; ``size_loss``, cross-entropy of hidden sizes in nats; ``iat_loss``, mean squared error of
            hidden times over ``iat_scale``. A size or time of a packet that is not there is never counted.
    """

    def __init__(self, config: NetMambaPlusConfig) -> None:
        super().__init__(config)
        width = config.decoder_d_model
        self.byte_decoder_embed = nn.Linear(config.d_model, width)
        self.byte_mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.byte_decoder_pos_embed = nn.Parameter(torch.zeros(1, config.n_strides + 1, width))
        self.byte_decoder_blocks = nn.ModuleList(
            MambaBlock(width, config.d_state, config.d_conv, config.expand)
            for _ in range(config.decoder_layers)
        )
        self.decoder_norm_f = RMSNorm(width)
        self.byte_decoder_pred = nn.Linear(width, config.stride)
        self.size_decoder_pred = nn.Linear(config.d_model, config.n_size_ids)
        self.iat_decoder_pred = nn.Linear(config.d_model, 1)
        nn.init.trunc_normal_(self.byte_mask_token, std=0.02)
        nn.init.trunc_normal_(self.byte_decoder_pos_embed, std=0.02)
        linears = (
            self.byte_decoder_embed,
            self.byte_decoder_pred,
            self.size_decoder_pred,
            self.iat_decoder_pred,
        )
        for linear in linears:
            nn.init.zeros_(linear.bias)
        self.losses: dict[str, Tensor] = {}

    def forward(
        self,
        bytes: Tensor,
        sizes: Tensor,
        iats: Tensor,
        sizes_present: Tensor,
        iats_present: Tensor,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Hide, encode, decode, compare. The arrays are those of :meth:`NetMambaPlusClassifier.features`.

        Args:
            bytes: uint8 (F, n_bytes).
            sizes: int16 (F, n).
            iats: float32 (F, n).
            sizes_present: bool (F, n).
            iats_present: bool (F, n).
            generator: source of the masks; torch's own if None.

        Returns:
            The loss, byte_loss + size_loss_weight * size_loss + iat_loss_weight * iat_loss, float32 ();
            the prediction of every stride, float32 (F, m, S); the strides' mask, float32 (F, m), 1 = hidden.
        """
        self.check_input(bytes, sizes, iats, sizes_present, iats_present)
        config = self.config
        strides = scaled_strides(bytes, config.stride, self.pos_embed.dtype)
        kept, mask, sizes_hidden, iats_hidden = self.masks(len(bytes), generator, bytes.device)
        embedded = self.embedded_strides(strides)
        encoded = self.encode(
            self.embedded_values(sizes.masked_fill(sizes_hidden, config.n_size_ids - 1), sizes_present),
            self.embedded_values(iats.masked_fill(iats_hidden, HIDDEN_IAT), iats_present),
            # In the shuffled order, as NetMamba reads them.
            embedded.gather(1, kept[..., None].expand(-1, -1, embedded.shape[2])),
        )
        predicted = self.decode(encoded[:, config.first_stride :], kept)
        error = (predicted - strides).square().mean(-1)
        size_class, iat_class, _ = config.class_tokens
        byte_loss = (error * mask).sum() / mask.sum()
        size_loss = self._size_loss(encoded[:, :size_class], sizes, sizes_hidden & sizes_present)
        iat_loss = self._iat_loss(encoded[:, size_class + 1 : iat_class], iats, iats_hidden & iats_present)
        self.losses = {
            "byte_loss": byte_loss.detach(),
            "size_loss": size_loss.detach(),
            "iat_loss": iat_loss.detach(),
        }
        loss = byte_loss + config.size_loss_weight * size_loss + config.iat_loss_weight * iat_loss
        return loss, predicted, mask

    def masks(
        self, n_flows: int, generator: torch.Generator | None, device: torch.device | str
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What one batch hides.

        Returns:
            The kept strides in the order in which the encoder reads them, int64 (F, n_kept); the strides' mask, float32
            (F, m), 1 = hidden; which sizes are hidden, bool (F, n); which times are hidden, bool (F, n).
        """
        n, config = self.config.n_sequence_packets, self.config
        source = generator.device if generator is not None else device
        noise = torch.rand(n_flows, config.n_strides + 2 * n, generator=generator, device=source).to(device)
        kept, mask = masks_from(noise[:, : config.n_strides], config.n_kept)
        of_sizes, of_iats = noise[:, config.n_strides : -n], noise[:, -n:]
        hidden = [masks_from(part, config.n_shown)[1].bool() for part in (of_sizes, of_iats)]
        return kept, mask, hidden[0], hidden[1]

    def skip_draws(self, generator: torch.Generator, n_flows: int) -> None:
        """Draw and forget what the masks of ``n_flows`` flows take of ``generator``, for a later part of a batch."""
        self.masks(n_flows, generator, generator.device)

    def decode(self, encoded: Tensor, kept: Tensor) -> Tensor:
        """Every stride predicted from the encoder's output, as NetMamba's pre-training network does."""
        x = self.byte_decoder_embed(encoded)
        x = with_hidden(x, kept, self.byte_mask_token, self.config.n_strides) + self.byte_decoder_pos_embed
        for block in self.byte_decoder_blocks:
            x = block(x)
        predicted: Tensor = self.byte_decoder_pred(self.decoder_norm_f(x[:, :-1]))
        return predicted.float()

    def _size_loss(self, encoded: Tensor, sizes: Tensor, counted: Tensor) -> Tensor:
        # Of the counted ones alone: all sizes of a batch of 128 would be 30 MB of logits.
        logits = self.size_decoder_pred(encoded[counted]).float()
        total = functional.cross_entropy(logits, sizes[counted].long(), reduction="sum")
        return total / counted.sum().clamp(min=1)

    def _iat_loss(self, encoded: Tensor, iats: Tensor, counted: Tensor) -> Tensor:
        predicted = self.iat_decoder_pred(encoded[counted])[:, 0].float()
        error: Tensor = (predicted - iats[counted] / self.config.iat_scale).square()
        return error.sum() / counted.sum().clamp(min=1)


def layer_index(name: str, config: NetMambaPlusConfig) -> int:
    """Depth of a parameter, for layer-wise learning-rate decay.

    Args:
        name: in the state dict.
        config: sizes.

    Returns:
        0 for embeddings, class tokens and modalities, i + 1 for block i, ``n_layers`` + 1 for what comes after the
        blocks. The published code has the class tokens, modalities and the embedding of bytes at the top.
    """
    if name.startswith("encoder_blocks."):
        return int(name.split(".")[1]) + 1
    if name == "pos_embed" or name.startswith("byte_embed.") or name.endswith(("cls_token", "indicator")):
        return 0
    return config.n_layers + 1
