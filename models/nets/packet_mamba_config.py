"""The sizes of a packet-mamba; free of torch, so that a checkpoint's config can be checked without it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PacketMambaConfig:
    """Sizes and rates; the defaults are those of ``base``.

    Attributes:
        n_packets: K, packets of a flow that training shows; inference takes any number.
        payload_bytes: P, payload bytes shown of a packet.
        d_model: width.
        n_layers: blocks.
        d_state: states of the scan per channel.
        d_conv: taps of the convolution, in packets.
        expand: inner width of a block / ``d_model``.
        d_byte: width of a payload byte's embedding.
        drop_path: rate after the last block; it grows from 0 in equal steps over the blocks.
        head_dropout: rate before the linear head.
        prefix_share: share of the flows that training answers after a packet drawn by chance, not after the last.
        predicted_bytes: payload bytes of the next packet that pre-training predicts.

    Raises:
        ValueError: from the constructor, if a size cannot be.
    """

    n_packets: int = 32
    payload_bytes: int = 12
    d_model: int = 128
    n_layers: int = 4
    d_state: int = 16
    d_conv: int = 4
    expand: int = 2
    d_byte: int = 8
    drop_path: float = 0.1
    head_dropout: float = 0.1
    prefix_share: float = 0.5
    predicted_bytes: int = 6

    def __post_init__(self) -> None:
        for name in ("n_packets", "d_model", "n_layers", "d_state", "d_conv", "expand", "d_byte"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a whole number of 1 or more")
        for name in ("payload_bytes", "predicted_bytes"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a whole number of 0 or more")
        for name in ("drop_path", "head_dropout", "prefix_share"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a rate from 0 up to but not 1")
