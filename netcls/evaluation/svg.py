"""Plots as inline SVG: a few shapes and texts, coloured by the page's style sheet, nothing else.

Every text from outside goes through :func:`text`. Series are told apart by colour and by dash.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from netcls.text import printable

N_COLOURS: Final = 8  # classes c0 to c7 of the style sheet
_LABEL_CHARACTERS: Final = 34


def text(value: object) -> str:
    """Fit for a page: what would steer a terminal or a browser is written out."""
    return html.escape(printable(str(value)), quote=True)


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of a chart.

    Attributes:
        label: beside it.
        value: its length; may be below zero.
        low, high: ends of its interval; equal to ``value`` where there is none.
        colour: 0 to 7.
        note: shown behind the number.
    """

    label: str
    value: float
    low: float
    high: float
    colour: int = 0
    note: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """One series: its name and its points."""

    name: str
    points: Sequence[tuple[float, float]]


def bar_chart(bars: Sequence[Bar], title: str, *, digits: int = 3, least_range: float = 1.0) -> str:
    """Horizontal bars with whiskers, from zero."""
    high = max([least_range, *(bar.high for bar in bars)])
    low = min([0.0, *(bar.low for bar in bars)])
    left, width, step = 220, 400, 26
    height = step * len(bars) + 8

    def x(value: float) -> float:
        return left + (value - low) / (high - low) * width

    parts = [_open(left + width + 150, height, title)]
    parts.append(f'<line class="axis" x1="{x(0):.1f}" y1="0" x2="{x(0):.1f}" y2="{height}"/>')
    for number, bar in enumerate(bars):
        y = number * step + 6
        begin, end = sorted((x(0), x(bar.value)))
        parts.append(_text(left - 8, y + 14, _short(bar.label), "end", bar.label))
        parts.append(
            f'<rect class="c{bar.colour % N_COLOURS}" x="{begin:.1f}" y="{y}" width="{end - begin:.1f}" height="18"/>'
        )
        if bar.low < bar.high:
            parts.append(
                f'<line class="whisker" x1="{x(bar.low):.1f}" y1="{y + 9}" x2="{x(bar.high):.1f}" y2="{y + 9}"/>'
            )
        behind = max(x(bar.high), x(bar.value), x(0)) + 6
        parts.append(_text(behind, y + 14, f"{bar.value:.{digits}f} {bar.note}".strip(), "start"))
    return "".join([*parts, "</svg>"])


def line_plot(
    lines: Sequence[Line],
    title: str,
    x_label: str,
    y_label: str,
    *,
    x_ticks: Sequence[float],
    x_range: tuple[float, float] = (0.0, 1.0),
    y_range: tuple[float, float] = (0.0, 1.0),
    has_diagonal: bool = False,
    even_x: bool = False,
) -> str:
    """Lines over a common axis, with a legend below.

    Args:
        lines: in the order of the legend.
        title: for readers who do not see it.
        x_label: below the axis.
        y_label: beside the axis.
        x_ticks: values that are written at the axis.
        x_range: of the axis.
        y_range: of the axis.
        has_diagonal: draw y = x.
        even_x: put the ticks at even distances, whatever their values (1, 2, 4, 8 ...).
    """
    left, top, width, height = 52, 10, 400, 260
    places = {tick: number / max(len(x_ticks) - 1, 1) for number, tick in enumerate(x_ticks)}

    def x(value: float) -> float:
        share = places[value] if even_x else (value - x_range[0]) / (x_range[1] - x_range[0])
        return left + share * width

    def y(value: float) -> float:
        return top + (1 - (value - y_range[0]) / (y_range[1] - y_range[0])) * height

    legend = 20 * len(lines)
    parts = [_open(left + width + 20, top + height + 52 + legend, title)]
    for number in range(6):
        value = y_range[0] + (y_range[1] - y_range[0]) * number / 5
        parts.append(
            f'<line class="grid" x1="{left}" y1="{y(value):.1f}" x2="{left + width}" y2="{y(value):.1f}"/>'
        )
        parts.append(_text(left - 6, y(value) + 4, f"{value:.1f}", "end"))
    parts.extend(_text(x(tick), top + height + 16, f"{tick:g}", "middle") for tick in x_ticks)
    if has_diagonal:
        parts.append(
            f'<line class="whisker" x1="{x(0):.1f}" y1="{y(0):.1f}" x2="{x(1):.1f}" y2="{y(1):.1f}"/>'
        )
    for number, line in enumerate(lines):
        style = f"l{number % N_COLOURS}"
        points = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in line.points)
        parts.append(f'<polyline class="line {style}" points="{points}"/>')
        parts.extend(
            f'<circle class="c{number % N_COLOURS}" cx="{x(a):.1f}" cy="{y(b):.1f}" r="3"/>'
            for a, b in line.points
        )
        at = top + height + 56 + 20 * number
        parts.append(f'<line class="line {style}" x1="{left}" y1="{at - 4}" x2="{left + 26}" y2="{at - 4}"/>')
        parts.append(_text(left + 32, at, _short(line.name), "start", line.name))
    parts.append(_text(left + width / 2, top + height + 34, x_label, "middle"))
    parts.append(
        f'<text transform="translate(12 {top + height / 2}) rotate(-90)" text-anchor="middle">{text(y_label)}</text>'
    )
    return "".join([*parts, "</svg>"])


def heat_map(matrix: Sequence[Sequence[int]], rows: Sequence[str], columns: Sequence[str], title: str) -> str:
    """Counts as squares, darker for a larger share of its row; each says what it is when pointed at."""
    cell = 22 if len(columns) <= 20 else 14
    left, top = 190, 130
    width, height = left + cell * len(columns) + 70, top + cell * len(rows) + 10
    parts = [_open(width, height, title)]
    for number, name in enumerate(columns):
        at = left + cell * number + cell / 2 + 4
        parts.append(
            f'<text transform="translate({at:.0f} {top - 6}) rotate(-60)">{text(_short(name, 20))}</text>'
        )
    for i, (name, counts) in enumerate(zip(rows, matrix, strict=True)):
        y, total = top + cell * i, max(sum(counts), 1)
        parts.append(_text(left - 6, y + cell / 2 + 4, _short(name, 26), "end", name))
        for j, count in enumerate(counts):
            x, share = left + cell * j, count / total
            kind = "hit" if name == columns[j] else "miss"
            what = f"{name} answered as {columns[j]}: {count} of {total}"
            parts.append(
                f'<rect class="cell {kind}" x="{x}" y="{y}" width="{cell - 1}" height="{cell - 1}" '
                f'fill-opacity="{share:.3f}"><title>{text(what)}</title></rect>'
            )
            if cell >= 20 and count:
                parts.append(
                    f'<text class="count" x="{x + cell / 2 - 0.5}" y="{y + cell / 2 + 3.5}">{count}</text>'
                )
    return "".join([*parts, "</svg>"])


def _open(width: float, height: float, title: str) -> str:
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" role="img" '
        f'aria-label="{text(title)}">'
    )


def _text(x: float, y: float, words: str, anchor: str, whole: str = "") -> str:
    title = f"<title>{text(whole)}</title>" if whole and whole != words else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text(words)}{title}</text>'


def _short(words: str, most: int = _LABEL_CHARACTERS) -> str:
    return words if len(words) <= most else words[: most - 1] + "…"
