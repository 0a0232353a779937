"""A model family small enough to train in a blink: bytes, a hidden layer with dropout, a head."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from capture.representations import build
from capture.representations.base import TokenBatch
from models.families import FAMILIES, Family
from models.learning.batches import LabelledTokens

# 2 packets x 8 header bytes.
SETTINGS = build("netmamba", {"n_packets": 2, "header_bytes": 8, "payload_bytes": 0}).settings()


@dataclass(frozen=True, slots=True)
class TinyConfig:
    n_bytes: int = 16
    width: int = 12
    n_layers: int = 1
    dropout: float = 0.2

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width is {self.width}; expected 1 or more")


class TinyBody(nn.Module):
    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.embed = nn.Linear(config.n_bytes, config.width)
        self.blocks = nn.ModuleList(nn.Linear(config.width, config.width) for _ in range(config.n_layers))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.width))
        self.rate = config.dropout

    def features(self, bytes: Tensor) -> Tensor:
        x = self.embed(bytes.float() / 255 - 0.5) + self.pos_embed
        for block in self.blocks:
            x = x + nn.functional.dropout(torch.tanh(block(x)), self.rate, self.training)
        return x


class TinyClassifier(TinyBody):
    def __init__(self, config: TinyConfig, n_labels: int) -> None:
        super().__init__(config)
        self.head = nn.Linear(config.width, n_labels)

    def forward(self, bytes: Tensor) -> Tensor:
        return self.head(self.features(bytes))


class TinyPretrainer(TinyBody):
    def __init__(self, config: TinyConfig) -> None:
        super().__init__(config)
        self.decoder = nn.Linear(config.width, config.n_bytes)

    def forward(
        self, bytes: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        mask = (torch.rand(bytes.shape, generator=generator) < 0.5).float()
        predicted = self.decoder(self.features((bytes * (1 - mask)).to(torch.uint8)))
        error = (predicted - (bytes.float() / 255 - 0.5)).square()
        return (error * mask).sum() / mask.sum(), predicted, mask


def _config_for(settings: dict[str, Any], **sizes: Any) -> TinyConfig:
    return TinyConfig(
        n_bytes=settings["n_packets"] * (settings["header_bytes"] + settings["payload_bytes"]), **sizes
    )


def _layer_index(name: str, config: TinyConfig) -> int:
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    return config.n_layers + 1 if name.startswith("head.") else 0


TINY = Family(
    name="tiny",
    representation="netmamba",
    config_type=TinyConfig,
    build_classifier=TinyClassifier,
    build_pretrainer=TinyPretrainer,
    layer_index=_layer_index,
    config_for=_config_for,
)


@contextmanager
def registered() -> Iterator[Family]:
    """The family under its name, for as long as the context lasts."""
    FAMILIES["tiny"] = TINY
    try:
        yield TINY
    finally:
        del FAMILIES["tiny"]


def checkpoint_arguments(kind: str = "classifier", **changes: Any) -> dict[str, Any]:
    """Arguments of ``save_checkpoint`` for a tiny model of labels a, b and c."""
    config = TinyConfig()
    torch.manual_seed(5)
    model = TinyClassifier(config, 3) if kind == "classifier" else TinyPretrainer(config)
    from models.checkpoint import Calibration

    arguments: dict[str, Any] = {
        "kind": kind,
        "family": "tiny",
        "model_config": asdict(config),
        "representation": "netmamba",
        "representation_settings": SETTINGS,
        "labels": ["a", "b", "c"] if kind == "classifier" else [],
        "calibration": Calibration(1.5, 0.6) if kind == "classifier" else Calibration(),
        "card": {"title": "Tiny", "summary": "For tests.", "metrics": {"macro_f1": 0.51234}},
        "state": model.state_dict(),
    }
    return arguments | changes


def labelled(n_flows: int, seed: int = 0, n_labels: int = 3) -> LabelledTokens:
    """Flows whose label can be read off the first bytes, through noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, n_labels, n_flows)
    data = rng.integers(0, 256, (n_flows, 16), dtype=np.uint8)
    data[:, :4] = (labels[:, None] * 80 + rng.integers(0, 60, (n_flows, 4))).astype(np.uint8)
    tokens = TokenBatch({"bytes": data}, np.full(n_flows, 2, np.uint16))
    return LabelledTokens(tokens, labels.astype(np.int64), np.arange(n_flows))
