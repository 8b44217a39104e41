"""Trainer: quantization-aware training of the layers with stage qat, and what is kept of it between configurations.

The graph that is trained is the one that is exported: its QuantizeLinear/DequantizeLinear pairs round with the very
qparams of the lowering, straight through in the gradient (Bengio et al. 2013; Jacob et al. 2018, section 3), and learn
their steps (Esser et al. 2020). Layers of any other stage stand in it as the configuration has them, and stay as they
are. What comes out is a prepared network, as a recipe step leaves one: the integers are made of it as of any other.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from mixq import machine
from mixq.config import LayerScheme, MixedPrecisionConfig, Precision, Stage, Training
from mixq.errors import MixqError
from mixq.graph.lower import lower
from mixq.graph.model import serialize, with_outputs
from mixq.graph.placement import Forms, Placement
from mixq.graph.plan import Plan, make_plan
from mixq.ptq import Prepared, Quantizer, parameters
from mixq.qat.bank import sampled_skips
from mixq.qat.course import Course, State, Trained, steady_steps
from mixq.qat.group import Group
from mixq.qat.hints import find_hints
from mixq.qat.latent import with_latent_weights
from mixq.qat.learned import learned, merged
from mixq.qat.loss import Lessons
from mixq.qat.memory import reused
from mixq.qat.store import load_state, load_trained, save_state, save_trained
from mixq.twin import Twin

KEPT = 8  # trainings that may be wanted again, and as many states that may be gone on with

BANK = "shared start"
PACED = 5  # steps after which it can be told how long all of them take

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Standing:
    """A training on its way: the seconds that all its steps take, whether only those are left over which the learning
    rate falls, and a way to see the network."""

    seconds: float
    falling: bool
    prepared: Callable[[], Prepared]


Look = Callable[[Standing], None]
"""Asked after the first steps, and before the learning rate falls; raises what ends the training."""


class Trainer:
    """Trains configurations of one graph. `trainable`: the layers that may be INT8 at all, for the bank."""

    def __init__(
        self,
        quantizer: Quantizer,
        placement: Placement,
        lessons: Lessons,
        trainable: Sequence[str],
        typed: Callable[[MixedPrecisionConfig], bool],
        group: Group | None = None,
    ) -> None:
        # No gradient passes scales that are found at run time: such a layer stands in the twin with its rounded weight.
        self._placement = replace(placement, forms=Forms("stored", "stored", "stored"))
        self._quantizer, self._lessons = quantizer, lessons
        self._trainable, self._typed, self._group = tuple(trainable), typed, group or Group.current()
        self._finished: OrderedDict[str, Trained] = OrderedDict()
        self._banks: dict[str, Trained] = {}
        self._states: OrderedDict[MixedPrecisionConfig, State] = OrderedDict()

    def start(self, config: MixedPrecisionConfig, progress: Progress | None = None) -> Prepared:
        """What the training of `config` starts from: PTQ layers as its recipe leaves them, QAT layers of the bank."""
        settings = _settings(config)
        untrained = with_latent_weights(self._quantizer.prepared(config.recipe, progress), config.qat_layers)
        if not settings.bank:
            return untrained
        bank = self._bank(config, progress)
        return merged(untrained, bank, self._plan(config), config.qat_layers, config.static_layers)

    def trained(
        self, config: MixedPrecisionConfig, progress: Progress | None = None, look: Look | None = None
    ) -> Trained:
        """`config` trained; where it was trained before with fewer steps, from there on. Deterministic by the seed.

        Raises MixqError where training diverges or does harm.
        """
        return self._once(config, lambda: self._train(config, progress, look))

    def _once(self, config: MixedPrecisionConfig, train: Callable[[], Trained], kind: str = "trained") -> Trained:
        """What `train` makes of `config`, unless it is known or in the store."""
        key, finished = f"{kind} {config.id}", self._banks if kind == BANK else self._finished
        if key not in finished:
            start, store = self._quantizer.prepared(config.recipe), self._quantizer.store
            stored = self._stored(key)
            # Every configuration is trained by one process only, and may be timed meanwhile; the bank is everybody's.
            with store.making(stored) if store and kind == BANK else nullcontext():
                known = load_trained(store, stored, start)
                finished[key] = known or train()
                if known is None:
                    save_trained(store, stored, finished[key], start)
        while len(self._finished) > KEPT:  # each is a whole network
            self._finished.popitem(last=False)
        return finished[key]

    def _train(self, config: MixedPrecisionConfig, progress: Progress | None, look: Look | None) -> Trained:
        settings, family = _settings(config), _family(config)
        steps, steady = settings.steps, steady_steps(settings.steps)
        course, back = self.course(config, self.start(config, progress), settings)
        known, spent = self._known_state(family), 0.0
        if known is not None and known.step <= steady:
            course.resume(known)
            spent = known.seconds
        for until in sorted({min(max(course.step, PACED), steady), steady, steps}):
            began = time.perf_counter()
            self._advance(course, settings, until, progress)
            spent += time.perf_counter() - began
            if until == steady:
                self._keep(family, replace(course.state, seconds=spent))
            if look is not None and until < steps and until:
                look(Standing(spent * steps / until, until == steady, back))
        return Trained(back(), tuple(course.state.losses), spent)

    def course(
        self, config: MixedPrecisionConfig, start: Prepared, settings: Training, skips: bool = False
    ) -> tuple[Course, Callable[[], Prepared]]:
        """The course of a configuration's QAT layers from `start`, and a way to see what it has made of it."""
        graph, plan, int8 = start.graph, self._plan(config), config.static_layers
        given = parameters(start, plan, config.layers_with(Precision.INT8))
        what = learned(graph, plan, config.qat_layers, int8, scales=settings.scales)
        model = lower(graph, config, plan, given, typed=self._typed(config), trainable=config.qat_layers)
        hints = find_hints(graph, config.qat_layers, self._lessons, settings.hints)
        model = with_outputs(model, hints.tensors if hints else ())
        twin = Twin(model, what.names, what.tied)
        self._group.open(lambda: serialize(model), what.names, what.tied, hints)
        scales = [*what.weight_scales, *what.data_scales]
        sampled = sampled_skips(twin, plan, int8, settings.seed) if skips else None
        units, floors = what.units(graph, plan, given), partial(what.least_scales, xp=torch)
        lessons = self._lessons.hinted(hints)
        course = Course(twin, lessons, settings, units, scales, floors, sampled, self._group)

        def back() -> Prepared:
            values = twin.parameter_values()
            if not all(np.isfinite(value).all() for value in values.values()):
                raise MixqError("training diverged: its last step left NaN; lower the learning rate")
            return what.moved(start, given, values)

        return course, back

    def _bank(self, config: MixedPrecisionConfig, progress: Progress | None) -> Prepared:
        """The start that all configurations with this recipe and training share."""
        settings = _settings(config)
        scheme = LayerScheme(precision=Precision.INT8, stage=Stage.QAT)
        fp32 = LayerScheme(precision=Precision.FP32)
        schemes = {name: scheme if name in self._trainable else fp32 for name in config.schemes}
        wanted = settings.model_copy(update={"steps": settings.bank, "bank": 0})
        whole = MixedPrecisionConfig(model=config.model, schemes=schemes, recipe=config.recipe, training=wanted)

        def train() -> Trained:
            began = time.perf_counter()
            start = with_latent_weights(self._quantizer.prepared(config.recipe), self._trainable)
            course, back = self.course(whole, start, wanted, skips=True)
            self._advance(course, wanted, wanted.steps, progress, BANK)
            return Trained(back(), tuple(course.state.losses), time.perf_counter() - began)

        return self._once(whole, train, BANK).prepared

    def _advance(
        self, course: Course, settings: Training, until: int, progress: Progress | None, doing: str = "QAT"
    ) -> None:
        torch.set_num_threads(max(1, machine.cores() // self._group.size))
        with reused():
            for loss in course.run(settings.steps, until):
                if progress is not None:
                    progress(f"{doing} step {course.step}/{settings.steps}, loss {loss:.2e}")

    def _stored(self, key: str) -> str:
        """`key`, and what else a training depends on: data and loss, which a configuration does not know."""
        return key if self._quantizer.store is None else f"{key} {self._lessons.identity()}"

    def _known_state(self, family: MixedPrecisionConfig) -> State | None:
        return self._states.get(family) or load_state(self._quantizer.store, self._stored(f"state {family.id}"))

    def _keep(self, family: MixedPrecisionConfig, state: State) -> None:
        save_state(self._quantizer.store, self._stored(f"state {family.id}"), state)
        self._states[family] = state
        self._states.move_to_end(family)
        while len(self._states) > KEPT:
            self._states.popitem(last=False)

    def _plan(self, config: MixedPrecisionConfig) -> Plan:
        graph = self._quantizer.prepared(config.recipe).graph
        return make_plan(graph, config.static_layers, self._placement)


def _settings(config: MixedPrecisionConfig) -> Training:
    if config.training is None:
        raise ValueError("the configuration has no training settings")
    return config.training


def _family(config: MixedPrecisionConfig) -> MixedPrecisionConfig:
    """The configuration with its number of steps left out: what a training can be gone on with for."""
    training = _settings(config).model_copy(update={"steps": 1})
    return MixedPrecisionConfig(
        model=config.model, schemes=config.schemes, rest=config.rest, recipe=config.recipe, training=training
    )
