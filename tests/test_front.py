"""The front gives the outputs that the whole network gives, layer after layer."""

from __future__ import annotations

import numpy as np
import pytest

from mixq.config import LayerScheme, Precision
from mixq.evaluator import Evaluator
from mixq.front import Front
from mixq.runtimes import get_runtime
from mixq.sensitivity import first_rows, single
from mixq.task import load_task

ROWS = 60


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    return Evaluator(load_task("experiments/digits/task.py:Digits"), get_runtime("openvino"))


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.BF16])
def test_outputs_are_those_of_the_whole_network(evaluator: Evaluator, precision: Precision) -> None:
    split = first_rows(evaluator.data, ROWS)
    front = Front(evaluator, split)
    cuts = set()
    for layer in evaluator.graph.layers:
        candidate = evaluator.prepare(single(evaluator, layer, LayerScheme(precision=precision)))
        front.advance_to(layer)
        cuts.add(front.position)
        want, have = evaluator.outputs(candidate, split), front.outputs(candidate)
        for name, value in want.items():
            assert len(have[name]) == split.rows
            # A value on a rounding border may take its other code: far less than what the layer's own error is.
            assert np.abs(have[name] - value).max() <= 2e-3 * np.abs(value).max()
    assert len(cuts) > 2  # it moved


def test_it_does_not_move_where_memory_forbids(evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixq.front.MOST_BYTES", 0)
    front = Front(evaluator, first_rows(evaluator.data, ROWS))
    front.advance_to(evaluator.graph.layers[-1])
    assert front.position == 0
