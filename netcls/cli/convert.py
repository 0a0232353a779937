"""``netcls convert``: weights of the published code in, and out again."""

from __future__ import annotations

import json as json_text
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from netcls.cli.options import CommandGroup, NetclsCommand, json_option
from netcls.output import Output

if TYPE_CHECKING:
    from models.convert.netmamba import Converted
    from models.convert.source import Source


F = TypeVar("F", bound=Callable[..., Any])


def source_options(function: F) -> F:
    """What is converted, to where, and what the weights read."""
    for decorate in (
        click.option(
            "--field-policy",
            metavar="NAME",
            default="paper",
            help="What SRC must not see: paper, leak_free, none.",
        ),
        click.option(
            "--header-bytes",
            type=click.IntRange(min=0),
            metavar="N",
            default=80,
            help="Bytes of each packet's header that SRC reads; the rest of what it reads is payload.",
        ),
        click.option(
            "--n-packets",
            type=click.IntRange(min=1),
            metavar="N",
            default=5,
            help="Of a flow that SRC reads.",
        ),
        click.option("--licence", metavar="TEXT", show_default="unknown", help="Of SRC, for the card."),
        click.option(
            "--labels",
            metavar="FILE",
            help="Names of the classes, one a line or a JSON list, in the order of the head's rows; for a fine-tuned "
            "SRC only.",
        ),
        click.option("--out", required=True, metavar="DIR", help="Checkpoint folder to write."),
        click.argument("source", metavar="SRC"),
    ):
        function = decorate(function)
    return function


@click.group("convert", cls=CommandGroup)
def convert() -> None:
    """Weights of the published code: from them to a checkpoint, and back."""


@convert.command("netmamba", cls=NetclsCommand)
@source_options
@click.option("--mark-direction", is_flag=True, help="SRC was trained with the direction marked.")
@json_option
def netmamba(
    source: str,
    out: str,
    labels: str | None,
    licence: str | None,
    n_packets: int,
    header_bytes: int,
    field_policy: str,
    mark_direction: bool,
    json: bool,
) -> None:
    """A published NetMamba file to a checkpoint folder.

    SRC is what the published code saves (`pre-train.pth`, or a fine-tuned `checkpoint-best.pth`), a bare state dict, or
    safetensors. It is read in a process with limits and no code in it is run. Optimiser and all else beside the
    model is left behind. Sizes come from the shapes of the tensors.
    """
    from models.convert.netmamba import from_published

    def map_source(read: Source, n_labels: int | None) -> Converted:
        return from_published(
            read,
            n_labels=n_labels,
            n_packets=n_packets,
            header_bytes=header_bytes,
            field_policy=field_policy,
            mark_direction=mark_direction,
        )

    _convert(map_source, source, out, labels, licence, json=json)


@convert.command("netmamba-plus", cls=NetclsCommand)
@source_options
@click.option(
    "--n-sequence-packets",
    type=click.IntRange(min=1),
    metavar="N",
    default=20,
    help="Packets whose sizes and times SRC reads.",
)
@click.option(
    "--signed-sizes/--unsigned-sizes",
    default=None,
    show_default="as in SRC, else unsigned",
    help="Whether SRC was trained on sizes with a sign for the direction.",
)
@json_option
def netmamba_plus(
    source: str,
    out: str,
    labels: str | None,
    licence: str | None,
    n_packets: int,
    header_bytes: int,
    field_policy: str,
    n_sequence_packets: int,
    signed_sizes: bool | None,
    json: bool,
) -> None:
    """A published NetMamba+ file to a checkpoint folder.

    SRC as for netmamba. The checkpoint reads sizes and times as the published code does (`published_transform`), which
    cannot tell padding from full packets nor times below a millisecond apart.
    """
    from models.convert.netmamba_plus import from_published

    def map_source(read: Source, n_labels: int | None) -> Converted:
        return from_published(
            read,
            n_labels=n_labels,
            n_packets=n_packets,
            header_bytes=header_bytes,
            n_sequence_packets=n_sequence_packets,
            signed_sizes=signed_sizes,
            field_policy=field_policy,
        )

    _convert(map_source, source, out, labels, licence, json=json)


