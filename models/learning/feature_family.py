"""A network that is nothing but a head: for training heads on features that were computed before.

D is the number of features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NoReturn

from torch import Tensor, nn

from models.families import Family


@dataclass(frozen=True, slots=True)
class FeatureConfig:
    """Sizes.

    Attributes:
        width: D.
    """

    width: int


class HeadOnly(nn.Module):
    """float32 (F, D) features to logits; its features are its input."""

    def __init__(self, config: FeatureConfig, n_labels: int) -> None:
        super().__init__()
        self.head = nn.Linear(config.width, n_labels)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def features(self, features: Tensor) -> Tensor:
        """What comes in."""
        return features

    def forward(self, features: Tensor) -> Tensor:
        """Logits (F, C)."""
        logits: Tensor = self.head(features)
        return logits


def _none(*_arguments: Any) -> NoReturn:
    raise NotImplementedError("features are not pre-trained and have no tokens")


FEATURES: Final = Family(
    name="features",
    representation="",
    config_type=FeatureConfig,
    build_classifier=HeadOnly,
    build_pretrainer=_none,
    layer_index=lambda _name, _config: 0,
    config_for=_none,
)
"""Not registered: no checkpoint is of this family."""
