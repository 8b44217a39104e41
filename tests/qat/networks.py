"""What the tests of training share: a network that one scale a tensor does not suit, and trainers of small graphs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache

import numpy as np
import torch

from mixq.array_store import ArrayStore
from mixq.config import LayerScheme, MixedPrecisionConfig, Training
from mixq.evaluator import Evaluator
from mixq.graph import Graph, serialize
from mixq.ptq import Material, Quantizer
from mixq.qat import Lessons, Trainer
from mixq.runtimes import get_runtime
from mixq.task import Array, Inputs, Outputs
from tests.helpers import CALIBRATE, images, ort_run
from tests.tiny import Tiny, TinyNetwork


class UnevenNetwork(TinyNetwork):
    """Channels that one scale for a whole tensor does not suit: the first layer's outputs grow from 1 to 100.

    The second layer's weights shrink in the same way, so that every channel matters alike.
    """

    def __init__(self) -> None:
        super().__init__(16, 16)
        factors = torch.logspace(0, 2, 16)
        with torch.no_grad():
            self.first.weight.mul_(factors[:, None, None, None])
            self.first.get_parameter("bias").mul_(factors)
            self.second.weight.div_(factors[:, None, None])


class Uneven(Tiny):
    """Its metric is how close the outputs are to FP32's: less the mean squared error."""

    primary = "closeness"

    def model(self) -> torch.nn.Module:
        return UnevenNetwork().eval()

    def training(self) -> Iterator[Inputs]:
        for seed in range(8):
            yield images(16, size=12, seed=100 + seed, name="image")

    def batches(self, split: str) -> Iterator[tuple[Inputs, Array]]:
        inputs = images(64, size=12, seed=7 if split == "search" else 8, name="image")
        with torch.inference_mode():
            yield inputs, UnevenNetwork()(torch.from_numpy(inputs["image"])).numpy()

    def metrics(self, outputs: Outputs, targets: Array) -> Mapping[str, float]:
        (scores,) = outputs.values()
        return {"closeness": -float(np.mean((scores - targets) ** 2))}


@cache
def uneven(runtime: str = "openvino") -> Evaluator:
    return Evaluator(Uneven(), get_runtime(runtime), latency_budget_s=0.0)


def configuration(evaluator: Evaluator, training: Training | None, **layers: str) -> MixedPrecisionConfig:
    """The layers named have the scheme given, all others are INT8."""
    schemes = {name: LayerScheme.parse(layers.get(name, "int8")) for name in evaluator.graph.layer_names}
    # Nothing but calibrated: bias correction alone mends most of what these small networks lose.
    return MixedPrecisionConfig(model=evaluator.fingerprint, schemes=schemes, training=training, recipe=CALIBRATE)


def all_trained(evaluator: Evaluator, training: Training) -> MixedPrecisionConfig:
    return configuration(evaluator, training, **dict.fromkeys(evaluator.graph.layer_names, "int8-qat"))


def trainer_of(graph: Graph, inputs: Inputs, batches: Sequence[Inputs], store: ArrayStore | None = None) -> Trainer:
    """Calibrated on `inputs`; trains on `batches`, with the graph itself as the teacher."""
    placement = get_runtime("onnxruntime").placement
    quantizer = Quantizer(graph, Material([inputs], ort_run, placement))
    quantizer.store = store
    lessons = Lessons(batches, ort_run, lambda: serialize(graph.model))
    return Trainer(quantizer, placement, lessons, graph.layer_names, lambda _config: True)


def all_qat(graph: Graph, training: Training, **layers: str) -> MixedPrecisionConfig:
    """Every layer trained, but for those that are named."""
    schemes = {name: LayerScheme.parse(layers.get(name, "int8-qat")) for name in graph.layer_names}
    return MixedPrecisionConfig(model=graph.fingerprint, schemes=schemes, training=training, recipe=CALIBRATE)
