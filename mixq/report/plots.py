"""Plots with matplotlib, which is imported when one is drawn; no global state, no display."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mixq import atomic
from mixq.evaluation import Evaluation
from mixq.report.markup import size_unit
from mixq.report.tables import front_mask, is_fp32
from mixq.searcher.trial import Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SCHEME_COLOURS = {
    "int8": "#1b7f5c",
    "int8-qat": "#7a4fb5",
    "int8-dynamic": "#5aa88a",
    "int8-weight_only": "#a3c9b8",
    "bf16": "#2f6fb0",
    "fp16": "#c98a16",
    "fp32": "#6b7280",
}
OTHER_COLOURS = ("#b3446c", "#4a8b8b", "#8a6d3b", "#555b9a")
BEST, LIMIT, INK = "#c8102e", "#b45309", "#374151"
LONGEST_LABEL = 44
TALLEST_INCHES = 60.0

Numbers = np.ndarray[Any, np.dtype[np.float64]]


def plot_pareto(
    path: str | Path,
    trials: Sequence[Trial],
    best: Trial | None = None,
    metric: str = "metric",
    max_drop: float | None = None,
) -> None:
    """Speed-up over drop, coloured by size; written in the format of the path's suffix (png, svg, pdf)."""
    _save(path, pareto_figure(trials, best, metric, max_drop))


def plot_sensitivity(path: str | Path, rows: pd.DataFrame, order: Sequence[str] | None = None) -> None:
    """Bars of each layer's error, a colour a scheme, from the top in `order` (by default as in `rows`)."""
    _save(path, sensitivity_figure(rows, order))


def pareto_figure(
    trials: Sequence[Trial], best: Trial | None, metric: str = "metric", max_drop: float | None = None
) -> Figure:
    """Filled: meets the constraints; hollow: does not. Whatever loses far more than is allowed is counted only."""
    figure, axes = _figure(8.6, 5.4)
    # FP32 is marked by itself: its size, several times the others', would leave them all one colour.
    found = [(trial, trial.evaluation) for trial in trials if not is_fp32(trial)]
    measured = [(trial, e) for trial, e in found if e is not None and np.isfinite(e.drop)]
    right = _right_edge(measured, max_drop)
    shown = [(trial, e) for trial, e in measured if e.drop <= right]
    unit, scale = size_unit(max((e.size_bytes for _, e in shown), default=0))
    if shown:
        points = _scatter(axes, shown, scale)
        figure.colorbar(points, ax=axes, label=f"size of the model ({unit})", pad=0.02, fraction=0.05)
    _front_line(axes, [e for trial, e in shown if trial.feasible])
    axes.plot([0], [1], "D", color="black", markersize=8, label="FP32", zorder=4)
    if max_drop is not None:
        axes.axvline(max_drop, color=LIMIT, linestyle="--", linewidth=1.2, label=f"limit: drop {max_drop:g}")
    _frame_pareto(axes, [e.drop for _, e in shown], right, len(measured) - len(shown))
    _mark_best(axes, best)
    axes.set_title(f"Speed-up against drop of {_plain(metric)}, {len(measured)} configurations")
    axes.set_xlabel(f"drop of {_plain(metric)} against FP32 (in its units; left is better)")
    axes.set_ylabel("speed-up over FP32 (×, median; up is better)")
    figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return figure


def sensitivity_figure(rows: pd.DataFrame, order: Sequence[str] | None = None) -> Figure:
    """KL at the network's outputs where there is one, else their relative MSE; one layer at a time in one scheme."""
    column, label = (
        ("kl", "KL divergence of the outputs from FP32's (nats, log scale)")
        if rows["kl"].notna().any()
        else ("output_mse", "MSE of the outputs ÷ their mean square (log scale)")
    )
    present = set(rows["layer"])
    layers = [name for name in (order or dict.fromkeys(rows["layer"])) if name in present]
    schemes = sorted(rows["scheme"].astype(str).unique())
    table = rows.assign(scheme=rows["scheme"].astype(str)).pivot(index="layer", columns="scheme", values=column)
    table = table.reindex(index=layers, columns=schemes).astype(float)
    height = len(layers) * (0.08 + 0.09 * len(schemes))
    figure, axes = _figure(8.6, min(TALLEST_INCHES, 1.6 + max(height, 1.0)))
    _bars(axes, table)
    axes.set_title("Sensitivity: each layer alone in a scheme, all others in FP32")
    axes.set_xlabel(label)
    figure.legend(loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    return figure


def svg(figure: Figure) -> bytes:
    """The same bytes for the same figure: no date, no random ids."""
    import matplotlib

    file = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "mixq"}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def _save(path: str | Path, figure: Figure) -> None:
    suffix = Path(path).suffix.lstrip(".") or "png"
    if suffix == "svg":
        atomic.write_bytes(path, svg(figure))
        return
    file = io.BytesIO()
    figure.savefig(file, format=suffix)
    atomic.write_bytes(path, file.getvalue())


