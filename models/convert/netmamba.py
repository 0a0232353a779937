"""NetMamba's published checkpoints and ours: the names are the same, everything around them is not.

The published ``pre-train.pth`` holds the masked autoencoder under ``model``, beside the optimiser and the command
line; a fine-tuned file holds encoder and ``head``. Sizes are read off the shapes, then the network of those sizes
says which tensors there must be. The other way, the names that come out are those of the published code, and one
block's mixer has those of ``mamba_ssm``'s ``Mamba``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from capture.errors import CheckpointError, UsageError
from capture.representations import build
from models.checkpoint_verify import build_config, expected_tensors, some_of
from models.convert.source import Source
from models.families import FAMILIES
from models.nets.netmamba_config import NetMambaConfig

if TYPE_CHECKING:
    from torch import Tensor

FAMILY: Final = "netmamba"
PUBLISHED_FAMILIES: Final = (FAMILY, "netmamba-plus")
_HEAD_BIAS: Final = "head.bias"
_PREFIX: Final = "module."  # of torch's DistributedDataParallel
_DECODER: Final = ("mask_token", "decoder_")


@dataclass(frozen=True, slots=True)
class Mapped:
    """One tensor on its way.

    Attributes:
        name: in the source.
        ours: in the checkpoint.
        shape: the same in both.
        dtype: in the source, for example ``bfloat16``; the checkpoint's is float32.
    """

    name: str
    ours: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Converted:
    """What a source is in our terms, checked.

    Attributes:
        kind: ``backbone`` (with decoder) or ``classifier`` (with head).
        config: of the family; sizes from the shapes, rates from the paper.
        settings: of the input representation.
        state: float32 tensor by our name.
        mapped: every tensor of ``state``, in the order of the network.
        dropped: what was left behind, as name and reason.
        family: of the network.
    """

    kind: str
    config: Any
    settings: dict[str, Any]
    state: dict[str, Tensor]
    mapped: list[Mapped]
    dropped: list[dict[str, str]]
    family: str = FAMILY


def from_published(
    source: Source,
    *,
    n_labels: int | None = None,
    n_packets: int = 5,
    header_bytes: int = 80,
    field_policy: str = "paper",
    mark_direction: bool = False,
) -> Converted:
    """Map a published NetMamba to ours.

    Args:
        source: as read.
        n_labels: how many names the operator gave; None = no names.
        n_packets: of a flow's input; the weights know only the number of strides.
        header_bytes: of each packet; what is left of its share is payload.
        field_policy: of the input; ``paper`` is the published one.
        mark_direction: of the input; the published one does not.

    Raises:
        CheckpointError: if the tensors are not those of a NetMamba, or not finite.
        UsageError: if the labels or the packet sizes do not fit the weights.
    """
    names = our_names(source)
    kind = _kind(source, names)
    dropped = list(source.dropped)
    if kind == "classifier":
        dropped += [{"name": n, "what": "tensor of the decoder"} for n in names if n.startswith(_DECODER)]
        names = {ours: name for ours, name in names.items() if not ours.startswith(_DECODER)}
    shapes = {ours: tuple(source.tensors[name].shape) for ours, name in names.items()}
    config = build_config(FAMILIES[FAMILY], _sizes(source, shapes, kind), str(source.path))
    settings = _settings(config, n_packets, header_bytes, field_policy, mark_direction)
    n_rows = shapes["head.bias"][0] if kind == "classifier" else 0
    check_labels(source, kind, n_rows, n_labels)
    expected = expected_tensors(FAMILIES[FAMILY], config, kind, n_rows, str(source.path))
    compare(source, shapes, {name: shape for name, (_, shape) in expected.items()}, kind)
    state, mapped = take(source, {ours: names[ours] for ours in expected})
    return Converted(kind, config, settings, state, mapped, dropped)


def check_published(family: str, model_config: Mapping[str, Any], where: str) -> None:
    """The published code knows two families, each built one way.

    Args:
        family: of a checkpoint.
        model_config: of it.
        where: names it in an error.

    Raises:
        CheckpointError: for another family, or for an ablation of one.
    """
    if family not in PUBLISHED_FAMILIES:
        raise CheckpointError(
            f"{where}: got family {family!r:.80}, expected one of {', '.join(PUBLISHED_FAMILIES)}; only those have "
            "published names"
        )
    for name in ("bidirectional", "positions"):
        ours, theirs = model_config.get(name), getattr(NetMambaConfig(), name)
        if ours not in (None, theirs):
            raise CheckpointError(
                f"{where}: got a NetMamba with {name} = {ours}, expected {theirs}; the published code has no other"
            )


def to_published(state: Mapping[str, Tensor], family: str = FAMILY) -> dict[str, Tensor]:
    """A checkpoint's tensors under the published names, for ``load_state_dict`` of the published code.

    Ours are the same, so the values are the same objects; that it stays so is held by the tests. NetMamba+'s published
    head has no bias: one of zeros, as the conversion adds it, is left out; a trained one stays, and the published
    network must then be built with ``head_bias=True``.

    Args:
        state: of a checkpoint of that family.
        family: one of :data:`PUBLISHED_FAMILIES`.
    """
    is_spare = family != FAMILY and _HEAD_BIAS in state and not bool(state[_HEAD_BIAS].any())
    return {name: tensor for name, tensor in state.items() if not (is_spare and name == _HEAD_BIAS)}


def mixer_state(state: Mapping[str, Tensor], block: str) -> dict[str, Tensor]:
    """One block's mixer, for ``load_state_dict`` of ``mamba_ssm``'s ``Mamba(d_model, d_state, d_conv, expand)``.

    Args:
        state: of a checkpoint of one of :data:`PUBLISHED_FAMILIES`.
        block: ``blocks.0``, or ``decoder_blocks.0`` of a backbone; NetMamba+: ``encoder_blocks.0``.

    Returns:
        ``A_log``, ``D`` and ``conv1d``, ``in_proj``, ``x_proj``, ``dt_proj``, ``out_proj`` with weights and biases.

    Raises:
        UsageError: if there is no such block.
    """
    prefix = f"{block}.mixer."
    mixer = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    if not mixer:
        blocks = sorted(name.removesuffix(".mixer.A_log") for name in state if name.endswith(".mixer.A_log"))
        raise UsageError(f"--mixer: got {block!r}, expected one of {', '.join(blocks)}")
    return mixer


def our_names(source: Source) -> dict[str, str]:
    """Our name -> the source's."""
    names = list(source.tensors)
    if all(name.startswith(_PREFIX) for name in names):
        return {name.removeprefix(_PREFIX): name for name in names}
    return {name: name for name in names}


