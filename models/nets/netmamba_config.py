"""The sizes of a NetMamba; free of torch, so that a checkpoint's config can be checked without it."""

from __future__ import annotations

from dataclasses import dataclass, field

ADDED_LATER = {"may_be_absent": True}
"""Of a field that checkpoints made before it do not have: they are as its default says."""


@dataclass(frozen=True, slots=True)
class NetMambaConfig:
    """Sizes and rates; the defaults are the paper's (arXiv 2405.11449).

    Attributes:
        n_bytes: bytes of a flow, 5 packets x (80 header + 240 payload).
        stride: bytes of one token.
        d_model: width of the encoder.
        n_layers: blocks of the encoder.
        d_state: states of the scan per channel.
        d_conv: taps of the convolution, in tokens.
        expand: inner width of a block / ``d_model``.
        drop_path: rate after the last block; it grows from 0 in equal steps over the blocks.
        head_dropout: rate before the linear head.
        decoder_d_model: width of the pre-training decoder.
        decoder_layers: blocks of the pre-training decoder.
        mask_ratio: share of the strides hidden in pre-training.
        bidirectional: every block, of encoder and decoder, also scans from the last token to the first, with weights of
            its own. Not the paper's choice.
        positions: learned positions of encoder and decoder; without them only the order of the scan tells where a
            stride was, and pre-training's encoder, which reads strides shuffled, cannot tell. Not the paper's choice.

    Raises:
        ValueError: from the constructor, if the sizes contradict each other.
    """

    n_bytes: int = 1600
    stride: int = 4
    d_model: int = 256
    n_layers: int = 4
    d_state: int = 16
    d_conv: int = 4
    expand: int = 2
    drop_path: float = 0.1
    head_dropout: float = 0.0
    decoder_d_model: int = 128
    decoder_layers: int = 2
    mask_ratio: float = 0.9
    bidirectional: bool = field(default=False, metadata=ADDED_LATER)
    positions: bool = field(default=True, metadata=ADDED_LATER)

    def __post_init__(self) -> None:
        sizes = (
            "n_bytes",
            "stride",
            "d_model",
            "n_layers",
            "d_state",
            "d_conv",
            "expand",
            "decoder_d_model",
            "decoder_layers",
        )
        for name in ("bidirectional", "positions"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected true or false")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a whole number of 1 or more")
        for name in ("drop_path", "head_dropout", "mask_ratio"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a rate from 0 up to but not 1")
        if self.n_bytes % self.stride:
            raise ValueError(
                f"stride {self.stride} does not divide n_bytes {self.n_bytes}; choose a divisor such as 4"
            )
        if self.n_kept < 1:
            raise ValueError(
                f"mask_ratio {self.mask_ratio} leaves none of {self.n_strides} strides; choose a smaller one"
            )

    @property
    def n_strides(self) -> int:
        """Tokens of a flow, without the class token."""
        return self.n_bytes // self.stride

    @property
    def n_kept(self) -> int:
        """Strides that pre-training shows the encoder: 39 of 400, as 400 x (1 - 0.9) is 39.99... in floats."""
        return int(self.n_strides * (1 - self.mask_ratio))
