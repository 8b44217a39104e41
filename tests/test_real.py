"""Real networks on real images: INT8 with the default recipe runs as INT8 everywhere and loses little."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import pytest

from experiments.cifar10_resnet.task import ResNet20
from experiments.data_folder import data_folder
from experiments.etinynet.task import EtinyNet
from experiments.tiny_darknet.task import TinyDarknet
from experiments.tiny_lm.task import TinyLM
from mixq import measures
from mixq.config import Activation, LayerScheme, MixedPrecisionConfig, Precision, RecipeStep
from mixq.errors import InputError
from mixq.evaluator import Evaluator
from mixq.runtimes import get_runtime
from mixq.task import Task

Recipe = tuple[RecipeStep, ...]

pytestmark = [pytest.mark.real, pytest.mark.slow]


@dataclass(frozen=True, eq=False)
class Case:
    """A task, the data folders that it reads, its number of layers and search rows, and what it may lose.

    By runtime, most_error: of the outputs, relative and squared; most_drop: of the metric, two standard errors of which
    are part of it. ONNX Runtime rounds before LeakyRelu and behind it, OpenVINO behind it alone.
    """

    task: type[Task]
    folders: tuple[str, ...]
    layers: int
    rows: int
    most_error: Mapping[str, float]
    most_drop: Mapping[str, float]


def by_runtime(openvino: float, onnxruntime: float) -> dict[str, float]:
    return {"openvino": openvino, "onnxruntime": onnxruntime}


CASES = (
    Case(ResNet20, ("cifar10", "cifar10_resnet"), 20, 2000, by_runtime(0.001, 0.001), by_runtime(0.005, 0.005)),
    Case(TinyDarknet, ("imagenet", "tiny_darknet"), 16, 650, by_runtime(0.004, 0.009), by_runtime(0.02, 0.03)),
    Case(EtinyNet, ("imagenet", "etinynet"), 44, 650, by_runtime(0.04, 0.055), by_runtime(0.03, 0.03)),
)


@cache
def evaluator_of(case: Case, runtime: str) -> Evaluator:
    return Evaluator(case.task(), get_runtime(runtime))


def evaluator_or_skip(case: Case, runtime: str) -> Evaluator:
    """Skips where the data is absent."""
    try:
        for name in case.folders:
            data_folder(name)
    except InputError as error:
        pytest.skip(str(error))
    return evaluator_of(case, runtime)


def int8_everywhere(evaluator: Evaluator, recipe: Recipe = ()) -> MixedPrecisionConfig:
    """Static INT8 for each layer that the runtime has it for; embeddings weight-only; what is left in float32."""
    offered = [
        LayerScheme(precision=Precision.INT8, activation=kind) for kind in (Activation.STATIC, Activation.WEIGHT_ONLY)
    ]
    offered.append(LayerScheme(precision=Precision.FP32))
    schemes = {
        layer.name: next(scheme for scheme in offered if evaluator.runtime.refusal(scheme, layer) is None)
        for layer in evaluator.graph.layers
    }
    return MixedPrecisionConfig(model=evaluator.fingerprint, schemes=schemes, recipe=recipe)


@cache
def output_error(case: Case, runtime: str, recipe: Recipe = ()) -> float:
    """Relative squared error at the outputs of INT8 everywhere, on the search split."""
    evaluator = evaluator_or_skip(case, runtime)
    found = evaluator.outputs(evaluator.prepare(int8_everywhere(evaluator, recipe)), evaluator.data.split("search"))
    return measures.relative_mse(evaluator.reference_outputs("search"), found)


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.task.__name__)
def test_int8_runs_as_int8_and_loses_little(case: Case, runtime: str) -> None:
    evaluator = evaluator_or_skip(case, runtime)
    evaluation = evaluator.evaluate(evaluator.prepare(int8_everywhere(evaluator)))
    assert len(evaluator.graph.layers) == case.layers
    assert evaluator.data.split("search").rows == case.rows
    assert evaluation.silent == ()
    assert {kernel.executed for kernel in evaluation.kernels} == {"int8"}
    coarser = 1.25 if evaluator.runtime.placement.sums_saturate else 1.0  # scales leave room for pairs of weights
    assert output_error(case, runtime) < coarser * case.most_error[runtime]
    assert evaluation.drop < coarser * case.most_drop[runtime]
    assert evaluation.compression > 3


RESNET20, TINY_DARKNET, ETINYNET = CASES
CALIBRATE = RecipeStep(name="calibrate")
MINMAX = RecipeStep(name="calibrate", params={"activations": "minmax"})
BEST = RecipeStep(name="calibrate", params={"activations": "best"})
EQUALIZE, ADAROUND, BIAS = (RecipeStep(name=name) for name in ("equalize", "adaround", "bias_correction"))


@pytest.mark.parametrize(
    ("case", "recipe", "without", "share"),
    [
        (TINY_DARKNET, (CALIBRATE, ADAROUND), (CALIBRATE,), 0.5),
        (TINY_DARKNET, (CALIBRATE, BIAS), (CALIBRATE,), 0.7),
        (ETINYNET, (EQUALIZE, MINMAX), (MINMAX,), 0.9),
        (ETINYNET, (BEST,), (MINMAX,), 0.5),
    ],
    ids=["adaround", "bias_correction", "equalize", "best"],
)
def test_a_step_beats_leaving_it_out(case: Case, recipe: Recipe, without: Recipe, share: float) -> None:
    assert output_error(case, "openvino", recipe) < share * output_error(case, "openvino", without)


def test_a_language_model_in_int8_loses_little_perplexity() -> None:
    """A drop above 0 is a rise; only attention's products stay in float32."""
    try:
        evaluator = Evaluator(TinyLM(), get_runtime("openvino"))
        assert evaluator.reference_metrics["perplexity"] < 9
    except InputError as error:
        pytest.skip(str(error))
    evaluation = evaluator.evaluate(evaluator.prepare(int8_everywhere(evaluator)))
    products = {layer.name for layer in evaluator.graph.layers if layer.weight is None}
    assert (len(evaluator.graph.layers), len(products)) == (26, 6)
    assert {kernel.layer for kernel in evaluation.kernels if kernel.executed != "int8"} == products
    assert evaluation.silent == ()
    assert evaluation.drop == evaluation.metric - evaluator.reference_metrics["perplexity"]
    assert 0 < evaluation.drop < 0.2
    assert evaluation.kl is not None
    assert 0 < evaluation.kl < 0.02
