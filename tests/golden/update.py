"""Write what is expected of every golden case anew and show what changed: python -m tests.golden.update"""

from __future__ import annotations

import difflib
import sys
from pathlib import Path

from tests.golden.test_golden import cases, lines_of
from tests.golden.test_golden_tokens import netfound_lines_of, token_lines_of


def update(expected: Path, after: list[str]) -> None:
    """Write a file's new lines and show the difference to the old ones."""
    before = expected.read_text().splitlines() if expected.exists() else []
    sys.stdout.writelines(
        line + "\n" for line in difflib.unified_diff(before, after, str(expected), str(expected), lineterm="")
    )
    expected.write_text("".join(line + "\n" for line in after))


def main() -> None:
    for case in cases():
        update(case / "expected.jsonl", lines_of(case))
        update(case / "expected_tokens.jsonl", token_lines_of(case))
        update(case / "expected_netfound_tokens.jsonl", netfound_lines_of(case))


if __name__ == "__main__":
    main()
