"""How strange a flow is to a generative backbone: its pre-training loss, flow by flow.

A network that was pre-trained to predict hidden parts of flows predicts badly what is unlike its corpus. Families whose
pre-training network has ``flow_loss(*arrays, generator) -> float32 (F,)`` can say so.

Known weakness: the loss also grows with how random a flow's bytes are by nature, known or not (Nalisnick et al. 2019).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from capture.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from capture.representations.base import TokenBatch
    from models.checkpoint import Checkpoint

DRAWS: Final = 4
"""Draws of masks that a flow's loss is the mean of."""

_BATCH: Final = 64
_SEED: Final = 0


class Surprise:
    """Scores flows by the pre-training loss of a backbone.

    Args:
        backbone: of kind ``backbone``.
        device: auto, cpu or cuda.

    Raises:
        CheckpointError: for a classifier, which has lost what predicts.
        UsageError: for a family that has no loss by flow.
    """

    def __init__(self, backbone: Checkpoint, *, device: str = "auto") -> None:
        from models.checkpoint_verify import build_config, known_family
        from models.learning.start import choose_device

        if backbone.kind != "backbone":
            raise CheckpointError(
                f"{backbone.path}: got a {backbone.kind}, expected a backbone of 'netcls pretrain'"
            )
        where = str(backbone.path / "config.json")
        family = known_family(backbone.family, where)
        network = family.build_pretrainer(build_config(family, backbone.model_config, where))
        if not hasattr(network, "flow_loss"):
            raise UsageError(f"{backbone.path}: family {backbone.family!r} has no pre-training loss by flow")
        network.load_state_dict(backbone.state, strict=True)
        self._device = choose_device(device)
        self._network: Any = network.eval().requires_grad_(False).to(self._device)

    def of(self, tokens: TokenBatch) -> NDArray[np.float32]:
        """float32 (F,), higher is stranger; the same flow gets the same score in every batch of the same order.

        Args:
            tokens: of the backbone's representation.
        """
        import torch

        scores = np.zeros(len(tokens), np.float32)
        for start in range(0, len(tokens), _BATCH):
            rows = slice(start, start + _BATCH)
            arrays = [torch.tensor(array[rows], device=self._device) for array in tokens.arrays.values()]
            generator = torch.Generator().manual_seed(_SEED)  # the same masks for every batch
            with torch.no_grad():
                draws = [self._network.flow_loss(*arrays, generator) for _ in range(DRAWS)]
            scores[rows] = torch.stack(draws).mean(0).float().cpu().numpy()
        return scores
