"""docs/decode.md names what the decoder does."""

from __future__ import annotations

import re
from pathlib import Path

from capture import block
from capture.reject import Reject, is_ignored

PAGE = (Path(__file__).parents[3] / "docs" / "decode.md").read_text()


def reasons_in(text: str) -> list[str]:
    return re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)


def test_the_page_lists_every_reason_in_its_half() -> None:
    rejected, ignored = PAGE.split("Ignored: ")
    reasons = [reason for reason in Reject if reason is not Reject.DECODED]
    assert reasons_in(rejected) == [r.name.lower() for r in reasons if not is_ignored(r)]
    assert reasons_in(ignored) == [r.name.lower() for r in reasons if is_ignored(r)]


def test_the_page_lists_every_link_type() -> None:
    section = PAGE.split("## Link layers")[1].split("##")[0]
    listed = {
        int(n) for row in re.findall(r"^\| ([\d, ]+) \|", section, re.MULTILINE) for n in row.split(",")
    }
    assert listed == {value for name, value in vars(block).items() if name.startswith("LINK_")}
