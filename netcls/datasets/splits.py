"""Who trains, who is tested: splits that keep what belongs together on one side.

A *unit* is what may not be torn apart: a capture, a group, a host, or (the optimistic way) a flow.
Test units are chosen first, then validation and calibration units out of what is left, so that in
each class the share of flows comes near its target and no class loses its last training unit.
Everything is seeded and depends on nothing else than the flows.

G is the number of units, C of classes, N of flows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from capture.errors import DataError

SplitKind = Literal["capture", "group", "host", "time", "flow"]
GroupRule = Literal["tuple", "each"]

TRAIN: Final = 0
VALIDATION: Final = 1
CALIBRATION: Final = 2
TEST: Final = 3
LEFT_OUT: Final = -1
PARTS: Final = ("train", "validation", "calibration", "test")

_MEANING: Final = {
    "capture": "by capture file: no test capture was trained on",
    "group": "by group ({columns}): no test group was trained on",
    "host": "by host: no test host was trained on",
    "time": "by time: in each class the earliest captures train and the latest are tested",
    "flow": "within-capture split: optimistic",
}
_CHUNK: Final = 1 << 20  # flows
# Tried units a step: enough to come near the targets, few enough that seeds give different splits.
_CANDIDATES: Final = 8
# Calibration takes whole groups or hosts only from classes that keep so many to train on, and only where so large a
# share of the classes can give any. Fewer would bend a temperature towards the few.
_KEPT_TO_TRAIN: Final = 2
_CLASSES_THAT_GIVE: Final = 0.25


@dataclass(frozen=True, slots=True)
class SplitOptions:
    """How flows are divided.

    Attributes:
        kind: what is kept together. ``capture`` is the file, ``group`` the group columns, ``host`` the captured
            host (or each flow's client address), ``time`` whole captures in order of time, ``flow`` single flows.
        seed: any integer.
        test, validation, calibration: wanted shares of the flows of each class; the rest trains.
        rule: ``tuple``: a group is seen only if all its columns are; ``each`` (with several group columns):
            within a class, no value of a test group's columns may occur in training, and flows of other
            groups that share one are left out. A class for which that leaves nothing to train falls back to
            ``tuple`` and is named in the report.
        leave_out: groups (tuples of column values) that are the test part, nothing else; ``kind`` must be group.
        prefer_stored: where the data is a built dataset, its own split counts and not these options.
    """

    kind: SplitKind = "capture"
    seed: int = 0
    test: float = 0.2
    validation: float = 0.1
    calibration: float = 0.1
    rule: GroupRule = "tuple"
    leave_out: tuple[tuple[str, ...], ...] = ()
    prefer_stored: bool = False

    def __post_init__(self) -> None:
        if self.kind not in get_args(SplitKind):
            raise DataError(
                f"split {self.kind!r} is not known; choose one of {', '.join(get_args(SplitKind))}"
            )
        shares = (self.test, self.validation, self.calibration)
        if min(shares) <= 0 or sum(shares) >= 1:
            raise DataError(
                f"shares of test, validation and calibration are {shares}; expected a sum below 1"
            )
        if self.rule not in get_args(GroupRule):
            raise DataError(f"group rule {self.rule!r} is not known; choose tuple or each")
        if self.leave_out and self.kind != "group":
            raise DataError(f"leave_out names groups, but the split is by {self.kind}; expected split group")


@dataclass(frozen=True, slots=True)
class SplitInput:
    """What a split looks at, a row a flow.

    Attributes:
        labels: int64 or narrower (N,), 0 to C-1.
        capture, group, host: the same, indices; what the kind of split does not look at may be one repeated 0.
        time_s: float64 (N,), when the flow (or its capture) was, seconds.
        label_names: C names.
        group_names: values of the group columns of each group.
        group_columns: their names.
    """

    labels: NDArray[Any]
    capture: NDArray[Any]
    group: NDArray[Any]
    host: NDArray[Any]
    time_s: NDArray[np.float64]
    label_names: Sequence[str]
    group_names: Sequence[tuple[str, ...]]
    group_columns: Sequence[str]

    def take(self, rows: NDArray[np.int64]) -> SplitInput:
        """The given flows, in the given order."""
        return replace(
            self,
            labels=self.labels[rows],
            capture=self.capture[rows],
            group=self.group[rows],
            host=self.host[rows],
            time_s=self.time_s[rows],
        )


@dataclass(slots=True)
class Split:
    """Where each flow is.

    Attributes:
        part: int8 (N,): 0 train, 1 validation, 2 calibration, 3 test, -1 left out.
        options: how it was made.
        description: one sentence for the card.
        untested: classes that are not in the test part (too few units); they are trained all the same.
        fallback: classes that rule ``each`` could not be applied to.
        calibration_unseen: no calibration flow shares its unit with a training flow, as no test flow does.
        n_left_out: flows left out by rule ``each``.
        duplicate_of: int8 (N,), the part that a flow was removed from because an earlier part holds the same model
            input; -1 for all others.
        n_duplicates: how many that are, by part.
        warnings: one line each.
    """

    part: NDArray[np.int8]
    options: SplitOptions
    description: str
    untested: tuple[str, ...] = ()
    fallback: tuple[str, ...] = ()
    calibration_unseen: bool = True
    n_left_out: int = 0
    duplicate_of: NDArray[np.int8] | None = None
    n_duplicates: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def rows(self, part: int) -> NDArray[np.intp]:
        """The flows of one part, ascending."""
        return np.flatnonzero(self.part == part)


def make_split(flows: SplitInput, options: SplitOptions) -> Split:
    """Divide flows into train, validation, calibration and test.

    With ``group`` and ``host`` the calibration part is whole units too, of classes that have enough of them, or a model
    would be called sure of programs that it never saw because it is sure of those it knows. The validation part is
    whole captures of the training side: few classes have units enough to hold out three times.

    Raises:
        DataError: fewer than two classes can be tested, or a part would be empty.
    """
    rng = np.random.default_rng(options.seed)
    units = _units(flows, options.kind)
    # One row a unit; for single flows it would be one a flow, and is not needed.
    n_classes = len(flows.label_names)
    counts = np.zeros((1, n_classes), np.int64)
    if options.kind != "flow":
        counts = _unit_class_counts(units, flows.labels, n_classes)
    if options.leave_out:
        test_units = _named_units(flows, options)
    elif options.kind == "time":
        test_units = _latest_units(counts, _unit_times(units, flows.time_s), options.test)
    elif options.kind == "flow":
        test_units = _choose_flows(flows.labels, options.test, rng)
    else:
        test_units = choose_units(counts, options.test, rng)
    part = np.where(test_units, TEST, TRAIN).astype(np.int8)[units]
    fallback: tuple[str, ...] = ()
    if options.kind == "group" and options.rule == "each":
        fallback = _leave_out_relatives(flows, part)
    n_left_out = int(np.count_nonzero(part == LEFT_OUT))
    unseen = options.kind in ("group", "host") and _calibrate_on_units(flows, options, units, part, rng)
    warnings = _split_training(flows, options, part, rng)
    split = Split(
        part,
        options,
        _describe(flows, options, unseen),
        fallback=fallback,
        calibration_unseen=options.kind != "flow" and not _share_units(units, part, CALIBRATION, TRAIN),
        n_left_out=n_left_out,
        warnings=warnings,
    )
    check_split(flows, split)
    return split


def all_tested(flows: SplitInput) -> Split:
    """Every flow in the test part: for models that were trained elsewhere.

    Its options are those of a split by capture, because captures are what intervals are drawn from.
    """
    part = np.full(len(flows.labels), TEST, np.int8)
    return Split(part, SplitOptions(), "none: all of the data is tested")


def choose_units(
    counts: NDArray[np.int64],
    share: float,
    rng: np.random.Generator,
    *,
    keep: int = 1,
    from_every_class: bool = True,
) -> NDArray[np.bool_]:
    """Units whose flows come near ``share`` of each class, never one of the last ``keep`` units of a class.

    Greedy: the class furthest from its share takes one of its units, tried among a few at random, as long as the
    sum of squared distances over all classes falls or the class has none yet.

    Args:
        counts: int64 (G, C), flows of each class in each unit.
        share: wanted, 0 to 1.
        rng: decides among units.
        keep: units of each class that are not chosen, at least 1.
        from_every_class: a class that can give a unit gives one, even if it is far more than its share.

    Returns:
        bool (G,), True where chosen.
    """
    n_units, n_classes = counts.shape
    chosen = np.zeros(n_units, bool)
    total = np.maximum(counts.sum(axis=0), 1)
    weight = counts / total  # (G, C), what a unit adds to each class's share
    left = (counts > 0).sum(axis=0)  # units of each class that still train
    share_now = np.zeros(n_classes)
    open_classes = left > keep
    while open_classes.any():
        lacking = np.where(open_classes, share - share_now, -np.inf)
        neediest = int(np.argmax(lacking + rng.uniform(0, 1e-9, n_classes)))
        # Taking a unit must leave each of its classes something to train on.
        may = ~chosen & (counts[:, neediest] > 0) & ~((counts > 0) & (left <= keep)).any(axis=1)
        candidates = np.flatnonzero(may)
        if not len(candidates):
            open_classes[neediest] = False
            continue
        tried = rng.permutation(candidates)[:_CANDIDATES]
        cost = ((share_now + weight[tried] - share) ** 2)[:, open_classes].sum(axis=1)
        best = int(np.argmin(cost))
        cost_now = ((share_now - share) ** 2)[open_classes].sum()
        if cost[best] >= cost_now and (share_now[neediest] > 0 or not from_every_class):
            open_classes[neediest] = False
            continue
        unit = int(tried[best])
        chosen[unit] = True
        left -= counts[unit] > 0
        share_now = share_now + weight[unit]
    return chosen


def _units(flows: SplitInput, kind: SplitKind) -> NDArray[Any]:
    by_kind = {"capture": flows.capture, "time": flows.capture, "group": flows.group, "host": flows.host}
    units = by_kind.get(kind)
    if units is None:
        return np.arange(len(flows.labels), dtype=np.int64)
    return _renumbered(units)


def _renumbered(values: NDArray[Any]) -> NDArray[Any]:
    """The same numbers without gaps, in the same order: the inverse of ``np.unique``, without sorting."""
    present = _is_present(values)
    return np.asarray((np.cumsum(present) - 1).astype(values.dtype)[values])


def _is_present(values: NDArray[Any], of: tuple[NDArray[np.int8], int] | None = None) -> NDArray[np.bool_]:
    """Which of the numbers from 0 to the largest occur; with ``of`` only in one part."""
    present = np.zeros(int(values.max(initial=-1)) + 1, bool)
    for rows in _chunks(len(values)):
        present[values[rows] if of is None else values[rows][of[0][rows] == of[1]]] = True
    return present


def _chunks(n: int) -> Iterator[slice]:
    """Slices of all flows, so that what is computed of each takes little memory."""
    return (slice(start, start + _CHUNK) for start in range(0, n, _CHUNK))


def _unit_class_counts(
    units: NDArray[Any],
    labels: NDArray[Any],
    n_classes: int,
    of: tuple[NDArray[np.int8], int] | None = None,
) -> NDArray[np.int64]:
    """Flows of each class in each unit: int64 (G, C); with ``of`` only those of one part."""
    n_units = int(units.max(initial=-1)) + 1
    counts = np.zeros(n_units * n_classes, np.int64)
    for rows in _chunks(len(units)):
        cells = units[rows].astype(np.int64) * n_classes + labels[rows]
        if of is not None:
            cells = cells[of[0][rows] == of[1]]
        counts += np.bincount(cells, minlength=len(counts))
    return counts.reshape(n_units, n_classes)


def _share_units(units: NDArray[Any], part: NDArray[np.int8], one: int, other: int) -> bool:
    """Whether a unit has flows in both parts."""
    return bool((_is_present(units, (part, one)) & _is_present(units, (part, other))).any())


def _unit_times(units: NDArray[Any], time_s: NDArray[np.float64]) -> NDArray[np.float64]:
    times = np.full(int(units.max(initial=-1)) + 1, np.inf)
    np.minimum.at(times, units, time_s)
    return times


def _latest_units(counts: NDArray[np.int64], times: NDArray[np.float64], share: float) -> NDArray[np.bool_]:
    """The latest units of each class (a unit counts for its most frequent class) up to ``share``, at least one."""
    chosen = np.zeros(len(counts), bool)
    main = counts.argmax(axis=1)
    for label in range(counts.shape[1]):
        units = np.flatnonzero((main == label) & (counts[:, label] > 0))
        if len(units) < 2:
            continue
        units = units[np.argsort(times[units], kind="stable")]
        held = np.cumsum(counts[units[::-1], label]) / counts[units, label].sum()
        n = int(np.clip(np.searchsorted(held, share, side="right"), 1, len(units) - 1))
        chosen[units[-n:]] = True
    return chosen


def _named_units(flows: SplitInput, options: SplitOptions) -> NDArray[np.bool_]:
    """Units of the groups that ``leave_out`` names."""
    present = np.unique(flows.group)
    names = [flows.group_names[index] for index in present]
    for wanted in options.leave_out:
        if wanted not in names:
            some = ", ".join("/".join(name) for name in names[:5])
            raise DataError(
                f"no flow is of group {'/'.join(wanted)!r}; the groups are {some}, ... ({len(names)})"
            )
    return np.array([name in options.leave_out for name in names], bool)


def _leave_out_relatives(flows: SplitInput, part: NDArray[np.int8]) -> tuple[str, ...]:
    """Rule ``each``: in every class, training flows that share a column value with a test flow leave.

    Returns:
        Classes where nothing would be left to train, and so nothing was done.
    """
    n_columns = len(flows.group_columns)
    values = [
        np.unique([name[column] for name in flows.group_names], return_inverse=True)[1]
        for column in range(n_columns)
    ]
    fallback = []
    for label, name in enumerate(flows.label_names):
        train = (flows.labels == label) & (part == TRAIN)
        test = (flows.labels == label) & (part == TEST)
        related = np.zeros(len(part), bool)
        for column in range(n_columns):
            of_flow = values[column][flows.group]
            related |= train & np.isin(of_flow, of_flow[test])
        if related.any() and related.sum() == train.sum():
            fallback.append(name)
        else:
            part[related] = LEFT_OUT
    return tuple(fallback)


def _calibrate_on_units(
    flows: SplitInput,
    options: SplitOptions,
    units: NDArray[Any],
    part: NDArray[np.int8],
    rng: np.random.Generator,
) -> bool:
    """Take whole units for calibration, if enough classes can give some; False: nothing was done."""
    trained, counts = _training_units(units, flows, part)
    wanted = options.calibration / (1 - options.test)
    chosen = choose_units(counts, wanted, rng, keep=_KEPT_TO_TRAIN, from_every_class=False)
    n_given, n_trained = _n_classes(counts[chosen]), _n_classes(counts)
    if n_given < max(2, _CLASSES_THAT_GIVE * n_trained):
        return False
    _give(units, trained[chosen], part, CALIBRATION)
    return True


def _training_units(
    units: NDArray[Any], flows: SplitInput, part: NDArray[np.int8]
) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """Units with training flows, ascending, and the classes of those flows: int64 (units, C)."""
    counts = _unit_class_counts(units, flows.labels, len(flows.label_names), (part, TRAIN))
    trained = np.flatnonzero(counts.any(axis=1))
    return trained, counts[trained]


def _n_classes(counts: NDArray[np.int64]) -> int:
    return int(np.count_nonzero(counts.any(axis=0)))


def _give(units: NDArray[Any], given: NDArray[np.intp], part: NDArray[np.int8], side: int) -> None:
    """Training flows of the given units change to another part; ``part`` is changed."""
    is_given = np.zeros(int(units.max(initial=-1)) + 1, bool)
    is_given[given] = True
    for rows in _chunks(len(units)):
        of_chunk = part[rows]  # a view
        of_chunk[(of_chunk == TRAIN) & is_given[units[rows]]] = side


def _split_training(
    flows: SplitInput, options: SplitOptions, part: NDArray[np.int8], rng: np.random.Generator
) -> list[str]:
    """Take validation, and calibration if it is still empty, out of the training part: captures, or single flows.

    Where captures are so few that less than half of the classes would be there, single flows are taken instead.

    Returns:
        Warnings.
    """
    warnings = []
    for side, share in ((CALIBRATION, options.calibration), (VALIDATION, options.validation)):
        if (part == side).any():
            continue
        wanted = share / (1 - options.test - (options.calibration if side == VALIDATION else 0))
        if options.kind != "flow":
            trained, counts = _training_units(flows.capture, flows, part)
            if options.kind == "time":
                train = part == TRAIN
                times = _unit_times(flows.capture[train], flows.time_s[train])[trained]
                chosen = _latest_units(counts, times, wanted)
            else:
                chosen = choose_units(counts, wanted, rng)
            if 2 * _n_classes(counts[chosen]) >= _n_classes(counts):
                _give(flows.capture, trained[chosen], part, side)
                continue
            warnings.append(f"too few captures to set some aside for {PARTS[side]}: single flows are taken")
        rows = np.flatnonzero(part == TRAIN)
        part[rows[_choose_flows(flows.labels[rows], wanted, rng)]] = side
    return warnings


def _choose_flows(labels: NDArray[Any], share: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """A share of the flows of each class, at random: bool (N,). One at least where the class has two."""
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        if len(rows) >= 2:
            chosen[rows[: max(1, round(share * len(rows)))]] = True
    return chosen


def _describe(flows: SplitInput, options: SplitOptions, calibration_unseen: bool) -> str:
    text = _MEANING[options.kind].format(columns=", ".join(flows.group_columns))
    if options.leave_out:
        text += f"; tested on {len(options.leave_out)} groups named in advance"
    if options.kind == "group" and options.rule == "each":
        text += "; within a class no value of these columns is on both sides"
    if options.kind in ("group", "host"):
        unit = f"{options.kind}s"
        calibration = f"calibration is whole {unit} that were not trained on" if calibration_unseen else ""
        known = "validation is" if calibration_unseen else "validation and calibration are"
        text = "; ".join(filter(None, [text, calibration, f"{known} whole captures of the training side"]))
    return f"{text} (seed {options.seed})"


def check_split(flows: SplitInput, split: Split) -> None:
    """Say which classes are not tested; refuse a split that measures nothing.

    Raises:
        DataError: fewer than two classes are tested, or a part is empty.
    """
    of_parts = _unit_class_counts(split.part - LEFT_OUT, flows.labels, len(flows.label_names))
    counts = np.zeros((len(PARTS) + 1, len(flows.label_names)), np.int64)  # the first row is what is left out
    counts[: len(of_parts)] = of_parts
    by_part, present = counts[1:], counts.any(axis=0)
    names = np.array(flows.label_names, object)
    split.untested = tuple(names[present & (by_part[TEST] == 0)])
    kind = split.options.kind
    unit = "captures" if kind == "time" else f"{kind}s"
    if np.count_nonzero(by_part[TEST]) < 2:
        raise DataError(
            f"split by {kind}: {np.count_nonzero(by_part[TEST])} of {np.count_nonzero(present)} classes have two "
            f"{unit} or more, so nothing can be compared; give more captures, or choose --split flow (optimistic)"
        )
    if split.untested:
        few = ", ".join(split.untested[:5]) + (", ..." if len(split.untested) > 5 else "")
        split.warnings.append(
            f"{len(split.untested)} classes have too few {unit} to be tested and are only trained: {few}"
        )
    untrained = names[(by_part[TEST] > 0) & (by_part[TRAIN] == 0)]
    if len(untrained):
        split.warnings.append(
            f"{len(untrained)} classes are tested but not trained: {', '.join(untrained[:5])}"
        )
    for side in (TRAIN, VALIDATION, CALIBRATION):
        if not by_part[side].any():
            raise DataError(
                f"split by {kind}: the {PARTS[side]} part is empty; give more captures of each class, "
                "or choose --split flow (optimistic)"
            )
    if split.fallback:
        split.warnings.append(
            f"rule each left nothing to train in {len(split.fallback)} classes, where only the combination is unseen: "
            + ", ".join(split.fallback)
        )