def _right_edge(measured: Sequence[tuple[Trial, Evaluation]], max_drop: float | None) -> float:
    """Where the x axis ends: a network that lost everything must not squeeze the front into a corner."""
    drops = [e.drop for _, e in measured]
    if max_drop is None:
        return max(drops, default=1.0)
    feasible = max((e.drop for trial, e in measured if trial.feasible), default=0.0)
    limit = max(4 * max_drop, 1.5 * feasible) or np.inf
    return max([max_drop, *(drop for drop in drops if drop <= limit)])


def _scatter(axes: Axes, shown: Sequence[tuple[Trial, Evaluation]], scale: float) -> Any:
    """One colour scale for both kinds of circle; a hollow one wears its colour on the edge."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    sizes = np.array([e.size_bytes / scale for _, e in shown])
    colours = ScalarMappable(Normalize(sizes.min(), max(sizes.max(), sizes.min() * 1.001)), "viridis")
    rgba = colours.to_rgba(sizes)
    drops, speedups = _points([e for _, e in shown])
    feasible = np.array([trial.feasible for trial, _ in shown])
    for kept, label in ((True, "meets the constraints"), (False, "violates one")):
        chosen = feasible == kept
        if not chosen.any():
            continue
        face = (
            {"facecolors": rgba[chosen], "edgecolors": "white", "linewidths": 0.6}
            if kept
            else {"facecolors": "none", "edgecolors": rgba[chosen], "linewidths": 1.4}
        )
        axes.scatter(drops[chosen], speedups[chosen], s=52, alpha=0.95, zorder=3, **face)
        axes.plot([], [], "o", color=INK, fillstyle="full" if kept else "none", linestyle="none", label=label)
    return colours


def _front_line(axes: Axes, evaluations: Sequence[Evaluation]) -> None:
    """The best speed-up that a drop buys: the front of what this plot shows, size left aside."""
    if not evaluations:
        return
    drops, speedups = _points(evaluations)
    front = front_mask(np.stack([drops, -speedups], axis=1))
    ordered = np.argsort(drops[front])
    axes.step(
        drops[front][ordered],
        speedups[front][ordered],
        where="post",
        color=INK,
        linewidth=1.1,
        alpha=0.7,
        label="front",
    )


def _mark_best(axes: Axes, best: Trial | None) -> None:
    if best is None or best.evaluation is None:
        return
    e = best.evaluation
    bar = [[e.speedup.median - e.speedup.low], [e.speedup.high - e.speedup.median]]
    axes.errorbar([e.drop], [e.speedup.median], yerr=np.maximum(bar, 0), color=BEST, capsize=3, linewidth=1.2, zorder=4)
    axes.plot([e.drop], [e.speedup.median], "*", color=BEST, markersize=17, markeredgecolor="white", zorder=5)
    left, right = axes.get_xlim()
    inside = (e.drop - left) / (right - left) > 0.3  # room for the label on the left, where the plot is emptier
    axes.annotate(
        f"best: trial {best.number}\n{e.speedup.median:.2f}×, drop {e.drop:.4g}",
        (e.drop, e.speedup.median),
        xytext=(-12 if inside else 12, 10),
        textcoords="offset points",
        ha="right" if inside else "left",
        va="bottom",
        color=BEST,
        fontsize=9.5,
        fontweight="bold",
        bbox={"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": "none", "alpha": 0.85},
        zorder=6,
    )


def _frame_pareto(axes: Axes, drops: Sequence[float], right: float, beyond: int) -> None:
    left = min([*drops, 0.0])
    margin = 0.06 * ((right - left) or 1.0)
    axes.set_xlim(left - margin, right + margin)
    axes.margins(y=0.15)
    if beyond:
        axes.text(
            0.99,
            0.02,
            f"{beyond} more lose over {right:.3g} →",
            transform=axes.transAxes,
            ha="right",
            color=INK,
            fontsize=9,
        )


def _points(evaluations: Sequence[Evaluation]) -> tuple[Numbers, Numbers]:
    return np.array([e.drop for e in evaluations]), np.array([e.speedup.median for e in evaluations])


def _bars(axes: Axes, table: pd.DataFrame) -> None:
    thickness = 0.8 / max(len(table.columns), 1)
    for index, scheme in enumerate(table.columns):
        colour = SCHEME_COLOURS.get(scheme, OTHER_COLOURS[index % len(OTHER_COLOURS)])
        places = np.arange(len(table)) + (index - (len(table.columns) - 1) / 2) * thickness
        values = table[scheme].to_numpy(float)
        axes.barh(places, np.where(values > 0, values, np.nan), thickness * 0.92, color=colour, label=scheme)
    positive = table.to_numpy(float)
    positive = positive[positive > 0]
    if len(positive):
        axes.set_xscale("log")
        axes.set_xlim(positive.min() / 2, positive.max() * 1.6)
    axes.set_yticks(range(len(table)), [_plain(str(name)) for name in table.index], fontsize=8)
    axes.set_ylim(len(table) - 0.4, -0.6)  # the network's input is on top
    axes.grid(axis="y", visible=False)


def _plain(text: str) -> str:
    """Cut in the middle where it is long, and without matplotlib's formulas: a layer may be named "a$b$"."""
    if len(text) > LONGEST_LABEL:
        half = LONGEST_LABEL // 2 - 1
        text = f"{text[:half]}…{text[-half:]}"
    return text.replace("$", r"\$")