@convert.command("netfound", cls=NetclsCommand)
@click.argument("source", metavar="SRC")
@click.option("--out", required=True, metavar="DIR", help="Checkpoint folder to write.")
@click.option(
    "--labels",
    metavar="FILE",
    help="Names of the classes, one a line or a JSON list, in the order of the head's rows; for a fine-tuned SRC only.",
)
@click.option("--licence", metavar="TEXT", default="MIT (SNL-UCSB/netFound)", help="Of SRC, for the card.")
@click.option(
    "--field-policy",
    metavar="NAME",
    default="none",
    help="What SRC must not see: paper, leak_free, none.",
)
@json_option
def netfound(
    source: str, out: str, labels: str | None, licence: str | None, field_policy: str, json: bool
) -> None:
    """A published netFound (version 2, without payload) to a checkpoint folder.

    SRC is model.safetensors, a folder that holds it, or a name on the Hugging Face hub such as
    snlucsb/netFound-small (needs netcls[hub] and a network). The checkpoint reads the published tokens (`strict_v2`).
    """
    from models.convert.hub import weights_file
    from models.convert.netfound import from_published

    def map_source(read: Source, n_labels: int | None) -> Converted:
        return from_published(read, n_labels=n_labels, field_policy=field_policy)

    _convert(map_source, str(weights_file(source)), out, labels, licence, json=json)


def _convert(
    map_source: Callable[[Source, int | None], Converted],
    source: str,
    out: str,
    labels: str | None,
    licence: str | None,
    *,
    json: bool,
) -> None:
    """Read, map, write, and say what went where."""
    from models.convert.save import read_labels, save_converted
    from models.convert.source import read_source

    names = read_labels(Path(labels)) if labels else None
    read = read_source(Path(source))
    converted = map_source(read, None if names is None else len(names))
    missing = sorted(converted.state.keys() - {m.ours for m in converted.mapped})
    saved = save_converted(converted, read, Path(out), names or [], licence)
    rows = [
        {"name": m.name, "to": m.ours, "shape": list(m.shape), "dtype": m.dtype} for m in converted.mapped
    ]
    if json:
        _print_json(
            {
                "out": out,
                "family": saved.family,
                "kind": saved.kind,
                "checkpoint": saved.digest,
                "parameters": sum(tensor.numel() for tensor in converted.state.values()),
                "model": saved.model_config,
                "representation": {"name": saved.representation, "settings": saved.representation_settings},
                "labels": saved.labels,
                "source_sha256": read.sha256,
                "mapped": rows,
                "dropped": converted.dropped,
                "missing": missing,
            }
        )
        return
    _print_table(
        rows,
        converted.dropped,
        f"{out}: {saved.kind} {saved.digest} of {len(rows)} tensors, "
        + (f"missing and set to 0: {', '.join(missing)}" if missing else "none missing"),
    )


@convert.command("to-published", cls=NetclsCommand)
@click.argument("name", metavar="NAME|DIR")
@click.option(
    "--out",
    required=True,
    metavar="FILE",
    help="Ends in .pth or .pt (torch.save, the tensors under `model`) or .safetensors.",
)
@click.option(
    "--mixer",
    metavar="BLOCK",
    help="Only this block's mixer, for mamba_ssm's Mamba, without `model` around it: blocks.0, decoder_blocks.0, ...",
)
@json_option
def to_published(name: str, out: str, mixer: str | None, json: bool) -> None:
    """A checkpoint of family netmamba or netmamba-plus to a file for the published code, or for mamba_ssm.

    The published code loads it with `--finetune FILE` (a backbone) or `--resume FILE` (a netmamba-plus whose head
    has a trained bias needs `head_bias=True` there); one block with
    `mamba_ssm.Mamba(...).load_state_dict(torch.load(FILE, weights_only=True))`.
    """
    from models.checkpoint import load_checkpoint
    from models.convert import netmamba as published
    from models.convert.save import write_weights

    checkpoint = load_checkpoint(name)
    published.check_published(checkpoint.family, checkpoint.model_config, str(checkpoint.path))
    tensors = (
        published.to_published(checkpoint.state, checkpoint.family)
        if mixer is None
        else published.mixer_state(checkpoint.state, mixer)
    )
    write_weights(tensors, Path(out), wrapped=mixer is None)
    if json:
        _print_json(
            {"out": out, "checkpoint": checkpoint.digest, "kind": checkpoint.kind, "tensors": list(tensors)}
        )
        return
    rows = [
        {"name": name, "to": name, "shape": list(tensor.shape), "dtype": "float32"}
        for name, tensor in tensors.items()
    ]
    _print_table(rows, [], f"{out}: {len(rows)} tensors of {checkpoint.name}, {checkpoint.digest}")


def _print_table(rows: list[dict[str, Any]], dropped: list[dict[str, str]], summary: str) -> None:
    """Every tensor and where it went, what was left behind, and one line."""
    from netcls.table import table_text
    from netcls.text import printable

    cells = [[row["name"], row["to"], " x ".join(map(str, row["shape"])), row["dtype"]] for row in rows]
    cells += [[entry["name"], "left behind", "", entry["what"]] for entry in dropped]
    with Output() as output:
        text = table_text(("from", "to", "shape", "dtype"), cells, on_terminal=output.is_terminal)
        output.write(f"{text}{printable(summary)}\n".encode())


def _print_json(value: Any) -> None:
    with Output() as output:
        output.write(f"{json_text.dumps(value, indent=2)}\n".encode())
