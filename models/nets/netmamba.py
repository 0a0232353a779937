"""NetMamba (arXiv 2405.11449): the classifier and the masked autoencoder it is pre-trained as.

Parameter names and shapes are those of the published checkpoint, so its weights load.

Dimensions: flows F, bytes of a flow ``n_bytes``, stride S bytes, strides n = n_bytes / S, width D.
A sequence is the n strides in packet order and then the class token: the scan is causal, so only the last token has
seen everything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.nets.mamba import MambaBlock, rescale_residual_projections
from models.nets.netmamba_config import NetMambaConfig
from models.nets.rms_norm import RMSNorm

if TYPE_CHECKING:
    from models.nets.netmamba_inference import FastNetMamba

__all__ = ["NetMambaClassifier", "NetMambaConfig", "NetMambaPretrainer", "layer_index", "random_masking"]


class StrideEmbedding(nn.Module):
    """A linear map of the S scaled bytes of each stride; kept as the convolution of the published checkpoint."""

    def __init__(self, stride: int, d_model: int) -> None:
        super().__init__()
        self.proj = nn.Conv1d(1, d_model, kernel_size=stride, stride=stride)
        assert self.proj.bias is not None  # it is made with one
        nn.init.zeros_(self.proj.bias)

    def forward(self, strides: Tensor) -> Tensor:
        """float32 (F, n, S) to (F, n, D)."""
        # The windows do not overlap, so the convolution is one matrix product.
        return functional.linear(strides, self.proj.weight[:, 0], self.proj.bias)


class _Encoder(nn.Module):
    """What classifier and autoencoder share: embedding, positions, class token, blocks, final norm."""

    def __init__(self, config: NetMambaConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = StrideEmbedding(config.stride, config.d_model)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.d_model))
        if config.positions:
            # The last position is the class token's.
            self.pos_embed = nn.Parameter(torch.zeros(1, config.n_strides + 1, config.d_model))
        rates = torch.linspace(0.0, config.drop_path, config.n_layers).tolist()
        if config.n_layers == 1:
            rates = [config.drop_path]
        blocks = [
            MambaBlock(
                config.d_model, config.d_state, config.d_conv, config.expand, rate, config.bidirectional
            )
            for rate in rates
        ]
        rescale_residual_projections(blocks)
        self.blocks = nn.ModuleList(blocks)
        self.norm_f = RMSNorm(config.d_model)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        if config.positions:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def scaled_strides(self, bytes: Tensor) -> Tensor:
        """uint8 (F, n_bytes) to float32 (F, n, S) in [-1, 1]; the padding byte 0 becomes -1.

        Raises:
            ValueError: if dtype or shape is another.
        """
        self.check_input(bytes)
        return scaled_strides(bytes, self.config.stride, self.cls_token.dtype)

    def check_input(self, bytes: Tensor) -> None:
        """Refuse what is not uint8 (F, n_bytes).

        Raises:
            ValueError: if dtype or shape is another.
        """
        check_bytes(bytes, self.config.n_bytes)

    def embedded(self, strides: Tensor) -> Tensor:
        """Embeddings with positions, without the class token: float32 (F, n, S) to (F, n, D)."""
        embedded: Tensor = self.patch_embed(strides)
        return embedded + self.pos_embed[:, :-1] if self.config.positions else embedded

    def encode(self, embedded: Tensor) -> Tensor:
        """Append the class token and run the blocks: float32 (F, k, D) to (F, k + 1, D), normalised."""
        class_token: Tensor = self.cls_token
        if self.config.positions:
            class_token = class_token + self.pos_embed[:, -1:]
        x = torch.cat([embedded, class_token.expand(len(embedded), -1, -1)], dim=1)
        for block in self.blocks:
            x = block(x)
        normed: Tensor = self.norm_f(x)
        return normed


class NetMambaClassifier(_Encoder):
    """Encoder and a linear head on the class token.

    Args:
        config: sizes.
        n_labels: C, classes.

    Attributes:
        inference_precision: one of :attr:`inference_precisions`: the matrix products of
            :mod:`models.nets.netmamba_inference`. It does not change what the module computes anywhere else.
    """

    inference_precision = "fp32"

    def __init__(self, config: NetMambaConfig, n_labels: int) -> None:
        super().__init__(config)
        self.head = nn.Linear(config.d_model, n_labels)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    @property
    def inference_precisions(self) -> tuple[str, ...]:
        """See :func:`models.nets.netmamba_inference.precisions`."""
        from models.nets.netmamba_inference import precisions

        return precisions(self)

    def features(self, bytes: Tensor) -> Tensor:
        """The class token's output: uint8 (F, n_bytes) to float32 (F, D); as fast as :meth:`forward`."""
        fast = self._fast()
        if fast is not None:
            self.check_input(bytes)
            return fast.features(bytes)
        return self.encode(self.embedded(self.scaled_strides(bytes)))[:, -1]

    def forward(self, bytes: Tensor) -> Tensor:
        """Logits: uint8 (F, n_bytes) to float32 (F, C).

        In evaluation under ``torch.inference_mode`` on a CPU it runs :mod:`models.nets.netmamba_inference`; the same
        logits to 1e-5, or nearly those with a narrow ``inference_precision``.
        """
        fast = self._fast()
        if fast is not None:
            self.check_input(bytes)
            return fast(bytes)
        features = functional.dropout(self.features(bytes), self.config.head_dropout, self.training)
        logits: Tensor = self.head(features)
        return logits.float()

    def _fast(self) -> FastNetMamba | None:
        """The fast form, where it may run."""
        if self.training or not torch.is_inference_mode_enabled():
            return None
        from models.nets.netmamba_inference import FastNetMamba, covers, fast_form

        return fast_form(self, FastNetMamba) if covers(self) else None


