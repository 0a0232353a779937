"""Sizes of a NetMamba+ model; imports nothing heavy, so that the command line can read it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NetMambaPlusConfig:
    """Sizes and rates; the defaults are the paper's (arXiv 2601.21792), but for sizes with a sign.

    Attributes:
        n_bytes: input bytes of a flow, packets one behind the other.
        stride: bytes of a token. Must divide ``n_bytes``.
        n_sequence_packets: packets whose sizes and inter-arrival times are read.
        n_size_ids: numbers that a packet size can be; the last one is what pre-training hides sizes with.
        iat_scale: pre-training predicts an inter-arrival time divided by this, about the largest there is.
        d_model: width of the encoder; even, as sizes and times are embedded as pairs of sine and cosine.
        n_layers: encoder blocks.
        d_state: states per channel of the scan.
        d_conv: taps of the causal convolution.
        expand: inner width of a block, as a multiple of its width.
        drop_path: training skips each block with a probability that rises linearly to this, from 0 at the first block.
        head_dropout: dropout before the head; the paper has none.
        decoder_d_model: width of the pre-training decoder of strides.
        decoder_layers: its blocks.
        mask_ratio: share of strides that pre-training hides.
        sequence_mask_ratio: share of sizes, and of times, that pre-training hides.
        size_loss_weight: of the cross-entropy of hidden sizes; the squared error of hidden strides has 1.
        iat_loss_weight: of the squared error of hidden times.

    Raises:
        ValueError: from the constructor, if sizes contradict each other.
    """

    n_bytes: int = 1600
    stride: int = 4
    n_sequence_packets: int = 20
    n_size_ids: int = 3003
    iat_scale: float = 32.0
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
    sequence_mask_ratio: float = 0.15
    size_loss_weight: float = 1.0
    iat_loss_weight: float = 1.0

    def __post_init__(self) -> None:
        for name in (
            *(
                "n_bytes",
                "stride",
                "n_sequence_packets",
                "d_model",
                "n_layers",
                "d_state",
                "d_conv",
                "expand",
            ),
            *("decoder_d_model", "decoder_layers"),
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a whole number of 1 or more")
        if self.n_size_ids < 3:
            raise ValueError(f"n_size_ids is {self.n_size_ids}; expected 3 or more: a size, none, and hidden")
        for name in ("drop_path", "head_dropout", "mask_ratio", "sequence_mask_ratio"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a rate from 0 up to but not 1")
        for name in ("size_loss_weight", "iat_loss_weight"):
            if not getattr(self, name) >= 0.0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 or more")
        if not self.iat_scale > 0.0:
            raise ValueError(f"iat_scale is {self.iat_scale}; expected more than 0")
        if self.d_model % 2:
            raise ValueError(f"d_model is {self.d_model}; expected an even number")
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
        """Tokens of a flow's bytes, without their class token."""
        return self.n_bytes // self.stride

    @property
    def first_stride(self) -> int:
        """Index of the first stride: behind sizes, class, times, class."""
        return 2 * (self.n_sequence_packets + 1)

    @property
    def n_tokens(self) -> int:
        """Of the whole sequence: 443."""
        return self.first_stride + self.n_strides + 1

    @property
    def class_tokens(self) -> tuple[int, int, int]:
        """Indices of the class tokens of sizes, times and bytes."""
        return self.n_sequence_packets, self.first_stride - 1, self.n_tokens - 1

    @property
    def n_kept(self) -> int:
        """Strides that pre-training shows the encoder: 39 of 400."""
        return int(self.n_strides * (1 - self.mask_ratio))

    @property
    def n_shown(self) -> int:
        """Sizes, and times, that pre-training shows: 17 of 20."""
        return int(self.n_sequence_packets * (1 - self.sequence_mask_ratio))
