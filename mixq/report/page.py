"""report.html: one page that stands alone and tells what a study found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mixq import atomic
from mixq.report import plots
from mixq.report.headline import headline, metric_name, warnings
from mixq.report.markup import Markup, el, image, join, number, size_text, table
from mixq.report.opening import how_to_open
from mixq.report.style import CSS
from mixq.report.tables import layer_order, layer_table, trials_frame
from mixq.report.wall_time import seconds_of, wall_time
from mixq.searcher.trial import Trial

Summary = Mapping[str, Any]


def write_report(
    path: str | Path,
    summary: Summary,
    trials: Sequence[Trial],
    best: Trial | None,
    sensitivity: pd.DataFrame | None = None,
    kendall: Mapping[str, float] | None = None,
) -> None:
    """Write the page. `summary` is what summary.json holds; whatever it lacks is left out of the page.

    best: the configuration on disk, None where no trial met the constraints. sensitivity: columns as of
    SensitivityRow. kendall: Kendall's τ with the real drop by measure.
    """
    sections = (
        headline(summary, best),
        warnings(summary, best),
        _front(summary, trials, best),
        _layers(best, sensitivity),
        _training_gains(summary),
        _sensitivity(best or next(iter(trials), None), sensitivity, kendall),
        _robustness(summary),
        _wall_time(summary, trials),
        _machine(summary),
        how_to_open(str(summary.get("runtime", ""))),
        _trials(trials, best),
    )
    title = f"mixq: {summary.get('task', 'report')}"
    head = el("head", Markup(HEAD), el("title", title), el("style", Markup(CSS)))
    heading = el("header", el("h1", title), el("p", f"study {summary.get('study', '–')}", class_="quiet"))
    body = el("body", heading, el("main", *sections))
    atomic.write_text(path, f"<!DOCTYPE html>\n{el('html', head, body, lang='en')}\n")


# The policy makes the browser itself refuse whatever would come from outside this file.
HEAD = (
    '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    '<meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">"
)


def _front(summary: Summary, trials: Sequence[Trial], best: Trial | None) -> Markup:
    limit = (summary.get("constraints") or {}).get("max_drop")
    figure = plots.pareto_figure(trials, best, metric_name(summary), limit)
    return el("section", el("h2", "What a drop buys"), image(plots.svg(figure), "Speed-up over drop of every trial"))


def _layers(best: Trial | None, sensitivity: pd.DataFrame | None) -> Markup:
    if best is None:
        return Markup("")
    config = best.config
    steps = [f"{step.name} {dict(step.params) or ''}".strip() for step in config.recipe]
    facts = f"Everything that is not a layer: {config.rest}. Recipe: {', '.join(steps) or 'none'}."
    if best.evaluation is not None and best.evaluation.conversions is not None:
        facts += f" {best.evaluation.conversions} executed conversions between floats and codes."
    if config.training is not None:
        facts += f" Training: {config.training}"
        facts += f", {best.evaluation.train_s:.0f} s." if best.evaluation is not None else "."
    chips = [join(_chip(scheme), f" {count} ") for scheme, count in config.counts().items()]
    rows = [_layer_row(row) for row in layer_table(best, sensitivity).to_dict("records")]
    numeric = ("time (µs)", "SQNR (dB)", "KL (nats)")
    return el(
        "section",
        el("h2", "The configuration"),
        el("p", *chips),
        el("p", facts, f" Configuration {config.id}."),
        table(("layer", "asked", "executed", "kernel", *numeric), rows, numeric),
    )


def _layer_row(row: Mapping[Any, Any]) -> Markup:
    cells = [el("td", el("code", row["layer"])), el("td", _chip(row["asked"]))]
    cells += [el("td", _chip(row["executed"] or "–")), el("td", row["kernel"] or "–", class_="quiet")]
    cells += [el("td", number(row[name], 3), class_="n") for name in ("time_us", "sqnr_db", "kl")]
    return el("tr", *cells, class_="silent") if row["silent"] else el("tr", *cells)


def _chip(scheme: str) -> Markup:
    return el("span", scheme, class_=f"chip {scheme.split('-', maxsplit=1)[0]}")


def _sensitivity(known: Trial | None, rows: pd.DataFrame | None, kendall: Mapping[str, float] | None) -> Markup:
    if rows is None or rows.empty:
        return Markup("")
    figure = plots.sensitivity_figure(rows, layer_order(known) if known else None)
    parts = [el("h2", "Which layers hurt"), image(plots.svg(figure), "Sensitivity of each layer in each scheme")]
    if kendall:
        said = (
            "How well each measure ranks the layers by their own drop (Kendall’s τ; 1: just as the drop does, 0: no "
            "better than chance)."
        )
        lines = [el("tr", el("td", name), el("td", number(value, 2), class_="n")) for name, value in kendall.items()]
        parts += [el("p", said), table(("measure", "τ"), lines, ("τ",))]
    return el("section", *parts)


def _training_gains(summary: Summary) -> Markup:
    """What each trained layer took away of the error, and what the network loses without its training."""
    found = (summary.get("best") or {}).get("training_gains") or ()
    if not found:
        return Markup("")
    error, drop = found[0]["error"], found[0]["drop"]
    said = (
        f"The network’s error (KL from FP32, else relative squared error) and drop with all of its trained layers: "
        f"{number(error, 3)} and {number(drop, 3)}, on part of the search split. Each line: with that layer alone put "
        "back to what its recipe left. A layer that gains nothing may as well stay untrained."
    )
    head = ("layer", "error without its training", "gained", "drop without its training")
    lines = [
        el(
            "tr",
            el("td", el("code", gain["layer"])),
            *(
                el("td", number(value, 3), class_="n")
                for value in (gain["untrained"], gain["untrained"] - error, gain["untrained_drop"])
            ),
        )
        for gain in found
    ]
    return el("section", el("h2", "What training gained"), el("p", said), table(head, lines, head[1:]))


def _robustness(summary: Summary) -> Markup:
    found: Mapping[str, Mapping[str, float]] = summary.get("robustness") or {}
    names = list(dict.fromkeys(name for values in found.values() for name in values))
    if not names:
        return Markup("")
    lines = [
        el("tr", el("td", name), *(el("td", number(values.get(name)), class_="n") for values in found.values()))
        for name in names
    ]
    said = f"The table gives {metric_name(summary)} on the search split, its inputs corrupted."
    return el("section", el("h2", "Robustness"), el("p", said), table(("corruption", *found), lines, tuple(found)))


def _trials(trials: Sequence[Trial], best: Trial | None) -> Markup:
    frame = trials_frame(trials)
    schemes = [name for name in frame.columns[5:] if name in {s for t in trials for s in t.config.counts()}]
    measured = ("speed-up", "interval", "ms", "size", "drop", "KL", "agreement", "silent", "seconds")
    head = ("trial", "origin", "meets", *schemes, "rest", *measured, "recipe")
    chosen = best.number if best else None
    lines = [_trial_row(row, schemes, row["number"] == chosen) for row in frame.to_dict("records")]
    return el("section", el("h2", "All trials"), table(head, lines, (*schemes, *measured)))


def _trial_row(row: Mapping[Any, Any], schemes: Sequence[str], chosen: bool) -> Markup:
    complete = row["state"] == "complete"
    meets = ("yes" if row["feasible"] else "no") if complete else row["state"]
    cells = [el("td", value) for value in (row["number"], row["origin"], meets)]
    cells += [el("td", row[scheme] or "", class_="n") for scheme in schemes]
    cells.append(el("td", row["rest"]))
    if row["state"] != "failed":
        cells += _speed_cells(row)
    if complete:
        cells += [el("td", number(row[name], 3), class_="n") for name in ("drop", "kl", "agreement")]
        cells.append(el("td", number(int(row["silent_layers"])), class_="n"))
    else:
        cells.append(el("td", row["reason"], class_="reason", colspan="8" if row["state"] == "failed" else "4"))
    cells += [el("td", number(row["seconds"], 3), class_="n"), el("td", row["recipe"], class_="quiet")]
    return el("tr", *cells, class_="chosen") if chosen else el("tr", *cells)


def _interval(row: Mapping[Any, Any]) -> str:
    return f"{row['speedup_low']:.2f}–{row['speedup_high']:.2f}{' noisy' if row.get('noisy') is True else ''}"


def _speed_cells(row: Mapping[Any, Any]) -> list[Markup]:
    values = [f"{row['speedup_median']:.2f}×", _interval(row)]
    values += [number(row["latency_ms_median"], 3), size_text(row["size_bytes"])]
    return [el("td", value, class_="n") for value in values]


def _wall_time(summary: Summary, trials: Sequence[Trial]) -> Markup:
    parts: Mapping[str, float] = summary.get("seconds") or seconds_of(trials)
    return wall_time(parts, summary.get("wall_s") or sum(parts.values()))


def _machine(summary: Summary) -> Markup:
    facts = {name: summary.get(name) for name in ("runtime", "runtime_version", "threads", "seed")}
    facts |= dict(summary.get("machine") or {})
    lines = [
        el("tr", el("th", name.replace("_", " ")), el("td", ", ".join(map(str, v)) if isinstance(v, list) else v))
        for name, v in facts.items()
        if v is not None
    ]
    return el("section", el("h2", "Measured on"), el("table", el("tbody", *lines), class_="facts"))
