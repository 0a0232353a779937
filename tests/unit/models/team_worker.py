"""One process of a team of two, as ``torchrun`` would start it; not a test by itself.

``python -m tests.unit.models.team_worker FOLDER PORT...`` says a line of JSON per scenario.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from capture.errors import NetclsError
from models.families import FAMILIES
from models.learning.pretrain import PretrainSettings, pretrain
from models.learning.team import place_in_team
from models.nets.netmamba import NetMambaPretrainer
from tests.unit.models.tiny_family import labelled

FAMILY = FAMILIES["netmamba"]
CONFIG = FAMILY.config_type(
    n_bytes=16,
    stride=2,
    d_model=16,
    n_layers=1,
    d_state=4,
    decoder_d_model=16,
    decoder_layers=1,
    drop_path=0.0,
    mask_ratio=0.5,
)
TOKENS = labelled(40, seed=1).tokens
SETTINGS = PretrainSettings(
    steps=4, batch=4, accumulate=2, base_learning_rate=0.1, history_every_steps=1, threads=1, device="cpu"
)


class WithSpare(NetMambaPretrainer):
    """With a parameter that no loss depends on."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.spare = nn.Parameter(torch.ones(3))


def losses(history: list[dict[str, Any]]) -> list[float]:
    return [entry["loss"] for entry in history]


def main() -> None:
    folder, ports = Path(sys.argv[1]), sys.argv[2:]
    rank = place_in_team().rank

    def run(
        name: str, settings: PretrainSettings, tokens: Any = TOKENS, family: Any = FAMILY, **more: Any
    ) -> None:
        os.environ["MASTER_PORT"] = ports.pop()
        told: list[int] = []

        def on_progress(details: dict[str, Any]) -> None:
            told.append(details["step"])

        try:
            result = pretrain(
                family, CONFIG, tokens, settings, run_dir=folder / name, on_progress=on_progress, **more
            )
            answer: Any = {
                "losses": losses(result.history),
                "weight_sum": float(sum(t.abs().sum() for t in result.state.values())),
                "is_first": result.is_first,
                "told": told,
            }
        except (NetclsError, KeyboardInterrupt) as error:
            answer = f"{type(error).__name__}: {error}"
        sys.stdout.write(json.dumps({"name": name, "answer": answer}) + "\n")
        sys.stdout.flush()

    run("whole", SETTINGS)
    # One of the two is told to stop, before it begins; both save after the first step.
    if rank == 1:
        take = type(TOKENS).take

        def take_and_stop(self: Any, rows: Any) -> Any:
            type(TOKENS).take = take  # type: ignore[method-assign]
            signal.raise_signal(signal.SIGTERM)
            return take(self, rows)

        type(TOKENS).take = take_and_stop  # type: ignore[method-assign]
    run("cut", SETTINGS)
    run("cut", SETTINGS, resume=True)
    run("unused", SETTINGS, family=dataclasses.replace(FAMILY, build_pretrainer=WithSpare))
    run("options", dataclasses.replace(SETTINGS, seed=rank))
    run("flows", SETTINGS, labelled(40, seed=1 + rank).tokens)


if __name__ == "__main__":
    main()
