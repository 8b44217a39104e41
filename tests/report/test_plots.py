"""Plots by their pixels and their axes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.patches import Rectangle
from PIL import Image

from mixq.report import plot_pareto, plot_sensitivity
from mixq.searcher.trial import Trial
from tests.report.trials import BEST, FAILED, LAYERS, TRIALS, sensitivity, trial


def pixels(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    with Image.open(path) as opened:
        return np.asarray(opened.convert("RGB"))


def share_of(image: np.ndarray[Any, np.dtype[np.uint8]], colour: str) -> float:
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return float((np.abs(image.astype(int) - rgb).max(axis=2) < 6).mean())


def test_pareto_plot_shows_best_and_limit(tmp_path: Path) -> None:
    with_both, with_none = tmp_path / "a.png", tmp_path / "b.png"
    plot_pareto(with_both, TRIALS, BEST, "top1", 0.005)
    plot_pareto(with_none, TRIALS)
    for colour in ("#c8102e", "#b45309"):
        assert share_of(pixels(with_both), colour) > 1e-4 > share_of(pixels(with_none), colour)
    assert 0.5 < share_of(pixels(with_both), "#ffffff") < 0.99


@pytest.mark.parametrize(
    "trials", [(), (FAILED,), TRIALS[:1], TRIALS[4:5]], ids=["none", "failed", "fp32", "infeasible"]
)
@pytest.mark.parametrize("max_drop", [None, 0.0, 0.005])
def test_pareto_plot_of_little(tmp_path: Path, trials: Sequence[Trial], max_drop: float | None) -> None:
    plot_pareto(tmp_path / "few.png", trials, max_drop=max_drop)
    assert share_of(pixels(tmp_path / "few.png"), "#000000") > 1e-4, "FP32 is marked"


def test_one_lost_network_does_not_squeeze_the_front(tmp_path: Path) -> None:
    """Without its bound the x axis would run to 0.75, and both clouds of circles would be one."""
    from mixq.report.plots import pareto_figure

    lost = trial(7, 0.75, 3.5)
    axes = pareto_figure([*TRIALS, lost], BEST, "top1", 0.005).axes[0]
    assert axes.get_xlim()[1] < 0.05
    assert "2 more lose over" in " ".join(text.get_text() for text in axes.texts)


def test_sensitivity_plot_stands_in_the_given_order() -> None:
    from mixq.report.plots import sensitivity_figure

    axes = sensitivity_figure(sensitivity(), LAYERS).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(LAYERS)
    assert axes.get_ylim()[0] > axes.get_ylim()[1], "the first layer is on top"
    assert axes.get_xscale() == "log"
    longest = max(patch.get_width() for patch in axes.patches if isinstance(patch, Rectangle))
    assert longest == pytest.approx(0.04)


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_sensitivity_plot_is_written(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"bars.{suffix}"
    plot_sensitivity(path, sensitivity())
    if suffix == "svg":
        assert path.read_text(encoding="utf-8").count("#1b7f5c") >= len(LAYERS)
    else:
        assert share_of(pixels(path), "#1b7f5c") > 0.01


def test_sensitivity_falls_back_to_mse() -> None:
    from mixq.report.plots import sensitivity_figure

    assert sensitivity_figure(sensitivity(kl=None)).axes[0].get_xlabel().startswith("MSE of the outputs")


def test_layers_may_be_named_as_formulas(tmp_path: Path) -> None:
    plot_sensitivity(tmp_path / "bars.png", sensitivity(["$\\frac{$", "a$b$", "x" * 300]))
    assert share_of(pixels(tmp_path / "bars.png"), "#1b7f5c") > 0.01


def test_no_error_at_all_can_be_drawn(tmp_path: Path) -> None:
    plot_sensitivity(tmp_path / "bars.png", sensitivity().assign(kl=0.0))
    assert (tmp_path / "bars.png").stat().st_size > 1000


def test_svg_is_the_same_every_time(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        plot_pareto(tmp_path / name, TRIALS, BEST)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
