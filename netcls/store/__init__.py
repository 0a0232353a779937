"""The history of what was told, in one SQLite file: for the page, for the API and for fine-tuning from feedback."""

from netcls.store.filter import FlowFilter
from netcls.store.store import Store, StoreOptions

__all__ = ["FlowFilter", "Store", "StoreOptions"]
