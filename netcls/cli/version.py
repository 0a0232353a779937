"""``netcls --version``, told from what is installed without importing it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from capture.errors import CheckpointError


def version_lines() -> list[str]:
    """One line each: netcls, torch, numba, and the id of the default checkpoint."""
    lines = [f"{name} {_version(name)}" for name in ("netcls", "torch", "numba")]
    return [*lines, f"default checkpoint {_default_checkpoint()}"]


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed"


def _default_checkpoint() -> str:
    from models.checkpoint import read_files, resolve_name

    try:
        folder = resolve_name("default")
        return f"{read_files(folder).digest} ({folder.name})"
    except CheckpointError as error:
        return f"unusable: {error}"
