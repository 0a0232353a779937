"""The baselines of a comparison, trained on the train part with every seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from netcls.datasets.shots import choose_shots
from netcls.datasets.splits import TEST, TRAIN, VALIDATION
from netcls.evaluation.baselines import BaselineInput, run_baselines
from netcls.evaluation.comparison_data import ComparisonData
from netcls.evaluation.contenders import Contender, baseline_contenders

if TYPE_CHECKING:
    from models.checkpoint import Checkpoint


def baseline_input(networks: Sequence[Checkpoint], data: ComparisonData) -> BaselineInput:
    """What the baselines train on; the test part itself for the majority class where nothing trains."""
    flows = data.prepared.flows
    train, test = data.rows(TRAIN), data.rows(TEST)
    model_packets = {int(network.representation_settings.get("n_packets", 0)) for network in networks}
    return BaselineInput(
        flows.records,
        flows.packets,
        flows.labels,
        train if len(train) else test,
        data.rows(VALIDATION),
        test[:0],  # they are asked later, like every contender
        len(data.label_names),
        model_packets.pop() if len(model_packets) == 1 else 0,
    )


def baseline_rows(
    trees: BaselineInput,
    data: ComparisonData,
    seeds: Sequence[int],
    *,
    threads: int,
    is_wanted: bool,
    on_progress: Callable[[dict[str, Any]], None],
) -> list[Contender]:
    """All baselines, with each seed; only the majority class where nothing trains or nothing else is wanted."""
    is_split = len(data.rows(TRAIN)) > 0
    is_trained = is_wanted and is_split
    answers = []
    for seed in seeds if is_trained else seeds[:1]:
        of_seed = run_baselines(
            trees,
            seed=seed,
            threads=threads,
            on_progress=lambda name, seed=seed: on_progress({"name": name, "seed": seed}),  # type: ignore[misc]
            only=None if is_trained else ("majority",),
        )
        answers.append((seed, of_seed))
    made = baseline_contenders(answers, len(data.label_names))
    if not is_split:
        made[
            0
        ].sees = "nothing; says the most frequent class of the test part itself, for want of a training part"
    return made


def few_shot_trees(
    name: str,
    trees: BaselineInput,
    data: ComparisonData,
    seeds: Sequence[int],
    shots: int | None,
    *,
    threads: int,
) -> Contender:
    """One baseline trained on ``shots`` flows of each class, with each seed; None: on all."""
    flows, train, answers = data.prepared.flows, trees.train, []
    for seed in seeds:
        few = trees
        if shots is not None:
            chosen = choose_shots(flows.labels[train], flows.capture[train], shots, seed)
            few = replace(trees, train=train[chosen])
        answers.append((seed, run_baselines(few, seed=seed, threads=threads, only=(name,))))
    return baseline_contenders(answers, len(data.label_names))[0]
