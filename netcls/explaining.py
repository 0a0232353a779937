"""From a capture and a checkpoint to the explanation of one flow's answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from capture.errors import UsageError, did_you_mean
from capture.flow_batch import FlowBatch
from capture.representations.base import TokenBatch
from netcls.event import as_dict, events_of
from netcls.event_batch import EventBatch
from netcls.explanation import ExplainOptions, Explanation, explain
from netcls.flow_choice import ChosenFlow, FlowChoice, choose_flow

if TYPE_CHECKING:
    from models.checkpoint import Checkpoint

_DIRECTIONS = ("server", "client")
# Other flows that get the same label at least this often are no neutral ground.
_SAME_ANSWER = 0.5


@dataclass(frozen=True, slots=True)
class Explained:
    """One flow's answer with its account.

    Attributes:
        event: the flow as ``netcls flows`` prints it.
        label: what is explained.
        answer: what the model says.
        checkpoint: its name and digest.
        baseline: where neutral values came from: ``other_flows``, ``background`` or ``zeros``.
        flow: the flow when it was ready, one row.
        explanation: the account.
        warnings: one line each.
    """

    event: dict[str, Any]
    label: str
    answer: str
    checkpoint: tuple[str, str]
    baseline: str
    flow: FlowBatch
    explanation: Explanation
    warnings: list[str]

    def headline(self) -> str:
        """What is explained, in one line."""
        event, said = self.event, self.explanation
        ends = [
            f"{event[ip]}" + (f" port {event[port]}" if port in event else "")
            for ip, port in (("src_ip", "src_port"), ("dest_ip", "dest_port"))
        ]
        other = "" if self.label == self.answer else f" (the model answers {self.answer})"
        source = self.baseline.replace("_", " ")
        return (
            f"flow {event['flow_id']}, {event['proto']} {ends[0]} to {ends[1]}: "
            f"{self.label} {said.probability:.3f}{other}; "
            f"neutral values from {said.donors} {source}, which have {said.baseline_probability:.3f}"
        )

    def packet_words(self, packet: int | None) -> tuple[str, str]:
        """Where packet number ``packet`` (from 1) went, and its IP length in bytes."""
        if packet is None or packet > self.flow.packets.shape[1]:
            return "", ""
        row = self.flow.packets[0, packet - 1]
        return _DIRECTIONS[int(row["direction"])], str(int(row["ip_len"]))

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        values = self.explanation.as_dict()
        for part in values["packets"]:
            part["to"], ip_len = self.packet_words(part["packet"])
            part["ip_len"] = int(ip_len) if ip_len else None
        return {
            "flow": self.event,
            "label": self.label,
            "answer": self.answer,
            "model": self.checkpoint[0],
            "checkpoint": self.checkpoint[1],
            "baseline": self.baseline,
            **values,
            "warnings": self.warnings,
        }


def explain_flow(
    capture: str,
    choice: FlowChoice,
    *,
    model: str | Checkpoint = "default",
    label: str | None = None,
    backgrounds: Sequence[str] = (),
    draws: int = 8,
    seed: int = 0,
    threads: int | None = None,
    device: str = "auto",
) -> Explained:
    """Explain the answer to one flow of a capture.

    Args:
        capture: capture file.
        choice: which flow.
        model: checkpoint, or its name or folder.
        label: what is explained; None: the model's answer.
        backgrounds: captures that neutral values are drawn from; none: the other flows of ``capture``, or zeros where
            there is no other.
        draws: other flows that each part is replaced from.
        seed: of the draws.
        threads: of the model.
        device: of the model.

    Raises:
        CaptureError: a capture cannot be read.
        CheckpointError: the model cannot be loaded.
        DataError: not exactly one flow fits.
        UsageError: for a label that the model has not.
    """
    from capture.representations import build
    from models.checkpoint import load_checkpoint
    from models.predictor import Predictor

    checkpoint = load_checkpoint(model) if isinstance(model, str) else model
    representation = build(checkpoint.representation, checkpoint.representation_settings)
    if checkpoint.task.kind != "class":
        raise UsageError(
            f"{checkpoint.name}: its task is {checkpoint.task.kind}, expected a model of one label a flow"
        )
    if label is not None and label not in checkpoint.labels:
        raise UsageError(
            f"--label: {checkpoint.name} has no label {label!r}{did_you_mean(label, checkpoint.labels)}; "
            f"it has {', '.join(checkpoint.labels[:8])}{', ...' if len(checkpoint.labels) > 8 else ''}"
        )
    chosen = choose_flow(capture, representation, choice, n_others=draws, backgrounds=backgrounds, seed=seed)
    baseline, donors = _donors(chosen, backgrounds)
    with Predictor(checkpoint, threads=threads, device=device) as predictor:

        def logits(tokens: TokenBatch) -> Any:
            return predictor.logits(tokens) / checkpoint.calibration.temperature

        answer = int(logits(chosen.tokens)[0].argmax())
        wanted = answer if label is None else checkpoint.labels.index(label)
        options = ExplainOptions(donors=draws, seed=seed)
        places = representation.token_places(chosen.flow)
        explanation = explain(chosen.tokens, places, donors, wanted, logits, options)
    event = as_dict(next(iter(events_of(EventBatch(capture, chosen.record)))))
    return Explained(
        event,
        checkpoint.labels[wanted],
        checkpoint.labels[answer],
        (checkpoint.name, checkpoint.digest),
        baseline,
        chosen.flow,
        explanation,
        _warnings(baseline, explanation),
    )


def _donors(chosen: ChosenFlow, backgrounds: Sequence[str]) -> tuple[str, TokenBatch]:
    """Where neutral values come from, and they."""
    if len(chosen.others):
        return "background" if backgrounds else "other_flows", chosen.others
    zeros = {name: np.zeros_like(array) for name, array in chosen.tokens.arrays.items()}
    return "zeros", replace(chosen.tokens, arrays=zeros)


def _warnings(baseline: str, explanation: Explanation) -> list[str]:
    if baseline == "zeros":
        return ["there is no other flow to take neutral values from, zeros stand for them; give --background"]
    of_others = explanation.baseline_probability
    if of_others < _SAME_ANSWER * explanation.probability:
        return []
    text = f"the other flows get this label too (mean probability {of_others:.2f}), so little can be seen against them"
    return [f"{text}; give --background with other traffic"]
