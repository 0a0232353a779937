"""Splits keep units whole, come near their shares, and say what they could not do."""

from __future__ import annotations

import numpy as np
import pytest

from capture.errors import DataError
from netcls.datasets.splits import (
    CALIBRATION,
    LEFT_OUT,
    TEST,
    TRAIN,
    VALIDATION,
    SplitInput,
    SplitOptions,
    choose_units,
    make_split,
)


def flows_of(classes: dict[str, list[list[int]]], columns=("group",), group_names=None) -> SplitInput:
    """Per class: captures, each a list of its flows' groups."""
    labels, captures, groups = [], [], []
    number = 0
    for label, of_class in enumerate(classes.values()):
        for capture in of_class:
            labels += [label] * len(capture)
            captures += [number] * len(capture)
            groups += capture
            number += 1
    n_groups = max(groups) + 1
    return SplitInput(
        labels=np.array(labels),
        capture=np.array(captures),
        group=np.array(groups),
        host=np.array(captures) % 7,
        time_s=np.array(captures, float) * 100,
        label_names=list(classes),
        group_names=group_names or [(f"g{index}",) for index in range(n_groups)],
        group_columns=columns,
    )


def many(n_classes=6, n_captures=12, seed=3) -> SplitInput:
    rng = np.random.default_rng(seed)
    classes: dict[str, list[list[int]]] = {}
    group = 0
    for label in range(n_classes):
        captures = []
        for _ in range(n_captures):
            captures.append([group] * int(rng.integers(1, 20)))
            group += int(rng.integers(0, 2))
        group += 1
        classes[f"class{label}"] = captures
    return flows_of(classes)


@pytest.mark.parametrize("kind", ["capture", "group", "host", "time"])
def test_no_unit_is_both_trained_and_tested(kind):
    flows = many()
    split = make_split(flows, SplitOptions(kind, seed=1))
    unit = {"capture": flows.capture, "time": flows.capture, "group": flows.group, "host": flows.host}[kind]
    tested = set(unit[split.part == TEST])
    assert tested
    for side in (TRAIN, VALIDATION, CALIBRATION):
        assert not tested & set(unit[split.part == side])
        assert np.any(split.part == side)
    for side in (VALIDATION, CALIBRATION):
        assert not set(flows.capture[split.part == side]) & set(flows.capture[split.part == TRAIN])


def test_every_class_is_trained_and_tested_near_its_share():
    flows = many()
    split = make_split(flows, SplitOptions("capture", seed=5))
    for label in range(6):
        of_class = split.part[flows.labels == label]
        share = np.mean(of_class == TEST)
        assert 0.05 < share < 0.4
        assert np.any(of_class == TRAIN)


def test_the_same_seed_gives_the_same_split_and_another_seed_another():
    flows = many()
    first = make_split(flows, SplitOptions("capture", seed=1)).part
    assert np.array_equal(first, make_split(flows, SplitOptions("capture", seed=1)).part)
    assert not np.array_equal(first, make_split(flows, SplitOptions("capture", seed=2)).part)


def test_a_class_with_one_capture_is_trained_and_named_but_not_tested():
    flows = flows_of({"a": [[0]] * 6, "b": [[1]] * 6, "single": [[2] * 9]})
    split = make_split(flows, SplitOptions("capture"))
    assert split.untested == ("single",)
    assert set(split.part[flows.labels == 2]) == {TRAIN}
    assert split.warnings == ["1 classes have too few captures to be tested and are only trained: single"]


def test_one_capture_per_class_cannot_be_split_by_capture_and_says_what_to_do():
    flows = flows_of({"a": [[0] * 5], "b": [[1] * 5]})
    with pytest.raises(
        DataError, match=r"split by capture: 0 of 2 classes have two captures .* --split flow"
    ):
        make_split(flows, SplitOptions("capture"))
    assert "optimistic" in make_split(flows, SplitOptions("flow")).description


def test_with_two_captures_a_class_one_is_tested_and_the_rest_comes_out_of_the_other():
    flows = flows_of({name: [[2 * index] * 20, [2 * index + 1] * 20] for index, name in enumerate("abc")})
    split = make_split(flows, SplitOptions("capture"))
    tested = flows.capture[split.part == TEST]
    assert len(set(tested)) == 3
    assert not np.isin(tested, flows.capture[split.part != TEST]).any()
    assert all(len(set(flows.labels[split.part == part])) == 3 for part in range(4))
    assert not split.calibration_unseen
    assert split.warnings == [
        "too few captures to set some aside for calibration: single flows are taken",
        "too few captures to set some aside for validation: single flows are taken",
    ]


def test_a_group_that_holds_a_classes_only_training_flows_is_never_tested():
    # Group 0 holds both classes; class b has only it and group 2.
    flows = flows_of({"a": [[0] * 4, [1] * 4, [3] * 4], "b": [[0] * 4, [2] * 4], "c": [[4] * 4, [5] * 4]})
    for seed in range(20):
        split = make_split(
            flows, SplitOptions("group", seed=seed, validation=0.01, calibration=0.01, test=0.4)
        )
        for label in range(3):
            assert np.any(split.part[flows.labels == label] == TRAIN)


