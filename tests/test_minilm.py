"""A real text encoder: what is captured of it, and what INT8 with scales found at run time makes of it."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import islice

import pytest

from experiments.data_folder import data_folder
from experiments.minilm_stsb.minilm import PACKAGE, encode
from experiments.minilm_stsb.task import MiniLM
from mixq.config import LayerScheme, MixedPrecisionConfig
from mixq.errors import InputError
from mixq.evaluator import Evaluator
from mixq.graph import Layer
from mixq.runtimes import NAMES, Runtime, get_runtime
from mixq.task import Array, Inputs

pytestmark = [pytest.mark.real, pytest.mark.slow]


class FewPairs(MiniLM):
    """100 pairs a split."""

    def batches(self, split: str) -> Iterator[tuple[Inputs, Array]]:
        return islice(super().batches(split), 2)


@cache
def minilm(runtime: str) -> Evaluator:
    try:
        data_folder("stsb")
    except InputError as error:
        pytest.skip(str(error))
    if importlib.util.find_spec(PACKAGE) is None or importlib.util.find_spec("transformers") is None:
        pytest.skip("needs the extra 'text'")
    return Evaluator(FewPairs(), get_runtime(runtime), latency_budget_s=0.0)


def test_its_layers_are_matrices_products_and_the_table_of_words() -> None:
    layers = minilm("openvino").graph.layers
    kinds = Counter("matrix" if layer.multiplies else "table" if layer.looks_up else "product" for layer in layers)
    assert (kinds["matrix"], kinds["product"]) == (36, 12)
    assert "bert.encoder.layer.0.attention.self.query" in minilm("openvino").graph.layer_names
    tables = {layer.name: layer.parameters for layer in layers if layer.looks_up}
    assert tables["bert.embeddings.word_embeddings"] == 30522 * 384


def first_that_runs(runtime: Runtime, layer: Layer) -> LayerScheme:
    """For matrices INT8, dynamic if this CPU has that; codes for the table of words; FP32 for products."""
    wanted = ["int8-weight_only"] if layer.looks_up else ["int8-dynamic", "int8"] if layer.multiplies else ["fp32"]
    return next(scheme for scheme in map(LayerScheme.parse, wanted) if runtime.refusal(scheme, layer) is None)


@pytest.mark.parametrize("runtime", NAMES)
def test_int8_runs_as_asked_is_small_and_close_at_any_length(runtime: str) -> None:
    evaluator = minilm(runtime)
    schemes = {layer.name: first_that_runs(evaluator.runtime, layer) for layer in evaluator.graph.layers}
    candidate = evaluator.prepare(MixedPrecisionConfig(model=evaluator.fingerprint, schemes=schemes))
    found = evaluator.evaluate(candidate)
    assert found.silent == ()
    assert found.compression > 3.5
    assert found.output_mse < 0.02
    words = encode(["A man is playing a guitar.", "Somebody makes music."] * 4, 128)
    run = evaluator.runtime.compile(candidate.model, 2, candidate.options).run
    exact = evaluator.runtime.compile(evaluator.reference.model, 2, evaluator.reference.options).run
    (have,), (want,) = (list(one(words).values()) for one in (run, exact))
    assert ((have - want) ** 2).sum() < 0.02 * (want**2).sum()
