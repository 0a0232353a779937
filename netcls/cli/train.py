"""``netcls finetune`` and ``netcls pretrain``: captures in, a checkpoint folder and a report out."""

from __future__ import annotations

import json as json_text
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from capture.errors import UsageError
from netcls.cli.console import Progress, note, report
from netcls.cli.options import (
    NetclsCommand,
    column_names,
    device_option,
    json_option,
    labelled_data_options,
    matching_options,
    seed_option,
    split_options,
    talk_options,
    threads_option,
)
from netcls.output import Output

F = TypeVar("F", bound=Callable[..., Any])

METHODS: Final = ("full", "head", "lora")
LOSSES: Final = ("ce", "ldam")
TASKS: Final = ("class", "regression", "multilabel")
TARGETS: Final = ("bytes_left", "duration_s")


def run_options(function: F) -> F:
    """Options of both ways to train."""
    for decorate in (
        click.option("--licence", default="not stated", metavar="TEXT", help="Of the weights, for the card."),
        click.option("--resume", is_flag=True, help="Go on with an interrupted run of the same options."),
        click.option(
            "--cache-dir",
            metavar="DIR",
            show_default="none",
            help="Keeps what was read of each capture for the next run.",
        ),
        click.option(
            "--size",
            multiple=True,
            metavar="KEY=VALUE",
            show_default="the family's",
            help="Field of the network's configuration, such as d_model=64; may repeat.",
        ),
        click.option(
            "--representation",
            multiple=True,
            metavar="KEY=VALUE",
            show_default="the representation's, or the base's",
            help="Setting of the model's input, such as payload_bytes=0; may repeat.",
        ),
        click.option("--family", default="netmamba", metavar="NAME", help="Model family."),
        click.option(
            "--max-seconds",
            type=click.FloatRange(min=0, min_open=True),
            metavar="SECONDS",
            show_default="no limit",
            help="Training time, seconds.",
        ),
        click.option("--out", required=True, metavar="DIR", help="Checkpoint folder to make; new or empty."),
    ):
        function = decorate(function)
    return function


