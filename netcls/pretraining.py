"""Pre-training, from unlabelled captures to a backbone checkpoint that lists what it has seen.

The state of a run lies in ``OUT.run`` until the checkpoint is complete. ``corpus.sha256`` beside the weights
has a line for each capture: its SHA-256 and its name, so that a later test can tell whether it was seen.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from capture.errors import UsageError
from netcls.corpus import Corpus, CorpusOptions, collect_corpus
from netcls.datasets.files import write_then_rename
from netcls.training_run import CORPUS_FILE, check_out, wait_passively

if TYPE_CHECKING:
    from capture.representations.base import Representation
    from models.learning.pretrain import PretrainResult
    from netcls.tensorboard import EventLog

Progress = Callable[[str, dict[str, Any]], None]

PUBLISHED_FLOW_PASSES: Final = {"netmamba": 150_000 * 128, "netmamba-plus": 100_000 * 128}
"""Flows that the published pre-training saw, each as often as it was seen (arXiv 2405.11449; NetMamba+'s script)."""

CURVE_POINTS: Final = 50
"""Most points of the loss curve on a card."""


@dataclass(frozen=True, slots=True)
class PretrainOptions:
    """All that decides a pre-training run.

    Attributes:
        data: captures, folders that hold captures at any depth, or datasets that `netcls dataset build` made.
        out: checkpoint folder to make; must not exist or be empty.
        exclude: captures that must not be seen, by path, and text files (``.txt``, ``.sha256``) that list captures:
            a path relative to the list, or a SHA-256, at the beginning of each line. A capture with the bytes of
            an excluded one is left out under whatever name.
        family: model family.
        representation: its settings; those left out at their defaults.
        sizes: fields of the family's configuration; those left out at their defaults.
        steps: optimiser steps; None: by time alone.
        max_seconds: training time, seconds; None: by steps alone.
        batch: flows that a process takes at a time.
        accumulate: batches of a step; a step's flows are batch x accumulate x processes.
        precision: fp32, or bf16: matrix products in bfloat16.
        learning_rate: for a step of 256 flows.
        max_flows_per_capture: of each capture, a seeded sample; 0: all. Keeps scans from being the corpus.
        min_packets: flows with fewer packets are left out.
        all_parts: of a built dataset also the calibration and test parts; else its training and validation parts only.
        seed: of everything random.
        threads: of reading and training; None: 2 for reading, torch's own for training.
        device: auto, cpu or cuda.
        cache_dir: keeps what was read of each capture for the next run; None: nothing is kept.
        tensorboard: folder for event files; None: none are written.
        resume: go on with an interrupted run of the same options.
        licence: of the weights, for the card.
    """

    data: tuple[str, ...]
    out: str
    exclude: tuple[str, ...] = ()
    family: str = "netmamba"
    representation: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, Any] = field(default_factory=dict)
    steps: int | None = None
    max_seconds: float | None = None
    batch: int = 128
    accumulate: int = 1
    precision: str = "fp32"
    learning_rate: float = 1e-3
    max_flows_per_capture: int = 500
    min_packets: int = 1
    all_parts: bool = False
    seed: int = 0
    threads: int | None = None
    device: str = "auto"
    cache_dir: Path | None = None
    tensorboard: Path | None = None
    resume: bool = False
    licence: str = "not stated"

    def __post_init__(self) -> None:
        if self.steps is None and self.max_seconds is None:
            raise UsageError("neither steps nor max_seconds is given; expected at least one limit")
        if self.max_flows_per_capture < 0:
            raise UsageError(
                f"max_flows_per_capture is {self.max_flows_per_capture}; expected 1 or more, or 0 for all"
            )

    def corpus_options(self) -> CorpusOptions:
        """What is read, and how much of it."""
        return CorpusOptions(
            self.data,
            self.exclude,
            self.max_flows_per_capture,
            self.min_packets,
            self.all_parts,
            self.seed,
            self.threads or 2,
            self.cache_dir,
        )


def run_pretrain(options: PretrainOptions, on_progress: Progress | None = None) -> dict[str, Any]:
    """Collect tokens, train, write the backbone's folder.

    Under ``torchrun`` each process reads the captures and trains its part; the first one writes.

    Args:
        options: what to do.
        on_progress: called with a stage (``read``, ``train``) and its details.

    Returns:
        The report, as JSON values; the same is in ``OUT/report.json``. Empty in all processes but the first.

    Raises:
        DataError: no flow to learn from.
        CheckpointError: the checkpoint cannot be written.
        UsageError: the options contradict each other or the folder is in use.
        TrainingError: training diverged, or the processes of ``torchrun`` disagree.
        KeyboardInterrupt: on Ctrl-C or SIGTERM; the run can be resumed.
    """
    wait_passively()
    from capture.representations import build
    from models.families import family
    from models.learning.pretrain import PretrainSettings, pretrain
    from models.learning.start import choose_device
    from models.learning.team import place_in_team
    from models.precision import autocast_dtype

    out = Path(options.out)
    run_dir = check_out(out, resume=options.resume)
    start_s = time.monotonic()
    kind = family(options.family)
    representation = build(kind.representation, options.representation)
    try:
        config = kind.config_for(representation.settings(), **options.sizes)
    except (TypeError, ValueError) as error:
        raise UsageError(f"sizes: {error}") from None
    settings = PretrainSettings(
        steps=options.steps,
        max_seconds=options.max_seconds,
        batch=options.batch,
        accumulate=options.accumulate,
        precision=options.precision,
        base_learning_rate=options.learning_rate,
        seed=options.seed,
        threads=options.threads,
        device=options.device,
    )
    autocast_dtype(options.precision, choose_device(options.device))  # refused before the captures are read

    def on_read(done: int, total: int) -> None:
        if on_progress is not None:
            on_progress("read", {"done": done, "total": total})

    with _event_log(options, place_in_team().is_first) as log:
        corpus = collect_corpus(options.corpus_options(), representation, on_read)
        read_s = time.monotonic() - start_s

        def on_step(details: dict[str, Any]) -> None:
            if log is not None:
                log.add(details)
            if on_progress is not None:
                on_progress("train", details)

        trained = pretrain(
            kind,
            config,
            corpus.tokens,
            settings,
            run_dir=run_dir,
            resume=options.resume,
            on_progress=on_step,
        )
    if not trained.is_first:
        return {}
    report = {
        "out": str(out),
        "corpus": corpus.facts,
        "training": _training_facts(options, trained),
        "seconds": {"read": read_s, "all": time.monotonic() - start_s},
        "warnings": list(corpus.warnings),
    }
    return _write(options, representation, dataclasses.asdict(config), corpus, trained, report, run_dir)


