"""packet-mamba: one token a packet, causal, so the state after packet k is the answer after packet k.

On a CPU inference goes through :mod:`models.nets.packet_inference`.

Dimensions: flows F, packets K, payload bytes P, width D, classes C.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from capture.kernels.packet_tokens import DIRECTION, GAP_US, IP_LEN, N_FLAGS, N_NUMBERS, N_SHOWN, TCP_FLAGS
from models.nets.mamba import MambaBlock, MixerState, rescale_residual_projections
from models.nets.packet_mamba_config import PacketMambaConfig
from models.nets.rms_norm import RMSNorm

if TYPE_CHECKING:
    from models.nets.packet_inference import FastPacketMamba

__all__ = ["PacketMambaClassifier", "PacketMambaConfig", "PacketMambaPretrainer", "layer_index"]

SIZE_BUCKETS, GAP_BUCKETS, WINDOW_BUCKETS = 128, 96, 34
SIZE_STEPS, GAP_STEPS, WINDOW_STEPS = 8, 3, 2  # buckets of an octave
# Rows of each table: two sizes, two gaps, window, then the flags without the count of bytes.
_NUMBER_ROWS = (SIZE_BUCKETS, SIZE_BUCKETS, GAP_BUCKETS, GAP_BUCKETS, WINDOW_BUCKETS)
_FLAG_ROWS = (3, 256, 256, 256, 256, 3, 256, 5, 256)
# What a logarithm is divided by, so that numbers are about 1: 1500 bytes, a second, a full window.
_SCALES = (7.3, 7.3, 13.8, 13.8, 11.1)


def buckets(numbers: Tensor) -> Tensor:
    """Logarithmic buckets of the physical numbers: int32 (..., 5) to int64 (..., 5)."""
    steps = numbers.new_tensor(
        [SIZE_STEPS, SIZE_STEPS, GAP_STEPS, GAP_STEPS, WINDOW_STEPS], dtype=torch.float32
    )
    most = numbers.new_tensor([rows - 1 for rows in _NUMBER_ROWS], dtype=torch.float32)
    return torch.minimum((torch.log2(numbers.float() + 1) * steps).floor(), most).long()


class PacketEmbedding(nn.Module):
    """Sum of one table's row per field, a linear map of the numbers' logarithms, and one of the payload bytes."""

    def __init__(self, config: PacketMambaConfig) -> None:
        super().__init__()
        rows = [*_NUMBER_ROWS, *_FLAG_ROWS]
        starts = torch.tensor(rows).cumsum(0) - torch.tensor(rows)
        self.register_buffer("starts", starts, persistent=False)
        self.starts: Tensor
        self.fields = nn.Embedding(sum(rows), config.d_model)
        self.scalars = nn.Linear(N_NUMBERS, config.d_model)
        nn.init.normal_(self.fields.weight, std=0.3 / len(rows) ** 0.5)
        self.payload_bytes = config.payload_bytes
        if config.payload_bytes:
            self.bytes = nn.Embedding(257, config.d_byte)  # 0: no byte
            self.payload = nn.Linear(config.payload_bytes * config.d_byte, config.d_model, bias=False)
        self.norm = RMSNorm(config.d_model)

    def forward(self, numbers: Tensor, flags: Tensor, payload: Tensor) -> Tensor:
        """Tokens: int32 (..., 5), uint8 (..., 10), uint8 (..., P) to float32 (..., D)."""
        index = torch.cat([buckets(numbers), flags[..., :N_SHOWN].long()], dim=-1) + self.starts
        flat = functional.embedding_bag(index.view(-1, index.shape[-1]), self.fields.weight, mode="sum")
        x = flat.view(*index.shape[:-1], -1)
        scales = numbers.new_tensor(_SCALES, dtype=torch.float32)
        x = x + self.scalars(torch.log1p(numbers.float()) / scales)
        if self.payload_bytes:
            places = torch.arange(self.payload_bytes, device=payload.device)
            shown = places < flags[..., N_SHOWN, None]
            x = x + self.payload(self.bytes((payload.long() + 1) * shown).flatten(-2))
        normed: Tensor = self.norm(x)
        return normed


class _Encoder(nn.Module):
    """Embedding, causal blocks, final norm."""

    def __init__(self, config: PacketMambaConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = PacketEmbedding(config)
        rates = torch.linspace(0.0, config.drop_path, config.n_layers).tolist()
        if config.n_layers == 1:
            rates = [config.drop_path]
        blocks = [
            MambaBlock(config.d_model, config.d_state, config.d_conv, config.expand, rate) for rate in rates
        ]
        rescale_residual_projections(blocks)
        self.blocks = nn.ModuleList(blocks)
        self.norm_f = RMSNorm(config.d_model)

    def check_input(self, numbers: Tensor, flags: Tensor, payload: Tensor) -> None:
        """Refuse what are not the tokens of one set of flows.

        Raises:
            ValueError: if a dtype or shape is another.
        """
        got = [(str(a.dtype), tuple(a.shape)) for a in (numbers, flags, payload)]
        rows = tuple(numbers.shape[:2])
        expected = [
            ("torch.int32", (*rows, N_NUMBERS)),
            ("torch.uint8", (*rows, N_FLAGS)),
            ("torch.uint8", (*rows, self.config.payload_bytes)),
        ]
        if numbers.dim() != 3 or got != expected:
            raise ValueError(f"got {got}, expected numbers, flags and payload like {expected}")

    def encode(self, numbers: Tensor, flags: Tensor, payload: Tensor) -> Tensor:
        """What is known after each packet: float32 (F, K, D)."""
        self.check_input(numbers, flags, payload)
        x = self.embed(numbers, flags, payload)
        for block in self.blocks:
            x = block(x)
        normed: Tensor = self.norm_f(x)
        return normed


class PacketMambaClassifier(_Encoder):
    """Encoder and a linear head, which answers after every packet.

    Args:
        config: sizes.
        n_labels: C.

    Attributes:
        inference_precision: one of :attr:`inference_precisions`: the matrix products of the fast form.
    """

    micro_batch = 64  # flows that the predictor gives at a time: one token a packet leaves room in the caches
    inference_precision = "fp32"

    def __init__(self, config: PacketMambaConfig, n_labels: int) -> None:
        super().__init__(config)
        self.head = nn.Linear(config.d_model, n_labels)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    @property
    def inference_precisions(self) -> tuple[str, ...]:
        """What :attr:`inference_precision` may be."""
        from models.nets.netmamba_inference import precisions
        from models.nets.packet_inference import can_run

        return precisions(self) if can_run(self) else ("fp32",)

    def features(self, numbers: Tensor, flags: Tensor, payload: Tensor) -> Tensor:
        """What is known after each flow's last packet: float32 (F, D)."""
        fast = self.fast_form()
        if fast is not None:
            self.check_input(numbers, flags, payload)
            return fast.features(numbers, flags, payload)
        numbers, flags, payload = shortened(numbers, flags, payload)
        encoded = self.encode(numbers, flags, payload)
        return encoded[torch.arange(len(encoded), device=encoded.device), last_packet(flags)]

    def forward(self, numbers: Tensor, flags: Tensor, payload: Tensor) -> Tensor:
        """Logits after each flow's last packet: float32 (F, C).

        In training, a share ``prefix_share`` of the flows is answered after a packet drawn from all of the flow's, so
        that every prefix learns to answer.
        """
        if not self.training:
            logits: Tensor = self.head(self.features(numbers, flags, payload))
            return logits.float()
        n_flows = len(flags)
        last = last_packet(flags)
        early = (torch.rand(n_flows, device=flags.device) * (last + 1)).long()
        is_early = torch.rand(n_flows, device=flags.device) < self.config.prefix_share
        encoded = self.encode(numbers, flags, payload)
        at = torch.where(is_early, early, last)
        features = encoded[torch.arange(n_flows, device=flags.device), at]
        logits = self.head(functional.dropout(features, self.config.head_dropout))
        return logits.float()

    def fast_form(self) -> FastPacketMamba | None:
        """The weights as they are now, ready to run fast; None in training, with gradients, on other devices."""
        if self.training or not torch.is_inference_mode_enabled():
            return None
        from models.nets.netmamba_inference import fast_form
        from models.nets.packet_inference import FastPacketMamba, can_run

        return fast_form(self, FastPacketMamba) if can_run(self) else None

    def prefix_logits(self, numbers: Tensor, flags: Tensor, payload: Tensor) -> Tensor:
        """Logits after every packet: float32 (F, K, C); rows of packets that are none mean nothing."""
        encoded = functional.dropout(
            self.encode(numbers, flags, payload), self.config.head_dropout, self.training
        )
        logits: Tensor = self.head(encoded)
        return logits.float()

    def initial_state(self, n_flows: int) -> list[MixerState]:
        """The state before the first packet."""
        return [block.initial_state(n_flows) for block in self.blocks]  # type: ignore[operator]

    def step(
        self, state: list[MixerState], numbers: Tensor, flags: Tensor, payload: Tensor
    ) -> tuple[list[MixerState], Tensor]:
        """One packet on: the numbers of :meth:`prefix_logits`, one packet at a time, without drop path.

        Args:
            state: of the packets before.
            numbers: int32 (F, 5).
            flags: uint8 (F, 10).
            payload: uint8 (F, P).

        Returns:
            The state after the packet, and the logits, float32 (F, C).
        """
        x = self.embed(numbers, flags, payload)
        after = []
        for block, before in zip(self.blocks, state, strict=True):
            new, x = block.step(before, x)  # type: ignore[operator]
            after.append(new)
        return after, self.head(self.norm_f(x)).float()


