"""A metric turned round (its negative, of which less is better) changes no drop, no interval and no winner."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import mixq
from mixq.config import LayerScheme, MixedPrecisionConfig, RecipeStep, Training
from mixq.errors import InputError
from mixq.evaluation import Glimpse
from mixq.evaluator import Evaluator
from mixq.gains import training_gains
from mixq.runtimes import get_runtime
from mixq.sensitivity import analyze
from mixq.task import Array, Inputs, Outputs, Task
from tests.evaluator.configurations import INT8, all_in, of
from tests.helpers import images
from tests.tiny import Tiny

ROWS = 400


class Margin(Tiny):
    """How far the score of a class is above the others': a metric that every rounding changes."""

    primary = "margin"

    def batches(self, split: str) -> Iterator[tuple[Inputs, Array]]:
        yield images(ROWS, size=12, seed=1 if split == "search" else 2, name="image"), np.arange(ROWS) % 5

    def metrics(self, outputs: Outputs, targets: Array) -> Mapping[str, float]:
        (scores,) = outputs.values()
        wide = scores.astype(np.float64)
        return {"margin": float(np.mean(wide[np.arange(len(wide)), targets] - wide.mean(1)))}


class Loss(Margin):
    """Its negative."""

    higher_is_better = False

    def metrics(self, outputs: Outputs, targets: Array) -> Mapping[str, float]:
        return {name: -value for name, value in super().metrics(outputs, targets).items()}


@cache
def evaluators() -> tuple[Evaluator, Evaluator]:
    up, down = (Evaluator(task, get_runtime("openvino"), latency_budget_s=0.0, confidence=0.9) for task in BOTH)
    return up, down


BOTH = (Margin(), Loss())


@pytest.mark.slow
def test_drop_and_bound_are_equal() -> None:
    up, down = (one.evaluate(one.prepare(all_in(one, INT8))) for one in evaluators())
    assert up.metric == -down.metric
    assert up.drop == down.drop != 0
    assert up.drop_bound == down.drop_bound


def test_a_loss_that_rises_is_a_drop_above_zero() -> None:
    _, down = evaluators()
    found = down.evaluate(down.prepare(all_in(down, INT8)))
    before = down.reference_metrics["margin"]
    assert found.drop == found.metric - before


def test_what_a_judge_sees_is_equal() -> None:
    up, down = (list(drops_seen(one)) for one in evaluators())
    assert up == down
    assert up


def test_the_holdout_split_is_equal() -> None:
    up, down = (one.holdout(one.prepare(all_in(one, INT8))) for one in evaluators())
    assert up["drop"] == down["drop"]
    assert up["drop_interval"] == down["drop_interval"]


def test_sensitivity_is_equal() -> None:
    up, down = (analyze(one, [INT8], recipe=(RecipeStep(name="calibrate"),)) for one in evaluators())
    assert up == down
    assert any(row.drop for row in up.rows)


def test_what_training_gained_is_equal() -> None:
    found = [training_gains(one, trained(one)) for one in evaluators()]
    assert found[0] == found[1]
    assert found[0]


def drops_seen(evaluator: Evaluator) -> Iterator[tuple[float, float | None]]:
    """On the way through the search split."""
    asked: list[Glimpse] = []
    evaluator.evaluate(evaluator.prepare(all_in(evaluator, INT8)), asked.append)
    return ((seen.drop, seen.drop_low) for seen in asked if seen.drop is not None)


def trained(evaluator: Evaluator) -> MixedPrecisionConfig:
    """All layers, for a step or two."""
    return MixedPrecisionConfig(
        model=evaluator.fingerprint,
        schemes=dict.fromkeys(evaluator.graph.layer_names, LayerScheme.parse("int8-qat")),
        recipe=(RecipeStep(name="calibrate"),),
        training=Training(steps=2, learning_rate=0.1),
    )


def searched(task: Task, folder: Path, *, trials: int = 8) -> mixq.SearchResult:
    space = {"precisions": ["fp32", "fp16", "int8"], "objectives": ["size"], "constraints": {"max_drop": 0.0005}}
    path = folder / "space.yaml"
    path.write_text(str(space), encoding="utf-8")
    return mixq.search(task, path, folder / "out", sampler="tpe", trials=trials, tracking="none", quiet=True)


@pytest.mark.slow
def test_the_winner_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixq.latency.PATIENCE", 1)
    found = []
    for task in BOTH:
        folder = tmp_path / type(task).__name__
        folder.mkdir()
        found.append(searched(task, folder))
    up, down = (
        [(dict(t.config.schemes), t.evaluation and t.evaluation.drop, t.feasible) for t in f.trials] for f in found
    )
    assert up == down
    assert {feasible for _, _, feasible in up} == {True, False}
    best = [one.best for one in found]
    assert best[0] is not None
    assert best[1] is not None
    assert dict(best[0].config.schemes) == dict(best[1].config.schemes)
    assert [one.summary["higher_is_better"] for one in found] == [True, False]
    assert "margin (lower is better)" in (tmp_path / "Loss" / "out" / "report.html").read_text()


@pytest.mark.slow
def test_a_study_is_not_resumed_the_other_way_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixq.latency.PATIENCE", 1)
    task = Margin()
    searched(task, tmp_path, trials=1)
    monkeypatch.setattr(Margin, "higher_is_better", False)
    with pytest.raises(InputError, match=r"metric: margin then, margin \(lower is better\) now"):
        searched(task, tmp_path, trials=1)


def test_a_direction_that_is_no_truth_value_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Margin, "higher_is_better", "minimize")
    with pytest.raises(InputError, match=r"Margin\.higher_is_better must be True or False, got 'minimize'"):
        of(Margin())
