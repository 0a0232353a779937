"""NetMamba+'s published checkpoints to ours: the names are the same, and a head without a bias gets one of zeros.

The weights were trained on the published transform of sizes and times, so the checkpoint's representation has
``published_transform``, defects included: see :mod:`capture.representations.netmamba_plus`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

from capture.errors import CheckpointError, UsageError
from capture.representations import build
from capture.representations.netmamba_plus import n_size_ids
from models.checkpoint_verify import build_config, expected_tensors
from models.convert.netmamba import Converted, PublishedShapes, check_labels, compare, our_names, take
from models.convert.source import Source
from models.families import FAMILIES
from models.nets.netmamba_plus_config import NetMambaPlusConfig

FAMILY: Final = "netmamba-plus"
_HEAD_BIAS: Final = "head.bias"


def _is_of_pretraining(name: str) -> bool:
    return "decoder" in name or name == "byte_mask_token"


def from_published(
    source: Source,
    *,
    n_labels: int | None = None,
    n_packets: int = 5,
    header_bytes: int = 80,
    n_sequence_packets: int = 20,
    signed_sizes: bool | None = None,
    field_policy: str = "paper",
) -> Converted:
    """Map a published NetMamba+ to ours.

    Args:
        source: as read.
        n_labels: how many names the operator gave; None = no names.
        n_packets: of a flow whose bytes are read; the weights know only the number of strides.
        header_bytes: of each packet; what is left of its share is payload.
        n_sequence_packets: of a flow whose sizes and times are read.
        signed_sizes: whether sizes have a sign; None = as the decoder of sizes says, without one False.
        field_policy: of the input; ``paper`` is the published one.

    Raises:
        CheckpointError: if the tensors are not those of a NetMamba+, or not finite.
        UsageError: if labels, packets or sizes do not fit the weights.
    """
    import torch

    names = our_names(source)
    kind = _kind(source, names)
    dropped = list(source.dropped)
    if kind == "classifier":
        dropped += [{"name": n, "what": "tensor of the decoders"} for n in names if _is_of_pretraining(n)]
        names = {ours: name for ours, name in names.items() if not _is_of_pretraining(ours)}
    shapes = {ours: tuple(source.tensors[name].shape) for ours, name in names.items()}
    signed = _signed(source, shapes, signed_sizes)
    sizes = _sizes(source, shapes, kind, n_sequence_packets, signed)
    config = build_config(FAMILIES[FAMILY], sizes, str(source.path))
    settings = _settings(config, n_packets, header_bytes, signed, field_policy)
    n_rows = shapes["head.weight"][0] if kind == "classifier" else 0
    check_labels(source, kind, n_rows, n_labels)
    expected = expected_tensors(FAMILIES[FAMILY], config, kind, n_rows, str(source.path))
    wanted = {name: shape for name, (_, shape) in expected.items()}
    no_bias = kind == "classifier" and _HEAD_BIAS not in shapes
    if no_bias:
        del wanted[_HEAD_BIAS]
    compare(source, shapes, wanted, kind, "NetMamba+")
    state, mapped = take(source, {ours: names[ours] for ours in wanted})
    if no_bias:
        state[_HEAD_BIAS] = torch.zeros(n_rows)
    return Converted(kind, config, settings, state, mapped, dropped, FAMILY)


def _kind(source: Source, names: Mapping[str, str]) -> str:
    """What the names say it is: with a head a classifier, with decoders a backbone."""
    if {"byte_cls_token", "size_cls_token", "iat_cls_token", "pos_embed"} <= names.keys():
        if "head.weight" in names:
            return "classifier"
        if "byte_mask_token" in names:
            return "backbone"
    shown = ", ".join(repr(name[:60]) for name in list(names)[:3])
    raise CheckpointError(
        f"{source.path}: got {len(names)} tensors ({shown}{', ...' if len(names) > 3 else ''}), expected those of a "
        "published NetMamba+ (byte_cls_token, size_cls_token, iat_cls_token, pos_embed, and head.weight or "
        "byte_mask_token); "
        + ("use `netcls convert netmamba`" if "cls_token" in names else "it is of another model")
    )


def _signed(source: Source, shapes: Mapping[str, tuple[int, ...]], wanted: bool | None) -> bool:
    """Whether sizes have a sign, by the number of sizes that the decoder tells apart."""
    rows = shapes.get("size_decoder_pred.weight", (0,))[:1]
    if not rows or rows[0] == 0:
        return bool(wanted)
    for signed in (False, True):
        if rows[0] == n_size_ids(signed):
            if wanted not in (None, signed):
                raise UsageError(
                    f"--signed-sizes: got {str(wanted).lower()}, but {source.path} tells {rows[0]} sizes apart, which "
                    f"are {'signed' if signed else 'unsigned'} ones; leave it out"
                )
            return signed
    raise CheckpointError(
        f"{source.path}: tensor 'size_decoder_pred.weight': got {rows[0]} sizes, expected {n_size_ids(False)} without "
        f"or {n_size_ids(True)} with a sign"
    )


def _sizes(
    source: Source, shapes: Mapping[str, tuple[int, ...]], kind: str, n_sequence_packets: int, signed: bool
) -> dict[str, Any]:
    """The configuration that these shapes belong to; rates, which no shape shows, are the paper's."""
    read = PublishedShapes(source.path, shapes, "NetMamba+")
    size, n_blocks = read.size, read.n_blocks
    d_model, stride = size("byte_cls_token", 2, 3), size("byte_embed.proj.weight", 2, 3)
    n_strides = size("pos_embed", 1, 3) - 2 * (n_sequence_packets + 1) - 1
    if n_strides < 1:
        raise UsageError(
            f"--n-sequence-packets: got {n_sequence_packets}, expected a number that leaves strides of the "
            f"{shapes['pos_embed'][1]} positions that {source.path} has"
        )
    sizes = dataclasses.asdict(NetMambaPlusConfig()) | {
        "n_bytes": n_strides * stride,
        "stride": stride,
        "n_sequence_packets": n_sequence_packets,
        "n_size_ids": n_size_ids(signed),
        "iat_scale": 1.0,
        "d_model": d_model,
        "n_layers": n_blocks("encoder_blocks."),
        "d_state": size("encoder_blocks.0.mixer.A_log", 1, 2),
        "d_conv": size("encoder_blocks.0.mixer.conv1d.weight", 2, 3),
        "expand": max(1, size("encoder_blocks.0.mixer.A_log", 0, 2) // d_model),
    }
    if kind == "classifier":
        size("head.weight", 0, 2)
    else:
        sizes |= {
            "decoder_d_model": size("byte_mask_token", 2, 3),
            "decoder_layers": n_blocks("byte_decoder_blocks."),
        }
    return sizes


def _settings(
    config: NetMambaPlusConfig, n_packets: int, header_bytes: int, signed: bool, field_policy: str
) -> dict[str, Any]:
    """The representation whose arrays these weights read; payload gets what the header leaves."""
    row_bytes, rest = divmod(config.n_bytes, n_packets)
    if rest or row_bytes < header_bytes:
        raise UsageError(
            f"--n-packets, --header-bytes, --n-sequence-packets: got {n_packets} packets of {header_bytes} header "
            f"bytes and more, expected sizes that fit the {config.n_bytes} bytes that the weights read"
        )
    return build(
        FAMILIES[FAMILY].representation,
        {
            "n_packets": n_packets,
            "header_bytes": header_bytes,
            "payload_bytes": row_bytes - header_bytes,
            "stride": config.stride,
            "field_policy": field_policy,
            "n_sequence_packets": config.n_sequence_packets,
            "signed_sizes": signed,
            "published_transform": True,
        },
    ).settings()
