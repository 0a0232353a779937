"""``netcls dataset``: what labelled captures are worth, before anything is trained on them."""

from __future__ import annotations

import json as json_text
from typing import Any

import click

from netcls.cli.console import Progress, report
from netcls.cli.options import (
    CommandGroup,
    NetclsCommand,
    column_names,
    json_option,
    labelled_data_options,
    seed_option,
    talk_options,
    threads_option,
)
from netcls.output import Output


@click.group("dataset", cls=CommandGroup)
def dataset() -> None:
    """Labelled captures: what can be learnt from them."""


@dataset.command("probe", cls=NetclsCommand)
@click.argument("data", metavar="DATA")
@click.option(
    "--split",
    type=click.Choice(["capture", "group", "host"]),
    default="capture",
    help="What the honest split keeps together.",
)
@labelled_data_options
@seed_option
@threads_option
@json_option
@talk_options
def probe(**options: Any) -> None:
    """Which fields give the label away, and what a number on DATA can mean.

    DATA as for finetune.
    """
    from netcls.datasets.build import BuildOptions
    from netcls.datasets.probe import ProbeOptions, run_probe
    from netcls.datasets.sources import DataOptions

    line = Progress(not (options["quiet"] or options["no_progress"]))
    try:
        result = run_probe(
            options["data"],
            DataOptions(options["label"], column_names(options["group"]), options["drop_label"]),
            BuildOptions(options["max_flows_per_capture"], options["seed"], threads=options["threads"] or 2),
            ProbeOptions(options["split"], options["seed"]),
            on_progress=lambda done, total: line.show(f"read · captures {done} of {total}"),
        )
    finally:
        line.clear()
    if not options["quiet"]:
        for text in result["warnings"]:
            report("warning", text)
    text = json_text.dumps(result, indent=1) if options["json"] else "\n".join(_lines(result))
    with Output() as output:
        output.write(f"{text}\n".encode(errors="backslashreplace"))


def _lines(result: dict[str, Any]) -> list[str]:
    from netcls.table import table_text

    classes = [
        [row["label"], str(row["flows"]), str(row["captures"]), str(row["hosts"])]
        for row in result["classes"]
    ]
    fields = [
        [row["field"], row["kind"], *(_two_digits(row[key]) for key in ("score", "random_split", "gap"))]
        for row in result["fields"]
    ]
    twice = result["duplicates"]
    return [
        table_text(("class", ">flows", ">captures", ">hosts"), classes, on_terminal=False),
        table_text(
            ("field", "kind", f">by {result['split']}", ">at random", ">gap"), fields, on_terminal=False
        ),
        f"repeated inputs {twice['repeated_share']:.1%}, in several classes {twice['across_classes_share']:.1%}",
        *(f"leak {leak['field']}: {leak['why']} ({leak['score']:.2f})" for leak in result["leaks"]),
        *(f"note {remark}" for remark in result["remarks"]),
        "",
        result["verdict"],
    ]


def _two_digits(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
