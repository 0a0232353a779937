"""The walks behave the same compiled with bounds checks, and not compiled at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
UNIT = ["tests/unit/capture/test_readers.py", "tests/unit/capture/test_readers_pcapng.py"]
DAMAGED = "tests/property/test_readers.py::test_a_damaged_capture_gives_what_the_twin_gives"


@pytest.mark.parametrize(
    ("variable", "tests"), [("NUMBA_BOUNDSCHECK", [*UNIT, DAMAGED]), ("NUMBA_DISABLE_JIT", UNIT)]
)
def test_the_readers_pass_under(variable: str, tests: list[str], tmp_path: Path) -> None:
    # A cache of its own: the kernels of the usual one were compiled without the checks.
    environment = os.environ | {variable: "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
