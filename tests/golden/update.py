"""Write `expected.jsonl` of every golden case anew and show what changed: python -m tests.golden.update"""

from __future__ import annotations

import difflib
import sys

from tests.golden.test_golden import cases, lines_of


def main() -> None:
    for case in cases():
        expected = case / "expected.jsonl"
        before = expected.read_text().splitlines() if expected.exists() else []
        after = lines_of(case)
        sys.stdout.writelines(
            line + "\n"
            for line in difflib.unified_diff(before, after, str(expected), str(expected), lineterm="")
        )
        expected.write_text("".join(line + "\n" for line in after))


if __name__ == "__main__":
    main()
