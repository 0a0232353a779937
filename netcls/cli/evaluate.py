"""``netcls evaluate``: checkpoints and baselines side by side, as a table, JSON, and a page."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from netcls.cli.options import (
    NetclsCommand,
    column_names,
    device_option,
    evaluation_split_options,
    json_option,
    labelled_data_options,
    matching_options,
    talk_options,
    threads_option,
)
from netcls.cli.train import Telling, finish


@click.command("evaluate", cls=NetclsCommand)
@click.argument("data", metavar="DATA")
@click.option(
    "--model",
    "-m",
    "models",
    multiple=True,
    metavar="NAME|DIR",
    show_default="default",
    help="Checkpoint that ships, or a folder; may repeat.",
)
@click.option(
    "--base",
    metavar="NAME|DIR",
    show_default="nothing is trained",
    help="Checkpoint to train rows from, on the training part of the same split.",
)
@click.option(
    "--rows",
    metavar="ROW[:SEEDS][,...]",
    default="random,frozen,head,lora,full",
    help="What to train from --base; full:1 trains with the first seed only.",
)
@click.option(
    "--shots",
    metavar="N[,N]",
    default="",
    show_default="none",
    help="Flows of each class at which the learning curve of --shot-rows and of LightGBM is drawn.",
)
@click.option(
    "--shot-rows",
    metavar="ROW[,ROW]",
    default="random,frozen,head",
    help="Rows of the learning curve, of those in --rows.",
)
@click.option(
    "--max-seconds-per-row",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    default=60.0,
    help="Of each training of a row.",
)
@evaluation_split_options
@labelled_data_options
@matching_options
@click.option(
    "--unknown-label",
    multiple=True,
    metavar="LABEL",
    show_default="labels of DATA that no model has",
    help="Class that nothing is trained on, to measure how well unknowns are found; may repeat.",
)
@click.option(
    "--split-seed",
    type=click.IntRange(min=0),
    metavar="N",
    show_default="the first seed",
    help="Of the split.",
)
@click.option("--baselines/--no-baselines", default=True, help="Train and score the baselines too.")
@click.option(
    "--checks/--no-checks",
    default=True,
    help="Look for shortcuts and at answers after few packets: several more passes.",
)
@click.option(
    "--retrained-fields",
    type=click.IntRange(min=0),
    metavar="N",
    default=3,
    help="Fields that matter, at most N, that the best network and LightGBM are trained again without, one by one.",
)
@click.option(
    "--seed",
    "seeds",
    type=click.IntRange(min=0),
    multiple=True,
    metavar="N",
    default=(0, 1, 2),
    help="Of what is trained here, one training each; the first also of sample, split and bootstrap; may repeat.",
)
@click.option(
    "--report", metavar="FILE.html", show_default="none", help="Page to write: one file, no network."
)
@click.option(
    "--update-card",
    is_flag=True,
    help="Write the numbers into the card of each --model that is a folder, unless it has seen a test capture.",
)
@click.option(
    "--cache-dir",
    metavar="DIR",
    show_default="none",
    help="Keeps what was read of each capture for the next run.",
)
@threads_option
@device_option
@json_option
@talk_options
def evaluate(**options: Any) -> None:
    """Checkpoints against labelled captures, beside baselines on the same flows.

    DATA as for finetune.
    """
    from netcls.evaluating import EvaluateOptions, run_evaluate

    options["group"] = column_names(options["group"])
    options["rows"] = column_names(options["rows"])
    options["shot_rows"] = column_names(options["shot_rows"])
    options["shots"] = _numbers(options["shots"])
    options["drop_labels"] = options["drop_label"]
    options["unknown_labels"] = options["unknown_label"]
    options["leave_out"] = tuple(tuple(group.split(",")) for group in options["leave_out"])
    options["cache_dir"] = Path(options["cache_dir"]) if options["cache_dir"] else None
    wanted = {name: options[name] for name in EvaluateOptions.__dataclass_fields__ if name in options}
    made = EvaluateOptions(**wanted)
    folders = _card_folders(made.models) if options["update_card"] else []
    report = _report_place(options["report"])
    with Telling(options) as line:
        result = run_evaluate(made, line.on_progress)
    result["command"] = shlex.join(["netcls", *sys.argv[1:]])
    if report is not None:
        _write_page(report, result)
    if folders:
        from netcls.evaluation.card_update import update_card

        for folder in folders:
            update_card(folder, _row_name(folder, result), result)
    finish(options, result, _lines(result, report))


def _card_folders(models: tuple[str, ...]) -> list[Path]:
    """Folders whose cards may be written; refused before any work where there are none."""
    from capture.errors import UsageError

    folders = [Path(model) for model in models if Path(model).is_dir()]
    if not folders:
        raise UsageError("--update-card needs a checkpoint folder; give --model DIR")
    return folders


def _row_name(folder: Path, result: dict[str, Any]) -> str:
    """Name of the row of a checkpoint folder: the folder's, or the path as given where two share it."""
    from models.checkpoint import read_files

    digest = read_files(folder).digest
    return next(str(row["name"]) for row in result["rows"] if row.get("checkpoint") == digest)


def _numbers(text: str) -> tuple[int, ...]:
    from capture.errors import UsageError

    given = column_names(text)
    if not all(number.isdecimal() for number in given):
        raise UsageError(f"--shots got '{text}', expected numbers such as 1,5,10,50")
    return tuple(map(int, given))


def _report_place(given: str | None) -> Path | None:
    """Where the page goes; refused before any work where that cannot be."""
    from capture.errors import UsageError

    if given is None:
        return None
    path = Path(given)
    if path.is_dir():
        raise UsageError(f"--report got the folder '{given}', expected a file such as report.html")
    if not path.absolute().parent.is_dir():
        raise UsageError(
            f"--report got '{given}', but the folder {path.absolute().parent} does not exist; make it first"
        )
    return path


def _write_page(path: Path, result: dict[str, Any]) -> None:
    from netcls.datasets.files import write_then_rename
    from netcls.evaluation.page import page_of

    page = page_of(result).encode(errors="backslashreplace")
    with write_then_rename(path) as file:
        file.write(page)


def _lines(result: dict[str, Any], report: Path | None) -> list[str]:
    from netcls.table import table_text

    rows = []
    for row in result["rows"]:
        if row["skipped"]:
            rows.append([row["name"], row["kind"], "", "", "", "", row["skipped"]])
            continue
        numbers = (row["macro_f1"], *row["macro_f1_interval"], row["accuracy"])
        rows.append([row["name"], row["kind"], *(f"{number:.3f}" for number in numbers), row["sees"]])
    columns = ("name", "kind", ">macro-F1", ">low", ">high", ">accuracy", "sees")
    table = table_text(columns, rows, on_terminal=False).rstrip("\n")
    checked = [
        f"{row['name']}: {row['shortcut_verdict']} {row.get('retrained_verdict', '')}".rstrip()
        for row in result["rows"]
        if row.get("retrained_verdict") or any(check["is_shortcut"] for check in row.get("shortcuts", []))
    ]
    place = [f"report in {report}"] if report is not None else []
    return [result["verdict"], "", table, *(["", *checked] if checked else []), *place]
