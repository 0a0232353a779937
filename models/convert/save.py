"""What was converted, written: a checkpoint folder with an honest card, or a file for the published code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from capture.errors import CheckpointError, UsageError
from models.atomic_write import replace_file
from models.bounded_json import MAX_JSON_BYTES, parse_json
from models.checkpoint import Calibration, Checkpoint, save_checkpoint
from models.checkpoint_files import check_labels
from models.convert.netmamba import Converted
from models.convert.source import MODEL_KEY, Source
from models.families import FAMILIES

if TYPE_CHECKING:
    from torch import Tensor

TORCH_SUFFIXES: Final = (".pth", ".pt")

UNKNOWN_LICENCE: Final = (
    "unknown: the published code and weights name none; ask the authors before you pass this on"
)


_OF_NETMAMBA: Final = (
    "netcls shows it both directions of a flow, IPv6 too, and headers that end where they end; the published input is "
    "one direction of a flow, IPv4 only, its payload found by substring search. Published accuracy does not carry over."
)
INPUT_DIFFERS: Final = {
    "netmamba": _OF_NETMAMBA,
    "netmamba-plus": _OF_NETMAMBA,
    "netfound": "It reads the tokens of the published tokeniser (strict_v2), of which a flow is only the packets that "
    "netcls keeps. Padding is never pooled, as it was in its training: a flow's answer is that of a batch of its own.",
}


def save_converted(
    converted: Converted, source: Source, out: Path, labels: list[str], licence: str | None
) -> Checkpoint:
    """Write the checkpoint folder, at once or not at all.

    Args:
        converted: of ``source``.
        source: as read; name, size and digest go to the card.
        out: the folder, see :func:`models.checkpoint.save_checkpoint`.
        labels: names in the order of the head's rows; empty for a backbone.
        licence: of the source; None = not known.

    Raises:
        CheckpointError: if it cannot be written.
    """
    return save_checkpoint(
        out,
        kind=converted.kind,
        family=converted.family,
        model_config=asdict(converted.config),
        representation=FAMILIES[converted.family].representation,
        representation_settings=converted.settings,
        labels=labels,
        calibration=Calibration(),
        card=card_of(converted, source, licence),
        state=converted.state,
    )


def card_of(converted: Converted, source: Source, licence: str | None) -> dict[str, Any]:
    """What is known of converted weights, which is little, and what is not."""
    n_parameters = sum(tensor.numel() for tensor in converted.state.values())
    return {
        "title": f"Converted {converted.family} {converted.kind}",
        "summary": f"Weights that netcls did not train: {n_parameters:,} parameters, taken from a file of the "
        f"published code of {converted.family}. Nothing was measured.",
        "source": {
            "file": source.path.name,
            "sha256": source.sha256,
            "size_bytes": source.size_bytes,
            "tensors_mapped": len(converted.mapped),
            "left_behind": ", ".join(entry["name"] for entry in converted.dropped) or "nothing",
        },
        "licence": licence or UNKNOWN_LICENCE,
        "known_limits": [
            "Corpus, split, seeds and accuracy are not known to netcls; evaluate it on labelled captures of your own.",
            *(
                ["Probabilities are not calibrated (temperature 1) and there is no unknown threshold."]
                if converted.kind == "classifier"
                else ["It has no head and answers nothing before it is fine-tuned."]
            ),
            INPUT_DIFFERS[converted.family],
            "Dropout, drop path and mask ratio are not in the file; the paper's are assumed.",
        ],
    }


def read_labels(path: Path) -> list[str]:
    """Label names from a file: a JSON list, or one a line (empty lines at the end do not count).

    Raises:
        CheckpointError: if it cannot be read, or names are missing, too long, unprintable or stand twice.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_JSON_BYTES + 1)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    if len(data) > MAX_JSON_BYTES:
        raise CheckpointError(f"{path}: got more than {MAX_JSON_BYTES} bytes of labels; name the right file")
    if data.lstrip()[:1] == b"[":
        labels = parse_json(data, str(path))
    else:
        try:
            labels = [line.strip() for line in data.decode("utf-8-sig").rstrip().splitlines()]
        except UnicodeDecodeError as error:
            raise CheckpointError(
                f"{path}: got labels that are no UTF-8 ({error.reason}); save it as UTF-8"
            ) from None
    check_labels(labels, "classifier", str(path))
    names: list[str] = labels
    return names


def write_weights(tensors: Mapping[str, Tensor], target: Path, *, wrapped: bool) -> None:
    """Write tensors for other code: ``.pth`` or ``.pt`` as ``torch.save`` does, ``.safetensors`` without pickle.

    Args:
        tensors: by the name that the other code has.
        target: appears under its name when it is complete.
        wrapped: put the tensors under ``model``, as the published code expects in a ``.pth``.

    Raises:
        UsageError: for another suffix.
        CheckpointError: if it cannot be written.
    """
    import io

    import torch
    from safetensors.torch import save

    plain = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    if target.suffix == ".safetensors":
        data = save(plain)
    elif target.suffix in TORCH_SUFFIXES:
        buffer = io.BytesIO()
        torch.save({MODEL_KEY: plain} if wrapped else plain, buffer)
        data = buffer.getvalue()
    else:
        raise UsageError(
            f"--out: got {target.name!r}, expected a name that ends in .pth, .pt or .safetensors"
        )
    try:
        replace_file(target, data)
    except OSError as error:
        raise CheckpointError(
            f"{target}: cannot be written ({error.strerror}); free some space or choose another place"
        ) from None
