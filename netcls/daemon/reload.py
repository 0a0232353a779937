"""What ``reload`` and SIGHUP do: everything is made ready first, then taken over at once, or nothing is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from capture.errors import CheckpointError
from netcls.daemon.config import RELOADABLE, ServeConfig

if TYPE_CHECKING:
    from netcls.daemon.appliance import Appliance
    from netcls.pipeline import Answerer


def reload_appliance(appliance: Appliance, reread: Callable[[], ServeConfig] | None) -> str:
    """Take over what has changed in the configuration, and the model as its folder is now.

    Returns:
        What changed, in a line.

    Raises:
        NetclsError: for a file that cannot be used, or a model that cannot stand in; nothing has changed then.
    """
    old = appliance.config
    new = old if reread is None else reread()
    changed = new.changed(old)
    need_restart = [name for name in changed if name not in RELOADABLE]
    taken = [name for name in changed if name in RELOADABLE]
    wanted = dataclasses.replace(old, **{name: getattr(new, name) for name in taken})
    answerers = _models(appliance, wanted)
    appliance.config = wanted
    try:
        came, gone = appliance.change_outputs(wanted.output)
    except BaseException:
        appliance.config = old
        for answerer in answerers.values():
            if answerer not in appliance.answerers.values():
                answerer.close()
        raise
    said = [*_swap(appliance, answerers)]
    said += [f"output {uri} added" for uri in came] + [f"output {uri} removed" for uri in gone]
    said += [f"{name} is now {getattr(wanted, name)}" for name in taken if name not in _SAID_ELSEWHERE]
    said += [f"{name} needs a restart and stays as it was" for name in need_restart]
    return "; ".join(said) or "nothing changed, sinks reopened"


_SAID_ELSEWHERE = ("model", "small_model", "output")


def _models(appliance: Appliance, wanted: ServeConfig) -> dict[str, Answerer]:
    """The models of a configuration: those in use where their folders have not changed."""
    names = {"main": wanted.model} | ({"small": wanted.small_model} if wanted.small_model else {})
    present = appliance.answerers["main"]
    made: dict[str, Answerer] = {}
    try:
        for role, name in names.items():
            answerer = appliance.load(name)
            made[role] = answerer
            if not answerer.reads_like(present):
                raise CheckpointError(
                    f"{'model' if role == 'main' else 'small_model'}: got '{name}', which reads "
                    f"{answerer.name.representation}; expected {present.name.representation} with the settings of the "
                    f"running model, whose packets are kept of open flows; restart netcls to change the representation"
                )
    except BaseException:
        for answerer in made.values():
            answerer.close()
        raise
    for role, answerer in list(made.items()):
        old = appliance.answerers.get(role)
        if old is not None and old.name == answerer.name and wanted.top == appliance.config.top:
            answerer.close()
            made[role] = old
    return made


def _swap(appliance: Appliance, answerers: dict[str, Answerer]) -> list[str]:
    before, appliance.answerers = appliance.answerers, answerers
    appliance.policy.has_small_model = "small" in answerers
    said = []
    for role in {*before, *answerers}:
        old, new = before.get(role), answerers.get(role)
        if old is not new:
            texts = [f"{a.name.name} ({a.name.checkpoint})" if a else "none" for a in (old, new)]
            said.append(f"{role} model {texts[0]} -> {texts[1]}")
    appliance.choose_model()
    for old in before.values():
        if old not in answerers.values():
            appliance.retire(old)
    return said
