"""The processes that train one network together, started by ``torchrun``; without it one process is the whole team.

    torchrun --nproc-per-node 2 --no-python netcls pretrain captures/ --out backbone --steps 1000

Each process sees its own share of every step's flows; gradients are averaged by torch's DistributedDataParallel, over
gloo on CPUs and NCCL on CUDA. What decides about the run (the clock, a signal, a loss that is not finite) is agreed on
over gloo, so that all of them stop at the same step. The first process alone writes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from capture.errors import TrainingError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

WAIT: Final = timedelta(minutes=30)
"""How long a process waits for the others, for instance while they read captures."""


@dataclass(frozen=True, slots=True)
class Place:
    """Which process this is.

    Attributes:
        rank: from 0; the first one writes.
        size: processes.
        local_rank: from 0 on each machine; the number of its CUDA device.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0


def place_in_team(environment: Mapping[str, str] = os.environ) -> Place:
    """This process's place, from the variables that ``torchrun`` sets.

    Raises:
        UsageError: if they contradict each other.
    """
    size_text = environment.get("WORLD_SIZE", "1")
    if size_text == "1":
        return Place()
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in names if name not in environment]
    if missing:
        raise UsageError(
            f"WORLD_SIZE is {size_text[:20]!r}, but {', '.join(missing)} is not set; start the command with torchrun"
        )
    try:
        rank, size, local_rank = (int(environment[name]) for name in names[:3])
    except ValueError:
        rank, size, local_rank = -1, 0, 0
    if not 0 <= rank < size or local_rank < 0:
        got = ", ".join(f"{name}={environment[name][:20]}" for name in names[:3])
        raise UsageError(f"got {got}, expected whole numbers with RANK below WORLD_SIZE; start with torchrun")
    return Place(rank, size, local_rank)


def refuse_team(command: str) -> None:
    """Stop a command that works in one process only.

    Raises:
        UsageError: under ``torchrun`` with several processes.
    """
    place = place_in_team()
    if place.size > 1:
        raise UsageError(
            f"{command}: got {place.size} processes, expected one; start it without torchrun (--threads N uses N cores)"
        )


class Team:
    """What the processes tell each other; a team of one answers by itself and needs no torch.distributed.

    Args:
        place: of this process.
    """

    def __init__(self, place: Place) -> None:
        self.place = place

    def sums(self, *values: float) -> list[float]:
        """Each value added up over all processes; all of them must ask. Exact for the first few millions."""
        if self.place.size == 1:
            return list(values)
        import torch
        from torch import distributed

        total = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(total)
        return list(total.tolist())

    def check_same(self, values: Mapping[str, Any]) -> None:
        """Compare what every process must have the same of.

        Raises:
            TrainingError: in every process, naming the first difference.
        """
        if self.place.size == 1:
            return
        from torch import distributed

        everyone: list[Any] = [None] * self.place.size
        distributed.all_gather_object(everyone, dict(values))
        for rank, other in enumerate(everyone):
            for name, value in everyone[0].items():
                if other.get(name) != value:
                    raise TrainingError(
                        f"the processes of this run disagree: got {name} = {other.get(name)!r:.80} in process {rank}, "
                        f"expected {value!r:.80} as in process 0; start all with the same options, captures and netcls"
                    )

    def share_gradients(self, model: nn.Module, device: torch.device) -> nn.Module:
        """``model`` so wrapped that a backward pass averages the gradients of all processes; alone, ``model``.

        The backward pass must reach every parameter: :meth:`reaching_all`.
        """
        if self.place.size == 1:
            return model
        from torch.nn.parallel import DistributedDataParallel

        devices = [device.index] if device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices)

    def reaching_all(self, loss: Tensor, model: nn.Module) -> Tensor:
        """``loss`` with a gradient of 0 for the parameters that it does not depend on; alone, ``loss``.

        The other processes wait for each of them. A batch may leave some out (nothing of a kind was hidden), and
        torch's own search for them warns on standard error.
        """
        if self.place.size == 1:
            return loss
        import torch

        return loss + 0.0 * torch.stack([p.sum() for p in model.parameters()]).sum()


@contextlib.contextmanager
def team(place: Place, device: torch.device) -> Iterator[Team]:
    """Meet the other processes, and part from them at the end.

    Raises:
        TrainingError: if one of them is gone.
    """
    if place.size == 1:
        yield Team(place)
        return
    from torch import distributed

    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        distributed.init_process_group(backend, timeout=WAIT)
        yield Team(place)
    except RuntimeError as error:  # that is how gloo and NCCL tell it
        text = str(error).splitlines()[0][:200]
        if not any(word in text for word in ("gloo", "NCCL", "onnection", "timed out", "rendezvous")):
            raise
        raise TrainingError(
            f"process {place.rank} of {place.size} lost the others ({text}); look at their errors, then start all "
            "again with --resume"
        ) from error
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def device_of(place: Place, device: torch.device) -> torch.device:
    """The device that this process computes on: with CUDA, each process of a machine has its own.

    Raises:
        UsageError: with more processes on this machine than CUDA devices.
    """
    import torch

    if device.type != "cuda" or place.size == 1:
        return device
    n_devices = torch.cuda.device_count()
    if place.local_rank >= n_devices:
        raise UsageError(
            f"torchrun: got a process {place.local_rank} on this machine, but there are {n_devices} CUDA devices; "
            f"use --nproc-per-node {n_devices}"
        )
    torch.cuda.set_device(place.local_rank)
    return torch.device("cuda", place.local_rank)
