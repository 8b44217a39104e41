"""The front gives the outputs that the whole network gives, layer after layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from mixq.config import LayerScheme, Precision, RecipeStep
from mixq.evaluator import Evaluator
from mixq.front import Front
from mixq.graph.cut import find_cuts
from mixq.graph.layers import row_shapes
from mixq.runtimes import NAMES, Executable, get_runtime
from mixq.sensitivity import first_rows, single
from mixq.task import Array, Inputs, load_task
from tests.tiny import Tiny

pytestmark = pytest.mark.slow

ROWS = 60
INT8 = LayerScheme(precision=Precision.INT8)


@pytest.fixture(scope="module", params=NAMES)
def evaluator(request: pytest.FixtureRequest) -> Evaluator:
    return Evaluator(load_task("experiments/digits/task.py:Digits"), get_runtime(request.param))


@pytest.mark.parametrize("steps", [[], ["equalize", "calibrate"]], ids=["", "equalized"])
@pytest.mark.parametrize("precision", [Precision.INT8, Precision.FP16, Precision.BF16])
def test_outputs_are_those_of_the_whole_network(evaluator: Evaluator, precision: Precision, steps: list[str]) -> None:
    split, recipe = first_rows(evaluator.data, ROWS), tuple(RecipeStep(name=step) for step in steps)
    front = Front(evaluator, split, recipe)
    cuts = set()
    reason = evaluator.runtime.refusal(LayerScheme(precision=precision), evaluator.graph.layers[0])
    if reason is not None:
        pytest.skip(reason)
    for layer in evaluator.graph.layers:
        candidate = evaluator.prepare(single(evaluator, layer, LayerScheme(precision=precision), recipe))
        front.advance_to(layer)
        cuts.add(front.position)
        want, have = evaluator.outputs(candidate, split), front.outputs(candidate.config)
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


class Masked(torch.nn.Module):
    """Two residual layers over words, whose mask is read at both ends, and whose length sizes what lies between."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = torch.nn.Embedding(20, 16)
        self.first, self.second = torch.nn.Linear(16, 16), torch.nn.Linear(16, 16)
        self.last = torch.nn.Linear(16, 5)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        shared = mask.to(torch.float32).unsqueeze(2)
        value = self.words(ids) * shared
        for layer in (self.first, self.second):
            value = value + torch.relu(layer(value)) * shared / ids.shape[1]
        scores: torch.Tensor = self.last((value * shared).sum(1) / shared.sum(1))
        return scores


class MaskedWords(Tiny):
    """Sentences of 6 to 9 words, filled up to 9."""

    def model(self) -> torch.nn.Module:
        return Masked().eval()

    def rows(self, seed: int) -> Inputs:
        rng = np.random.default_rng(seed)
        return {
            "ids": rng.integers(0, 20, (ROWS, 9)),
            "mask": (np.arange(9) < rng.integers(6, 10, (ROWS, 1))).astype(np.int64),
        }

    def calibration(self) -> Iterator[Inputs]:
        yield self.rows(0)

    def batches(self, split: str) -> Iterator[tuple[Inputs, Array]]:
        yield self.rows(1 if split == "search" else 2), np.arange(ROWS) % 5


@pytest.mark.parametrize("runtime", NAMES)
def test_what_comes_of_the_inputs_alone_is_computed_anew_behind_a_cut(runtime: str) -> None:
    """A mask and sizes cross every cut, and are neither float nor have they all the batch first."""
    evaluator = Evaluator(MaskedWords(), get_runtime(runtime))
    graph, split = evaluator.graph, evaluator.data.split("search")
    cuts = find_cuts(graph, row_shapes(graph.model, evaluator.data.example))
    assert any("mask" in cut.inputs for cut in cuts)
    assert {name for cut in cuts for name in cut.inputs} <= {"ids", "mask"}
    front = Front(evaluator, split)
    for layer in graph.layers[1:]:
        candidate = evaluator.prepare(single(evaluator, layer, INT8))
        front.advance_to(layer)
        (want,), (have,) = (
            found.values() for found in (evaluator.outputs(candidate, split), front.outputs(candidate.config))
        )
        assert np.abs(have - want).max() <= 2e-3 * np.abs(want).max()
    assert front.position > 0


class Chain(Tiny):
    """As many 1 × 1 convolutions one behind the other as are asked for."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        convolutions = (torch.nn.Conv2d(4 if number else 3, 4, 1) for number in range(layers))
        steps = [step for convolution in convolutions for step in (convolution, torch.nn.ReLU())]
        self.network = torch.nn.Sequential(*steps, torch.nn.Flatten(1), torch.nn.Linear(4 * 12 * 12, 5))

    def model(self) -> torch.nn.Module:
        return self.network.eval()

    def calibration(self) -> Iterator[Inputs]:
        return ({"input": batch["image"]} for batch in super().calibration())

    def batches(self, split: str) -> Iterator[tuple[Inputs, Array]]:
        return (({"input": batch["image"]}, targets) for batch, targets in super().batches(split))


def compiled_layers(evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch) -> int:
    """Of all models that are compiled to look at every layer once."""
    front = Front(evaluator, evaluator.data.split("search"))
    candidates = [(layer, evaluator.prepare(single(evaluator, layer, INT8))) for layer in evaluator.graph.layers]
    counts, compiled = list[int](), evaluator.runtime.compile

    def counted(model: bytes, *rest: Any) -> Executable:
        nodes = onnx.load_model_from_string(model).graph.node
        counts.append(sum(node.op_type in ("Conv", "Gemm") for node in nodes))
        return compiled(model, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(evaluator.runtime, "compile", counted)
        for layer, candidate in candidates:
            front.advance_to(layer)
            front.outputs(candidate.config)
    return sum(counts)


def test_what_is_compiled_for_all_layers_grows_slower_than_with_their_square(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = (
        compiled_layers(Evaluator(Chain(layers), get_runtime("onnxruntime")), monkeypatch) for layers in (9, 36)
    )
    assert large < 4**1.7 * small, "four times the layers: 16 times the work if it grew with the square"
