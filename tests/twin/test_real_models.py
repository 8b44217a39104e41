"""The networks of the experiments: a Twin gives their outputs, and each layer's integer kernel to one step."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from experiments.cifar10_resnet.task import MobileNet, ResNet20, ResNet56
from experiments.digits.task import Digits
from experiments.etinynet.task import EtinyNet
from experiments.tiny_darknet.task import TinyDarknet
from mixq import machine
from mixq.config import LayerScheme, Precision
from mixq.errors import InputError
from mixq.evaluator import Evaluator
from mixq.graph import serialize
from mixq.graph.lower import lower
from mixq.graph.model import with_outputs
from mixq.graph.plan import make_plan
from mixq.ptq import parameters
from mixq.runtimes import get_runtime
from mixq.sensitivity import single
from mixq.task import Task
from mixq.twin import Twin
from tests.helpers import CALIBRATE

ROWS = 4
INT8 = LayerScheme(precision=Precision.INT8)
TASKS = [
    pytest.param(Digits, id="digits"),
    *(
        pytest.param(task, id=task.__name__, marks=[pytest.mark.real, pytest.mark.slow])
        for task in (ResNet20, ResNet56, MobileNet, TinyDarknet, EtinyNet)
    ),
]


@cache
def evaluator_of(task: type[Task]) -> Evaluator:
    """Skips where the data is absent."""
    try:
        return Evaluator(task(), get_runtime("openvino"))
    except InputError as error:
        pytest.skip(str(error))


def batch_of(evaluator: Evaluator) -> dict[str, np.ndarray]:
    try:
        return {name: value[:ROWS] for name, value in evaluator.data.calibration[0].items()}
    except InputError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("task", TASKS)
def test_outputs_are_the_networks_own(task: type[Task]) -> None:
    evaluator = evaluator_of(task)
    batch = batch_of(evaluator)
    network = evaluator.data.model()
    with torch.inference_mode():
        want = network(*map(torch.from_numpy, batch.values())).numpy()
        (found,) = Twin(evaluator.graph.model)({name: torch.from_numpy(v) for name, v in batch.items()}).values()
    assert np.abs(found.numpy() - want).max() <= 1e-4 * np.abs(want).max()


@pytest.mark.parametrize("task", TASKS)
def test_each_layer_is_its_integer_kernel_to_one_step(task: type[Task]) -> None:
    """Alone in INT8, at its own output: within a 255th of its range, but for a thousandth of the values.

    The network before it computes in FP32 in both, to the last digits of which a code may differ.
    """
    evaluator = evaluator_of(task)
    batch, runtime = batch_of(evaluator), evaluator.runtime
    prepared = evaluator.quantizer.prepared(CALIBRATE)
    tensors = {name: torch.from_numpy(value) for name, value in batch.items()}
    for layer in evaluator.graph.layers:
        config = single(evaluator, layer, INT8, CALIBRATE)
        plan = make_plan(prepared.graph, [layer.name], runtime.placement)
        chosen = parameters(prepared, plan, [layer.name])
        found = {
            trainable: with_outputs(lower(prepared.graph, config, plan, chosen, trainable=names), [layer.output])
            for trainable, names in ((False, ()), (True, (layer.name,)))
        }
        executable = runtime.compile(serialize(found[False]), machine.cores(), runtime.options(config))
        real = executable.run(batch)[layer.output]
        with torch.inference_mode():
            simulated = Twin(found[True])(tensors)[layer.output].numpy()
        error = np.abs(real - simulated) / (np.ptp(real) / 255)
        assert np.quantile(error, 0.999) <= 1.01, layer.name
        assert error.mean() <= 0.1, layer.name
