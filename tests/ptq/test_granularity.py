"""calibrate's granularity: one scale for a whole weight runs on the same kernels, and loses more."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from mixq.config import LayerScheme, MixedPrecisionConfig, Precision, RecipeStep
from mixq.errors import InputError
from mixq.ptq import check_recipe
from mixq.runtimes import NAMES
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


def test_an_unknown_granularity_is_refused() -> None:
    with pytest.raises(InputError, match="granularity: 'row' is unknown; known: channel, tensor"):
        check_recipe([calibrate("row")])
