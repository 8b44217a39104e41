"""Choices: a search space made concrete for one graph and one runtime; parameters ↔ configurations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from mixq.config import (
    Activation,
    FloatPrecision,
    LayerScheme,
    MixedPrecisionConfig,
    Precision,
    RecipeStep,
    Stage,
    Training,
)
from mixq.errors import InputError
from mixq.graph import Graph, Layer
from mixq.runtimes import Runtime
from mixq.searcher.space import SearchSpace

Params = dict[str, str]

WEIGHT_ONLY = LayerScheme(precision=Precision.INT8, activation=Activation.WEIGHT_ONLY)

RESERVED = REST, RECIPE, STEPS, RATE = "rest", "recipe", "qat.steps", "qat.learning_rate"


@dataclass(frozen=True)
class Unit:
    """One decision: the layers that share it, and the schemes that they may have."""

    name: str
    layers: tuple[str, ...]
    schemes: tuple[LayerScheme, ...]


@dataclass(frozen=True)
class Choices:
    """Every categorical of the search. `notes` says what the runtime cannot run and was left out."""

    model: str
    units: tuple[Unit, ...]
    rest: tuple[FloatPrecision, ...]
    recipes: Mapping[str, tuple[RecipeStep, ...]]
    training: tuple[Training, ...]
    notes: tuple[str, ...]

    def categories(self) -> dict[str, list[str]]:
        """Parameter name → its values, all as strings."""
        found = {unit.name: [str(scheme) for scheme in unit.schemes] for unit in self.units}
        found[REST] = [precision.value for precision in self.rest]
        found[RECIPE] = list(self.recipes)
        if self.training:
            found[STEPS] = [str(n) for n in dict.fromkeys(t.steps for t in self.training)]
            found[RATE] = [repr(r) for r in dict.fromkeys(t.learning_rate for t in self.training)]
        return found

    @property
    def size(self) -> float:
        """How many parameter sets there are."""
        total = 1.0
        for values in self.categories().values():
            total *= len(values)
        return total

    @property
    def untrained(self) -> Choices:
        """The same without training, but for what a unit has with training only."""
        return replace(self, units=tuple(replace(unit, schemes=_untrained(unit.schemes)) for unit in self.units))

    def without_training(self, params: Params) -> Params:
        """The same, each unit untrained that may be."""
        found = {unit.name: LayerScheme.parse(params[unit.name]).untrained for unit in self.units}
        return {**params, **{unit.name: str(s) for unit in self.units if (s := found[unit.name]) in unit.schemes}}

    def config(self, params: Mapping[str, str]) -> MixedPrecisionConfig:
        """The configuration that a full set of parameters stands for."""
        schemes = {layer: LayerScheme.parse(params[unit.name]) for unit in self.units for layer in unit.layers}
        trains = any(scheme.stage is Stage.QAT for scheme in schemes.values())
        quantizes = any(scheme.precision is Precision.INT8 for scheme in schemes.values())
        return MixedPrecisionConfig(
            model=self.model,
            schemes=schemes,
            rest=_rest(params[REST], self.rest),
            recipe=self.recipes[params[RECIPE]] if quantizes else (),
            training=self.training_of(params) if trains else None,
        )

    def training_of(self, params: Mapping[str, str]) -> Training:
        """The training that parameters stand for; of use where they train a layer."""
        for training in self.training:
            if str(training.steps) == params[STEPS] and repr(training.learning_rate) == params[RATE]:
                return training
        raise InputError(f"no training with {params[STEPS]} steps at {params[RATE]} in the space")


def _untrained(schemes: tuple[LayerScheme, ...]) -> tuple[LayerScheme, ...]:
    """Those that also come without training, without it; one that only training reaches stays."""
    return tuple(s for s in schemes if s.stage is not Stage.QAT or s.untrained not in schemes)


def _rest(value: str, known: Iterable[FloatPrecision]) -> FloatPrecision:
    return next(precision for precision in known if precision.value == value)


def make_choices(space: SearchSpace, graph: Graph, runtime: Runtime, model: str) -> Choices:
    """`space` for this graph on this runtime. Raises InputError where a glob matches nothing or no choice is left."""
    _check_globs(space, graph)
    notes: dict[str, None] = {}
    units = []
    for name, layers in _grouped(space, graph):
        refusals: dict[str, None] = {}
        schemes = _runnable(space, graph, runtime, layers, refusals)
        if not schemes:
            reasons = "; ".join(refusals) or "the space gives its layers no scheme in common"
            raise InputError(f"no choice is left for {name}: {reasons}; give it a precision that can run")
        notes |= refusals
        units.append(Unit(name, layers, tuple(schemes)))
    rest = _runnable_rest(space, runtime, notes)
    return Choices(model, tuple(units), rest, space.recipes, _trainings(space), tuple(notes))


def _trainings(space: SearchSpace) -> tuple[Training, ...]:
    wanted = space.training
    if wanted is None:
        return ()
    return tuple(
        Training(**{**wanted.model_dump(), "steps": steps, "learning_rate": rate})
        for steps in wanted.steps
        for rate in wanted.learning_rate
    )


def _check_globs(space: SearchSpace, graph: Graph) -> None:
    for glob in (*space.groups, *(override.layers for override in space.overrides)):
        if not any(fnmatchcase(name, glob) for name in graph.layer_names):
            raise InputError(f"no layer matches {glob!r} of the search space; layers: {', '.join(graph.layer_names)}")


def _grouped(space: SearchSpace, graph: Graph) -> list[tuple[str, tuple[str, ...]]]:
    """Units in the order of their first layers; a layer belongs to the first group that matches it.

    MatMuls of one tensor (query, key and value) are one unit too: they share its codes.
    """
    found: dict[str, list[str]] = {}
    for layer in graph.layers:
        glob = next((glob for glob in space.groups if fnmatchcase(layer.name, glob)), None)
        if glob is not None:
            key = f"group {glob}"
        elif layer.op == "MatMul" and layer.multiplies:
            key = f"readers of {layer.input}"
        else:
            key = _own_name(layer.name)
        found.setdefault(key, []).append(layer.name)
    return [(_unit_name(key, layers), tuple(layers)) for key, layers in found.items()]


def _unit_name(key: str, layers: Sequence[str]) -> str:
    """`key`, but of layers that read one tensor: "encoder.attention.query, key, value"."""
    if not key.startswith("readers of "):
        return key
    first, *others = layers
    if not others:
        return _own_name(first)
    scope = first.rpartition(".")[0] + "."
    return ", ".join([first, *(layer.removeprefix(scope) for layer in others)])


def _own_name(layer: str) -> str:
    return f"layer {layer}" if layer in RESERVED else layer


def _runnable(
    space: SearchSpace, graph: Graph, runtime: Runtime, layers: tuple[str, ...], notes: dict[str, None]
) -> list[LayerScheme]:
    """Schemes that every layer of a unit may have by the space and can have on the runtime."""
    offered = [_offered(space, graph.by_name[layer]) for layer in layers]
    common = [scheme for scheme in offered[0] if all(scheme in other for other in offered)]
    found = []
    for scheme in common:
        reasons = {runtime.refusal(scheme, graph.by_name[layer]) for layer in layers} - {None}
        notes |= {f"{runtime.name} cannot run {scheme}: {reason}": None for reason in reasons}
        if not reasons:
            found.append(scheme)
    return found


def _offered(space: SearchSpace, layer: Layer) -> list[LayerScheme]:
    """By the space. Its activations are those of layers that compute: where an embedding may be INT8, it is codes."""
    found = space.schemes(layer.name)
    if not layer.looks_up:
        return found
    return list(dict.fromkeys(WEIGHT_ONLY if scheme.precision is Precision.INT8 else scheme for scheme in found))


def _runnable_rest(space: SearchSpace, runtime: Runtime, notes: dict[str, None]) -> tuple[FloatPrecision, ...]:
    found = []
    for precision in space.rest:
        reason = runtime.float_refusal(precision)
        if reason is None:
            found.append(precision)
        else:
            notes[f"{runtime.name} cannot run rest: {precision.value}: {reason}"] = None
    return tuple(found) or (Precision.FP32,)
