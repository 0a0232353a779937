"""What :mod:`netcls.bench` times of models: answering, one step of training, and a capture file to answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from capture.errors import UsageError
from capture.flow_table import FlowTableConfig
from capture.representations import TokenBatch, build
from models.checkpoint import Calibration, Checkpoint, load_checkpoint
from models.families import family
from models.learning.batches import to_device
from models.learning.schedules import parameter_groups
from models.learning.start import training_process
from models.precision import NARROW
from models.predictor import Predictor
from netcls.bench import RANDOM_MODEL, BenchOptions, Task, Work
from netcls.bench_traffic import PACKETS_PER_FLOW, Traffic, write_capture
from netcls.pipeline import Run, RunOptions
from netcls.tokens import tokens_of_capture

N_LABELS = 20
_FEWEST_FLOWS = 64


def random_checkpoint(seed: int = 0) -> Checkpoint:
    """A NetMamba of the paper's sizes (arXiv 2405.11449) with random weights and 20 labels."""
    settings = build("netmamba").settings()
    netmamba = family("netmamba")
    config = netmamba.config_for(settings)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        state = netmamba.build_classifier(config, N_LABELS).state_dict()
    return Checkpoint(
        path=Path(RANDOM_MODEL),
        kind="classifier",
        family="netmamba",
        model_config=dataclasses.asdict(config),
        representation="netmamba",
        representation_version=build("netmamba").version,
        representation_settings=settings,
        labels=[f"label {number}" for number in range(N_LABELS)],
        calibration=Calibration(),
        card={"data": f"none: random weights of seed {seed}, to measure speed with"},
        state=state,
        digest="0" * 12,
    )


def tasks(name: str, options: BenchOptions, folder: Path) -> list[Task]:
    """The measurements of one model that are asked for.

    Raises:
        CheckpointError: if it is a checkpoint that cannot be loaded, or no classifier.
    """
    checkpoint = random_checkpoint(options.seed) if name == RANDOM_MODEL else load_checkpoint(name)
    bench = _ModelBench(checkpoint, options, folder)
    plan: list[tuple[str, Callable[[], Work], str, int | None]]
    plan = [("model", bench.answering(p), p, options.batch) for p in bench.precisions]
    plan += [
        ("train", bench.training, "fp32", options.batch),
        ("end_to_end", bench.classification, bench.chosen_precision, None),
    ]
    return [
        Task(stage, name, "flows", start, precision, batch, options.threads)
        for stage, start, precision, batch in plan
        if options.wants(stage, name)
    ]


class _ModelBench:
    """One checkpoint over a capture of at least 64 flows."""

    def __init__(self, checkpoint: Checkpoint, options: BenchOptions, folder: Path) -> None:
        self._checkpoint = checkpoint
        self._options = options
        self.chosen_precision = self._predictor("auto").precision
        self.precisions = ["fp32", *(name for name in NARROW if self._has(name))]
        self._path = folder / "flows.pcap"
        n_flows = max(_FEWEST_FLOWS, options.batch)
        write_capture(self._path, Traffic(PACKETS_PER_FLOW * n_flows, n_flows, seed=options.seed))
        self._tokens = self._first_tokens()

    def _first_tokens(self) -> TokenBatch:
        """Of as many flows as a batch has."""
        representation = build(self._checkpoint.representation, self._checkpoint.representation_settings)
        parts = [
            tokens for _, tokens in tokens_of_capture(str(self._path), representation, FlowTableConfig())
        ]
        names = parts[0].arrays
        joined = TokenBatch(
            {name: np.concatenate([part.arrays[name] for part in parts]) for name in names},
            np.concatenate([part.packets_used for part in parts]),
        )
        return joined.take(slice(0, self._options.batch))

    def _predictor(self, precision: str) -> Predictor:
        return Predictor(self._checkpoint, threads=self._options.threads, device="cpu", precision=precision)

    def _has(self, precision: str) -> bool:
        """Whether this machine and this family compute in it, whatever the checkpoint's card says."""
        try:
            self._predictor(precision).close()
        except UsageError:
            return False
        return True

    def answering(self, precision: str) -> Callable[[], Work]:
        """One predictor for all repeats."""
        predictor = self._predictor(precision)

        def work() -> int:
            return len(predictor.logits(self._tokens))

        return lambda: work

    def training(self) -> Work:
        """From fresh weights each time, so that no repeat meets numbers that another one has made."""
        members = family(self._checkpoint.family)
        config = members.config_type(**self._checkpoint.model_config)
        model = members.build_classifier(config, len(self._checkpoint.labels))
        model.load_state_dict(self._checkpoint.state)
        model.train()
        optimiser = torch.optim.AdamW(parameter_groups(model, weight_decay=0.05), lr=1e-4)
        arrays = to_device(self._tokens.arrays, torch.device("cpu"))
        labels = torch.arange(len(self._tokens)) % len(self._checkpoint.labels)

        def work() -> int:
            with training_process(self._options.threads):
                loss = functional.cross_entropy(model(*arrays), labels)
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
            return len(labels)

        return work

    def classification(self) -> Work:
        """A run that is ready to start: model loaded, capture not yet opened."""
        options = RunOptions(threads=self._options.threads, device="cpu")
        run = Run([str(self._path)], options, classify=True, checkpoint=self._checkpoint)

        def work() -> int:
            for _ in run:
                pass
            return run.counters.predictions

        return work
