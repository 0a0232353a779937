"""The state of a training run on disk, signals to stop, and what every training loop does with a loss.

    run_dir/state.json                where the run is, what it must be resumed with, and the name of the tensors' file
    run_dir/state-STEP.safetensors    weights and optimiser moments

``state.json`` is renamed into place last and names its tensors, so the two always belong together. Randomness needs no
state: it is a function of seed and step (:mod:`models.learning.batches`).
"""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from capture.errors import CheckpointError, TrainingError
from models.atomic_write import replace_file
from models.bounded_json import read_json
from models.checkpoint_files import check_keys
from models.learning.schedules import set_learning_rate
from models.safetensors_header import read_header

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

STATE_FORMAT: Final = 1


def is_left_over(path: Path) -> bool:
    """Whether this file of a run folder is of an older state, or of one that a killed process was writing."""
    name = path.name
    return name.startswith((".state-", ".state.json.")) or (
        name.startswith("state-") and name.endswith(".safetensors")
    )


class RunFolder:
    """Saves and loads the state of one run.

    Args:
        path: made if it is not there.
        identity: JSON values that must be the same when the run is resumed (settings, sizes, data).
    """

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path = path
        self._identity: dict[str, Any] = json.loads(json.dumps(identity))

    def save(self, step: int, position: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Write the state; the one before stays valid until this one is complete.

        Raises:
            CheckpointError: if it cannot be written.
        """
        from safetensors.torch import save

        weights = f"state-{step:09d}.safetensors"
        document = {
            "format": STATE_FORMAT,
            "weights": weights,
            "identity": self._identity,
            "position": position,
        }
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            replace_file(
                self.path / weights, save({name: t.detach().cpu().clone() for name, t in tensors.items()})
            )
            replace_file(self.path / "state.json", json.dumps(document, indent=1).encode())
            for old in self.path.iterdir():
                if old.name != weights and is_left_over(old):
                    old.unlink()
        except OSError as error:
            raise CheckpointError(
                f"{self.path}: the state of the run cannot be written ({error.strerror}); free some space, then resume"
            ) from None

    def load(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Position and tensors of the state that was saved last.

        Raises:
            CheckpointError: if there is none, it is damaged, or it is of a run with another identity.
        """
        from safetensors.torch import load_file

        path = self.path / "state.json"
        if not path.is_file():
            raise CheckpointError(
                f"{path}: got no such file, expected the state of a run; start without --resume"
            )
        document = read_json(path)
        check_keys(str(path), document, ("format", "weights", "identity", "position"))
        if document["format"] != STATE_FORMAT:
            raise CheckpointError(f"{path}: got format {document['format']!r:.40}, expected {STATE_FORMAT}")
        self._compare(path, document["identity"])
        weights = self.path / Path(str(document["weights"])).name
        if not weights.is_file():
            raise CheckpointError(
                f"{weights}: got no such file, expected the tensors of the run; start without --resume"
            )
        read_header(weights)
        return document["position"], load_file(weights)

    def _compare(self, path: Path, saved: Any) -> None:
        check_keys(f"{path}: identity", saved, tuple(self._identity))
        for name, value in self._identity.items():
            if saved[name] != value:
                raise CheckpointError(
                    f"{path}: got {name} = {value!r:.80}, expected {saved[name]!r:.80} as when the run began; "
                    "give the same, or start without --resume"
                )


class Interrupt:
    """Remembers Ctrl-C (SIGINT) or SIGTERM until the loop has saved its state; a second one interrupts at once.

    Signals only reach the main thread: elsewhere this does nothing.

    Args:
        is_patient: a second signal does not interrupt either. ``torchrun`` repeats a Ctrl-C to its processes.
    """

    def __init__(self, *, is_patient: bool = False) -> None:
        self.requested = False
        self._is_patient = is_patient
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, _signal: int, _frame: FrameType | None) -> None:
        if self.requested and not self._is_patient:
            raise KeyboardInterrupt
        self.requested = True


@dataclasses.dataclass(slots=True)
class Clock:
    """Seconds of a run over all its sessions, and flows per second of this session.

    Attributes:
        before_s: seconds of earlier sessions.
    """

    before_s: float = 0.0
    _start_s: float = dataclasses.field(default_factory=time.monotonic)
    _n_flows: int = 0
    _training_s: float = 0.0

    @property
    def elapsed_s(self) -> float:
        """Seconds of all sessions."""
        return self.before_s + time.monotonic() - self._start_s

    def count(self, n_flows: int, seconds: float) -> None:
        """One step's flows and how long it took."""
        self._n_flows += n_flows
        self._training_s += seconds

    @property
    def samples_per_s(self) -> float:
        """Flows per second of training, without validation and saving; 0 before the first step."""
        return self._n_flows / self._training_s if self._training_s else 0.0


