"""Representations by name: what a model family reads of a flow."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from capture.errors import TokenizeError
from capture.representations.base import Representation, TokenBatch
from capture.representations.netfound import NetFoundRepresentation
from capture.representations.netmamba import NetMambaRepresentation
from capture.representations.netmamba_plus import NetMambaPlusRepresentation
from capture.representations.packets import PacketsRepresentation

__all__ = ["REPRESENTATIONS", "Representation", "TokenBatch", "build", "representation_id"]

REPRESENTATIONS: dict[str, Callable[..., Representation]] = {
    "netfound": NetFoundRepresentation,
    "netmamba": NetMambaRepresentation,
    "netmamba_plus": NetMambaPlusRepresentation,
    "packets": PacketsRepresentation,
}


def build(name: str, settings: dict[str, Any] | None = None) -> Representation:
    """The representation called ``name`` with ``settings``, missing ones at their defaults.

    Raises:
        TokenizeError: for an unknown name, an unknown setting, or a value that cannot be.
    """
    if name not in REPRESENTATIONS:
        raise TokenizeError(
            f"representation {name!r} is not known; choose one of {', '.join(REPRESENTATIONS)}"
        )
    kind = REPRESENTATIONS[name]
    known = list(inspect.signature(kind).parameters)
    for setting in settings or {}:
        if setting not in known:
            raise TokenizeError(
                f"representation {name} has no setting {setting!r}; it has {', '.join(known)}"
            )
    return kind(**(settings or {}))


def representation_id(representation: Representation) -> str:
    """Name and version as events show it, for example ``netmamba-1``."""
    return f"{representation.name}-{representation.version}"