class PacketMambaPretrainer(_Encoder):
    """Predicts each packet from those before it: direction, size, gap, TCP flags, first payload bytes.

    Args:
        config: sizes.
    """

    def __init__(self, config: PacketMambaConfig) -> None:
        super().__init__(config)
        self.next_direction = nn.Linear(config.d_model, 2)
        self.next_size = nn.Linear(config.d_model, SIZE_BUCKETS)
        self.next_gap = nn.Linear(config.d_model, GAP_BUCKETS)
        self.next_tcp_flags = nn.Linear(config.d_model, 256)
        self.n_bytes = min(config.predicted_bytes, config.payload_bytes)
        if self.n_bytes:
            self.next_bytes = nn.Linear(config.d_model, self.n_bytes * 16)
            self.byte_values = nn.Linear(16, 257)

    def forward(
        self,
        numbers: Tensor,
        flags: Tensor,
        payload: Tensor,
        generator: torch.Generator | None = None,  # noqa: ARG002 - nothing is drawn
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Encode, predict, compare. Flows of one packet teach nothing.

        Returns:
            The loss, nats per packet: the sum of the parts' cross entropies, float32 (); each part by name; the mask of
            the packets that were predicted, bool (F, K - 1).
        """
        encoded = self.encode(numbers, flags, payload)[:, :-1]
        mask = flags[:, 1:, DIRECTION] > 0
        if not bool(mask.any()):
            return encoded.sum() * 0.0, {}, mask
        x = encoded[mask]
        target = buckets(numbers[:, 1:][mask])
        after = flags[:, 1:][mask].long()
        parts = {
            "direction": functional.cross_entropy(self.next_direction(x), after[:, DIRECTION] - 1),
            "size": functional.cross_entropy(self.next_size(x), target[:, IP_LEN]),
            "gap": functional.cross_entropy(self.next_gap(x), target[:, GAP_US]),
            "tcp_flags": functional.cross_entropy(self.next_tcp_flags(x), after[:, TCP_FLAGS]),
        }
        if self.n_bytes:
            shown = torch.arange(self.n_bytes, device=x.device) < after[:, N_SHOWN, None]
            values = (payload[:, 1:, : self.n_bytes][mask].long() + 1) * shown
            logits = self.byte_values(functional.silu(self.next_bytes(x)).view(len(x), self.n_bytes, 16))
            parts["bytes"] = functional.cross_entropy(logits.flatten(0, 1), values.flatten())
        loss = torch.stack(list(parts.values())).sum()
        return loss, parts, mask


def shortened(numbers: Tensor, flags: Tensor, payload: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Without the columns that hold no packet of any flow; nothing behind a flow's last packet reaches its answer."""
    longest = int(last_packet(flags).max()) + 1 if len(flags) else 1
    return numbers[:, :longest], flags[:, :longest], payload[:, :longest]


def last_packet(flags: Tensor) -> Tensor:
    """Index of each flow's last packet: uint8 (F, K, 10) to int64 (F,)."""
    return ((flags[..., DIRECTION] > 0).sum(1) - 1).clamp(min=0)


def layer_index(name: str, config: PacketMambaConfig) -> int:
    """Depth of a parameter, for layer-wise learning-rate decay: 0 embedding, i + 1 block i, then the rest."""
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    return 0 if name.startswith("embed.") else config.n_layers + 1
