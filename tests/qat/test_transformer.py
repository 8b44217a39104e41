"""Training some layers of a transformer, whose other layers are of every kind that there is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pytest
import torch

from mixq.config import LayerScheme, MixedPrecisionConfig, Training
from mixq.evaluator import Evaluator
from mixq.runtimes import NAMES, get_runtime
from mixq.task import Array, Inputs, Outputs, Task
from tests.support.cases import WORDS, Attention


class Words(Task):
    """How close the outputs are to FP32's, on random words."""

    primary = "closeness"

    def model(self) -> torch.nn.Module:
        torch.manual_seed(0)
        return Attention().eval()

    def calibration(self) -> Iterator[Inputs]:
        for seed in range(4):
            yield {"ids": np.random.default_rng(seed).integers(0, WORDS, (16, 12))}

    def batches(self, split: str) -> Iterator[tuple[Inputs, Array]]:
        inputs = {"ids": np.random.default_rng(7 if split == "search" else 8).integers(0, WORDS, (32, 12))}
        with torch.inference_mode():
            yield inputs, self.model()(torch.from_numpy(inputs["ids"])).numpy()

    def metrics(self, outputs: Outputs, targets: Array) -> Mapping[str, float]:
        (found,) = outputs.values()
        return {"closeness": -float(np.mean((found - targets) ** 2))}


KINDS = {"embedding": "int8-weight_only", "query": "int8-dynamic", "key": "int8-weight_only"}
DYNAMIC = LayerScheme.parse("int8-dynamic")


@pytest.mark.slow
@pytest.mark.parametrize("runtime", NAMES)
def test_layers_are_trained_beside_layers_of_every_other_kind(runtime: str) -> None:
    evaluator = Evaluator(Words(), get_runtime(runtime), latency_budget_s=0.0)
    int8, kinds = LayerScheme.parse("int8"), KINDS
    if evaluator.runtime.refusal(DYNAMIC, evaluator.graph.by_name["query"]) is not None:
        kinds = {**KINDS, "query": "int8"}
    schemes = {
        layer.name: LayerScheme.parse(kinds.get(layer.name, "int8-qat"))
        if layer.weight
        else LayerScheme.parse("fp32")
        if evaluator.runtime.refusal(int8, layer)
        else int8
        for layer in evaluator.graph.layers
    }
    training = Training(steps=30, learning_rate=0.1)
    config = MixedPrecisionConfig(model=evaluator.fingerprint, schemes=schemes, training=training)
    found = evaluator.evaluate(evaluator.prepare(config))
    untrained = {name: scheme.untrained for name, scheme in schemes.items()}
    before = evaluator.evaluate(evaluator.prepare(MixedPrecisionConfig(model=evaluator.fingerprint, schemes=untrained)))
    assert found.silent == ()
    assert found.output_mse < 0.9 * before.output_mse
