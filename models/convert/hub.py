"""Weights by the name that the Hugging Face hub has for them, or from a folder as it makes them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from capture.errors import CheckpointError, UsageError

WEIGHTS: Final = ("model.safetensors", "pytorch_model.bin")
_HUB_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def weights_file(place: str) -> Path:
    """The file of weights that a file, a folder or a name on the hub stands for; fetched if it must be.

    Args:
        place: path of a file; of a folder with one of :data:`WEIGHTS`; else ``OWNER/NAME`` on the hub.

    Raises:
        CheckpointError: if it cannot be fetched, or the folder has no such file.
        UsageError: if the hub's library is not installed.
    """
    path = Path(place)
    if path.is_dir():
        for name in WEIGHTS:
            if (path / name).is_file():
                return path / name
        raise CheckpointError(f"{path}: got a folder without {' or '.join(WEIGHTS)}, expected one of them")
    if path.exists() or not _HUB_NAME.fullmatch(place):
        return path
    return _fetched(place)


def _fetched(name: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
    except ImportError:
        raise UsageError(
            f"{name}: is no file or folder here; to fetch it by name from the hub, install netcls[hub]"
        ) from None
    try:
        return Path(hf_hub_download(name, WEIGHTS[0]))
    except RepositoryNotFoundError:
        raise CheckpointError(
            f"{name}: is no file or folder here and not on the hub; check the name"
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{name}: is no file or folder here and cannot be fetched from the hub ({first_line[:160]}); without a "
            f"network, fetch {WEIGHTS[0]} elsewhere and give its path"
        ) from None
