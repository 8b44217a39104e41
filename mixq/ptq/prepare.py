"""Runs a recipe: graph + configuration + statistics → the parameters that lowering needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mixq.calibration import Statistics
from mixq.config import MixedPrecisionConfig, Precision, RecipeStep
from mixq.errors import InputError
from mixq.graph.model import Graph
from mixq.graph.plan import Plan
from mixq.graph.quantize import Parameters
from mixq.ptq.calibrate import Calibrate

STEPS: dict[str, type[Any]] = {"calibrate": Calibrate}

DEFAULT_RECIPE = (RecipeStep(name="calibrate", params={"activations": "mse", "weights": "mse"}),)


def check_recipe(recipe: Sequence[RecipeStep]) -> list[Any]:
    """The steps as objects. Raises InputError for an unknown step or parameter, or another order than the fixed one."""
    order = list(STEPS)
    names = [step.name for step in recipe]
    for name in names:
        if name not in STEPS:
            raise InputError(f"recipe step {name!r} is unknown; known: {', '.join(order)}")
    if names[:1] != ["calibrate"] or names != sorted(set(names), key=order.index):
        raise InputError(f"a recipe starts with calibrate and keeps the order {' → '.join(order)}, got {names}")
    return [_step(step) for step in recipe]


def prepare(graph: Graph, config: MixedPrecisionConfig, plan: Plan, statistics: Statistics) -> Parameters:
    """Finished parameters of all INT8 layers of `config` after post-training quantization."""
    calibrate = check_recipe(config.recipe or DEFAULT_RECIPE)[0]
    activations = calibrate.activation_qparams(statistics, plan)
    weights = {}
    for name in config.layers_with(Precision.INT8):
        layer = graph.by_name[name]
        bias = None if layer.bias is None else graph.weight(layer.bias)
        weights[name] = calibrate.weight_qparams(
            layer, graph.weight(layer.weight), bias, activations[plan.inputs[name]]
        )
    return Parameters(activations, weights)


def _step(step: RecipeStep) -> Any:
    cls = STEPS[step.name]
    known = list(cls.__dataclass_fields__)
    unknown = sorted(set(step.params) - set(known))
    if unknown:
        raise InputError(f"recipe step {step.name!r} has no parameter {unknown}; known: {', '.join(known)}")
    try:
        return cls(**step.params)
    except (InputError, TypeError, ValueError) as error:
        raise InputError(f"recipe step {step.name!r}: {error}") from None
