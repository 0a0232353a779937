"""``netcls drift``: does traffic still look like what the model was trained on, and how often is it likely right."""

from __future__ import annotations

import json as json_text
from typing import Any

import click

from netcls.cli.console import report
from netcls.cli.options import (
    NetclsCommand,
    device_option,
    json_option,
    model_option,
    paths_argument,
    threads_option,
)
from netcls.output import Output


@click.command("drift", cls=NetclsCommand)
@paths_argument
@model_option
@json_option
@threads_option
@device_option
def drift(**options: Any) -> int:
    """Compare captures with the flows that a model was trained on.

    For each field of the input a population stability index (above 0.25: it moved), and the accuracy that is likely
    now, estimated without labels. A warning goes to standard error; the exit code is 0 with and without one. Save live
    traffic with `netcls sniff --write` first.
    """
    from netcls.drifting import drift_of_captures

    result = drift_of_captures(
        options["paths"], options["model"], threads=options["threads"], device=options["device"]
    )
    with Output() as output:
        if options["json"]:
            output.write(json_text.dumps(result).encode() + b"\n")
        else:
            output.write(_text(result).encode())
    if not result["enough_flows"]:
        report("warning", f"drift: got {result['flows']} flows, expected 50 or more to say anything")
    elif result["warning"]:
        report("warning", f"drift: {'; '.join(result['reasons'])}")
    return 0


def _text(result: dict[str, Any]) -> str:
    from netcls.table import table_text

    rows = [
        [name, f"{field['psi']:.3f}", f"{field['by_chance']:.3f}", "moved" if field["moved"] else ""]
        for name, field in result["fields"].items()
    ]
    if result["confidence"]:
        field = result["confidence"]
        rows.append(
            [
                "confidence",
                f"{field['psi']:.3f}",
                f"{field['by_chance']:.3f}",
                "moved" if field["moved"] else "",
            ]
        )
    text = table_text(("field", ">stability index", ">by chance", ""), rows, on_terminal=False)
    if result["accuracy"]:
        accuracy = result["accuracy"]
        text += (
            f"\n{result['flows']} flows; estimated accuracy {accuracy['estimated']:.2f} "
            f"(by confidence {accuracy['estimated_by_confidence']:.2f}), "
            f"on calibration flows {accuracy['calibration']:.2f}\n"
        )
    return text
