"""What brings events, made from the configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from netcls.live import LiveOptions, LiveRun
from netcls.pipeline import Answerer, RunOptions

if TYPE_CHECKING:
    from netcls.daemon.config import ServeConfig
    from netcls.live_open import Opened


def run_options(config: ServeConfig) -> RunOptions:
    """What files and interfaces share."""
    names = RunOptions.__dataclass_fields__
    given = {name: getattr(config, name) for name in names if hasattr(config, name)}
    return RunOptions(**given | {"memory_limit_bytes": config.memory_limit_mib << 20})


def live_run(opened: Opened, config: ServeConfig, answerer: Answerer) -> LiveRun:
    """Of interfaces that are open."""
    names = LiveOptions.__dataclass_fields__
    given = {name: getattr(config, name) for name in names if hasattr(config, name)}
    options = LiveOptions(**given | {"memory_limit_bytes": config.memory_limit_mib << 20, "is_daemon": True})
    run = LiveRun(opened.sources(), options, answerer=answerer)
    run.warnings[:0] = opened.warnings
    return run