def _kind(source: Source, names: Mapping[str, str]) -> str:
    """What the names say it is: with a head a classifier, with a decoder a backbone."""
    if "cls_token" in names and "pos_embed" in names and "blocks.0.mixer.A_log" in names:
        if any(name.startswith("head.") for name in names):
            return "classifier"
        if "mask_token" in names:
            return "backbone"
        raise CheckpointError(
            f"{source.path}: got an encoder alone, expected one with a decoder (decoder_*, mask_token) or a "
            "head (head.*); convert the file of the pre-training or of the fine-tuning"
        )
    shown = ", ".join(repr(name[:60]) for name in list(names)[:3])
    raise CheckpointError(
        f"{source.path}: got {len(names)} tensors ({shown}{', ...' if len(names) > 3 else ''}), expected those of a "
        "published NetMamba (cls_token, pos_embed, blocks.0.mixer.A_log, ...); "
        + ("use `netcls convert netmamba-plus`" if "byte_cls_token" in names else "it is of another model")
    )


@dataclass(frozen=True, slots=True)
class PublishedShapes:
    """Sizes read from the shapes of a published file.

    Attributes:
        path: of the file, for messages.
        shapes: tensor name -> shape.
        model: whose file it should be, for messages.
    """

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    model: str

    def size(self, name: str, axis: int, n_axes: int) -> int:
        """Length of one axis of a tensor.

        Raises:
            CheckpointError: without the tensor, or if it has another number of axes or an empty one.
        """
        if name not in self.shapes:
            raise CheckpointError(
                f"{self.path}: got no tensor {name!r}, expected that of a published {self.model}"
            )
        shape = self.shapes[name]
        if len(shape) != n_axes or 0 in shape:
            raise CheckpointError(
                f"{self.path}: tensor {name!r}: got shape {list(shape)}, expected {n_axes} axes of 1 or more"
            )
        return shape[axis]

    def n_blocks(self, prefix: str) -> int:
        """How many blocks have tensors under a prefix such as ``blocks.``."""
        names = (name.removeprefix(prefix) for name in self.shapes if name.startswith(prefix))
        return len({name.split(".")[0] for name in names})


