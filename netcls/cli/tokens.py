"""``netcls tokens``: look at the model's input, or take it elsewhere."""

from __future__ import annotations

import click

from capture.errors import CaptureError
from netcls.cli.console import report
from netcls.cli.options import (
    NetclsCommand,
    decode_options,
    format_option,
    model_option,
    output_option,
    paths_argument,
)
from netcls.inputs import find_captures
from netcls.output import Output

EXIT_MISTAKE = 2


@click.command("tokens", cls=NetclsCommand)
@paths_argument
@model_option
@click.option(
    "--representation", metavar="NAME", help="At its default settings; instead of that of the model."
)
@decode_options
@click.option("--strict", is_flag=True, help="A capture that is cut off is an error.")
@format_option("jsonl", "npz", "parquet", shown_default="jsonl")
@output_option
def tokens(
    paths: tuple[str, ...],
    model: str,
    representation: str | None,
    decap: str,
    check_checksums: bool,
    strict: bool,
    format: str | None,
    output: str,
) -> int:
    """What a model sees of each flow.

    PATH as for classify. jsonl shows each flow with its bytes in hexadecimal; npz and parquet hold arrays,
    one row a flow.
    """
    from capture.decode import DecodeOptions
    from capture.flow_table import FlowTableConfig
    from capture.representations import build
    from netcls import tokens as made

    decoding = DecodeOptions(decap, check_checksums)
    input_of = build(representation) if representation else made.representation_of(model)
    n_failed = n_captures = 0
    with Output(output) as sink:
        writer = made.token_writer(format or "jsonl", sink, input_of)
        for capture in [found for path in paths for found in find_captures(path)]:
            n_captures += 1
            try:
                for flows, rows in made.tokens_of_capture(
                    capture, input_of, FlowTableConfig(), decode_options=decoding, strict=strict
                ):
                    writer.write(capture, flows, rows)
            except CaptureError as error:
                n_failed += 1
                report("error", str(error))
        writer.finish()
        if n_failed == n_captures:
            sink.discard()
    return EXIT_MISTAKE if n_failed else 0
