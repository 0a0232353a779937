"""An adapter on disk: a customer's model as a few hundred kilobytes beside the base it belongs to.

    adapter.safetensors    the tensors of `models.nets.adapters.Adapter`
    adapter.json           {"format": 1, "family", "rank", "alpha", "base": {"name", "digest"},
                            "labels": [...], "calibration": {"temperature", "unknown_threshold"}}

It fits one base, told by its digest: on any other the changes would mean nothing, without any sign of it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from capture.errors import CheckpointError
from models.atomic_write import replace_file
from models.bounded_json import read_json
from models.checkpoint_files import Calibration, check_calibration, check_keys, check_labels
from models.checkpoint_verify import build_config, known_family
from models.safetensors_header import read_header

if TYPE_CHECKING:
    from torch import nn

    from models.checkpoint import Checkpoint
    from models.nets.adapters import Adapter

FORMAT: Final = 1
ADAPTER_WEIGHTS: Final = "adapter.safetensors"
ADAPTER_FILE: Final = "adapter.json"
_KEYS: Final = ("format", "family", "rank", "alpha", "base", "labels", "calibration")


@dataclass(frozen=True, slots=True)
class SavedAdapter:
    """An adapter and what its answers mean.

    Attributes:
        adapter: for `models.nets.adapters.AdapterSlot`.
        labels: names in the order of its head's rows.
        calibration: temperature and unknown threshold of its answers.
    """

    adapter: Adapter
    labels: list[str]
    calibration: Calibration


def save_adapter(
    folder: Path, adapter: Adapter, base: Checkpoint, labels: Sequence[str], calibration: Calibration
) -> None:
    """Write both files into an existing folder; the description last, so that it never stands without its tensors.

    Args:
        folder: may be the checkpoint folder that the adapter was merged into.
        adapter: trained on ``base``.
        base: its name and digest are written.
        labels: names in the order of the head's rows.
        calibration: of the adapted classifier.

    Raises:
        CheckpointError: if it cannot be written.
    """
    from safetensors.torch import save

    document = {
        "format": FORMAT,
        "family": base.family,
        "rank": adapter.rank,
        "alpha": adapter.alpha,
        "base": {"name": base.name, "digest": base.digest},
        "labels": list(labels),
        "calibration": {
            "temperature": calibration.temperature,
            "unknown_threshold": calibration.unknown_threshold,
        },
    }
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        replace_file(
            folder / ADAPTER_WEIGHTS, save({name: t.contiguous() for name, t in adapter.tensors.items()})
        )
        replace_file(folder / ADAPTER_FILE, text.encode("utf-8", "surrogatepass"))
    except OSError as error:
        raise CheckpointError(
            f"{folder}: the adapter cannot be written ({error.strerror}); free some space or choose another folder"
        ) from None


def load_adapter(folder: Path, base: Checkpoint) -> SavedAdapter:
    """Read an adapter for the base that it was trained on.

    Whether every tensor fits the network is checked when it is applied.

    Args:
        folder: with both files.
        base: the checkpoint that is loaded.

    Raises:
        CheckpointError: if a file is missing or damaged, or the adapter belongs to another base.
    """
    import torch
    from safetensors.torch import load_file

    from models.nets.adapters import Adapter

    for name in (ADAPTER_FILE, ADAPTER_WEIGHTS):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder / name}: got no such file, expected an adapter; make one with "
                "`netcls finetune --method lora --keep-adapter`"
            )
    where = folder / ADAPTER_FILE
    document = read_json(where)
    _check(where, document)
    _check_base(where, document, base)
    read_header(folder / ADAPTER_WEIGHTS)
    tensors = load_file(folder / ADAPTER_WEIGHTS)
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"{folder / ADAPTER_WEIGHTS}: tensor {name[:80]!r}: expected finite float32; train the adapter again"
            )
    bias = tensors.get("head.bias")
    if bias is None or bias.shape != (len(document["labels"]),):
        raise CheckpointError(
            f"{folder / ADAPTER_WEIGHTS}: got a head.bias of {'no' if bias is None else list(bias.shape)} "
            f"elements, expected one for each of the {len(document['labels'])} labels of {ADAPTER_FILE}"
        )
    calibration = document["calibration"]
    return SavedAdapter(
        Adapter(document["rank"], float(document["alpha"]), tensors),
        document["labels"],
        Calibration(float(calibration["temperature"]), calibration["unknown_threshold"]),
    )


def network_for_adapters(base: Checkpoint) -> nn.Module:
    """The base as a classifier, in evaluation, for an `AdapterSlot`; its own head has one output and no meaning."""
    from models.learning.start import load_body

    where = str(base.path / "config.json")
    family = known_family(base.family, where)
    config = build_config(family, base.model_config, where)
    model = family.build_classifier(config, 1)
    load_body(model, base.state, family, config)
    return model.eval().requires_grad_(False)


def merged_checkpoint(base: Checkpoint, saved: SavedAdapter) -> Checkpoint:
    """The base with an adapter merged in: a classifier like any other, in memory, without a card.

    Raises:
        CheckpointError: if the adapter's tensors are not those of the network.
    """
    from models.nets.adapters import AdapterSlot, merged_state

    model = network_for_adapters(base)
    AdapterSlot(model).apply(saved.adapter)
    return replace(
        base,
        kind="classifier",
        labels=saved.labels,
        calibration=saved.calibration,
        card={},
        state=merged_state(model),
        digest="",
    )


def _check(where: Path, document: Any) -> None:
    check_keys(str(where), document, _KEYS)
    check_keys(f"{where}: base", document["base"], ("name", "digest"))
    check_keys(f"{where}: calibration", document["calibration"], ("temperature", "unknown_threshold"))
    if document["format"] != FORMAT:
        raise CheckpointError(
            f"{where}: got format {document['format']!r:.40}, expected {FORMAT}; install the netcls that wrote it"
        )
    if type(document["rank"]) is not int or not 1 <= document["rank"] <= 1 << 16:
        raise CheckpointError(
            f"{where}: got rank {document['rank']!r:.40}, expected a whole number of 1 or more"
        )
    if type(document["alpha"]) not in (int, float) or not 0 < document["alpha"] < 1e6:
        raise CheckpointError(f"{where}: got alpha {document['alpha']!r:.40}, expected a number above 0")
    check_labels(document["labels"], "classifier", str(where))
    check_calibration(
        document["calibration"]["temperature"], document["calibration"]["unknown_threshold"], str(where)
    )


def _check_base(where: Path, document: dict[str, Any], base: Checkpoint) -> None:
    expected = document["base"]
    if document["family"] != base.family or expected["digest"] != base.digest:
        raise CheckpointError(
            f"{where}: got base {base.name!r} ({base.family}, digest {base.digest}), expected "
            f"{expected['name']!r:.80} ({document['family']!s:.40}, digest {expected['digest']!s:.40}) that the "
            "adapter was trained on; load that one"
        )
