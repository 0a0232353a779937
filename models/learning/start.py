"""What a training run starts from: family, sizes, device, first weights."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from capture.errors import CheckpointError, UsageError
from models.checkpoint_verify import build_config, expected_tensors, known_family

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from models.families import Family

HEAD_PREFIX = "head."


def resolve(family: Family | str, model_config: Any) -> tuple[Family, Any]:
    """The family and its configuration object, from a name or the family, and a mapping or the object.

    Raises:
        CheckpointError: if the name is unknown or the mapping is no configuration of the family.
    """
    found = known_family(family, "training") if isinstance(family, str) else family
    if isinstance(model_config, Mapping):
        return found, build_config(found, dict(model_config), "training")
    return found, model_config


def choose_device(name: str) -> torch.device:
    """``cpu``, ``cuda``, or ``auto``: CUDA where there is one.

    Raises:
        UsageError: for another name, or CUDA without a device.
    """
    import torch

    if name not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device: got {name!r}, expected auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device: got cuda, but torch sees no CUDA device; use --device cpu")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


@contextlib.contextmanager
def training_process(threads: int | None) -> Iterator[None]:
    """Give torch ``threads`` threads (None: leave them), and give back threads and random state afterwards."""
    import torch

    before = torch.get_num_threads()
    with torch.random.fork_rng():
        try:
            if threads is not None:
                torch.set_num_threads(threads)
            yield
        finally:
            torch.set_num_threads(before)


def load_body(model: nn.Module, state: Mapping[str, Tensor], family: Family, config: Any) -> None:
    """Copy pretrained weights into a classifier; its head stays as it is.

    What only the pre-training network has (a decoder) is left out, and what it cannot have (``family.fresh``) stays
    random. Everything else must fit: a weight that is missing would silently stay random.

    Raises:
        CheckpointError: naming a tensor that is missing, unknown, or of another shape.
    """
    state_of = model.state_dict()
    fresh = {name for name in state_of if name.startswith(family.fresh) and name not in state}
    own = {name: t for name, t in state_of.items() if name not in fresh and not name.startswith(HEAD_PREFIX)}
    only_pretraining = expected_tensors(family, config, "backbone", 0, "training").keys() - own.keys()
    for name, tensor in own.items():
        if name not in state:
            raise CheckpointError(
                f"initial weights: got no tensor {name!r}, expected a {family.name} checkpoint"
            )
        if state[name].shape != tensor.shape:
            raise CheckpointError(
                f"initial weights: tensor {name!r}: got shape {list(state[name].shape)}, expected "
                f"{list(tensor.shape)}; use the sizes and representation of the base checkpoint"
            )
    for name in state:
        if name not in own and name not in only_pretraining and not name.startswith(HEAD_PREFIX):
            raise CheckpointError(
                f"initial weights: got unknown tensor {name[:80]!r}, expected a {family.name} checkpoint"
            )
    model.load_state_dict({name: state[name] for name in own}, strict=False)


def identity_of(
    family: Family, config: Any, settings: Any, free: tuple[str, ...], **more: Any
) -> dict[str, Any]:
    """What must stay the same over a run: family, sizes, settings but the ``free`` ones, and ``more``."""
    values = {name: value for name, value in dataclasses.asdict(settings).items() if name not in free}
    return {"family": family.name, "model": dataclasses.asdict(config), **values, **more}
