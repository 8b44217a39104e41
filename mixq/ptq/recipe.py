"""The table of recipe steps, in the only order that they may have, and the default recipe."""

from __future__ import annotations

from collections.abc import Sequence

from mixq.config import RecipeStep
from mixq.errors import InputError
from mixq.ptq.adaround import AdaRound
from mixq.ptq.bias_correction import BiasCorrection
from mixq.ptq.calibrate import Calibrate
from mixq.ptq.equalize import Equalize
from mixq.ptq.state import Step

# equalize changes weights in FP32, so it comes first; calibrate needs the final FP32 weights, adaround the scales;
# bias_correction needs the final codes, and mends the mean error of layers that adaround has not rounded.
STEPS: dict[str, type[Step]] = {
    "equalize": Equalize,
    "calibrate": Calibrate,
    "adaround": AdaRound,
    "bias_correction": BiasCorrection,
}
NEEDED = "calibrate"

DEFAULT_RECIPE = (
    RecipeStep(name="calibrate", params={"activations": "mse", "weights": "mse"}),
    RecipeStep(name="bias_correction"),
)


def check_recipe(recipe: Sequence[RecipeStep]) -> list[Step]:
    """The steps as objects. Raises InputError for an unknown step or parameter, or another order than the fixed one."""
    order = list(STEPS)
    names = [step.name for step in recipe]
    for name in names:
        if name not in STEPS:
            raise InputError(f"recipe step {name!r} is unknown; known: {', '.join(order)}")
    if NEEDED not in names or names != sorted(set(names), key=order.index):
        raise InputError(f"a recipe has {NEEDED}, each step once, in the order {' → '.join(order)}; got {names}")
    return [_step(step) for step in recipe]


def _step(step: RecipeStep) -> Step:
    cls = STEPS[step.name]
    known = list(getattr(cls, "__dataclass_fields__", ()))
    unknown = sorted(set(step.params) - set(known))
    if unknown:
        raise InputError(f"recipe step {step.name!r} has no parameter {unknown}; known: {', '.join(known)}")
    try:
        return cls(**step.params)
    except (InputError, TypeError, ValueError) as error:
        raise InputError(f"recipe step {step.name!r}: {error}") from None
