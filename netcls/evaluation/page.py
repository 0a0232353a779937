"""The result of an evaluation as one HTML page: no network, no script, light and dark, fit for paper.

Names of classes, files and models come from outside; every one of them passes :func:`netcls.evaluation.svg.text`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any

from netcls.evaluation.shortcuts import LEAST_DROP
from netcls.evaluation.svg import Bar, Line, bar_chart, heat_map, line_plot, text

Row = Mapping[str, Any]

NOTHING = "-"
COLOUR_OF_KIND = {"model": 0, "trained": 1, "baseline": 7}


def page_of(result: Mapping[str, Any]) -> str:
    """The whole page.

    Args:
        result: from :func:`netcls.evaluating.run_evaluate`.
    """
    rows = [row for row in result["rows"] if not row["skipped"]]
    networks = [row for row in rows if row["kind"] != "baseline"]
    best = next(row for row in rows if row["name"] == result["best"])
    rival = next(row for row in rows if row["name"] == result["best_baseline"])
    body = [
        f"<h1>Evaluation on {text(result['data']['name'])}</h1>",
        f'<p class="verdict">{text(result["verdict"])}</p>',
        _warnings(result["warnings"]),
        _scores(result),
        _shortcuts(_shown(rows, best, rival)),
        _classes(best, rival),
        _confusion(best, result["labels"]),
        _calibration(networks, _shown(networks, best, rival)),
        _coverage(_shown(rows, best, rival)),
        _unknowns(rows, result),
        _after_packets(_shown(rows, best, rival)),
        _learning_curve(result),
        _speed(rows, result),
        _how(result),
    ]
    style = files("netcls.evaluation").joinpath("page.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>netcls: {text(result['data']['name'])}</title><style>{style}</style></head>\n"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def _shown(rows: Sequence[Row], best: Row, rival: Row) -> list[Row]:
    """Rows that a plot shows: the checkpoints, the best network, the best baseline and the one that was checked."""
    wanted = {best["name"], rival["name"]}
    return [
        row
        for row in rows
        if row["kind"] == "model"
        or row["name"] in wanted
        or (row["kind"] == "baseline" and row.get("shortcuts"))
    ]


def _section(title: str, *parts: str) -> str:
    inside = "".join(parts)
    return f"<section><h2>{text(title)}</h2>{inside}</section>\n" if inside else ""


def _words(sentence: str) -> str:
    return f"<p>{text(sentence)}</p>"


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; a column whose name begins with ``>`` holds right-aligned numbers."""
    style = ['class="n"' if name.startswith(">") else "" for name in columns]
    head = "".join(
        f"<th {at}>{text(name.removeprefix('>'))}</th>" for name, at in zip(columns, style, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(f"<td {at}>{text(_cell(value))}</td>" for value, at in zip(row, style, strict=True))
        + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(value: object) -> str:
    if value is None:
        return NOTHING
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return ""
    lines = "".join(f"<li>{text(line)}</li>" for line in warnings)
    return f'<div class="warnings"><b>Before you quote a number</b><ul>{lines}</ul></div>'


def _scores(result: Mapping[str, Any]) -> str:
    rows = sorted(
        (row for row in result["rows"] if not row["skipped"]), key=lambda row: row["macro_f1"], reverse=True
    )
    bars = [
        Bar(
            row["name"],
            row["macro_f1"],
            row["macro_f1_interval"][0],
            row["macro_f1_interval"][1],
            COLOUR_OF_KIND[row["kind"]],
        )
        for row in rows
    ]
    table = _table(
        ("name", "kind", ">macro-F1", ">95 % interval", ">accuracy", ">by capture", ">seeds", "sees"),
        (
            (
                row["name"],
                row["kind"],
                row["macro_f1"],
                "{:.3f} to {:.3f}".format(*row["macro_f1_interval"]),
                row["accuracy"],
                row["vote_by_capture"]["accuracy"],
                len(row["seeds"]) or NOTHING,
                row["sees"] + _budget(row),
            )
            for row in rows
        ),
    )
    skipped = [row for row in result["rows"] if row["skipped"]]
    missing = "".join(_words(f"Not run: {row['name']}: {row['skipped']}") for row in skipped)
    test = rows[0]
    legend = (
        f"Macro-F1 on {test['test_flows']} test flows of {len(result['labels'])} classes. Whiskers: 95 % interval, "
        f"bootstrap over {test['bootstrap_groups']} groups (not over flows). By capture: accuracy of one vote for all "
        "flows of a class in a capture. Blue: checkpoints, orange: trained here, grey: baselines."
    )
    return _section("Who does best", bar_chart(bars, "macro-F1 of each"), _words(legend), table, missing)


def _budget(row: Row) -> str:
    """What the row was allowed, and whether its score counts."""
    training = row.get("training")
    void = " · VOID: trained on captures that are tested here" if row.get("is_void") else ""
    return (f" · {training['budget']}" if training else "") + void


def _classes(best: Row, rival: Row) -> str:
    other = {of_class["label"]: of_class for of_class in rival["per_class"]}
    table = _table(
        ("class", ">test flows", ">precision", ">recall", ">F1", f">F1 of {rival['name']}"),
        (
            (
                of_class["label"],
                of_class["support"],
                of_class["precision"],
                of_class["recall"],
                of_class["f1"],
                other[of_class["label"]]["f1"],
            )
            for of_class in best["per_class"]
        ),
    )
    return _section(f"Class by class: {best['name']}", table)


def _confusion(best: Row, labels: Sequence[str]) -> str:
    matrix = best["confusion_matrix"]
    columns = [j for j in range(len(matrix)) if j < len(labels) or any(line[j] for line in matrix)]
    names = [labels[j] if j < len(labels) else "(other label)" for j in columns]
    tested = [i for i in range(len(labels)) if any(matrix[i])]
    counts = [[matrix[i][j] for j in columns] for i in tested]
    picture = heat_map(counts, [labels[i] for i in tested], names, "confusion matrix")
    return _section(
        "What is taken for what",
        f'<div class="wide">{picture}</div>',
        _words(
            "A row is the true class, a column the answer; darker is a larger share of the row. Flows of all seeds."
        ),
    )


def _calibration(networks: Sequence[Row], shown: Sequence[Row]) -> str:
    lines = [
        Line(row["name"], [(at["confidence"], at["accuracy"]) for at in row["calibration"]["reliability"]])
        for row in shown
    ]
    ticks = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    plot = line_plot(lines, "reliability", "how sure", "how often right", x_ticks=ticks, has_diagonal=True)
    names = ("temperature", "ece_before", "ece_after", "ece_refitted", "nll_after", "brier_after")
    table = _table(
        ("name", ">temperature", ">ECE raw", ">ECE calibrated", ">ECE refitted on DATA", ">NLL", ">Brier"),
        ((row["name"], *(row["calibration"].get(name) for name in names)) for row in networks),
    )
    words = "On the dashed line an answer given with 80 % is right in 80 % of the cases; below, the model is too sure."
    return _section(
        "Can its percentages be believed?", plot, _words(words), table, *_why_not_calibrated(networks)
    )


def _why_not_calibrated(networks: Sequence[Row]) -> list[str]:
    """Where the error is not small: the likeliest reason, and whether a temperature of DATA's own would help."""
    sentences = []
    for row in networks:
        calibration = row["calibration"]
        comment, refitted = calibration.get("comment", ""), calibration.get("ece_refitted")
        if comment and refitted is not None and refitted < calibration["ece_after"] - 0.01:
            comment = (
                f"The calibration error is {calibration['ece_after']:.3f}; a temperature fitted on DATA brings it to "
                f"{refitted:.3f}, so the model was calibrated on other traffic."
            )
        if comment:
            sentences.append(_words(f"{row['name']}: {comment}"))
    return sentences


def _coverage(rows: Sequence[Row]) -> str:
    lines = [Line(row["name"], [(at["coverage"], at["accuracy"]) for at in row["coverage"]]) for row in rows]
    ticks = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    plot = line_plot(
        lines, "accuracy at coverage", "share of flows that get an answer", "accuracy", x_ticks=ticks
    )
    words = "If only the flows with the surest answers are answered: how many are left, how many of these are right."
    return _section("Answering less, being right more", plot, _words(words))


def _unknowns(rows: Sequence[Row], result: Mapping[str, Any]) -> str:
    measured = [row for row in rows if row.get("unknown")]
    if not measured:
        return ""
    table = _table(
        (
            "name",
            "score",
            ">AUROC",
            ">known flows lost where 95 % of unknown ones are found",
            ">unknown flows",
        ),
        (
            (row["name"], one["score"], one["auroc"], one["fpr_at_95_tpr"], row["unknown"]["flows"])
            for row in measured
            for one in row["unknown"]["scores"]
        ),
    )
    words = (
        f"Classes that nothing here has learnt: {', '.join(result['unknown_labels'])}. AUROC 0.5 is a guess."
    )
    return _section("Does it know what it does not know?", _words(words), table)


def _after_packets(rows: Sequence[Row]) -> str:
    measured = [row for row in rows if row.get("after_packets")]
    if not measured:
        return ""
    ticks = sorted({point["packets"] for row in measured for point in row["after_packets"]})
    lines = [
        Line(row["name"], [(point["packets"], point["accuracy"]) for point in row["after_packets"]])
        for row in measured
    ]
    plot = line_plot(lines, "accuracy after packets", "packets seen", "accuracy", x_ticks=ticks, even_x=True)
    words = "Accuracy if each flow ended after so many packets. Shorter flows count as they are."
    return _section("How early is it right?", plot, _words(words))


def _shortcuts(rows: Sequence[Row]) -> str:
    parts = []
    for row in rows:
        checks = [check for check in row.get("shortcuts", []) if check["changed_flows"]]
        if not checks:
            continue
        bars = []
        for check in sorted(checks, key=lambda check: check["drop"], reverse=True):
            drop = check["drop"]
            bars.append(Bar(check["group"], drop, drop, drop, 3 if check["is_shortcut"] else 7))
            if "retrained" in check:
                again = check["retrained"]
                bars.append(
                    Bar(
                        "trained without it",
                        again["drop"],
                        again["drop_interval"][0],
                        again["drop_interval"][1],
                        1,
                    )
                )
        picture = bar_chart(bars, f"drop in macro-F1 of {row['name']}", least_range=0.1)
        verdict = f"{row['shortcut_verdict']} {row.get('retrained_verdict', '')}".strip()
        parts += [f"<h3>{text(row['name'])}</h3>", _words(verdict), picture]
    if not parts:
        return ""
    words = (
        "Each field is exchanged between test flows at random, so that it says nothing any more; the bar is the "
        f"macro-F1 that this costs. Red: a field that names a place, a host or a recording and costs more than "
        f"{LEAST_DROP:.0%}: a shortcut. Other fields are what the traffic does, and may matter. Orange: what "
        "training again with the field removed from all flows costs, with its 95 % interval (one seed)."
    )
    return _section("Does it take a shortcut?", _words(words), *parts)


def _learning_curve(result: Mapping[str, Any]) -> str:
    curves = result.get("learning_curve") or []
    if not curves:
        return ""
    ticks = sorted({point["shots"] for curve in curves for point in curve["points"]})
    lines = [
        Line(curve["name"], [(point["shots"], point["macro_f1"]) for point in curve["points"]])
        for curve in curves
    ]
    plot = line_plot(
        lines, "learning curve", "labelled flows of each class", "macro-F1", x_ticks=ticks, even_x=True
    )
    table = _table(
        ("name", ">flows of each class", ">macro-F1", ">95 % interval", ">accuracy"),
        (
            (
                curve["name"],
                point["shots"],
                point["macro_f1"],
                "{:.3f} to {:.3f}".format(*point["macro_f1_interval"]),
                point["accuracy"],
            )
            for curve in curves
            for point in curve["points"]
        ),
    )
    return _section("How many labels does it need?", plot, table)


def _speed(rows: Sequence[Row], result: Mapping[str, Any]) -> str:
    table = _table(
        ("name", ">flows a second", ">ms for one flow, median", ">95 %"),
        (
            (
                row["name"],
                f"{row['speed']['flows_per_s']:.0f}",
                f"{row['speed']['latency_ms_p50']:.2f}",
                f"{row['speed']['latency_ms_p95']:.2f}",
            )
            for row in rows
        ),
    )
    machine = result["machine"]
    words = (
        f"From raw flow to answer, wall time, on {machine['cpu']} with {machine['cores']} usable cores; other work on "
        "the machine is in it. `netcls bench` measures without that."
    )
    return _section("How fast is it?", _words(words), table)


def _how(result: Mapping[str, Any]) -> str:
    split, data = result["split"], result["data"]
    parts = _table(
        ("part", ">flows", ">captures", ">groups", ">classes", ">repeated inputs removed"),
        (
            (name, *(part[key] for key in ("flows", "captures", "groups", "classes", "duplicates_removed")))
            for name, part in split["parts"].items()
        ),
    )
    facts = [
        ("command", result.get("command", NOTHING)),
        ("split", split["description"]),
        ("seeds", ", ".join(map(str, result["seeds"]))),
        ("netcls", f"{result['code']['netcls']}, commit {result['code']['commit'] or 'unknown'}"),
        ("test captures", f"SHA-256 over their SHA-256: {data['test_captures_sha256']}"),
        (
            "captures",
            f"{data['captures']} read, {data['captures_unreadable']} not readable, {data['captures_cut']} cut",
        ),
        ("flows", f"{data['flows_seen']} seen, {data['flows_labelled']} labelled, {data['flows']} used"),
        ("limit", f"{data['max_flows_per_capture'] or 'no limit of'} flows of a class from a capture"),
        *((row["name"], f"checkpoint {row['checkpoint']}") for row in result["rows"] if "checkpoint" in row),
        *(
            (f"{row['name']} is given", row["training"]["base"]["sees"])
            for row in result["rows"]
            if "sees" in row.get("training", {}).get("base", {})
        ),
        *((name, value) for name, value in result["machine"].items()),
        ("took", f"{result['seconds']:.0f} s"),
    ]
    return _section("How this was made", parts, _table(("", ""), facts))
