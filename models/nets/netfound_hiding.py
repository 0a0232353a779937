"""What netFound's pre-training hides, changes and swaps in a batch, before the network sees it.

Dimensions: flows F, bursts of each B, tokens of a burst T.

Departures from the published code, each because the network could answer without reading traffic:

- a swapped burst brings its metadata along and comes from a flow of the same protocol. Published, direction, bytes,
  packets and time of the burst that was there stay, and a burst of UDP may stand in a flow of TCP;
- tokens of a swapped burst are masked like others, and its metadata hidden like others. Published, they never are, so
  a burst without a masked token is the swapped one;
- a burst that is swapped for its like is not called swapped;
- a random token is a value. Published, it may be a special id;
- metadata is hidden where there is a burst. Published, of padding too, which counts in the mean.

``published_swap`` brings back the first two, for comparison.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from capture.representations import netfound_layout as layout
from models.nets.netfound_bursts import Tokens
from models.nets.netfound_config import NetFoundConfig

MASKED, REPLACED = 0.8, 0.1
"""Shares of the tokens to predict that become the mask, and that become another value; the rest stays."""

LEAST_BURSTS = 4
"""Of a flow whose metadata may be hidden."""


@dataclass(frozen=True, slots=True)
class Hidden:
    """A batch as the network is shown it, and what it should say.

    Attributes:
        tokens: the changed arrays.
        targets: int32 (F, B, T), the id to predict; ``PAD`` where nothing is asked.
        swapped: bool (F,), whether one burst is another flow's.
        metadata_hidden: bool (F, B), whose metadata is 0 in ``tokens`` and asked for.
        metadata: float32 (F, B, 4), before it was hidden, of the burst that stands there.
    """

    tokens: Tokens
    targets: Tensor
    swapped: Tensor
    metadata_hidden: Tensor
    metadata: Tensor


def hide(tokens: Tokens, config: NetFoundConfig, generator: torch.Generator | None = None) -> Hidden:
    """Swap, hide metadata, mask tokens.

    Args:
        tokens: of F flows; not changed.
        config: shares, and ``published_swap``.
        generator: source of everything random; torch's own if None.
    """
    device = generator.device if generator is not None else tokens.ids.device

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=device).to(tokens.ids.device)

    tokens, swapped, swapped_burst = swap(tokens, config, draw)
    present = (tokens.ids != layout.PAD).any(2)
    metadata = tokens.metadata()
    metadata_hidden = present & (draw(*present.shape) < config.metadata_share)
    metadata_hidden &= (present.sum(1) >= LEAST_BURSTS)[:, None]
    is_free = torch.ones_like(present)
    if config.published_swap:
        is_free = ~swapped_burst
        metadata_hidden &= is_free
    shown = ~metadata_hidden
    ids, targets = mask(tokens.ids, is_free, config, draw)
    changed = Tokens(
        ids,
        tokens.direction * shown,
        tokens.bytes * shown,
        tokens.packets * shown,
        tokens.iat * shown,
        tokens.protocol,
    )
    return Hidden(changed, targets, swapped, metadata_hidden, metadata)


def swap(
    tokens: Tokens, config: NetFoundConfig, draw: Callable[..., Tensor]
) -> tuple[Tokens, Tensor, Tensor]:
    """Put a burst of another flow of the batch into some flows.

    Returns:
        The arrays; which flows have such a burst, bool (F,); which burst it is, bool (F, B).
    """
    n_flows, n_bursts, _ = tokens.ids.shape
    counts = (tokens.ids != layout.PAD).any(2).sum(1)
    every = torch.arange(n_flows, device=counts.device)
    may_give = (counts > 0)[None, :] & (counts > 0)[:, None] & (every[:, None] != every)
    if not config.published_swap:
        may_give &= tokens.protocol[:, None] == tokens.protocol[None, :]
    wanted = draw(n_flows) < config.swap_share
    donor = (draw(n_flows, n_flows) * may_give).argmax(1)
    at = (draw(n_flows) * counts).long().clamp(max=n_bursts - 1)
    of_donor = (draw(n_flows) * counts[donor]).long().clamp(max=n_bursts - 1)
    is_same = (tokens.ids[every, at] == tokens.ids[donor, of_donor]).all(1)
    swapped = wanted & may_give.any(1) & ~is_same
    rows = every[swapped]
    place, source = (rows, at[swapped]), (donor[swapped], of_donor[swapped])
    arrays = list(tokens)
    n_moved = 1 if config.published_swap else len(arrays) - 1  # the protocol is the flow's
    for i in range(n_moved):
        arrays[i] = arrays[i].index_put(place, arrays[i][source])
    swapped_burst = torch.zeros_like(tokens.direction, dtype=torch.bool)
    swapped_burst[place] = True
    return Tokens(*arrays), swapped, swapped_burst


def mask(
    ids: Tensor, is_free: Tensor, config: NetFoundConfig, draw: Callable[..., Tensor]
) -> tuple[Tensor, Tensor]:
    """Mask values: 80 % of the chosen become the mask, 10 % another value, 10 % stay.

    Args:
        ids: int32 (F, B, T).
        is_free: bool (F, B), bursts whose tokens may be chosen.
        config: ``mask_share``.
        draw: shape -> numbers from 0 up to 1.

    Returns:
        The changed ids and the targets, int32 (F, B, T) both.

    Source:
        BERT (arXiv 1810.04805), section 3.1; the share is netFound's.
    """
    is_value = (ids >= layout.FIRST_VALUE) & (ids < layout.FIRST_VALUE + layout.N_VALUES)
    chosen = is_value & is_free[..., None] & (draw(*ids.shape) < config.mask_share)
    kind = draw(*ids.shape)
    values = layout.FIRST_VALUE + (draw(*ids.shape) * layout.N_VALUES).to(ids.dtype)
    changed = torch.where(chosen & (kind < MASKED), torch.full_like(ids, layout.MASK), ids)
    changed = torch.where(chosen & (kind >= MASKED) & (kind < MASKED + REPLACED), values, changed)
    return changed, torch.where(chosen, ids, torch.full_like(ids, layout.PAD))
