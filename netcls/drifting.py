"""Captures against a checkpoint's reference; see :mod:`netcls.evaluation.drift`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from capture.errors import UsageError
from capture.flow_table import FlowTableConfig
from netcls.inputs import find_captures


def drift_of_captures(
    paths: Sequence[str], model: str = "default", *, threads: int | None = None, device: str = "auto"
) -> dict[str, Any]:
    """What has moved since a model was trained; see :func:`netcls.evaluation.drift.compare`.

    Args:
        paths: captures, or folders of them.
        model: name or folder of a checkpoint.
        threads: of the model; None: one per core.
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        CheckpointError: if the checkpoint has no reference.
        CaptureError: if a capture cannot be read.
        UsageError: for captures without flows, or a model that answers no classes.
    """
    from capture.representations import TokenBatch, build
    from models.checkpoint import load_checkpoint
    from models.predictor import Predictor
    from netcls.evaluation.drift import compare, read_reference
    from netcls.tokens import tokens_of_capture

    checkpoint = load_checkpoint(model)
    if checkpoint.task.kind != "class":
        raise UsageError(
            f"drift: got a model of task {checkpoint.task.kind}, expected one that answers classes"
        )
    reference = read_reference(checkpoint.path)
    representation = build(checkpoint.representation, checkpoint.representation_settings)
    captures = [capture for path in paths for capture in find_captures(path)]
    parts = []
    with Predictor(checkpoint, threads=threads, device=device) as predictor:
        for capture in captures:
            for _, tokens in tokens_of_capture(capture, representation, FlowTableConfig()):
                if len(tokens):
                    parts.append((tokens, predictor.predict(tokens).probabilities.max(axis=1)))
    if not parts:
        raise UsageError("drift: got captures without a flow, expected some to compare")
    joined = TokenBatch(
        {name: np.concatenate([tokens.arrays[name] for tokens, _ in parts]) for name in parts[0][0].arrays},
        np.concatenate([tokens.packets_used for tokens, _ in parts]),
    )
    result = compare(reference, joined, np.concatenate([confidence for _, confidence in parts]))
    return {"model": checkpoint.name, "checkpoint": checkpoint.digest, "captures": len(captures), **result}
