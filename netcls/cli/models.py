"""``netcls models``: checkpoints that ship and checkpoints in folders."""

from __future__ import annotations

import json as json_text
from typing import TYPE_CHECKING, Any

import click

from netcls.cli.console import Progress, report
from netcls.cli.options import (
    CommandGroup,
    NetclsCommand,
    json_option,
    paths_argument,
    talk_options,
    threads_option,
)
from netcls.output import Output

if TYPE_CHECKING:
    from models.checkpoint_files import CheckpointFiles

_NAME = click.argument("name", default="default", metavar="[NAME|DIR]")


@click.group("models", cls=CommandGroup)
def models() -> None:
    """Checkpoints that ship or lie in a folder: list, show, verify, measure their precisions."""


@models.command("list", cls=NetclsCommand)
@json_option
def list_(json: bool) -> None:
    """Names that ship."""
    from models.checkpoint import list_checkpoints

    rows = list_checkpoints()
    if json:
        _print_json(rows)
        return
    from netcls.table import table_text

    columns = ("name", "family", "kind", ">labels", ">parameters", ">MB", "checkpoint")
    cells = [
        [row["name"], "damaged", row["error"], "", "", "", ""]
        if "error" in row
        else [
            row["name"],
            row["family"],
            row["kind"],
            str(len(row["labels"])),
            f"{row['parameters']:,}",
            f"{row['size_bytes'] / 1e6:.1f}",
            row["checkpoint"],
        ]
        for row in rows
    ]
    with Output() as output:
        output.write(table_text(columns, cells, on_terminal=output.is_terminal).encode())


@models.command("show", cls=NetclsCommand)
@_NAME
@json_option
def show(name: str, json: bool) -> None:
    """A checkpoint's configuration, labels and card."""
    files = _read(name)
    if json:
        _print_json(_description(files))
        return
    from models.checkpoint_card import render_card
    from models.checkpoint_files import config_document
    from netcls.text import printable

    config = config_document(
        files.kind,
        files.family,
        files.model_config,
        files.representation,
        files.representation_version,
        files.representation_settings,
        files.task,
    )
    card = render_card(files.path.name, config, files.labels, files.card)
    with Output() as output:
        output.write("".join(f"{printable(line)}\n" for line in card.split("\n")).encode())


@models.command("verify", cls=NetclsCommand)
@_NAME
@json_option
def verify(name: str, json: bool) -> None:
    """Load a checkpoint, with every check; exit code 2 if it is not sound."""
    from models.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(name)
    if json:
        _print_json({"name": checkpoint.name, "checkpoint": checkpoint.digest, "sound": True})
        return
    with Output() as output:
        output.write(
            f"{checkpoint.name}: sound; {checkpoint.kind} of family {checkpoint.family}, "
            f"{len(checkpoint.labels)} labels, checkpoint {checkpoint.digest}\n".encode()
        )


@models.command("precision", cls=NetclsCommand)
@click.argument("name", metavar="NAME|DIR")
@paths_argument
@click.option(
    "--max-flows", type=click.IntRange(min=1), metavar="N", default=10_000, help="Of all captures together."
)
@click.option(
    "--max-flows-per-capture", type=click.IntRange(min=1), metavar="N", default=20, help="The first of each."
)
@threads_option
@click.option(
    "--write", is_flag=True, help="Put the table into the model's card, where --precision auto reads it."
)
@json_option
@talk_options
def precision(
    name: str,
    paths: tuple[str, ...],
    max_flows: int,
    max_flows_per_capture: int,
    threads: int | None,
    write: bool,
    json: bool,
    quiet: bool,
    verbose: bool,
    no_progress: bool,
) -> None:
    """What bf16 and int8 change and gain, on captures of yours.

    Every flow is answered in each precision that this CPU has. A card that says that 1,000 or more flows were
    tried and 99.9 % of them kept their label lets `classify --precision auto` take the fastest such one.
    """
    from models.checkpoint import load_checkpoint, write_card
    from netcls.inputs import find_captures
    from netcls.precision_table import CARD_KEY, measure_precisions

    del verbose
    checkpoint = load_checkpoint(name)
    progress = Progress(not (quiet or no_progress))
    try:
        entry = measure_precisions(
            checkpoint,
            [capture for path in paths for capture in find_captures(path)],
            most_flows=max_flows,
            most_per_capture=max_flows_per_capture,
            threads=threads,
            on_progress=progress.show,
            on_error=lambda error: report("error", str(error)),
        )
    finally:
        progress.clear()
    if write:
        write_card(checkpoint, {**checkpoint.card, CARD_KEY: entry})
    if json:
        _print_json({"name": checkpoint.name, "checkpoint": checkpoint.digest, CARD_KEY: entry})
        return
    from netcls.table import table_text

    columns = ("precision", ">flows", ">labels kept", ">largest logit change", ">times as fast as fp32")
    rows = [
        [
            name,
            f"{row['flows']:,}",
            f"{row['labels_equal']:.2%}",
            f"{row['largest_logit_change']:.3f}",
            f"{row['speed']:.2f}",
        ]
        for name, row in entry.items()
        if "labels_equal" in row
    ]
    with Output() as output:
        output.write(table_text(columns, rows, on_terminal=output.is_terminal).encode())


def _read(name: str) -> CheckpointFiles:
    from models.checkpoint import read_files, resolve_name

    return read_files(resolve_name(name))


def _description(files: CheckpointFiles) -> dict[str, Any]:
    return {
        "name": files.path.name,
        "path": str(files.path),
        "family": files.family,
        "kind": files.kind,
        "labels": files.labels,
        "task": files.task.document(),
        "parameters": files.n_parameters,
        "size_bytes": files.size_bytes,
        "checkpoint": files.digest,
        "model": files.model_config,
        "representation": {
            "name": files.representation,
            "version": files.representation_version,
            "settings": files.representation_settings,
        },
        "calibration": {
            "temperature": files.calibration.temperature,
            "unknown_threshold": files.calibration.unknown_threshold,
            "early_exit": [level.document() for level in files.calibration.early_exit],
        },
        "card": files.card,
    }


def _print_json(value: Any) -> None:
    with Output() as output:
        output.write(f"{json_text.dumps(value, indent=2)}\n".encode())
