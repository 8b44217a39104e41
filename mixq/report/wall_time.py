"""Where a search's wall time went: measured and trained, compiled, or mixq's own work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mixq.report.markup import Markup, el, number, table
from mixq.searcher.trial import Trial

# What the runtime executes, and what is learned from it: rounding (recipe) and weights (train).
TRAINING = frozenset({"recipe", "shared start", "screening", "train", "gains"})
INFERENCE = TRAINING | {"FP32", "statistics", "analysis", "profiles", "latency", "metric", "holdout", "robustness"}
KINDS = {"inference": "inference and training", "compile": "the runtime’s compiling", "own": "mixq’s own work"}
REST = "everything else"


def kind_of(part: str) -> str:
    """A key of KINDS."""
    return "inference" if part in INFERENCE else part if part in KINDS else "own"


def shares(parts: Mapping[str, float]) -> dict[str, float]:
    """Of the wall time, by kind; {} where no time was spent."""
    total = sum(parts.values())
    found = dict.fromkeys(KINDS, 0.0)
    for name, seconds in parts.items():
        found[kind_of(name)] += seconds / total if total else 0.0
    return found if total else {}


def wall_time(parts: Mapping[str, float], total: float) -> Markup:
    """The section of the page. parts: seconds by name; total: those of the whole search."""
    named = sum(parts.values())
    if total > named:
        parts = {**parts, REST: total - named}
    longest = max(parts.values(), default=0) or 1
    lines = [
        el("tr", el("td", name), el("td", number(float(value), 3), class_="n"), el("td", _bar(name, value / longest)))
        for name, value in sorted(parts.items(), key=lambda part: -part[1])
    ]
    found = shares(parts)
    stack = [el("div", "", class_=kind, style=f"width:{share:.2%}") for kind, share in found.items()]
    legend = [el("span", f"{KINDS[kind]} {share:.0%} ", class_=f"kind {kind}") for kind, share in found.items()]
    return el(
        "section",
        el("h2", "Where the time went"),
        el("p", f"{number(float(total), 4)} s in all."),
        el("div", *stack, class_="stack"),
        el("p", *legend),
        table(("part", "seconds", ""), lines, ("seconds",)),
    )


def seconds_of(trials: Sequence[Trial]) -> dict[str, float]:
    """By part, those of all trials."""
    parts: dict[str, float] = {}
    for trial in trials:
        for name, value in trial.phases.items():
            parts[name] = parts.get(name, 0.0) + value
    return parts


def _bar(name: str, share: float) -> Markup:
    return el("div", "", class_=f"bar {kind_of(name)}", style=f"width:{max(share, 0.002) * 20:.2f}rem")
