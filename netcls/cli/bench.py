"""``netcls bench``: how fast this machine is, stage by stage."""

from __future__ import annotations

import json as json_text
from typing import TYPE_CHECKING, Final

import click

from netcls.cli.console import Progress, report
from netcls.cli.options import NetclsCommand, json_option, seed_option
from netcls.output import Output

if TYPE_CHECKING:
    from netcls.bench import BenchReport

STAGES: Final = ("read", "decode", "flows", "tokens", "model", "train", "end_to_end")


@click.command("bench", cls=NetclsCommand)
@click.option(
    "--stage",
    multiple=True,
    type=click.Choice(STAGES),
    show_default="all",
    help="Measure this one; may repeat.",
)
@click.option(
    "--name",
    multiple=True,
    metavar="NAME|DIR",
    show_default="all",
    help="pcap, headers, records, tokens, netmamba (the paper's sizes), default, or a checkpoint; may repeat.",
)
@click.option(
    "--packets",
    type=click.IntRange(min=1000),
    metavar="N",
    default=200_000,
    help="Of the made-up capture that is measured on.",
)
@click.option(
    "--batch", type=click.IntRange(1, 1024), metavar="N", default=16, help="Flows given to a model at once."
)
@click.option("--threads", type=click.IntRange(min=1), metavar="N", default=1, help="Threads of the models.")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    default=1.0,
    help="CPU seconds of each measurement; three repeats are made in any case.",
)
@seed_option
@json_option
@click.option("--quiet", "-q", is_flag=True, help="No warnings, no progress; errors only.")
def bench(
    stage: tuple[str, ...],
    name: tuple[str, ...],
    packets: int,
    batch: int,
    threads: int,
    seconds: float,
    seed: int,
    json: bool,
    quiet: bool,
) -> None:
    """Speed of this machine, stage by stage.

    Packets or flows per CPU second of this process: the median of several repeats, over made-up traffic, after one
    repeat that is not counted.
    """
    from netcls.bench import BenchOptions, run_bench

    progress = Progress(not quiet)
    try:
        result = run_bench(BenchOptions(stage, name, packets, batch, threads, seconds, seed), progress.show)
    finally:
        progress.clear()
    for skipped in result.skipped if not quiet else ():
        report("warning", f"{skipped['name']} was not measured: {skipped['reason']}")
    with Output() as output:
        if json:
            output.write(f"{json_text.dumps(result.as_dict(), indent=2)}\n".encode())
        else:
            output.write(_text(result, on_terminal=output.is_terminal).encode())


def _text(result: BenchReport, *, on_terminal: bool) -> str:
    from netcls.table import table_text

    machine = result.machine
    columns = ("stage", "name", "precision", ">batch", ">threads", ">per CPU second", ">from", ">to", "unit")
    rows = [
        [
            row.stage,
            row.name,
            row.precision or "",
            str(row.batch or ""),
            str(row.threads),
            *(_rate(rate) for rate in (row.per_cpu_s, row.per_cpu_s_min, row.per_cpu_s_max)),
            row.unit,
        ]
        for row in result.results
    ]
    head = f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}, Python {machine['python']}, "
    head += ", ".join(f"{name} {machine[name]}" for name in ("netcls", "numpy", "numba", "torch"))
    return f"{head}\n\n{table_text(columns, rows, on_terminal=on_terminal)}"


def _rate(per_s: float) -> str:
    """Three digits that mean something."""
    digits = f"{per_s:.3g}"
    return f"{float(digits):,.0f}" if per_s >= 100 else digits
