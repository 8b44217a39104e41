"""Where a search starts: the uniform configurations, and a ladder from the sensitivity ranking.

On a toy problem of 50 layers the start decided what 300 trials reached, more than the sampler did: the configurations
that a person would try first are tried first.
"""

from __future__ import annotations

from collections.abc import Iterator

from mixq.config import LayerScheme, Precision, Stage
from mixq.searcher.choices import RATE, RECIPE, REST, STEPS, Choices, Params, Unit
from mixq.sensitivity import Sensitivity

INT8 = LayerScheme(precision=Precision.INT8)
FLOATS = (Precision.BF16, Precision.FP16, Precision.FP32)


def warm_start(choices: Choices, sensitivity: Sensitivity) -> list[tuple[str, Params]]:
    """(origin, parameters), most promising first and without repetition: uniform ones, then ladders."""
    found: dict[str, tuple[str, Params]] = {}
    for origin, params in (*_uniform(choices), *_ladders(choices, sensitivity)):
        found.setdefault(choices.config(params).id, (origin, params))
    return list(found.values())


def _uniform(choices: Choices) -> Iterator[tuple[str, Params]]:
    for scheme in _schemes(choices):
        for rest in choices.rest:
            assigned = {unit.name: _nearest(unit, scheme) for unit in choices.units}
            yield f"uniform {scheme}", _params(choices, assigned, rest.value)
    for recipe in list(choices.recipes)[1:]:
        assigned = {unit.name: _nearest(unit, _cheapest(choices)) for unit in choices.units}
        yield f"uniform int8, recipe {recipe}", _params(choices, assigned, choices.rest[0].value, recipe)


def _ladders(choices: Choices, sensitivity: Sensitivity) -> Iterator[tuple[str, Params]]:
    """All in the cheapest scheme but the k most sensitive units, k doubling; those in each other scheme in turn."""
    ranking, cheapest = _ranked_units(choices, sensitivity), _cheapest(choices)
    spared = [scheme for scheme in _schemes(choices) if scheme != cheapest]
    spared.sort(key=_promise)
    for scheme in spared:
        count = 1
        while count < len(ranking):
            top = {unit.name for unit in ranking[:count]}
            assigned = {u.name: _nearest(u, scheme if u.name in top else cheapest) for u in choices.units}
            yield f"ladder {count} {scheme}", _params(choices, assigned, _matching_rest(choices, scheme))
            count *= 2


def _schemes(choices: Choices) -> list[LayerScheme]:
    return list(dict.fromkeys(scheme for unit in choices.units for scheme in unit.schemes))


def _cheapest(choices: Choices) -> LayerScheme:
    """INT8, untrained where the space has that; else its fastest float type."""
    return min(_schemes(choices), key=lambda s: (s.precision is not Precision.INT8, s.stage is Stage.QAT, _promise(s)))


def _promise(scheme: LayerScheme) -> int:
    """Fast float types first; training last, since it costs most."""
    return len(FLOATS) if scheme.precision is Precision.INT8 else FLOATS.index(scheme.precision)


def _matching_rest(choices: Choices, scheme: LayerScheme) -> str:
    """The rest that makes regions of `scheme` wide: its own type where the space has it, else the first."""
    wanted = [rest.value for rest in choices.rest if rest is scheme.precision]
    return (wanted or [choices.rest[0].value])[0]


def _ranked_units(choices: Choices, sensitivity: Sensitivity) -> list[Unit]:
    """Units by their INT8 error, the sum over their layers, the largest first."""
    errors = sensitivity.errors(INT8)
    return sorted(choices.units, key=lambda unit: -sum(errors.get(layer, 0.0) for layer in unit.layers))


def _nearest(unit: Unit, wanted: LayerScheme) -> LayerScheme:
    """`wanted` where the unit may have it, else another of the same precision, else its first choice."""
    same = [scheme for scheme in unit.schemes if scheme.precision is wanted.precision]
    return wanted if wanted in unit.schemes else (same or unit.schemes)[0]


def _params(choices: Choices, assigned: dict[str, LayerScheme], rest: str, recipe: str | None = None) -> Params:
    params = {name: str(scheme) for name, scheme in assigned.items()}
    params[REST] = rest
    params[RECIPE] = recipe or next(iter(choices.recipes))
    if choices.training:
        params[STEPS] = str(choices.training[0].steps)
        params[RATE] = repr(choices.training[0].learning_rate)
    return params
