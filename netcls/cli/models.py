"""``netcls models``: checkpoints that ship and checkpoints in folders."""

from __future__ import annotations

import json as json_text
from typing import TYPE_CHECKING, Any

import click

from netcls.cli.options import CommandGroup, NetclsCommand, json_option
from netcls.output import Output

if TYPE_CHECKING:
    from models.checkpoint_files import CheckpointFiles

_NAME = click.argument("name", default="default", metavar="[NAME|DIR]")


@click.group("models", cls=CommandGroup)
def models() -> None:
    """Checkpoints that ship or lie in a folder: list, show, verify."""


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
        },
        "card": files.card,
    }


def _print_json(value: Any) -> None:
    with Output() as output:
        output.write(f"{json_text.dumps(value, indent=2)}\n".encode())