@click.command("finetune", cls=NetclsCommand)
@click.argument("data", required=False, metavar="[DATA]")
@click.option(
    "--from-store",
    metavar="FILE",
    show_default="none",
    help="Instead of DATA: the store of netcls serve, with the labels that were given on its page.",
)
@click.option(
    "--base",
    metavar="NAME|DIR|none",
    show_default="default; none with --size, --family or --representation",
    help="Checkpoint to start from; none: random weights.",
)
@click.option(
    "--task",
    type=click.Choice(TASKS),
    default="class",
    help="What the head answers: one label, a number (--target), or labels separated by ';'.",
)
@click.option(
    "--target",
    type=click.Choice(TARGETS),
    show_default="none",
    help="Number to predict (--task regression): bytes behind the packets that the model sees, or the flow's duration.",
)
@click.option(
    "--method",
    type=click.Choice(METHODS),
    default="full",
    help="What is trained: everything, the head alone (seconds), or a low-rank adapter and the head.",
)
@click.option(
    "--freeze",
    multiple=True,
    metavar="PART",
    show_default="none",
    help="Part of the network that does not learn (--method full): embeddings, burst_encoder, flow_encoder, or all; "
    "netfound only; may repeat.",
)
@click.option(
    "--rank", type=click.IntRange(min=1), metavar="N", default=8, help="Of the adapter (--method lora)."
)
@click.option(
    "--alpha",
    type=click.FloatRange(min=0, min_open=True),
    metavar="ALPHA",
    show_default="twice the rank",
    help="Of the adapter: its changes are multiplied by alpha / rank (--method lora).",
)
@click.option(
    "--keep-adapter",
    is_flag=True,
    help="Also write the adapter by itself: adapter.safetensors and adapter.json (--method lora).",
)
@click.option(
    "--shots",
    type=click.IntRange(min=1),
    metavar="N",
    show_default="all",
    help="Train on N flows of each class, from as many captures as possible.",
)
@click.option(
    "--loss",
    type=click.Choice(LOSSES),
    default="ce",
    help="Cross-entropy, or margins that grow as classes shrink (LDAM).",
)
@split_options
@labelled_data_options
@click.option(
    "--epochs",
    type=click.IntRange(min=1),
    metavar="N",
    show_default="the method's",
    help="Passes over the training flows.",
)
@click.option(
    "--patience-epochs",
    type=click.IntRange(min=1),
    metavar="N",
    show_default="never",
    help="Stop after so many epochs without a better one.",
)
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    metavar="N",
    show_default="16; 64 from 2000 training flows on",
    help="Flows of a step.",
)
@click.option(
    "--learning-rate",
    type=click.FloatRange(min=0, min_open=True),
    metavar="RATE",
    show_default="the method's",
    help="Peak, of the topmost layer.",
)
@click.option(
    "--balance",
    type=click.FloatRange(0, 1),
    metavar="0..1",
    default=0.5,
    help="0 draws flows as they are, 1 all classes equally often.",
)
@matching_options
@click.option(
    "--unknown-quantile",
    type=click.FloatRange(0, 1),
    metavar="0..1",
    default=0.95,
    help="Share of known flows that are not called unknown.",
)
@click.option("--baselines/--no-baselines", default=True, help="Train and score the baselines too.")
@click.option(
    "--split-seed",
    type=click.IntRange(min=0),
    metavar="N",
    show_default="the seed",
    help="Of the split.",
)
@run_options
@seed_option
@threads_option
@device_option
@json_option
@talk_options
def finetune(**options: Any) -> None:
    """Labelled captures to a classifier and its report.

    DATA is a folder with one sub-folder per class, a CSV or Parquet table of captures (path,label) or of
    flows (path,src_ip,src_port,dest_ip,dest_port,proto,label), or a folder that 'netcls dataset build' made.
    """
    from netcls.finetuning import FinetuneOptions, run_finetune

    store = options.pop("from_store")
    if (store is None) == (options["data"] is None):
        raise UsageError("give either DATA or --from-store FILE; " + ("got both" if store else "got neither"))
    options["data"] = store or options["data"]
    options["group"] = column_names(options["group"])
    options["drop_labels"] = options["drop_label"]
    options["leave_out"] = tuple(tuple(group.split(",")) for group in options["leave_out"])
    made = FinetuneOptions(**_fields(options, FinetuneOptions.__dataclass_fields__))
    with Telling(options) as line:
        result = run_finetune(made, line.on_progress)
    finish(options, result, _finetune_lines(result))


@click.command("pretrain", cls=NetclsCommand)
@click.argument("data", nargs=-1, required=True, metavar="DATA...")
@click.option(
    "--exclude",
    multiple=True,
    metavar="FILE",
    help="Capture that must not be seen, or a .txt or .sha256 list of such; may repeat.",
)
@click.option(
    "--steps", type=click.IntRange(min=1), metavar="N", show_default="by time alone", help="Optimiser steps."
)
@click.option("--batch", type=click.IntRange(min=1), metavar="N", default=128, help="Flows at a time.")
@click.option(
    "--accumulate",
    type=click.IntRange(min=1),
    metavar="N",
    default=1,
    help="Batches of a step: the gradient of a batch N times as large, in the memory of one.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16"]),
    default="fp32",
    help="Of the matrix products; bf16 needs a CPU or GPU that has them.",
)
@click.option(
    "--learning-rate",
    type=click.FloatRange(min=0, min_open=True),
    metavar="RATE",
    default=1e-3,
    help="For a step of 256 flows.",
)
@click.option(
    "--tensorboard",
    metavar="DIR",
    show_default="none",
    help="Writes TensorBoard event files there (needs netcls[train]).",
)
@click.option(
    "--max-flows-per-capture",
    type=click.IntRange(min=0),
    metavar="N",
    default=500,
    help="Of each capture, a seeded sample; 0: all.",
)
@click.option(
    "--min-packets",
    type=click.IntRange(min=0),
    metavar="N",
    default=1,
    help="Leave out flows with fewer packets.",
)
@click.option(
    "--all-parts",
    is_flag=True,
    help="Of a built dataset also the calibration and test parts; a model that is tested on them is not honest then.",
)
@run_options
@seed_option
@threads_option
@device_option
@json_option
@talk_options
def pretrain(**options: Any) -> None:
    """Unlabelled captures to a backbone checkpoint.

    DATA is captures, folders that hold captures at any depth, or datasets that 'netcls dataset build' made (their
    training and validation parts). Give --steps, --max-seconds, or both.
    Ctrl-C and SIGTERM save the run for --resume. Several devices, or processes on one CPU:
    torchrun --nproc-per-node N --no-python netcls pretrain ...
    """
    from models.learning.team import place_in_team
    from netcls.pretraining import PretrainOptions, run_pretrain

    is_first = place_in_team().is_first
    options["quiet"] = options["quiet"] or not is_first
    options["verbose"] = options["verbose"] and is_first
    options["tensorboard"] = Path(options["tensorboard"]) if options["tensorboard"] else None
    made = PretrainOptions(**_fields(options, PretrainOptions.__dataclass_fields__))
    with Telling(options) as line:
        result = run_pretrain(made, line.on_progress)
    if result:
        finish(options, result, _pretrain_lines(result))


