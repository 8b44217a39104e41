"""Real networks on real images: INT8 with the default recipe runs as INT8 everywhere and loses little."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from experiments.cifar10_resnet.task import ResNet20
from experiments.data_folder import data_folder
from experiments.etinynet.task import EtinyNet
from experiments.tiny_darknet.task import TinyDarknet
from mixq.config import LayerScheme, Precision, uniform
from mixq.errors import InputError
from mixq.evaluator import Evaluation, Evaluator
from mixq.runtimes import get_runtime
from mixq.task import Task

pytestmark = [pytest.mark.real, pytest.mark.slow]


@dataclass(frozen=True)
class Case:
    """A task, the data folders that it reads, its number of layers and search rows, and the most that it may lose."""

    task: type[Task]
    folders: tuple[str, ...]
    layers: int
    rows: int
    most_drop: float


CASES = (
    Case(ResNet20, ("cifar10", "cifar10_resnet"), 20, 2000, 0.005),
    Case(TinyDarknet, ("imagenet", "tiny_darknet"), 16, 650, 0.01),
    Case(EtinyNet, ("imagenet", "etinynet"), 44, 650, 0.03),
)


def uniform_int8(case: Case, runtime: str) -> tuple[Evaluator, Evaluation]:
    """The evaluator, and what it says of INT8 everywhere; skipped where the data is absent."""
    try:
        for name in case.folders:
            data_folder(name)
    except InputError as error:
        pytest.skip(str(error))
    evaluator = Evaluator(case.task(), get_runtime(runtime))
    config = uniform(evaluator.fingerprint, evaluator.graph.layer_names, LayerScheme(precision=Precision.INT8))
    return evaluator, evaluator.evaluate(evaluator.prepare(config))


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.task.__name__)
def test_int8_runs_as_int8_and_loses_little(case: Case, runtime: str) -> None:
    evaluator, evaluation = uniform_int8(case, runtime)
    assert len(evaluator.graph.layers) == case.layers
    assert evaluator.data.split("search").rows == case.rows
    assert evaluation.silent == ()
    assert {kernel.executed for kernel in evaluation.kernels} == {"int8"}
    assert evaluation.drop < case.most_drop
    assert evaluation.compression > 3
