"""Imports go netcls -> models -> capture, and capture runs without torch."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import capture
import models
import netcls

PACKAGES = {package.__name__: Path(str(package.__file__)).parent for package in (capture, models, netcls)}

FORBIDDEN = {
    "capture": {"models", "netcls", "torch", "safetensors"},
    "models": {"netcls", "socket", "capture.readers", "capture.decode", "capture.flow_table"},
    "netcls": set(),
}


def imported_names(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide which room is meant"
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_no_room_imports_a_room_further_along(package):
    files = sorted(PACKAGES[package].rglob("*.py"))
    assert files
    for path in files:
        for name in imported_names(path):
            wrong = [bad for bad in FORBIDDEN[package] if name == bad or name.startswith(bad + ".")]
            assert not wrong, f"{path} imports {name}"


def modules_after(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", code + "\nimport sys; print('\\n'.join(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ,
    )
    return {line.split(".")[0] for line in done.stdout.split()}


def test_the_capture_side_runs_without_torch():
    code = "import capture.decode, capture.flow_table, capture.readers, capture.representations, capture.community_id"
    assert "torch" not in modules_after(code)


def test_import_netcls_is_light():
    assert not {"torch", "numba", "rich", "pyarrow"} & modules_after("import netcls")
