"""A decoder language model: captured, quantized, judged by its perplexity, and searched. Random weights, no data."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx.reference
import pytest
import torch
from onnx import numpy_helper
from torch.nn import functional as F

import mixq
from experiments.tiny_lm.decoder import Decoder
from experiments.tiny_lm.task import TinyLM
from mixq.config import LayerScheme, MixedPrecisionConfig, RecipeStep, Training
from mixq.evaluation import Candidate
from mixq.evaluator import Evaluator
from mixq.runtimes import NAMES
from mixq.task import Array, Inputs
from tests.evaluator.configurations import BF16, FP32, INT8, of, only

pytestmark = pytest.mark.slow

VOCABULARY, TIME, WIDTH = 11, 6, 32


class Small(Decoder):
    """One block, and a normalization that makes the head sure of what it says: what rounding changes is a loss."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(VOCABULARY, TIME, WIDTH, heads=2, blocks=1)
        torch.nn.init.constant_(self.norm.weight, 30.0)


class Untied(Small):
    """The same function, its head a Linear layer on three axes: the exporter writes a transposed copy of its weight."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens) + self.position[: tokens.shape[1]]
        return F.linear(self.norm(self.blocks[0](x)), self.embedding.weight)


class Model(TinyLM):
    """Random tokens; the right ones are those that the model finds likeliest in FP32."""

    network: type[Small] = Small

    def model(self) -> Decoder:
        return self.network().eval()

    def calibration(self) -> Iterator[Inputs]:
        yield {"tokens": tokens(0)}

    def training(self) -> Iterator[Inputs]:
        return self.calibration()

    def batches(self, split: str) -> Iterator[tuple[Inputs, Array]]:
        inputs = tokens(1 if split == "search" else 2)
        with torch.inference_mode():
            yield {"tokens": inputs}, self.model()(torch.from_numpy(inputs)).argmax(-1).numpy()


class UntiedModel(Model):
    """As Model."""

    network = Untied


def tokens(seed: int, rows: int = 60) -> Array:
    return np.random.default_rng(seed).integers(0, VOCABULARY, (rows, TIME))


@cache
def evaluator(task: type[Model] = Model, runtime: str = "openvino") -> Evaluator:
    return of(task(), runtime)


def configured(
    one: Evaluator, default: LayerScheme, tied: LayerScheme | None = None, training: Training | None = None
) -> MixedPrecisionConfig:
    """Of the matrices; all else is FP32. `tied`: of the head, which shares its weight with the embedding."""
    schemes = {layer.name: default if layer.multiplies else FP32 for layer in one.graph.layers}
    schemes |= {head(one): tied or default}
    recipe = (RecipeStep(name="calibrate"),)
    return MixedPrecisionConfig(model=one.fingerprint, schemes=schemes, recipe=recipe, training=training)


def head(one: Evaluator) -> str:
    """The last layer."""
    return one.graph.layer_names[-1]


def run(one: Evaluator, candidate: Candidate, inputs: Array) -> Array:
    return only(one.runtime.compile(candidate.model, 1, candidate.options).run({"tokens": inputs}))


@pytest.mark.parametrize("task", [Model, UntiedModel])
@pytest.mark.parametrize("rows", [1, 5])
def test_any_number_of_rows_is_captured(task: type[Model], rows: int) -> None:
    one = evaluator(task)
    assert [layer.op for layer in one.graph.matrices] == ["MatMul"] * 6 + ["Gemm" if task is Model else "MatMul"]
    assert [layer.op for layer in one.graph.layers if not layer.multiplies] == ["Gather", "MatMul", "MatMul"]
    with torch.inference_mode():
        want = task().model()(torch.from_numpy(tokens(3, rows))).numpy()
    assert want.shape == (rows, TIME, VOCABULARY)
    np.testing.assert_allclose(run(one, one.reference, tokens(3, rows)), want, atol=1e-2)


@pytest.mark.parametrize("runtime", NAMES)
@pytest.mark.parametrize("scheme", [FP32, INT8], ids=str)
def test_no_output_depends_on_a_later_token(runtime: str, scheme: LayerScheme) -> None:
    one = evaluator(Model, runtime)
    candidate = one.prepare(configured(one, scheme))
    before = tokens(4, 8)
    want = run(one, candidate, before)
    for time in range(TIME - 1):
        after = before.copy()
        after[:, time + 1 :] = (after[:, time + 1 :] + 1 + tokens(5, 8)[:, time + 1 :] % (VOCABULARY - 1)) % VOCABULARY
        found = run(one, candidate, after)
        np.testing.assert_array_equal(found[:, : time + 1], want[:, : time + 1])
        assert (found[:, time + 1] != want[:, time + 1]).any()


@pytest.mark.parametrize("runtime", NAMES)
def test_a_perplexity_that_rises_is_a_drop_above_zero(runtime: str) -> None:
    one = evaluator(Model, runtime)
    candidate = one.prepare(configured(one, INT8))
    found = one.evaluate(candidate)
    split = one.data.split("search")
    logits = torch.from_numpy(run(one, candidate, split.batches[0]["tokens"])).double()
    rows = len(split.batches[0]["tokens"])
    loss = F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(split.targets[:rows]).flatten())
    part = one.data.task.metrics({"y": logits.numpy()}, split.targets[:rows])
    assert part["perplexity"] == pytest.approx(float(loss.exp()), rel=1e-9)
    assert found.drop == found.metric - one.reference_metrics["perplexity"] > 0
    held = one.holdout(candidate)
    assert isinstance(held["drop"], float)
    assert held["drop"] > 0
    assert one.evaluate(one.reference).drop == 0


def stored(model: bytes) -> dict[str, Array]:
    proto = onnx.load_model_from_string(model)
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def embedded(model: bytes, inputs: Array) -> Array:
    """What the lowered model looks up for each token, by the ONNX reference evaluator."""
    proto = onnx.load_model_from_string(model)
    (gather,) = [node for node in proto.graph.node if node.op_type == "Gather"]
    session = onnx.reference.ReferenceEvaluator(
        onnx.utils.Extractor(proto).extract_model(["tokens"], [gather.output[0]])
    )
    (found,) = session.run(None, {"tokens": inputs})
    return np.asarray(found, np.float32)


@pytest.mark.parametrize("task", [Model, UntiedModel])
@pytest.mark.parametrize("scheme", [INT8, BF16, LayerScheme.parse("fp16")], ids=str)
def test_a_quantized_head_leaves_the_embedding_as_it_is(task: type[Model], scheme: LayerScheme) -> None:
    one = evaluator(task)
    reason = one.runtime.refusal(scheme, one.graph.layers[-1])
    if reason is not None:
        pytest.skip(reason)
    candidate = one.prepare(configured(one, FP32, scheme))
    weight = task().model().embedding.weight.detach().numpy()
    np.testing.assert_array_equal(embedded(candidate.model, tokens(6)), weight[tokens(6)])


@pytest.mark.parametrize("task", [Model, UntiedModel])
def test_the_file_holds_a_tied_weight_as_often_as_it_is_read_in_another_form(task: type[Model]) -> None:
    """In FP32 once where embedding and head read it alike; with an INT8 head once as float32, once as int8."""
    one, size = evaluator(task), VOCABULARY * WIDTH
    for scheme, floats, codes in ((FP32, 1 if task is Model else 2, 0), (INT8, 1, 1)):
        candidate = one.prepare(configured(one, FP32, scheme))
        arrays = [value for value in stored(candidate.model).values() if value.size == size]
        assert sorted(str(value.dtype) for value in arrays) == ["float32"] * floats + ["int8"] * codes
        assert one.evaluate(candidate).size_bytes == len(candidate.model)


@pytest.mark.parametrize("step", ["equalize", "bias_correction", "adaround"])
def test_a_recipe_leaves_the_embedding_as_it_is(step: str) -> None:
    """Whatever it does to the head, whose weight is the embedding's."""
    one = evaluator()
    names = [step, "calibrate"] if step == "equalize" else ["calibrate", step]
    recipe = tuple(RecipeStep(name=name) for name in names)
    candidate = one.prepare(configured(one, INT8).model_copy(update={"recipe": recipe}))
    weight = Small().embedding.weight.detach().numpy()
    np.testing.assert_array_equal(embedded(candidate.model, tokens(6)), weight[tokens(6)])