def grouped(n_groups_of_class: dict[str, int]) -> SplitInput:
    """Classes of so many groups each; a group has three captures of four flows."""
    classes, group = {}, 0
    for name, n_groups in n_groups_of_class.items():
        classes[name] = [[group + number] * 4 for number in range(n_groups) for _ in range(3)]
        group += n_groups
    return flows_of(classes)


def test_calibration_is_on_groups_that_were_not_trained_on_where_classes_have_enough_of_them():
    flows = grouped({"a": 12, "b": 12, "c": 12, "few": 3})
    for seed in range(5):
        split = make_split(flows, SplitOptions("group", seed=seed))
        assert split.calibration_unseen
        of = {part: set(flows.group[split.part == part]) for part in (TRAIN, VALIDATION, CALIBRATION, TEST)}
        assert of[CALIBRATION]
        assert not of[CALIBRATION] & (of[TRAIN] | of[VALIDATION] | of[TEST])
        assert 3 not in flows.labels[split.part == CALIBRATION]  # one of three would be too much to give
        share = np.mean(split.part[flows.labels < 3] == CALIBRATION)
        assert 0.04 < share < 0.2
        assert "calibration is whole groups that were not trained on" in split.description


def test_with_few_groups_calibration_is_on_captures_of_known_groups_and_the_split_says_so():
    flows = grouped({"a": 3, "b": 3, "c": 3, "d": 3})
    split = make_split(flows, SplitOptions("group"))
    assert not split.calibration_unseen
    known = set(flows.group[split.part == TRAIN])
    assert set(flows.group[split.part == CALIBRATION]) <= known
    assert "validation and calibration are whole captures of the training side" in split.description


def test_whole_captures_of_calibration_were_not_trained_on_and_single_flows_were():
    assert make_split(many(), SplitOptions("capture")).calibration_unseen
    assert not make_split(many(), SplitOptions("flow")).calibration_unseen


def test_which_flows_are_tested_does_not_depend_on_how_calibration_is_chosen():
    flows = grouped({"a": 12, "b": 12, "few": 3})
    first = make_split(flows, SplitOptions("group", seed=4, calibration=0.1))
    other = make_split(flows, SplitOptions("group", seed=4, calibration=0.2))
    assert np.array_equal(first.part == TEST, other.part == TEST)


def test_named_groups_are_the_test_part_and_nothing_else_is():
    flows = many()
    wanted = (flows.group_names[0], flows.group_names[20])
    split = make_split(flows, SplitOptions("group", leave_out=wanted))
    assert set(flows.group[split.part == TEST]) == {0, 20}
    with pytest.raises(DataError, match="no flow is of group 'nobody'; the groups are g0, g1"):
        make_split(flows, SplitOptions("group", leave_out=(("nobody",),)))


def test_rule_each_trains_on_no_implementation_of_the_class_that_is_tested():
    names = [("c1", "s1"), ("c1", "s2"), ("c2", "s2"), ("c3", "s3"), ("x1", "y"), ("x2", "y")]
    classes = {
        "mixed": [[0] * 4] * 3 + [[1] * 4] * 3 + [[2] * 4] * 3 + [[3] * 4] * 3,
        "one_server": [[4] * 4] * 4 + [[5] * 4] * 4,
        "other": [[0] * 4] * 3 + [[3] * 4] * 3,
    }
    flows = flows_of(classes, ("client_impl", "server_impl"), names)
    seen_left_out = False
    for seed in range(12):
        split = make_split(flows, SplitOptions("group", seed=seed, rule="each"))
        assert "one_server" in split.fallback
        mixed = flows.labels == 0
        for column in (0, 1):
            tested = {names[group][column] for group in flows.group[mixed & (split.part == TEST)]}
            trained = {names[group][column] for group in flows.group[mixed & (split.part == TRAIN)]}
            assert "mixed" in split.fallback or not tested & trained
        seen_left_out |= split.n_left_out > 0
        assert split.n_left_out == np.count_nonzero(split.part == LEFT_OUT)
    assert seen_left_out


def test_a_time_split_tests_what_came_last_in_each_class():
    flows = many()
    split = make_split(flows, SplitOptions("time"))
    for label in range(6):
        of_class = flows.labels == label
        train = flows.time_s[of_class & (split.part == TRAIN)]
        test = flows.time_s[of_class & (split.part == TEST)]
        assert train.max() < test.min()


def test_units_are_chosen_near_the_share_when_classes_share_units():
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 9, (60, 5)) * (rng.random((60, 5)) < 0.5)
    chosen = choose_units(counts, 0.25, np.random.default_rng(1))
    share = counts[chosen].sum(axis=0) / counts.sum(axis=0)
    assert np.all(np.abs(share - 0.25) < 0.12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "packet"}, "split 'packet' is not known; choose one of capture, group, host, time, flow"),
        ({"test": 0.9}, "expected a sum below 1"),
        ({"rule": "any"}, "group rule 'any' is not known"),
        ({"leave_out": (("a",),)}, "leave_out names groups, but the split is by capture"),
    ],
)
def test_a_contradictory_split_is_refused(options, message):
    with pytest.raises(DataError, match=message):
        SplitOptions(**options)
