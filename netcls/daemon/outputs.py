"""Runners for the URIs of ``--output``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from netcls.sinks.runner import SinkRunner
from netcls.sinks.uri import parse_uri

if TYPE_CHECKING:
    from netcls.daemon.config import ServeConfig
    from netcls.sinks.base import Sink


def runner_settings(uri: str, config: ServeConfig) -> tuple[int, str]:
    """Queue size and policy of a sink: what its URI says, or else the command.

    Raises:
        UsageError: for a URI that cannot be.
    """
    parsed = parse_uri(uri)
    return parsed.queue_events(config.queue_events), parsed.when_full(config.policy)


def sink_of(uri: str, taken: Iterable[str]) -> Sink:
    """The sink of a URI under a name that is not taken: ``file``, ``file-2``.

    Raises:
        UsageError: for a URI that cannot be, or a library that is missing.
    """
    parsed = parse_uri(uri)
    names = set(taken)
    name, number = parsed.name, 1
    while name in names:
        number += 1
        name = f"{parsed.name}-{number}"
    return parsed.sink(name)


def names_of(runners: Iterable[SinkRunner]) -> list[str]:
    """Names that are taken."""
    return [runner.name for runner in runners]
