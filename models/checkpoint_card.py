"""The card of a checkpoint as a page for people."""

from __future__ import annotations

from typing import Any


def render_card(name: str, config: dict[str, Any], labels: list[str], card: dict[str, Any]) -> str:
    """Markdown of a card: a table of what the checkpoint is, then each entry of the card under its own heading.

    Args:
        name: of the checkpoint.
        config: the value of ``config.json``.
        labels: label names.
        card: any JSON object; ``title`` and ``summary`` are shown first.

    Returns:
        The text of ``README.md``.
    """
    representation = config["representation"]
    lines = [
        f"# {_text(card.get('title', name))}",
        "",
        *([_text(card["summary"]), ""] if "summary" in card else []),
        "| | |",
        "|---|---|",
        f"| kind | {config['kind']} |",
        *([f"| task | {_text(config['task'])} |"] if "task" in config else []),
        f"| family | {config['family']} |",
        f"| input | {representation['name']}-{representation['version']} |",
    ]
    lines += [f"| {key} | {_text(value)} |" for key, value in representation["settings"].items()]
    lines += ["", "## Labels", "", *(f"- {label}" for label in labels)] if labels else []
    for key, value in card.items():
        if key not in ("title", "summary"):
            lines += ["", f"## {_heading(key)}", "", *_block(value)]
    return "\n".join(lines) + "\n"


def _block(value: Any) -> list[str]:
    """A card entry: an object as a list of its keys, a list as a list, a table of equal objects as a table."""
    if (
        isinstance(value, list)
        and value
        and all(isinstance(row, dict) and row.keys() == value[0].keys() for row in value)
    ):
        columns = list(value[0])
        return [
            f"| {' | '.join(columns)} |",
            f"|{'---|' * len(columns)}",
            *(f"| {' | '.join(_text(row[column]) for column in columns)} |" for row in value),
        ]
    if isinstance(value, dict):
        return [f"- {key}: {_text(item)}" for key, item in value.items()]
    if isinstance(value, list):
        return [f"- {_text(item)}" for item in value]
    return [_text(value)]


def _text(value: Any) -> str:
    """One line; a number with four digits, a nested value as ``key value`` pairs."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(_text(item) for item in value)
    return " ".join(str(value).split())


def _heading(key: str) -> str:
    words = key.replace("_", " ")
    return words[:1].upper() + words[1:]
