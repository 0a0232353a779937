"""Which code made a result."""

from __future__ import annotations

import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def code_version() -> dict[str, str | None]:
    """Version of netcls, and the commit of its repository: ``+`` behind it where files were changed since.

    The commit is None for an installed package, also one that lies inside some other repository.
    """
    try:
        number: str | None = version("netcls")
    except PackageNotFoundError:
        number = None
    return {"netcls": number, "commit": _commit(Path(__file__).resolve())}


def _commit(file: Path) -> str | None:
    if _git(file, "ls-files", "--error-unmatch", file.name) is None:
        return None
    commit = _git(file, "rev-parse", "HEAD")
    changed = _git(file, "status", "--porcelain", "--untracked-files=no")
    return None if commit is None else commit + ("+" if changed else "")


def _git(file: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(file.parent), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