class NetMambaPretrainer(_Encoder):
    """The masked autoencoder: hide most strides, encode the rest, predict the hidden bytes.

    Args:
        config: sizes.
    """

    def __init__(self, config: NetMambaConfig) -> None:
        super().__init__(config)
        width = config.decoder_d_model
        self.decoder_embed = nn.Linear(config.d_model, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        if config.positions:
            self.decoder_pos_embed = nn.Parameter(torch.zeros(1, config.n_strides + 1, width))
        self.decoder_blocks = nn.ModuleList(
            MambaBlock(
                width,
                config.d_state,
                config.d_conv,
                config.expand,
                bidirectional=config.bidirectional,
            )
            for _ in range(config.decoder_layers)
        )
        self.decoder_norm_f = RMSNorm(width)
        self.decoder_pred = nn.Linear(width, config.stride)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        if config.positions:
            nn.init.trunc_normal_(self.decoder_pos_embed, std=0.02)
        nn.init.zeros_(self.decoder_embed.bias)
        nn.init.zeros_(self.decoder_pred.bias)

    def forward(
        self, bytes: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mask, encode, decode, compare.

        Args:
            bytes: uint8 (F, n_bytes).
            generator: source of the masks; torch's own if None.

        Returns:
            The loss, mean squared error of the scaled bytes of the hidden strides, float32 ();
            the prediction of every stride, float32 (F, n, S); the mask, float32 (F, n), 1 = hidden.
        """
        strides = self.scaled_strides(bytes)
        kept, mask = random_masking(
            len(strides), self.config.n_strides, self.config.n_kept, generator, strides.device
        )
        embedded = self.embedded(strides)
        # The encoder reads the kept strides in the shuffled order; only their positions tell where they were.
        shown = embedded.gather(1, kept[..., None].expand(-1, -1, embedded.shape[2]))
        predicted = self.decode(self.encode(shown), kept)
        error = (predicted - strides).square().mean(-1)
        return (error * mask).sum() / mask.sum(), predicted, mask

    def flow_loss(self, bytes: Tensor, generator: torch.Generator) -> Tensor:
        """How badly each flow is predicted from a part of itself, for one draw of masks.

        Args:
            bytes: uint8 (F, n_bytes).
            generator: source of the masks.

        Returns:
            float32 (F,), mean squared error of the scaled bytes of the hidden strides that are not all padding; 0 for a
            flow that has none.
        """
        _, predicted, mask = self(bytes, generator)
        strides = self.scaled_strides(bytes)
        counted = mask * (strides > -1).any(-1)
        error = (predicted - strides).square().mean(-1)
        per_flow: Tensor = (error * counted).sum(1) / counted.sum(1).clamp(min=1)
        return per_flow

    def skip_draws(self, generator: torch.Generator, n_flows: int) -> None:
        """Draw and forget what the masks of ``n_flows`` flows take of ``generator``; a later part goes on."""
        torch.rand(n_flows, self.config.n_strides, generator=generator, device=generator.device)

    def decode(self, encoded: Tensor, kept: Tensor) -> Tensor:
        """Every stride predicted from the encoder's output.

        Args:
            encoded: float32 (F, k + 1, D), the class token last.
            kept: int64 (F, k), the index of each encoded stride in its flow.

        Returns:
            float32 (F, n, S).
        """
        x = self.decoder_embed(encoded)
        x = with_hidden(x, kept, self.mask_token, self.config.n_strides)
        if self.config.positions:
            x = x + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        predicted: Tensor = self.decoder_pred(self.decoder_norm_f(x[:, :-1]))
        return predicted.float()


def random_masking(
    n_flows: int, n_strides: int, n_kept: int, generator: torch.Generator | None, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Choose ``n_kept`` strides of each flow, in random order.

    Returns:
        ``kept`` int64 (F, n_kept), indices in the order in which the encoder reads them, and
        ``mask`` float32 (F, n_strides): 1 = hidden, to be predicted; 0 = kept, shown to the encoder.
    """
    # Drawn where the generator lives, so that a CPU generator gives the same masks on every device.
    source = generator.device if generator is not None else device
    return masks_from(torch.rand(n_flows, n_strides, generator=generator, device=source).to(device), n_kept)


def masks_from(noise: Tensor, n_kept: int) -> tuple[Tensor, Tensor]:
    """The same for given noise, float32 (F, n): the ``n_kept`` smallest of each row are kept, smallest first."""
    kept = noise.argsort(dim=1)[:, :n_kept]
    return kept, torch.ones_like(noise).scatter_(1, kept, 0.0)


def with_hidden(shown: Tensor, kept: Tensor, mask_token: Tensor, n_strides: int) -> Tensor:
    """Tokens of the decoder in their places.

    Args:
        shown: float (F, k + 1, W), what the encoder saw, the class token last.
        kept: int64 (F, k), the place of each.
        mask_token: (1, 1, W), stands in all other places.
        n_strides: n.

    Returns:
        float (F, n + 1, W), the class token last.
    """
    hidden = mask_token.to(shown.dtype).expand(len(shown), n_strides, -1)
    places = kept[..., None].expand(-1, -1, shown.shape[2])
    return torch.cat([hidden.scatter(1, places, shown[:, :-1]), shown[:, -1:]], dim=1)


def check_bytes(bytes: Tensor, n_bytes: int) -> None:
    """Refuse what is not uint8 (F, n_bytes).

    Raises:
        ValueError: if dtype or shape is another.
    """
    if bytes.dtype != torch.uint8 or bytes.dim() != 2 or bytes.shape[1] != n_bytes:
        raise ValueError(
            f"got {bytes.dtype} of shape {tuple(bytes.shape)}, expected torch.uint8 of shape (flows, {n_bytes})"
        )


def scaled_strides(bytes: Tensor, stride: int, dtype: torch.dtype) -> Tensor:
    """uint8 (F, n_bytes) to ``dtype`` (F, n, S) in [-1, 1]; the padding byte 0 becomes -1."""
    return ((bytes.to(dtype) / 255 - 0.5) / 0.5).view(len(bytes), -1, stride)


def layer_index(name: str, config: NetMambaConfig) -> int:
    """Depth of a parameter, for layer-wise learning-rate decay.

    Args:
        name: in the state dict.
        config: sizes.

    Returns:
        0 for the embeddings, i + 1 for block i, ``n_layers`` + 1 for what comes after the blocks.
    """
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    if name in ("cls_token", "pos_embed") or name.startswith("patch_embed."):
        return 0
    return config.n_layers + 1
