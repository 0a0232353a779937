"""JSON of a file that may be hostile: bounded in size and depth, no duplicate keys, no NaN."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, NoReturn

from capture.errors import CheckpointError

MAX_JSON_BYTES: Final = 8 << 20
MAX_JSON_DEPTH: Final = 32


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        CheckpointError: if it is too large, too deep, not UTF-8, not JSON, or has a key twice.
    """
    size_bytes = path.stat().st_size
    if size_bytes > MAX_JSON_BYTES:
        raise CheckpointError(f"{path}: got {size_bytes} bytes of JSON, expected at most {MAX_JSON_BYTES}")
    return parse_json(path.read_bytes(), str(path))


def parse_json(text: bytes, where: str) -> Any:
    """The value of a JSON text; ``where`` names it in the error.

    Raises:
        CheckpointError: as :func:`read_json`.
    """
    try:
        value = json.loads(text.decode(), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except RecursionError:
        raise CheckpointError(
            f"{where}: got JSON nested too deep, expected at most {MAX_JSON_DEPTH} levels"
        ) from None
    except ValueError as error:  # includes UnicodeDecodeError and JSONDecodeError
        raise CheckpointError(
            f"{where}: got no valid JSON ({error}); fetch or write the file again"
        ) from None
    if _deeper_than(value, MAX_JSON_DEPTH):
        raise CheckpointError(f"{where}: got JSON nested too deep, expected at most {MAX_JSON_DEPTH} levels")
    return value


def canonical_json(value: Any) -> bytes:
    """The same bytes for equal JSON values: sorted keys, no spaces, UTF-8."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode("utf-8", "surrogatepass")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twice[:80]!r} stands twice")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _deeper_than(value: Any, depth: int) -> bool:
    """Whether lists and objects are nested more than ``depth`` levels; level by level, no recursion."""
    level = [value]
    for _ in range(depth):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
        if not inner:
            return False
        level = inner
    return any(isinstance(item, dict | list) for item in level)
