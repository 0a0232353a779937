"""``netcls export``: a checkpoint for other runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from capture.errors import UsageError
from netcls.cli.console import note
from netcls.cli.options import NetclsCommand, model_option


@click.command("export", cls=NetclsCommand)
@model_option
@click.option("--onnx", metavar="OUT.onnx", required=True, help="Write the classifier as an ONNX graph.")
@click.option("--quiet", "-q", is_flag=True, help="No word when it is done.")
def export(**options: Any) -> int:
    """Write a packet-mamba for other runtimes, such as onnxruntime.

    The graph takes the tokens of `netcls tokens` (numbers, flags, payload) of any number of flows, and gives logits
    and calibrated probabilities. Needs netcls[onnx].
    """
    from models.atomic_write import replace_file
    from models.checkpoint import load_checkpoint
    from models.onnx_export import onnx_bytes

    target = Path(options["onnx"])
    if target.is_dir() or not target.absolute().parent.is_dir():
        raise UsageError(f"--onnx: got {target}, expected a file in a folder that exists")
    checkpoint = load_checkpoint(options["model"])
    data = onnx_bytes(checkpoint)
    try:
        replace_file(target, data)
        target.chmod(0o644)
    except OSError as error:
        raise UsageError(
            f"--onnx: {target} cannot be written ({error.strerror}); choose another place"
        ) from None
    if not options["quiet"]:
        note(f"netcls: {target}: {checkpoint.name} {checkpoint.digest}, {len(data):,} bytes")
    return 0
