"""The history of what was told, in one SQLite file: for the page, for the API and for fine-tuning from feedback.

schema <- filter, kept <- store <- reading, feedback
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from netcls.store.filter import FlowFilter
    from netcls.store.store import Store, StoreOptions

__all__ = ["FlowFilter", "Store", "StoreOptions"]

_HOME = {"FlowFilter": "filter", "Store": "store", "StoreOptions": "store"}


def __getattr__(name: str) -> Any:
    # Whoever only asks whether a file is a store needs neither the events nor the sinks.
    if name not in _HOME:
        raise AttributeError(f"module 'netcls.store' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f"netcls.store.{_HOME[name]}"), name)
