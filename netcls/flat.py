"""Events as flat rows: the same fields, nested names joined by ``_``; the columns never depend on the data."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import msgspec

from netcls.event import Event, FlowPart, LabelProbability, NetclsPart, NumberPart, TunnelPart

_NESTED: Final[dict[str, type[msgspec.Struct]]] = {
    "tunnel": TunnelPart,
    "flow": FlowPart,
    "netcls": NetclsPart,
    "netcls_runner_up": LabelProbability,
    "netcls_number": NumberPart,
}


@cache
def column_names() -> tuple[str, ...]:
    """All columns, in the order of the event's fields."""
    return tuple(_names(Event, ""))


def flat_row(event: dict[str, Any]) -> dict[str, Any]:
    """One event (as :func:`netcls.event.as_dict` gives it) as column -> value; absent fields are absent."""
    row: dict[str, Any] = {}
    _flatten(event, "", row)
    return row


def _names(struct: type[msgspec.Struct], prefix: str) -> list[str]:
    names: list[str] = []
    for field in struct.__struct_fields__:
        name = prefix + field
        names += _names(_NESTED[name], f"{name}_") if name in _NESTED else [name]
    return names


def _flatten(part: dict[str, Any], prefix: str, row: dict[str, Any]) -> None:
    for field, value in part.items():
        if isinstance(value, dict):
            _flatten(value, f"{prefix}{field}_", row)
        else:
            row[prefix + field] = value
