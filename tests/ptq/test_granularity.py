"""Granularity: one scale for a whole weight runs on the same kernels and loses more, less where scale can be moved."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from mixq import measures
from mixq.config import LayerScheme, MixedPrecisionConfig, Precision, RecipeStep
from mixq.errors import InputError
from mixq.graph import Graph, serialize
from mixq.ptq import Material, Quantizer, check_recipe
from mixq.ptq.networks import int8_model
from mixq.runtimes import NAMES, get_runtime
from tests.helpers import Net, images, ort_run
from tests.qat.networks import uneven

STEPS = {
    "calibrate": (),
    "minmax": (),
    "adaround": (RecipeStep(name="adaround"),),
    "bias_correction": (RecipeStep(name="bias_correction"),),
}


def calibrate(granularity: str, weights: str = "mse") -> RecipeStep:
    return RecipeStep(name="calibrate", params={"granularity": granularity, "weights": weights})


@pytest.mark.slow
@pytest.mark.parametrize("runtime", NAMES)
@pytest.mark.parametrize("steps", STEPS)
def test_a_weight_has_one_scale_and_runs_as_int8(steps: str, runtime: str) -> None:
    evaluator = uneven(runtime)
    recipe = (calibrate("tensor", "minmax" if steps == "minmax" else "mse"), *STEPS[steps])
    schemes = dict.fromkeys(evaluator.graph.layer_names, LayerScheme(precision=Precision.INT8))
    config = MixedPrecisionConfig(model=evaluator.fingerprint, schemes=schemes, recipe=recipe)
    candidate = evaluator.prepare(config)
    known = {t.name: numpy_helper.to_array(t) for t in onnx.load_model_from_string(candidate.model).graph.initializer}
    for layer in evaluator.graph.layers:
        scale, codes = known[f"{layer.name}.weight_scale"], known[f"{layer.name}.weight_quantized"]
        assert scale.shape == ()
        assert codes.dtype == np.int8
        weight = evaluator.graph.weight(layer.weight)
        if steps != "adaround":
            inside = np.abs(weight) <= 127 * scale
            assert np.abs(codes * scale - weight)[inside].max() <= 0.5001 * scale
    found = evaluator.evaluate(candidate)
    assert found.silent == ()
    channel = config.model_copy(update={"recipe": (calibrate("channel"), *STEPS[steps])})
    by_channel = MixedPrecisionConfig.model_validate(channel.model_dump())
    assert found.output_mse > evaluator.evaluate(evaluator.prepare(by_channel)).output_mse


def unequal_kernels() -> Graph:
    """A depthwise layer behind a ReLU6, with kernels of 1 to 128."""
    net = Net(4, 8, 8)
    limits = [net.constant(name, np.float32(value)) for name, value in (("low", 0), ("high", 6))]
    clipped = net.op("Clip", net.conv("x", 8, "wide"), *limits, name="clipped")
    sizes = np.exp2(np.arange(8, dtype=np.float32))[:, None, None, None]
    kernels = net.random.normal(size=(8, 1, 3, 3)).astype(np.float32) * sizes
    deep = net.op("Conv", clipped, net.constant("deep.weight", kernels), name="deep", pads=[1] * 4, group=8)
    even = net.op("Mul", deep, net.constant("even", 1 / sizes[:, 0]), name="evened")
    return net.graph(net.conv(even, 4, "last"), example=images(3, 4), ranks=[4])


def test_equalize_moves_what_one_scale_for_all_weights_cannot_hold() -> None:
    graph, batch, error = unequal_kernels(), images(32, 4), {}
    material = Material([batch], ort_run, get_runtime("openvino").placement)
    want = ort_run(serialize(graph.model))(batch)
    for granularity in ("channel", "tensor"):
        equalize = RecipeStep(name="equalize", params={"granularity": granularity})
        found = Quantizer(graph, material).prepared((equalize, calibrate("tensor")))
        error[granularity] = measures.relative_mse(want, ort_run(serialize(int8_model(found, material)))(batch))
    assert error["tensor"] < 0.2 * error["channel"]


@pytest.mark.parametrize("step", ["calibrate", "equalize"])
def test_an_unknown_granularity_is_refused(step: str) -> None:
    wrong = RecipeStep(name=step, params={"granularity": "row"})
    with pytest.raises(InputError, match=f"{step}.*granularity: 'row' is unknown; known: channel, tensor"):
        check_recipe([wrong] if step == "calibrate" else [wrong, calibrate("tensor")])
