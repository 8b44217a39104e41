"""Whatever the recipe: every layer runs as INT8, and computes what the standard says of the file."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from mixq.config import RecipeStep
from mixq.graph import serialize
from mixq.graph.capture import relative_error
from mixq.runtimes import NAMES, get_runtime
from mixq.task import Array, Outputs
from tests.helpers import images, lowered, ort_run, reference_run, residual, schemes

RECIPES = (
    ("calibrate",),
    ("equalize", "calibrate"),
    ("calibrate", "adaround"),
    ("calibrate", "bias_correction"),
    ("equalize", "calibrate", "adaround", "bias_correction"),
)
FEW = images(4, seed=1, name="image")


def only(outputs: Outputs) -> Array:
    (value,) = outputs.values()
    return value


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("recipe", RECIPES, ids="+".join)
@pytest.mark.parametrize("kept", [{}, {"right": "fp32"}], ids=["all", "mixed"])
def test_int8_runs_and_agrees_with_the_reference_evaluator(
    name: str, recipe: tuple[str, ...], kept: dict[str, str]
) -> None:
    steps = tuple(RecipeStep(name=step) for step in recipe)
    config = schemes(residual(), "int8", **kept).model_copy(update={"recipe": steps})
    model = lowered(residual(), config, get_runtime(name), images(64, name="image"))
    onnx.checker.check_model(model.proto, full_check=True)
    have = only(model.executable.run(FEW))
    assert relative_error(only(reference_run(model.model)(FEW)), have) < 0.01
    assert relative_error(only(ort_run(serialize(residual().model))(FEW)), have) < 0.04
    executed = {layer: kernel for layer, kernel in model.executed(FEW).items() if layer not in kept}
    assert set(executed) >= {"left", "head"}
    assert set(executed.values()) == {"int8"}
    assert np.isfinite(have).all()
