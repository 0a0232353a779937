"""Sizes of a netFound model; imports nothing heavy, so that the command line can read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from capture.representations import netfound_layout as layout


@dataclass(frozen=True, slots=True)
class NetFoundConfig:
    """Sizes, rates and weights; the defaults are those of ``tiny``, our own size that a CPU can train.

    Attributes:
        d_model: width h.
        n_layers: pairs of a burst encoder and a flow encoder.
        n_heads: of attention; divides ``d_model``, and their width is even.
        d_mlp: inner width of the gated MLP.
        d_meta: inner width of the embedding of a burst's metadata.
        n_bursts: most bursts of a flow.
        n_tokens: most tokens of a burst, its class token included.
        factorised: a token's 16-bit value is embedded, and predicted, as its two bytes; else one row a value.
        log_metadata: the network reads log(1 + x) of bytes, packets and times; else what the published one reads.
        head_hidden: two dense layers between pooling and head, as the published classifier has.
        published_pooling: pool without a mask, over groups of flows with equally many bursts, so nothing is padded.
        dropout: of embeddings and of attention's output.
        attention_dropout: of attention weights.
        mlp_dropout: inside the MLP, and inside ``head_hidden``.
        head_dropout: before the head.
        mask_share: share of tokens that pre-training hides or changes, and predicts.
        swap_share: share of flows of which pre-training exchanges one burst.
        metadata_share: share of bursts whose metadata pre-training hides; of flows with more than 3 bursts.
        mlm_weight: of the cross-entropy of masked tokens, in nats.
        swap_weight: of the cross-entropy of swapped or not.
        metadata_weight: of the absolute error of hidden metadata.
        direction_weight: of the cross-entropy of hidden directions.
        first_stage_share: share of the run in which masked tokens alone count.
        published_swap: swap as the published code does, which leaves the burst's metadata behind.

    Raises:
        ValueError: from the constructor, if sizes contradict each other.
    """

    d_model: int = 128
    n_layers: int = 3
    n_heads: int = 4
    d_mlp: int = 192
    d_meta: int = 128
    n_bursts: int = layout.MAX_BURSTS
    n_tokens: int = layout.NetFoundLayout().burst_tokens
    factorised: bool = True
    log_metadata: bool = True
    head_hidden: bool = False
    published_pooling: bool = False
    dropout: float = 0.1
    attention_dropout: float = 0.1
    mlp_dropout: float = 0.1
    head_dropout: float = 0.1
    mask_share: float = 0.3
    swap_share: float = 0.5
    metadata_share: float = 0.3
    mlm_weight: float = 1.0
    swap_weight: float = 1.0
    metadata_weight: float = 0.4
    direction_weight: float = 1.0
    first_stage_share: float = 0.0
    published_swap: bool = False

    def __post_init__(self) -> None:
        for name in ("d_model", "n_layers", "n_heads", "d_mlp", "d_meta", "n_bursts", "n_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a whole number of 1 or more")
        if self.d_model % (2 * self.n_heads):
            raise ValueError(
                f"d_model {self.d_model} is no multiple of twice n_heads {self.n_heads}; rotary positions turn pairs"
            )
        rates = ("dropout", "attention_dropout", "mlp_dropout", "head_dropout")
        shares = ("mask_share", "swap_share", "metadata_share", "first_stage_share")
        for name in (*rates, *shares):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a rate from 0 up to but not 1")
        for name in ("mlm_weight", "swap_weight", "metadata_weight", "direction_weight"):
            if not getattr(self, name) >= 0.0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 or more")

    @property
    def d_head(self) -> int:
        """Width of one head of attention."""
        return self.d_model // self.n_heads


_PUBLISHED: Final = {"factorised": False, "log_metadata": False, "head_hidden": True, "d_meta": 1024}

SIZES: Final[dict[str, dict[str, Any]]] = {
    "tiny": {},
    "mini": {"d_model": 256, "n_layers": 4, "n_heads": 4, "d_mlp": 384, "d_meta": 256},
    "small": {"d_model": 512, "n_layers": 4, "n_heads": 4, "d_mlp": 768, **_PUBLISHED},
    "base": {"d_model": 768, "n_layers": 12, "n_heads": 12, "d_mlp": 1152, **_PUBLISHED},
    "large": {"d_model": 1024, "n_layers": 24, "n_heads": 16, "d_mlp": 2624, **_PUBLISHED},
}
"""Fields that a name of a size stands for; small, base and large are the published ones (arXiv 2310.17025, v2)."""


def sized(preset: str = "tiny", **fields: Any) -> NetFoundConfig:
    """The configuration that a name of a size stands for, with some fields otherwise.

    Raises:
        ValueError: for an unknown name, or sizes that contradict each other.
    """
    if preset not in SIZES:
        raise ValueError(f"preset is {preset!r}; expected one of {', '.join(SIZES)}")
    return NetFoundConfig(**{**SIZES[preset], **fields})
