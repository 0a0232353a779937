"""``netcls explain``: which packets and fields carried the answer to one flow."""

from __future__ import annotations

import json as json_text
from typing import TYPE_CHECKING, Any, Final

import click

from netcls.cli.console import report
from netcls.cli.options import (
    NetclsCommand,
    device_option,
    json_option,
    model_option,
    output_option,
    seed_option,
    threads_option,
)
from netcls.output import Output

if TYPE_CHECKING:
    from netcls.explaining import Explained

SHOWN_PARTS: Final = 12


@click.command("explain", cls=NetclsCommand)
@click.argument("capture", metavar="CAPTURE")
@model_option
@click.option("--flow-id", type=click.IntRange(min=0), metavar="ID", help="The flow, as events name it.")
@click.option(
    "--index",
    type=click.IntRange(min=0),
    metavar="N",
    help="The flow, by its place among the capture's flows, from 0.",
)
@click.option("--src-ip", metavar="ADDRESS", help="Of the flow, in either direction.")
@click.option("--src-port", type=click.IntRange(0, 65535), metavar="PORT", help="Of the flow.")
@click.option("--dest-ip", metavar="ADDRESS", help="Of the flow.")
@click.option("--dest-port", type=click.IntRange(0, 65535), metavar="PORT", help="Of the flow.")
@click.option("--proto", metavar="NAME|NUMBER", help="Of the flow, such as tcp.")
@click.option(
    "--label", metavar="LABEL", show_default="the model's answer", help="What speaks for this label instead."
)
@click.option(
    "--background",
    multiple=True,
    metavar="CAPTURE",
    show_default="CAPTURE itself",
    help="Where the neutral values come from; may repeat.",
)
@click.option(
    "--draws",
    type=click.IntRange(min=1, max=256),
    metavar="N",
    default=8,
    help="Other flows that each part is replaced from.",
)
@seed_option
@threads_option
@device_option
@json_option
@output_option
@click.option("--quiet", "-q", is_flag=True, help="No warnings; errors only.")
def explain(capture: str, **options: Any) -> None:
    """Which packets and fields carried the answer to one flow.

    Each part of the flow that the model sees is written over with the same part of other flows, and the model is asked
    again. Deletion and insertion curves say how far the account can be trusted. Name the flow by --flow-id, --index or
    addresses and ports; none is needed where the capture has one flow.
    """
    from netcls.explaining import explain_flow

    explained = explain_flow(
        capture,
        _choice(options),
        model=options["model"],
        label=options["label"],
        backgrounds=options["background"],
        draws=options["draws"],
        seed=options["seed"],
        threads=options["threads"],
        device=options["device"],
    )
    if not options["quiet"]:
        for text in explained.warnings:
            report("warning", text)
    with Output(options["output"]) as output:
        if options["json"]:
            text = json_text.dumps(explained.as_dict(), indent=1, ensure_ascii=False)
        else:
            text = "\n".join(_lines(explained, on_terminal=output.is_terminal))
        output.write(f"{text}\n".encode(errors="surrogateescape"))


def _choice(options: dict[str, Any]) -> Any:
    from netcls.datasets.tables import Row
    from netcls.flow_choice import FlowChoice

    proto = options["proto"]
    number = None if proto is None else Row("--proto", {"proto": proto}).protocol("proto")
    names = ("flow_id", "index", "src_ip", "src_port", "dest_ip", "dest_port")
    return FlowChoice(**{name: options[name] for name in names}, proto=number)


def _lines(explained: Explained, *, on_terminal: bool) -> list[str]:
    """The account as text."""
    from netcls.table import table_text
    from netcls.text import printable

    def table(columns: tuple[str, ...], rows: list[list[str]]) -> str:
        return table_text(columns, rows, on_terminal=on_terminal).rstrip("\n")

    said = explained.explanation
    numbers = (">effect", ">spread", ">probability without")
    packets = [
        [str(part.packet), *explained.packet_words(part.packet), *_numbers(part)] for part in said.packets
    ]
    fields = [[str(part.field), *_numbers(part)] for part in said.fields if part.effect or part.spread]
    parts = [
        [str(part.packet), str(part.field), *_numbers(part)]
        for part in said.parts[:SHOWN_PARTS]
        if part.effect or part.spread
    ]
    return [
        printable(explained.headline()),
        "",
        table((">packet", "to", ">IP bytes", *numbers), packets),
        "",
        table(("field", *numbers), fields),
        "",
        table((">packet", "field", *numbers), parts),
        "",
        "effect: log-odds of the label that are lost without the part; fields without any effect are left out.",
        said.faithful,
    ]


def _numbers(part: Any) -> list[str]:
    return [f"{part.effect:+.2f}", f"{part.spread:.2f}", f"{part.probability:.3f}"]
