"""The top of the page: the verdict with its numbers, and what must not be overlooked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixq.drop import metric_label
from mixq.report.markup import Markup, el, join, number, size_text
from mixq.report.tables import is_fp32
from mixq.searcher.trial import Trial


def headline(summary: Mapping[str, Any], best: Trial | None) -> Markup:
    found = summary.get("best") or {}
    if best is None or best.evaluation is None:
        verdict = "No configuration met the constraints: the FP32 model is the answer."
        return el("section", el("p", verdict, class_="verdict none"), _limits(summary))
    e, primary = best.evaluation, metric_name(summary)
    if is_fp32(best):
        verdict = join("Nothing that met the constraints beat FP32: the FP32 model is the answer.")
    else:
        speed = el("strong", f"{e.speedup.median:.2f}×")
        verdict = join(speed, " FP32’s speed on this machine, ", el("strong", f"{e.compression:.2f}×"), " smaller.")
    baseline = summary.get("baseline") or {}
    cards = (
        _card("speed-up", f"{e.speedup.median:.2f}×", f"95 % interval {e.speedup.low:.2f} to {e.speedup.high:.2f}"),
        _card(
            "latency, batch 1",
            f"{number(e.latency_ms.median, 3)} ms",
            f"FP32 {number(e.reference_ms, 3)} ms; {e.threads} thread{'s' if e.threads > 1 else ''}, {e.runtime}",
        ),
        _card(
            f"drop of {primary}, search split",
            number(e.drop, 3),
            f"{number(baseline.get('metric'))} → {number(e.metric)}",
        ),
        _holdout_card(primary, found.get("holdout")),
        _card("size", size_text(e.size_bytes), f"FP32 {size_text(round(e.size_bytes * e.compression))}"),
    )
    return el("section", el("p", verdict, class_="verdict"), el("div", *cards, class_="cards"), _limits(summary))


def metric_name(summary: Mapping[str, Any]) -> str:
    """The primary metric, with its direction where lower is better."""
    return metric_label(str(summary.get("primary", "the metric")), bool(summary.get("higher_is_better", True)))


def _card(name: str, value: str, note: str) -> Markup:
    parts = (el("div", name, class_="name"), el("div", value, class_="value"), el("div", note, class_="note"))
    return el("div", *parts, class_="card")


def _holdout_card(primary: str, holdout: Mapping[str, Any] | None) -> Markup:
    if not holdout:
        return _card("drop, holdout split", "–", "not measured")
    low, high = holdout.get("drop_interval") or (None, None)
    note = f"95 % interval {number(low, 3)} to {number(high, 3)}"
    if "rows" in holdout:
        note += f", {number(holdout['rows'])} rows"
    return _card(f"drop of {primary}, holdout split", number(holdout.get("drop"), 3), note)


def _limits(summary: Mapping[str, Any]) -> Markup:
    limits = {name: value for name, value in (summary.get("constraints") or {}).items() if value is not None}
    counts = ", ".join(f"{count} {state}" for state, count in (summary.get("trials") or {}).items())
    said = [f"{name.replace('_', ' ')} {number(value)}" for name, value in limits.items()]
    parts = [f"Constraints: {', '.join(said)}." if said else "", f"Trials: {counts}." if counts else ""]
    if summary.get("time_to_best_s") is not None:
        parts.append(f"The best was found after {number(summary['time_to_best_s'], 3)} s.")
    return el("p", " ".join(part for part in parts if part), class_="quiet")


def warnings(summary: Mapping[str, Any], best: Trial | None) -> Markup:
    notes = [el("p", note, class_="note-box") for note in summary.get("notes") or ()]
    evaluation = best.evaluation if best else None
    if best is None or evaluation is None or not evaluation.silent:
        return join(*notes)
    kernels = {kernel.layer: kernel for kernel in evaluation.kernels}
    lines = [
        el("li", el("code", name), f": asked {best.config.schemes[name]}, ran ", el("strong", kernels[name].executed))
        for name in evaluation.silent
    ]
    count = len(lines)
    text = f"{count} layer{'s' if count > 1 else ''} did NOT run in the precision that was asked"
    return join(el("div", el("strong", text), el("ul", *lines), class_="loud", role="alert"), *notes)
