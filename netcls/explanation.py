"""Which packets and fields carried an answer, and how far that account can be trusted.

A part of a flow's model input (a packet, a field, or a field of one packet) is written over with the same part of other
flows, the *donors*, and the answer is asked for again. The effect of the part is by how much the log-odds of the
answered label fall, in the mean over donors. Values of other flows are values that the model knows; zeros would be a
new kind of packet.

Deletion takes the parts away one after the other, the most important first, and asks how fast the probability falls;
insertion starts from a donor and puts them back. Both areas stand beside those of random orders: an account that is no
better than chance says so.

M masks, D donors, P parts, R random orders, S steps. Parts are fields of single packets.

Source: Zeiler and Fergus 2014 (occlusion); Petsiuk et al. 2018, RISE (deletion and insertion).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from capture.errors import UsageError
from capture.representations.base import TokenBatch
from capture.representations.places import FIELDS, NOWHERE, TokenPlaces

Logits = Callable[[TokenBatch], NDArray[np.floating[Any]]]
"""Tokens of F flows to calibrated logits (F, C)."""

Mask = dict[str, NDArray[np.bool_]]

_BATCH: Final = 256
_MOST_LOG_ODDS: Final = 30.0
# Donors whose probability of the label is nearer than this leave nothing for the curves to fall or rise by.
_LEAST_FALL: Final = 0.1


@dataclass(frozen=True, slots=True)
class ExplainOptions:
    """How much work an explanation may be.

    Attributes:
        donors: D, flows that a part is replaced from.
        curve_donors: of them, those that the curves use.
        steps: S, points of a curve beside its first.
        orders: R, random orders that the curves are compared with.
        seed: of donors and orders.

    Raises:
        UsageError: from the constructor, for a number below 1.
    """

    donors: int = 8
    curve_donors: int = 4
    steps: int = 16
    orders: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("donors", "curve_donors", "steps", "orders"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}: got {getattr(self, name)}, expected 1 or more")


@dataclass(frozen=True, slots=True)
class Part:
    """What one part of the input did.

    Attributes:
        packet: number of the packet in its flow, from 1; None: of all packets.
        field: name of the field; None: all fields.
        effect: by how much the log-odds of the answer fall without it, nats; below 0: they rise.
        spread: standard deviation of that over donors, nats.
        probability: of the answer without it, mean over donors.
    """

    packet: int | None
    field: str | None
    effect: float
    spread: float
    probability: float


@dataclass(frozen=True, slots=True)
class Curve:
    """Deletion or insertion, by the order of importance and by random orders.

    Attributes:
        share: of the parts that were taken away (or put back), 0 to 1, S + 1 points.
        probability: of the answer at each point, mean over donors.
        area: under it, 0 to 1.
        random_area: mean of the areas of the random orders.
        random_areas: each of them.
        better_than: share of the random orders that the order of importance beats.
    """

    share: list[float]
    probability: list[float]
    area: float
    random_area: float
    random_areas: list[float]
    better_than: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """An answer and what carried it; each list by falling effect.

    Attributes:
        probability: of the answered label, calibrated.
        baseline_probability: of that label for the donors themselves, mean.
        packets, fields, parts: by packet, by field over all packets, by field of each packet.
        deletion, insertion: how faithful ``parts`` is; None where fewer than two parts changed anything.
        faithful: one sentence.
        donors: D that were used.
        asked: flows that the model was asked about.
    """

    probability: float
    baseline_probability: float
    packets: list[Part]
    fields: list[Part]
    parts: list[Part]
    deletion: Curve | None
    insertion: Curve | None
    faithful: str
    donors: int
    asked: int

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def explain(
    tokens: TokenBatch,
    places: dict[str, TokenPlaces],
    donors: TokenBatch,
    label: int,
    logits: Logits,
    options: ExplainOptions | None = None,
) -> Explanation:
    """Explain the answer to one flow.

    Args:
        tokens: of the flow, one row.
        places: of its tokens, one row; arrays without places are never changed.
        donors: other flows, at least one; the first ``donors`` are used.
        label: column of the answer in the logits.
        logits: asks the model.
        options: how much work.

    Raises:
        UsageError: without donors.
    """
    options = options or ExplainOptions()
    if not len(donors):
        raise UsageError("explanation: got 0 other flows to take neutral values from, expected one or more")
    asker = _Asker(tokens, donors.take(slice(0, options.donors)), label, logits)
    packets, fields, parts = _parts_of(places)
    probability = float(asker.plain()[1])
    by_packet = _measured(asker, [(packet, None) for packet in packets], places)
    by_field = _measured(asker, [(None, field) for field in fields], places)
    by_part = _measured(asker, parts, places)
    masks = [_mask(places, None if part.packet is None else part.packet - 1, part.field) for part in by_part]
    masks = [mask for mask in masks if asker.changes(mask)]
    deletion = insertion = None
    if len(masks) >= 2:
        rng = np.random.default_rng(options.seed)
        orders = [np.arange(len(masks)), *(rng.permutation(len(masks)) for _ in range(options.orders))]
        few = asker.with_donors(options.curve_donors)
        deletion, insertion = (
            _curve(few, masks, orders, options.steps, insert=insert) for insert in (False, True)
        )
        asker.asked += few.asked
    of_donors = asker.of_donors()
    return Explanation(
        probability,
        of_donors,
        by_packet,
        by_field,
        by_part,
        deletion,
        insertion,
        _sentence(deletion, insertion, probability - of_donors),
        asker.n_donors,
        asker.asked,
    )


class _Asker:
    """Asks the model about one flow whose parts come from donors."""

    def __init__(self, tokens: TokenBatch, donors: TokenBatch, label: int, logits: Logits) -> None:
        self._tokens = tokens
        self._donors = donors
        self._label = label
        self._logits = logits
        self.asked = 0

    @property
    def n_donors(self) -> int:
        return len(self._donors)

    def with_donors(self, n: int) -> _Asker:
        return _Asker(self._tokens, self._donors.take(slice(0, n)), self._label, self._logits)

    def plain(self) -> tuple[float, float]:
        """Log-odds and probability of the answer to the flow as it is."""
        odds, chances = self._ask(self._tokens)
        return float(odds[0]), float(chances[0])

    def of_donors(self) -> float:
        return float(self._ask(self._donors)[1].mean())

    def changes(self, mask: Mask) -> bool:
        """Whether writing over these elements changes the input at all, with any donor."""
        return any(
            (self._donors.arrays[name][:, where[0]] != self._tokens.arrays[name][:, where[0]]).any()
            for name, where in mask.items()
        )

    def without(self, masks: Sequence[Mask]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Log-odds and probability of the answer with each mask's elements from each donor, float64 (M, D) each."""
        n_masks, n_donors = len(masks), self.n_donors
        odds, chances = np.empty((2, n_masks * n_donors))
        at_once = max(1, _BATCH // n_donors)
        for start in range(0, n_masks, at_once):
            some = masks[start : start + at_once]
            rows = slice(start * n_donors, start * n_donors + len(some) * n_donors)
            odds[rows], chances[rows] = self._ask(self._mixed(some))
        return odds.reshape(n_masks, n_donors), chances.reshape(n_masks, n_donors)

    def _mixed(self, masks: Sequence[Mask]) -> TokenBatch:
        """The flow, once for each mask and donor."""
        n_rows = len(masks) * self.n_donors
        arrays = {}
        for name, own in self._tokens.arrays.items():
            rows = np.repeat(own, n_rows, axis=0)
            if any(name in mask for mask in masks):
                taken = np.concatenate(
                    [mask[name] if name in mask else np.zeros(own.shape, bool) for mask in masks]
                )
                foreign = np.tile(self._donors.arrays[name], (len(masks),) + (1,) * (own.ndim - 1))
                rows = np.where(np.repeat(taken, self.n_donors, axis=0), foreign, rows)
            arrays[name] = rows
        return TokenBatch(arrays, np.repeat(self._tokens.packets_used, n_rows))

    def _ask(self, tokens: TokenBatch) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        self.asked += len(tokens)
        scores = np.asarray(self._logits(tokens), np.float64)
        own = scores[:, self._label]
        others = np.delete(scores, self._label, axis=1)
        peak = others.max(axis=1)
        odds = own - peak - np.log(np.exp(others - peak[:, None]).sum(axis=1))
        odds = np.clip(odds, -_MOST_LOG_ODDS, _MOST_LOG_ODDS)
        return odds, 1 / (1 + np.exp(-odds))


def _parts_of(
    places: dict[str, TokenPlaces],
) -> tuple[list[int], list[str], list[tuple[int | None, str | None]]]:
    """Packets, fields, and fields of single packets that the input has."""
    pairs = [np.stack([place.packet[0].ravel(), place.field[0].ravel()], axis=1) for place in places.values()]
    there = np.unique(np.concatenate(pairs), axis=0)
    there = there[(there[:, 0] != NOWHERE) & (there[:, 1] != NOWHERE)]
    packets = [int(packet) for packet in np.unique(there[:, 0])]
    fields = [FIELDS[field] for field in np.unique(there[:, 1])]
    return packets, fields, [(int(packet), FIELDS[field]) for packet, field in there]


def _mask(places: dict[str, TokenPlaces], packet: int | None, field: str | None) -> Mask:
    """The elements of a part, of every array that has places."""
    mask = {}
    for name, place in places.items():
        where = place.packet != NOWHERE
        if packet is not None:
            where &= place.packet == packet
        if field is not None:
            where &= place.field == FIELDS.index(field)
        mask[name] = where
    return mask


def _measured(
    asker: _Asker, parts: Sequence[tuple[int | None, str | None]], places: dict[str, TokenPlaces]
) -> list[Part]:
    """The effect of each part, by falling effect. Parts that are the same in all donors are not asked about."""
    odds, chance = asker.plain()
    masks = [_mask(places, packet, field) for packet, field in parts]
    asked = [number for number, mask in enumerate(masks) if asker.changes(mask)]
    effects, spreads, chances = np.zeros(len(parts)), np.zeros(len(parts)), np.full(len(parts), chance)
    if asked:
        odds_without, chances_without = asker.without([masks[number] for number in asked])
        effects[asked] = odds - odds_without.mean(axis=1)
        spreads[asked] = odds_without.std(axis=1)
        chances[asked] = chances_without.mean(axis=1)
    made = [
        Part(None if packet is None else packet + 1, field, float(effect), float(spread), float(without))
        for (packet, field), effect, spread, without in zip(parts, effects, spreads, chances, strict=True)
    ]
    return sorted(made, key=lambda part: -part.effect)


def _curve(
    asker: _Asker, masks: Sequence[Mask], orders: Sequence[NDArray[np.intp]], n_steps: int, *, insert: bool
) -> Curve:
    """Deletion or insertion along each order; the first is the order of importance."""
    ends = np.unique(np.linspace(0, len(masks), min(n_steps, len(masks)) + 1).round().astype(int))
    probability = []
    for order in orders:
        taken: list[Mask] = []
        for end in ends:
            # Insertion has everything from the donor but the parts that were put back.
            chosen = order[end:] if insert else order[:end]
            taken.append(_union(masks, chosen))
        probability.append(asker.without(taken)[1].mean(axis=1))
    share = ends / len(masks)
    areas = [float(np.trapezoid(values, share)) for values in probability]
    random_areas = areas[1:]
    better = [area > areas[0] if not insert else area < areas[0] for area in random_areas]
    return Curve(
        share.tolist(),
        probability[0].tolist(),
        areas[0],
        float(np.mean(random_areas)),
        random_areas,
        float(np.mean(better)),
    )


def _union(masks: Sequence[Mask], chosen: NDArray[np.intp]) -> Mask:
    union = {name: np.zeros_like(where) for name, where in masks[0].items()}
    for number in chosen:
        for name, where in masks[number].items():
            union[name] |= where
    return union


def _sentence(deletion: Curve | None, insertion: Curve | None, fall: float) -> str:
    """How far the order of importance can be trusted.

    Args:
        deletion: its curve.
        insertion: its curve.
        fall: probability of the label for the flow minus that for the donors.
    """
    if deletion is None or insertion is None:
        return "Cannot be judged: fewer than two parts of the input differ from those of other flows."
    if fall < _LEAST_FALL:
        return "Cannot be judged: the other flows get this label as surely, so taking parts from them changes little."
    beaten = min(deletion.better_than, insertion.better_than)
    numbers = (
        f"deletion area {deletion.area:.3f} against {deletion.random_area:.3f} in random order (lower is better), "
        f"insertion {insertion.area:.3f} against {insertion.random_area:.3f} (higher is better)"
    )
    if beaten == 1.0:
        return f"Faithful: better than all {len(deletion.random_areas)} random orders; {numbers}."
    if beaten >= 0.5:
        return f"Partly faithful: better than most random orders, not all; {numbers}."
    return f"Not faithful: no better than a random order; {numbers}. Parts act together here."