def _sizes(source: Source, shapes: Mapping[str, tuple[int, ...]], kind: str) -> dict[str, Any]:
    """The configuration that these shapes belong to; rates, which no shape shows, are the paper's."""
    read = PublishedShapes(source.path, shapes, "NetMamba")
    size, n_blocks = read.size, read.n_blocks
    d_model = size("cls_token", 2, 3)
    stride = size("patch_embed.proj.weight", 2, 3)
    sizes = dataclasses.asdict(NetMambaConfig()) | {
        "n_bytes": (size("pos_embed", 1, 3) - 1) * stride,
        "stride": stride,
        "d_model": d_model,
        "n_layers": n_blocks("blocks."),
        "d_state": size("blocks.0.mixer.A_log", 1, 2),
        "d_conv": size("blocks.0.mixer.conv1d.weight", 2, 3),
        "expand": max(1, size("blocks.0.mixer.A_log", 0, 2) // d_model),
    }
    if kind == "classifier":
        size("head.bias", 0, 1)
    else:
        sizes |= {
            "decoder_d_model": size("mask_token", 2, 3),
            "decoder_layers": n_blocks("decoder_blocks."),
        }
    return sizes


def _settings(
    config: NetMambaConfig, n_packets: int, header_bytes: int, field_policy: str, mark_direction: bool
) -> dict[str, Any]:
    """The representation whose bytes these weights read; payload gets what the header leaves."""
    row_bytes, rest = divmod(config.n_bytes, n_packets)
    if rest or row_bytes < header_bytes:
        raise UsageError(
            f"--n-packets, --header-bytes: got {n_packets} packets of {header_bytes} header bytes and more, expected "
            f"sizes that fit the {config.n_bytes} bytes that the weights read"
        )
    return build(
        FAMILY,
        {
            "n_packets": n_packets,
            "header_bytes": header_bytes,
            "payload_bytes": row_bytes - header_bytes,
            "stride": config.stride,
            "field_policy": field_policy,
            "mark_direction": mark_direction,
        },
    ).settings()


def check_labels(source: Source, kind: str, n_rows: int, n_labels: int | None) -> None:
    """Names for a head, as many as it has rows, and none for a backbone."""
    if kind == "backbone" and n_labels is not None:
        raise UsageError("--labels: got names for a backbone, which has no head; leave them out")
    if kind == "classifier" and n_labels is None:
        raise UsageError(
            f"{source.path}: got a head of {n_rows} classes without names, expected --labels FILE with one a line, in "
            "the order of the head's rows (the published code sorts the names of the class folders)"
        )
    if kind == "classifier" and n_labels != n_rows:
        raise UsageError(
            f"--labels: got {n_labels} names, expected {n_rows} as the head of {source.path} has rows"
        )


def compare(
    source: Source,
    shapes: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
    kind: str,
    family: str = "NetMamba",
) -> None:
    """Exactly the network's tensors, in its shapes."""
    missing = [name for name in expected if name not in shapes]
    extra = [name for name in shapes if name not in expected]
    if missing or extra:
        raise CheckpointError(
            f"{source.path}: got {some_of(missing)} missing and {some_of(extra)} unknown tensors, expected the "
            f"{len(expected)} of a {family} {kind}; convert the file that the published code saved"
        )
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise CheckpointError(
                f"{source.path}: tensor {name!r}: got shape {list(shapes[name])}, expected {list(shape)} "
                "beside the others"
            )


def take(source: Source, names: Mapping[str, str]) -> tuple[dict[str, Tensor], list[Mapped]]:
    """The tensors as float32, finite; half precision widens without a change."""
    import torch

    state: dict[str, Tensor] = {}
    mapped: list[Mapped] = []
    for ours, name in names.items():
        tensor = source.tensors[name]
        dtype = str(tensor.dtype).removeprefix("torch.")
        if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise CheckpointError(
                f"{source.path}: tensor {name!r}: got dtype {dtype}, expected float32, or float16 or bfloat16, "
                "which widen without a change; round it yourself"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"{source.path}: tensor {name!r}: got NaN or infinity, expected finite weights; the training diverged "
                "or the file is damaged"
            )
        state[ours] = tensor.float()
        mapped.append(Mapped(name, ours, tuple(tensor.shape), dtype))
    return state, mapped