class Learner:
    """A network with its AdamW, the run folder, the step counter, and the learning rate of the last step.

    Args:
        model: the network that learns.
        groups: from :func:`models.learning.schedules.parameter_groups`.
        betas: of AdamW.
        clip_norm: largest norm of the whole gradient; None = not clipped.
        folder: where the state goes.
        save_every_s: seconds between two saved states.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: list[dict[str, Any]],
        betas: tuple[float, float],
        clip_norm: float | None,
        folder: RunFolder,
        save_every_s: float,
    ) -> None:
        import torch

        self.model = model
        self.step = 0
        self.learning_rate = 0.0
        self.clock = Clock()
        self._optimiser = torch.optim.AdamW(groups, lr=0.0, betas=betas)
        self._clip_norm = clip_norm
        self._folder = folder
        self._save_every_s = save_every_s
        self._saved_s = time.monotonic()

    def learn(self, loss: Tensor, learning_rate: float) -> float:
        """One optimiser step down the gradient of ``loss``; returns its value.

        Raises:
            TrainingError: if the loss or its gradient is not finite. The weights are then as before the step.
        """
        self.add_gradient(loss)
        value = float(loss.detach())
        self.update(value, learning_rate)
        return value

    def add_gradient(self, loss: Tensor, share: float = 1.0) -> None:
        """Add ``share`` of the gradient of ``loss`` to what this step has so far."""
        (loss * share).backward()  # type: ignore[no-untyped-call]

    def update(self, value: float, learning_rate: float) -> None:
        """One optimiser step down the gradient that was added up; the next step begins with none.

        Args:
            value: of the loss.
            learning_rate: of the topmost layer.

        Raises:
            TrainingError: if the loss or its gradient is not finite. The weights are then as before the step.
        """
        import torch

        limit = math.inf if self._clip_norm is None else self._clip_norm
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit))
        if not math.isfinite(value) or not math.isfinite(norm):
            raise TrainingError(
                f"training diverged: got loss {value} and gradient norm {norm} at step {self.step + 1}, expected "
                f"finite numbers; lower the learning rate ({learning_rate:.3g} now) and start again"
            )
        set_learning_rate(self._optimiser.param_groups, learning_rate)
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        self.step += 1
        self.learning_rate = learning_rate

    @property
    def save_is_due(self) -> bool:
        """Whether the last saved state is older than ``save_every_s``."""
        return time.monotonic() - self._saved_s >= self._save_every_s

    def save(self, position: dict[str, Any], more: dict[str, Tensor] | None = None) -> None:
        """Write weights, moments, ``more`` and the position."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            moments = self._optimiser.state.get(parameter)
            if moments:
                tensors[f"first_moment.{name}"] = moments["exp_avg"]
                tensors[f"second_moment.{name}"] = moments["exp_avg_sq"]
        tensors |= {f"more.{name}": tensor for name, tensor in (more or {}).items()}
        mine = {"step": self.step, "lr": self.learning_rate, "elapsed_s": self.clock.elapsed_s}
        self._folder.save(self.step, position | mine, tensors)
        self._saved_s = time.monotonic()

    def restore(self, keys: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Go back to the saved state.

        Args:
            keys: that the position was saved with.

        Returns:
            The position and ``more``.

        Raises:
            CheckpointError: if there is no state, or it is damaged or another run's.
        """
        import torch

        position, tensors = self._folder.load()
        check_keys(
            f"{self._folder.path / 'state.json'}: position", position, (*keys, "step", "lr", "elapsed_s")
        )
        parts: dict[str, dict[str, Tensor]] = {
            "model": {},
            "first_moment": {},
            "second_moment": {},
            "more": {},
        }
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts.setdefault(part, {})[rest] = tensor.clone()
        try:
            self.model.load_state_dict(parts["model"])
        except RuntimeError as error:
            raise CheckpointError(
                f"{self._folder.path}: the saved weights do not fit ({str(error).splitlines()[0]}); "
                "start without --resume"
            ) from None
        self.step = int(position["step"])
        self.learning_rate = float(position["lr"])
        for name, parameter in self.model.named_parameters():
            if name in parts["first_moment"]:
                self._optimiser.state[parameter] = {
                    "step": torch.tensor(float(self.step)),
                    "exp_avg": parts["first_moment"][name].to(parameter.device),
                    "exp_avg_sq": parts["second_moment"][name].to(parameter.device),
                }
        self.clock = Clock(before_s=float(position["elapsed_s"]))
        return position, parts["more"]


def seeded(seed: int, device: torch.device) -> torch.Generator:
    """Seed torch's own generators (drop path, dropout); returns a CPU generator of the same seed (masks)."""
    import torch

    torch.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(seed)
    return torch.Generator().manual_seed(seed)
