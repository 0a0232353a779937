"""``netcls dataset``: what labelled captures are worth, and a form in which they are read once."""

from __future__ import annotations

import json as json_text
import os
from pathlib import Path
from typing import Any

import click

from netcls.cli.console import Progress, report
from netcls.cli.options import (
    CommandGroup,
    NetclsCommand,
    column_names,
    json_option,
    labelled_data_options,
    matching_options,
    seed_option,
    split_options,
    talk_options,
    threads_option,
)
from netcls.output import Output
from netcls.text import printable


@click.group("dataset", cls=CommandGroup)
def dataset() -> None:
    """Labelled captures: build a dataset, look at it, see what can be learnt from it."""


@dataset.command("build", cls=NetclsCommand)
@click.argument("data", metavar="DATA")
@click.option("--out", required=True, metavar="DIR", help="Dataset folder to make; new or empty.")
@split_options
@click.option(
    "--drop-duplicates",
    type=click.Choice(["none", "exact", "near"]),
    default="none",
    help="Leave flows out that an earlier part has: the same model input, or the same sizes too.",
)
@labelled_data_options
@matching_options
@click.option(
    "--keep-packets", type=click.IntRange(1, 4096), metavar="N", default=32, help="Whose fields are stored."
)
@click.option(
    "--keep-byte-packets",
    type=click.IntRange(1, 4096),
    metavar="N",
    default=12,
    help="Whose first bytes are stored.",
)
@click.option(
    "--keep-header-bytes", type=click.IntRange(0, 4096), metavar="N", default=80, help="Of each of them."
)
@click.option(
    "--keep-payload-bytes", type=click.IntRange(0, 4096), metavar="N", default=240, help="Of each of them."
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    show_default="one per core",
    help="Processes; each reads one capture at a time.",
)
@seed_option
@json_option
@talk_options
def build(**options: Any) -> None:
    """Labelled captures to a dataset with its split, for any model input.

    DATA as for finetune. The same command goes on with a build that was stopped.
    """
    from capture.flow_batch import KeepSpec
    from netcls.datasets.build import BuildOptions
    from netcls.datasets.dataset_build import DatasetOptions, build_dataset
    from netcls.datasets.sources import DataOptions
    from netcls.datasets.splits import SplitOptions

    if options["keep_byte_packets"] > options["keep_packets"]:
        raise click.UsageError(
            f"--keep-byte-packets {options['keep_byte_packets']} is more than --keep-packets "
            f"{options['keep_packets']}; lower the one or raise the other"
        )
    made = DatasetOptions(
        options["data"],
        options["out"],
        DataOptions(options["label"], column_names(options["group"]), options["drop_label"]),
        BuildOptions(
            options["max_flows_per_capture"],
            options["seed"],
            options["tolerance_s"],
            clock_offset=options["clock_offset"],
        ),
        SplitOptions(
            options["split"] or "capture",
            options["seed"],
            rule=options["group_rule"],
            leave_out=tuple(tuple(group.split(",")) for group in options["leave_out"]),
        ),
        options["drop_duplicates"],
        KeepSpec(
            options["keep_packets"],
            options["keep_byte_packets"],
            options["keep_header_bytes"],
            options["keep_payload_bytes"],
        ),
        workers=options["workers"] or len(os.sched_getaffinity(0)),
    )
    line = Progress(not (options["quiet"] or options["no_progress"]))
    try:
        result = build_dataset(
            made, on_progress=lambda done, total: line.show(f"build · captures {done} of {total}")
        )
    finally:
        line.clear()
    result["warnings"] = [*result["report"]["warnings"], *result["split"]["warnings"]]
    _tell(options, result, _build_lines(result))


@dataset.command("inspect", cls=NetclsCommand)
@click.argument("folder", metavar="DIR")
@click.option("--verify", is_flag=True, help="Read everything and compare it with the digests of the build.")
@json_option
@talk_options
def inspect(**options: Any) -> None:
    """What a built dataset holds: classes, captures, split, repeats, what was left out.

    DIR is a folder that 'netcls dataset build' made.
    """
    from netcls.datasets.dataset_inspect import inspect_dataset

    result = inspect_dataset(Path(options["folder"]), verify=options["verify"])
    _tell(options, result, _inspect_lines(result))


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
    _tell(options, result, _lines(result))


def _tell(options: dict[str, Any], result: dict[str, Any], lines: list[str]) -> None:
    if not options["quiet"]:
        for text in result["warnings"]:
            report("warning", text)
    # A dataset may come from elsewhere: nothing in it steers the terminal.
    plain = [printable(line) for text in lines for line in text.split("\n")]
    text = json_text.dumps(result, indent=1) if options["json"] else "\n".join(plain)
    with Output() as output:
        output.write(f"{text}\n".encode(errors="backslashreplace"))


def _build_lines(result: dict[str, Any]) -> list[str]:
    parts = ", ".join(f"{name} {count}" for name, count in result["split"]["flows"].items())
    lines = [
        f"{result['flows']} flows of {len([count for count in result['label_flows'] if count])} classes",
        f"split {result['split']['description']}: {parts}",
        *(f"not used: {count} ({reason})" for reason, count in result["unused"].items()),
        f"{result['bytes'] / max(1, result['flows']):.0f} bytes a flow, dataset in {result['out']}",
    ]
    if result["resumed_captures"]:
        lines.insert(0, f"{result['resumed_captures']} captures were done before")
    return lines


def _inspect_lines(result: dict[str, Any]) -> list[str]:
    from capture.flow_batch import KeepSpec
    from netcls.datasets.splits import PARTS
    from netcls.datasets.stored import keep_text
    from netcls.table import table_text

    counted = ("flows", "captures", "groups", "hosts", *PARTS)
    classes = [[row["label"], *(str(row[name]) for name in counted)] for row in result["classes"]]
    split = result["split"]
    repeats = ", ".join(
        f"{name} {of_part['exact']} exact, {of_part['near']} near"
        for name, of_part in split.get("repeats", {}).items()
    )
    return [
        table_text(("class", *(f">{name}" for name in counted)), classes, on_terminal=False),
        f"{result['flows']} flows of {result['captures']} captures, {result['bytes_per_flow']:.0f} bytes a flow",
        f"stored of each flow: {keep_text(KeepSpec(**result['keep']))}",
        f"format {result['format']}, written by netcls {result['code'].get('netcls')}",
        f"split {split.get('description')}",
        f"repeats of an earlier part (dropped: {split.get('repeats_dropped')}): {repeats}",
        *(
            f"not used: {count} ({reason}), listed in {result['unused_file']}"
            for reason, count in result["unused"].items()
        ),
        *(["every shard is as it was written"] if result["verified"] else []),
        "",
        *result["verdict"],
    ]


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
