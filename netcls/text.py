"""Text that came from outside, made fit for a terminal."""

from __future__ import annotations

import re
from typing import Final

# Control characters steer a terminal (ESC sequences, C1), bidirectional ones reorder what is read,
# line separators break rows, lone surrogates cannot be encoded.
_UNSAFE: Final = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)


def printable(text: str) -> str:
    """The text with every character that a terminal would obey written out by its number."""
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)