def _event_log(options: PretrainOptions, is_first: bool) -> EventLog | contextlib.nullcontext[None]:
    from netcls.tensorboard import EventLog

    if options.tensorboard is None or not is_first:
        return contextlib.nullcontext()
    return EventLog(options.tensorboard, resume=options.resume)


def _training_facts(options: PretrainOptions, trained: PretrainResult) -> dict[str, Any]:
    flow_passes = trained.steps * trained.flows_per_step
    facts = {
        "steps": trained.steps,
        "flows_per_step": trained.flows_per_step,
        "batch": options.batch,
        "accumulate": options.accumulate,
        "precision": options.precision,
        "learning_rate": options.learning_rate,
        "seed": options.seed,
        "flow_passes": flow_passes,
        "device": trained.device,
        "processes": trained.processes,
        "samples_per_s": trained.samples_per_s,
        "samples_per_s_per_process": trained.samples_per_s / trained.processes,
        **(_losses(trained.history[-1]) if trained.history else {"loss": None}),
        "history": trained.history,
    }
    if options.family in PUBLISHED_FLOW_PASSES:
        facts["share_of_published_schedule"] = flow_passes / PUBLISHED_FLOW_PASSES[options.family]
    return facts


def loss_curve(history: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Step and losses of at most :data:`CURVE_POINTS` entries of a history, evenly spread, the last one among them."""
    n_points = min(len(history), CURVE_POINTS)
    chosen = [(i + 1) * len(history) // n_points - 1 for i in range(n_points)]
    return [{"step": history[i]["step"], **_losses(history[i])} for i in chosen]


def _losses(entry: dict[str, Any]) -> dict[str, float]:
    """The loss of an entry, its parts (NetMamba+ has three) and how often they were right (netFound)."""
    return {name: v for name, v in entry.items() if name == "loss" or name.endswith(("_loss", "_accuracy"))}


def _write(
    options: PretrainOptions,
    representation: Representation,
    config: dict[str, Any],
    corpus: Corpus,
    trained: PretrainResult,
    report: dict[str, Any],
    run_dir: Path,
) -> dict[str, Any]:
    """Write the checkpoint folder, the lists beside it, and forget the run's state."""
    from models.checkpoint import Calibration, save_checkpoint
    from netcls.provenance import code_version

    out = Path(options.out)
    training = {key: value for key, value in report["training"].items() if key != "history"}
    report["code"] = code_version()
    facts = corpus.facts
    card = {
        "title": f"{out.name}: {options.family} backbone",
        "summary": (
            f"Pre-trained without labels on {facts['distinct_inputs']} distinct flows of {facts['captures']} captures, "
            f"{trained.steps} steps of {trained.flows_per_step}. "
            "It has no head and answers nothing before it is fine-tuned."
        ),
        "corpus": {**facts, "list": f"{CORPUS_FILE}: SHA-256 and name of each capture"},
        "training": training,
        "loss_curve": loss_curve(trained.history),
        "code": report["code"],
        "licence": options.licence,
        "known_limits": [
            "A small corpus: claim a gain from pre-training only against random weights on the same split.",
            "Test captures must not be in the corpus; fine-tuning compares their SHA-256 with the list.",
        ],
    }
    saved = save_checkpoint(
        out,
        kind="backbone",
        family=options.family,
        model_config=config,
        representation=representation.name,
        representation_version=representation.version,
        representation_settings=representation.settings(),
        labels=[],
        calibration=Calibration(),
        card=card,
        state=trained.state,
    )
    with write_then_rename(out / CORPUS_FILE) as file:
        file.writelines(f"{digest}  {name}\n".encode(errors="replace") for digest, name in corpus.captures)
    report["checkpoint"] = saved.digest
    text = json.dumps(report, indent=1, ensure_ascii=False)
    with write_then_rename(out / "report.json") as file:
        file.write(text.encode(errors="surrogateescape") + b"\n")
    shutil.rmtree(run_dir, ignore_errors=True)
    values: dict[str, Any] = json.loads(text)
    return values
