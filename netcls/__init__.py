"""netcls: classifies the flows of captures and live interfaces with a pretrained model, on a plain CPU.

    import netcls
    model = netcls.load("default")
    for event in netcls.classify("a.pcap", model=model):
        print(event["netcls"]["label"])

``import netcls`` is light: numpy, numba and torch are imported by the first use of a name that needs them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from capture.errors import NetclsError
    from netcls.api import Result, classify, finetune, load
    from netcls.sklearn_api import Flows, TrafficClassifier
    from netcls.stream import Stream, sniff

    __version__: str

__all__ = [
    "Flows",
    "NetclsError",
    "Result",
    "Stream",
    "TrafficClassifier",
    "__version__",
    "classify",
    "finetune",
    "load",
    "sniff",
]

_HOME = {
    "Flows": "netcls.sklearn_api",
    "NetclsError": "capture.errors",
    "Result": "netcls.api",
    "Stream": "netcls.stream",
    "TrafficClassifier": "netcls.sklearn_api",
    "classify": "netcls.api",
    "finetune": "netcls.api",
    "load": "netcls.api",
    "sniff": "netcls.stream",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("netcls")
    if name not in _HOME:
        raise AttributeError(f"module 'netcls' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
