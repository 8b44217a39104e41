"""Where a search starts: the uniform configurations; ladders from the sensitivity ranking; the longer recipes.

On a toy problem of 50 layers the start decided what 300 trials reached, more than the sampler did: the configurations
that a person would try first are tried first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice

from mixq.config import Activation, FloatPrecision, LayerScheme, Precision, Stage
from mixq.searcher.choices import RATE, RECIPE, REST, STEPS, Choices, Params, Unit
from mixq.sensitivity import Sensitivity

INT8, FP32 = LayerScheme(precision=Precision.INT8), LayerScheme(precision=Precision.FP32)
ANALYZED = "analyzed"  # the name of the starts that need the analysis: once they are queued, any sampler may propose
FLOATS = (Precision.BF16, Precision.FP16, Precision.FP32)


Start = tuple[str, Params]
"""Origin and parameters."""


def uniform_starts(choices: Choices) -> list[Start]:
    """The most promising first, FP32 at once after it, without repetition. They need no analysis."""
    return _distinct(choices, _uniform(choices))


def analyzed_starts(
    choices: Choices, sensitivity: Sensitivity, *, recipes_first: bool, planned: bool = False
) -> list[Start]:
    """What is not among the uniform starts: ladders and, before or after them, INT8 by the space's other recipes.

    Better recipes make INT8 no faster: they come first where the first one loses too much. What trains
    comes last, since it costs most: all layers, ever longer, then the k most sensitive ones. planned: by a sampler
    that plans, which has better ones than ladders and longer trainings.
    """
    uniform = {choices.config(params).id for _, params in _uniform(choices)}
    ladders, trained_ladders = (
        () if planned else _ladders(choices, sensitivity, trained=trained) for trained in (False, True)
    )
    parts = (_recipes(choices), ladders) if recipes_first else (ladders, _recipes(choices))
    trained = islice(_trained(choices), 1 if planned else None)
    found = _distinct(choices, chain(*parts, trained, trained_ladders))
    return [(origin, params) for origin, params in found if choices.config(params).id not in uniform]


def _distinct(choices: Choices, starts: Iterable[Start]) -> list[Start]:
    found: dict[str, Start] = {}
    for origin, params in starts:
        found.setdefault(choices.config(params).id, (origin, params))
    return list(found.values())


def _uniform(choices: Choices) -> Iterator[Start]:
    cheapest = _cheapest(choices)
    yield _uniform_start(choices, cheapest, choices.rest[0])
    if FP32 in _schemes(choices):
        yield _uniform_start(choices, FP32, choices.rest[0])
    untrained = [scheme for scheme in _schemes(choices) if scheme.stage is not Stage.QAT or scheme == cheapest]
    for scheme in sorted(untrained, key=lambda s: (s != cheapest, _promise(s))):
        for rest in choices.rest:
            yield _uniform_start(choices, scheme, rest)


def _trained(choices: Choices) -> Iterator[Start]:
    """All layers trained, for ever longer: as fast as without, so worth its time only where that loses too much."""
    rate = choices.training[0].learning_rate if choices.training else None
    steps = sorted({training.steps for training in choices.training if training.learning_rate == rate})
    for scheme in _schemes(choices):
        if scheme.stage is Stage.QAT:
            for count in steps:
                origin, params = _uniform_start(choices, scheme, choices.rest[0])
                yield f"{origin}, {count} steps", {**params, STEPS: str(count)}


def _recipes(choices: Choices) -> Iterator[Start]:
    for recipe in list(choices.recipes)[1:]:
        _, params = _uniform_start(choices, _cheapest(choices), choices.rest[0])
        yield f"uniform int8, recipe {recipe}", {**params, RECIPE: recipe}


def _uniform_start(choices: Choices, scheme: LayerScheme, rest: FloatPrecision) -> Start:
    assigned = {unit.name: _nearest(unit, scheme, rest.value) for unit in choices.units}
    return f"uniform {scheme}", _params(choices, assigned, rest.value)


def _ladders(choices: Choices, sensitivity: Sensitivity, *, trained: bool) -> Iterator[Start]:
    """All in the cheapest scheme but the k most sensitive units, k doubling; those in each other scheme in turn.

    trained: those where the others are trained, or those where they are not.
    """
    ranking, cheapest = _ranked_units(choices, sensitivity), _cheapest(choices)
    others = [scheme for scheme in _schemes(choices) if scheme != cheapest]
    spared = [scheme for scheme in others if (scheme.stage is Stage.QAT) == trained]
    spared.sort(key=_promise)
    for scheme in spared:
        count = 1
        while count < len(ranking):
            top = {unit.name for unit in ranking[:count]}
            rest = _matching_rest(choices, scheme)
            assigned = {u.name: _nearest(u, scheme if u.name in top else cheapest, rest) for u in choices.units}
            yield f"ladder {count} {scheme}", _params(choices, assigned, rest)
            count *= 2


def _schemes(choices: Choices) -> list[LayerScheme]:
    return list(dict.fromkeys(scheme for unit in choices.units for scheme in unit.schemes))


def _cheapest(choices: Choices) -> LayerScheme:
    """INT8, static where the space has that, untrained where it has that; else its fastest float type."""
    kinds = list(Activation)
    return min(
        _schemes(choices),
        key=lambda s: (s.precision is not Precision.INT8, kinds.index(s.activation), s.stage is Stage.QAT, _promise(s)),
    )


def _promise(scheme: LayerScheme) -> int:
    """Fast float types first; training last, since it costs most."""
    return len(FLOATS) if scheme.precision is Precision.INT8 else FLOATS.index(scheme.precision)


def _matching_rest(choices: Choices, scheme: LayerScheme) -> str:
    """The rest that makes regions of `scheme` wide: its own type where the space has it, else the first."""
    wanted = [rest.value for rest in choices.rest if rest is scheme.precision]
    return (wanted or [choices.rest[0].value])[0]


def _ranked_units(choices: Choices, sensitivity: Sensitivity) -> list[Unit]:
    """Units by their error in their cheapest INT8 scheme, the sum over their layers, the largest first."""
    cheapest, rest = _cheapest(choices), choices.rest[0].value

    def error(unit: Unit) -> float:
        scheme = _nearest(unit, cheapest, rest).untrained
        errors = sensitivity.errors(scheme if scheme.precision is Precision.INT8 else INT8)
        return sum(errors.get(layer, 0.0) for layer in unit.layers)

    return sorted(choices.units, key=error, reverse=True)


def _nearest(unit: Unit, wanted: LayerScheme, rest: str) -> LayerScheme:
    """`wanted` where the unit may have it, else another of its precision, or of a narrow rest's, else its first."""
    same = [scheme for scheme in unit.schemes if scheme.precision is wanted.precision]
    alike = [scheme for scheme in unit.schemes if scheme.precision == rest and scheme != FP32]
    return wanted if wanted in unit.schemes else (same or alike or unit.schemes)[0]


def _params(choices: Choices, assigned: dict[str, LayerScheme], rest: str) -> Params:
    params = {name: str(scheme) for name, scheme in assigned.items()}
    params[REST] = rest
    params[RECIPE] = next(iter(choices.recipes))
    if choices.training:
        params[STEPS] = str(choices.training[0].steps)
        params[RATE] = repr(choices.training[0].learning_rate)
    return params