def _fields(options: dict[str, Any], names: Any) -> dict[str, Any]:
    """The given options under the names of the dataclass that takes them."""
    values = {name: value for name, value in options.items() if name in names}
    for name, flag in (("representation", "representation"), ("sizes", "size")):
        values[name] = dict(_key_value(text, flag) for text in options[flag])
    values["cache_dir"] = Path(options["cache_dir"]) if options["cache_dir"] else None
    return values


def _key_value(text: str, flag: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise UsageError(f"--{flag} got '{text}', expected KEY=VALUE such as payload_bytes=0")
    try:
        return key, json_text.loads(value)
    except ValueError:
        return key, value


class Telling:
    """Says on standard error how far a run is: a line that is drawn over, or one line a stage with --verbose."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._line = Progress(not (options["quiet"] or options["no_progress"]))
        self._is_verbose = options["verbose"]
        self._told = ""

    def __enter__(self) -> Telling:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._line.clear()

    def on_progress(self, stage: str, details: dict[str, Any]) -> None:
        """Show a stage and its details."""
        text = " · ".join(
            [stage, *(_told(name, value) for name, value in details.items() if value is not None)]
        )
        self._line.show(text)
        milestone = f"{stage} {details.get('epoch', '')}"
        if self._is_verbose and milestone != self._told:
            self._told = milestone
            self._line.clear()
            note(text)


def _told(name: str, value: Any) -> str:
    """One detail of a stage; how fast and how long still are the ones that people wait for, so they have units."""
    if name == "samples_per_s":
        return f"{value:.0f} flows/s"
    if name == "eta_s":
        return f"{timedelta(seconds=round(value))} left"
    return f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"


def finish(options: dict[str, Any], result: dict[str, Any], lines: list[str]) -> None:
    """Warnings to standard error, the result to standard output: as JSON with ``--json``, else as lines."""
    if not options["quiet"]:
        for text in result["warnings"]:
            report("warning", text)
    text = json_text.dumps(result, indent=1) if options["json"] else "\n".join(lines)
    with Output() as output:
        output.write(f"{text}\n".encode())


def _finetune_lines(result: dict[str, Any]) -> list[str]:
    from netcls.table import table_text

    columns, numbers = _COLUMNS[result.get("task", {}).get("kind", "class")]
    rows = [
        [row["name"], *(_three_digits(row[number]) for number in numbers), row["note"] or row.get("sees", "")]
        for row in result["baselines"]
    ]
    table = table_text(columns, rows, on_terminal=False).rstrip("\n")
    return [table, "", result["verdict"], f"checkpoint {result['checkpoint']} in {result['out']}"]


_COLUMNS: Final = {
    "class": (
        ("name", ">macro-F1", ">low", ">high", ">accuracy", "sees"),
        ("macro_f1", "macro_f1_low", "macro_f1_high", "accuracy"),
    ),
    "regression": (
        ("name", ">mean error, log10", ">low", ">high", ">R2", ">within factor 2", ""),
        ("mae_log10", "mae_log10_low", "mae_log10_high", "r2", "within_factor_2"),
    ),
    "multilabel": (
        ("name", ">macro-F1", ">micro-F1", ">all right", ">low", ">high", ""),
        ("macro_f1", "micro_f1", "exact", "exact_low", "exact_high"),
    ),
}


def _three_digits(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _pretrain_lines(result: dict[str, Any]) -> list[str]:
    from netcls.table import books_lines

    return [*books_lines(result["corpus"]), f"checkpoint {result['checkpoint']} in {result['out']}"]