@pytest.mark.parametrize("task", [Model, UntiedModel])
def test_a_trained_head_leaves_the_embedding_as_it_is(task: type[Model]) -> None:
    """What is learned is the head's own copy of the weight that it shares."""
    one = evaluator(task)
    trained = configured(one, LayerScheme.parse("int8-qat"), training=Training(steps=3, learning_rate=0.5))
    found, before = one.prepare(trained), one.prepare(configured(one, INT8))
    weight = Small().embedding.weight.detach().numpy()
    np.testing.assert_array_equal(embedded(found.model, tokens(6)), weight[tokens(6)])
    name = f"{head(one)}.weight_quantized"
    assert (stored(found.model)[name] != stored(before.model)[name]).any()


def test_a_search_finds_a_model_that_verifies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixq.latency.PATIENCE", 1)
    space = tmp_path / "space.yaml"
    space.write_text("{precisions: [fp32, int8], objectives: [size], constraints: {max_drop: 5}}", encoding="utf-8")
    found = mixq.search(Model(), space, tmp_path / "out", trials=6, tracking="none", quiet=True)
    best, summary = found.best, found.summary
    assert best is not None
    assert best.evaluation is not None
    assert best.config.layers_with(INT8.precision)
    rise = best.evaluation.metric - evaluator().reference_metrics["perplexity"]
    assert best.evaluation.drop == pytest.approx(rise, abs=1e-6)
    assert rise <= 5
    assert summary["higher_is_better"] is False
    assert mixq.verify(tmp_path / "out").ok
