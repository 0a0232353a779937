"""netFound's pre-training network: four questions about one batch (arXiv 2310.17025, version 2).

What a masked token was; whether one of the bursts is another flow's; how many bytes and packets a burst has, and how
long after the one before it came; and which way it went.

Dimensions: flows F, bursts B of each, tokens T of a burst; K what is asked for; width h.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from capture.representations import netfound_layout as layout
from models.nets.netfound import FactorisedEmbedding, NetFoundEncoder, _start, high_and_low
from models.nets.netfound_bursts import Tokens, pack
from models.nets.netfound_config import NetFoundConfig
from models.nets.netfound_hiding import Hidden, hide
from models.nets.netfound_layers import ATTENTION_NORM_EPS

_PUBLISHED_TARGET_SCALE = 1000.0  # of bytes and milliseconds
_BYTES, _PACKETS, _IAT = (layout.METADATA.index(name) for name in ("bytes", "packets", "iat"))


class TokenHead(nn.Module):
    """Which value a token was. The last layer shares its weights with the token table.

    A factorised vocabulary is predicted in two steps: the high byte, then the low byte of this high byte, so the sum of
    the two cross-entropies is that of the value.

    Args:
        config: sizes.
    """

    def __init__(self, config: NetFoundConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.d_model, config.d_model)
        self.norm = nn.LayerNorm(config.d_model, eps=ATTENTION_NORM_EPS)
        self.bias = nn.Parameter(torch.zeros(512 if config.factorised else layout.VOCABULARY))

    def forward(self, x: Tensor, table: nn.Module, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Compare.

        Args:
            x: float (K, h), of the tokens that are asked for.
            table: the token table.
            targets: int (K,), their ids.

        Returns:
            Mean cross-entropy, nats, and share of values told right, float32 () both; 0 if K is 0.
        """
        x = self.norm(functional.gelu(self.dense(x), approximate="tanh"))
        n_asked = max(len(targets), 1)
        if not isinstance(table, FactorisedEmbedding):
            weight: Tensor = table.weight  # type: ignore[assignment]
            logits = functional.linear(x, weight, self.bias).float()
            loss = functional.cross_entropy(logits, targets.long(), reduction="sum")
            return loss / n_asked, (logits.argmax(1) == targets).float().sum() / n_asked
        high, low = high_and_low(targets)
        of_high = functional.linear(x, table.high.weight[:256], self.bias[:256]).float()
        of_low = functional.linear(x + table.high(high), table.low.weight[:256], self.bias[256:]).float()
        loss = functional.cross_entropy(of_high, high, reduction="sum")
        loss = loss + functional.cross_entropy(of_low, low, reduction="sum")
        right = (of_high.argmax(1) == high) & (of_low.argmax(1) == low)
        return loss / n_asked, right.float().sum() / n_asked


class NetFoundPretrainer(NetFoundEncoder):
    """Encoder and the heads of the four objectives.

    Args:
        config: sizes, shares and weights.

    Attributes:
        losses: of the last forward pass, float32 () each, without weights: ``mlm_loss`` in nats, ``mlm_accuracy``,
            ``swap_loss``, ``swap_accuracy``, ``metadata_loss`` (mean absolute error of what the network reads),
            ``direction_loss``, ``direction_accuracy``.
    """

    def __init__(self, config: NetFoundConfig) -> None:
        super().__init__(config)
        h = config.d_model
        self.token_head = TokenHead(config)
        self.swap_head = nn.Linear(h, 2)
        self.metadata_head = nn.Linear(h, 3)
        self.direction_head = nn.Linear(h, 2)
        self.apply(_start)
        self.losses: dict[str, Tensor] = {}
        self._progress = 1.0

    def set_progress(self, progress: float) -> None:
        """Tell the network how much of the run is done, 0 to 1, which decides what counts."""
        self._progress = progress

    def forward(
        self,
        *arrays: Tensor,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Hide, encode, ask, compare.

        Args:
            arrays: the representation's, as :class:`Tokens` names them.
            generator: source of what is hidden; torch's own if None.

        Returns:
            The weighted sum of the losses, float32 (); ``losses``; which tokens were asked for, bool (F, B, T).
        """
        tokens = Tokens(*arrays).checked(self.config.n_bursts, self.config.n_tokens)
        return self.compare(hide(tokens, self.config, generator))

    def compare(self, hidden: Hidden) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """As :meth:`forward`, of what is hidden already."""
        config = self.config
        asked = hidden.targets != layout.PAD
        packed = pack(hidden.tokens.ids)
        if len(packed.flow) == 0:
            raise ValueError("got a batch of flows without bursts, expected at least one burst")
        x, class_tokens = self.run_packed(hidden.tokens, packed, whole_last=True)
        targets = packed.take(hidden.targets)
        mlm_loss, mlm_accuracy = self.token_head(
            x[targets != layout.PAD], self.embeddings.word, targets[targets != layout.PAD]
        )
        pooled = self.pool_packed(class_tokens, packed, len(asked))
        swap_loss, swap_accuracy = _answered(self.swap_head(pooled), hidden.swapped.long())
        flow, burst = packed.flow[packed.flow_order], packed.burst[packed.flow_order]
        is_hidden = hidden.metadata_hidden[flow, burst]
        of_hidden, metadata = class_tokens[is_hidden], hidden.metadata[flow, burst][is_hidden]
        error = (self.metadata_head(of_hidden).float() - self.metadata_targets(metadata)).abs()
        metadata_loss = error.sum() / max(error.numel(), 1)
        direction_loss, direction_accuracy = _answered(
            self.direction_head(of_hidden), (metadata[:, 0] > 0).long()
        )
        losses = {
            "mlm_loss": mlm_loss,
            "mlm_accuracy": mlm_accuracy,
            "swap_loss": swap_loss,
            "swap_accuracy": swap_accuracy,
            "metadata_loss": metadata_loss,
            "direction_loss": direction_loss,
            "direction_accuracy": direction_accuracy,
        }
        self.losses = {name: value.detach() for name, value in losses.items()}
        others = (
            config.swap_weight * swap_loss
            + config.metadata_weight * metadata_loss
            + config.direction_weight * direction_loss
        )
        is_first_stage = self._progress < config.first_stage_share
        loss = config.mlm_weight * mlm_loss + others * (0.0 if is_first_stage else 1.0)
        return loss, self.losses, asked

    def metadata_targets(self, metadata: Tensor) -> Tensor:
        """What the network should say of a burst: time, bytes, packets; float32 (K, 4) to (K, 3)."""
        if self.config.log_metadata:
            return self.embeddings.scaled(metadata)[:, [_IAT, _BYTES, _PACKETS]]
        scale = metadata.new_tensor((_PUBLISHED_TARGET_SCALE, _PUBLISHED_TARGET_SCALE, 1.0))
        return metadata[:, [_IAT, _BYTES, _PACKETS]] / scale


def _answered(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy and share told right; 0 of nothing."""
    n_asked = max(len(targets), 1)
    loss = functional.cross_entropy(logits.float(), targets, reduction="sum") / n_asked
    return loss, (logits.argmax(1) == targets).float().sum() / n_asked
