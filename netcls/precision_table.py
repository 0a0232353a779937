"""``netcls models precision``: what each precision changes and gains on captures of yours, and that into the card."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from capture.errors import CaptureError, UsageError
from capture.flow_table import FlowTableConfig
from capture.representations import Representation, TokenBatch, build
from netcls.datasets.capture_flows import concatenate_tokens
from netcls.tokens import tokens_of_capture

if TYPE_CHECKING:
    from models.checkpoint import Checkpoint

CARD_KEY: Final = "precision"


def measure_precisions(
    checkpoint: Checkpoint,
    captures: Sequence[str],
    *,
    most_flows: int,
    most_per_capture: int,
    threads: int | None = None,
    on_progress: Callable[[str], None] = lambda _: None,
    on_error: Callable[[CaptureError], None] = lambda _: None,
) -> dict[str, Any]:
    """The card's ``precision`` entry of a classifier.

    Args:
        checkpoint: a classifier.
        captures: files.
        most_flows: taken at most, in the order of the captures.
        most_per_capture: of each capture, its first.
        threads: of the model; None = one per core.
        on_progress: told a line now and then.
        on_error: told of a capture that cannot be read; the others count.

    Returns:
        What :func:`models.precision.compare` returns, with ``measured``: where and when.

    Raises:
        UsageError: if there are no flows, or no narrow precision exists here.
    """
    from models.precision import compare
    from netcls.bench import machine_facts

    representation = build(checkpoint.representation, checkpoint.representation_settings)
    parts: list[TokenBatch] = []
    n_flows = 0
    for number, capture in enumerate(captures):
        on_progress(f"reading {number + 1} of {len(captures)} captures, {n_flows} flows")
        most = min(most_per_capture, most_flows - n_flows)
        try:
            part = _first_flows(capture, representation, most)
        except CaptureError as error:
            on_error(error)
            continue
        if len(part):
            parts.append(part)
            n_flows += len(part)
        if n_flows >= most_flows:
            break
    if not parts:
        raise UsageError("got no flow from these captures, expected at least one; give captures with traffic")
    on_progress(f"answering {n_flows} flows in each precision")
    facts = machine_facts()
    return compare(checkpoint, concatenate_tokens(parts), threads=threads) | {
        "measured": {
            "cpu": facts["cpu"],
            "torch": facts["torch"],
            "date": datetime.now(UTC).date().isoformat(),
        }
    }


def _first_flows(capture: str, representation: Representation, most: int) -> TokenBatch:
    """Tokens of the first flows of a capture, at most so many."""
    parts: list[TokenBatch] = []
    left = most
    for _, tokens in tokens_of_capture(capture, representation, FlowTableConfig()):
        parts.append(tokens.take(slice(0, left)))
        left -= len(parts[-1])
        if left == 0:
            break
    return concatenate_tokens(parts) if parts else TokenBatch({}, np.zeros(0, np.uint16))
