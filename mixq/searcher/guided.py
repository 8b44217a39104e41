"""Guide: what is likely to pay, from the sensitivity analysis and the layers' times: moves, and the planner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mixq.config import LayerScheme, Precision
from mixq.graph import Graph
from mixq.searcher.choices import STEPS, Choices, Params, Unit
from mixq.searcher.cost import CostModel, Profiles, kind_of
from mixq.searcher.planner import Planner
from mixq.searcher.solve import QAT, Errors, Prices
from mixq.searcher.space import Objective
from mixq.sensitivity import Sensitivity

# What a layer costs against FP32: the arithmetic limits of VNNI and AVX512-BF16 (scales found at run time take time
# too, weight-only INT8 saves none), and the bytes of a weight.
WORK = {"fp32": 1.0, "fp16": 1.0, "bf16": 0.5, "int8": 0.25, "int8-dynamic": 0.35, "int8-weight_only": 1.0}
BYTES = {Precision.FP32: 1.0, Precision.FP16: 0.5, Precision.BF16: 0.5, Precision.INT8: 0.25}
TRAINING = 0.02
SMALLEST_ERROR = 1e-9


@dataclass(frozen=True, slots=True)
class Move:
    """Set parameter `name` to `value`; weight is proportional to the probability with which it is drawn."""

    name: str
    value: str
    weight: float


class Guide:
    """Predicts, for each unit and scheme, its cost (work, or bytes where size is the objective) and its error."""

    def __init__(
        self,
        choices: Choices,
        graph: Graph,
        sensitivity: Sensitivity,
        objective: Objective,
        profiles: Profiles | None = None,
    ) -> None:
        """`profiles`: the layers' times, by default as their multiply-accumulates."""
        self._choices = choices
        self._units = {unit.name: unit for unit in choices.units}
        self._relative = {kind: _bytes(kind) for kind in WORK} if objective == "size" else WORK
        self._fp32 = {unit.name: _fp32_cost(unit, graph, objective) for unit in choices.units}
        self._errors = {str(scheme): sensitivity.errors(scheme) for scheme in _analyzed(choices)}
        model = CostModel(choices, graph, profiles or _by_work(graph))
        prices = self._bytes() if objective == "size" else None
        self.planner = Planner(choices, model, Errors(choices, sensitivity.interactions_or_sum()), prices)

    def error(self, unit: Unit, scheme: str) -> float:
        """Predicted error of a unit in a scheme: the sum over its layers (errors of layers nearly add)."""
        known = self._errors.get(scheme.removesuffix(QAT), {})
        total = sum(known.get(layer, 0.0) for layer in unit.layers)
        return self.planner.errors.trained * total if scheme.endswith(QAT) else total

    def cost(self, unit: Unit, scheme: str) -> float:
        """Work or bytes; training counts as a little, so that a layer is trained for a reason and trained no longer
        without one."""
        training = TRAINING if scheme.endswith(QAT) else 0.0
        return self._fp32[unit.name] * (self._relative[kind_of(scheme)] + training)

    def _bytes(self) -> Prices:
        """What a configuration's weights take, ÷ FP32's."""
        total = sum(self._fp32.values()) or 1.0
        return Prices(
            lambda unit, kind: self._fp32[unit.name] * _bytes(kind) / total,
            lambda _kind: 0.0,
            lambda _written, _read: 0.0,
            {},
        )

    def moves(self, params: Params, faster: bool) -> list[Move]:
        """faster: moves that save cost, weighted by saved ÷ √error added; else by error removed ÷ √cost added."""
        found = []
        for name, unit in self._units.items():
            for scheme in map(str, unit.schemes):
                saved = self.cost(unit, params[name]) - self.cost(unit, scheme)
                removed = self.error(unit, params[name]) - self.error(unit, scheme)
                if faster and saved > 0:
                    found.append(Move(name, scheme, saved / max(-removed, SMALLEST_ERROR) ** 0.5))
                elif not faster and removed > 0:
                    found.append(Move(name, scheme, removed / max(-saved, 1.0) ** 0.5))
        return found if faster else [*found, *self._longer_training(params, found)]

    def _longer_training(self, params: Params, others: Sequence[Move]) -> list[Move]:
        """More steps, which go on from those that were made: as probable as all other moves of trained layers."""
        steps = self._choices.categories().get(STEPS, [])
        more = [value for value in steps if int(value) > int(params[STEPS])]
        weight = sum(move.weight for move in others if params[move.name].endswith(QAT))
        return [Move(STEPS, min(more, key=int), weight)] if more and weight > 0 else []


def _by_work(graph: Graph) -> Profiles:
    return {kind: {layer.name: layer.macs * share for layer in graph.layers} for kind, share in WORK.items()}


def _bytes(kind: str) -> float:
    return BYTES[LayerScheme.parse(kind).precision]


def _fp32_cost(unit: Unit, graph: Graph, objective: Objective) -> float:
    layers = [graph.by_name[name] for name in unit.layers]
    return float(sum(layer.bytes if objective == "size" else layer.macs for layer in layers))


def _analyzed(choices: Choices) -> list[LayerScheme]:
    """The schemes of the choices as they are analyzed: those with stage qat as ptq."""
    schemes = (scheme for unit in choices.units for scheme in unit.schemes)
    return list(dict.fromkeys(scheme.untrained for scheme in schemes))
