"""What bench_end_to_end.py measured, as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

TOO_SHORT = "too short to tell"


def markdown(result: dict[str, Any]) -> str:
    """The sections that were measured."""
    machine, settings = result["machine"], result["settings"]
    versions = ", ".join(
        f"{name} {machine[name]}" for name in ("python", "netcls", "numpy", "numba", "torch")
    )
    head = (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}; {versions}. Load average "
        f"{result['load_before']:.1f} before, {result['load_after']:.1f} after; {settings['rounds']} rounds, "
        f"snaplen {settings['snaplen']}, seed {settings['seed']}.\n"
        "CPU seconds are user and system of the whole process tree; medians, (least..most); work is CPU time less that "
        "of a capture of one packet."
    )
    parts = [head]
    for section, write in (
        ("packets", _packets),
        ("model", _model),
        ("answers", _answers),
        ("start_up", _start_up),
    ):
        if section in result:
            parts += write(result[section])
    return "\n\n".join(parts) + "\n"


def _packets(measured: dict[str, Any]) -> list[str]:
    size = f"{measured['packets']:,} packets, {measured['flows']:,} flows"
    head = f"**Packets to flow records and to model input**: {size}"
    return [head, _roads(measured), _ratios(measured)]


def _answers(measured: dict[str, Any]) -> list[str]:
    head = (
        f"**Packets to answers**: NetMamba of the paper's sizes, float32, one thread; {measured['packets']:,} packets, "
        f"{measured['flows']:,} flows"
    )
    n_flows = measured["extrapolated_flows"]
    rows = [[name, f"{cpu_s:,.0f}"] for name, cpu_s in measured["extrapolated_cpu_s"].items()]
    title = f"CPU s for {n_flows:,} flows, extrapolated from {measured['flows']:,}"
    return [head, _roads(measured), _ratios(measured), _table(["road", title], rows)]


def _model(measured: dict[str, Any]) -> list[str]:
    batch = measured["batch"]
    rows = [
        [name, _rates(batch, measured[key])]
        for name, key in (("netcls", "ours_cpu_s"), ("plain PyTorch, scan step by step", "plain_cpu_s"))
    ]
    head = (
        f"**The network alone**: same weights, same flows, batch {batch}, one thread, float32; the logits differ by "
        f"{measured['logit_difference']:.1e} at most"
    )
    ratio = measured["ratio"]
    rows.append(["netcls is faster by", _times(ratio)])
    return [head, _table(["", "flows per CPU s"], rows)]


def _start_up(rows: list[dict[str, Any]]) -> list[str]:
    cells = [
        [
            row["name"],
            row["kernel_cache"],
            f"{row['cpu_s']:.2f}",
            f"{row['wall_s']:.2f}",
            f"{row['peak_mib']:.0f}",
            str(row["runs"]),
        ]
        for row in rows
    ]
    head = "**Start-up**: help; a capture of one packet; the first answer of a model"
    return [head, _table(["command", "kernel cache", "CPU s", "wall s", "peak MiB", "runs"], cells)]


def _roads(measured: dict[str, Any]) -> str:
    columns = ["road", "packets counted", "flows counted", "CPU s", "start-up CPU s"]
    columns += ["packets per CPU s", "of work", "flows per CPU s", "of work", "peak MiB"]
    rows = []
    for road in measured["roads"]:
        start_up_s = statistics.median(road["start_up_cpu_s"])
        counted = [road["packets_counted"], road["flows_counted"]]
        rows.append(
            [
                road["name"],
                *("" if n is None else f"{n:,}" for n in counted),
                _spread(road["cpu_s"], 2),
                f"{start_up_s:.2f}",
                _median_rate(measured["packets"], road["cpu_s"]),
                _median_rate(measured["packets"], road["work_cpu_s"]),
                _median_rate(measured["flows"], road["cpu_s"]),
                _median_rate(measured["flows"], road["work_cpu_s"]),
                f"{road['peak_mib']:.0f}",
            ]
        )
    return _table(columns, rows)


def _ratios(measured: dict[str, Any]) -> str:
    rows = [
        [f"{row['ours']} against {row['theirs']}", _times(row["work"]), _times(row["whole"])]
        for row in measured["ratios"]
    ]
    return _table(["faster by", "work", "start-up included"], rows)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _spread(values: Sequence[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}..{max(values):.{digits}f})"


def _median_rate(n: int, seconds: Sequence[float]) -> str:
    return _three_digits(n / statistics.median(seconds)) if seconds else TOO_SHORT


def _rates(n: int, seconds: Sequence[float]) -> str:
    rates = [n / value for value in seconds]
    least, most = (_three_digits(rate) for rate in (min(rates), max(rates)))
    return f"{_three_digits(statistics.median(rates))} ({least}..{most})"


def _times(ratio: dict[str, float] | None) -> str:
    if ratio is None:
        return TOO_SHORT
    return f"{ratio['median']:.1f} x ({ratio['min']:.1f}..{ratio['max']:.1f})"


def _three_digits(value: float) -> str:
    digits = f"{value:.3g}"
    return f"{float(digits):,.0f}" if value >= 100 else digits
