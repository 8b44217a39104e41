"""Course: the training of one twin, which can be left at any step and gone on with as if it had never been left.

Adam (Kingma & Ba 2015), gradients clipped to a norm. The learning rate rises over the first steps, stays at its peak,
and falls along a cosine over the last ones (Hägele et al. 2024): what it does before does not depend on how many steps
there will be, so that a longer training goes on from a shorter one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from mixq.config import Training
from mixq.errors import MixqError
from mixq.ptq import Prepared
from mixq.qat.group import ALONE, Group
from mixq.qat.loss import Lessons
from mixq.twin import Twin

CLIP_NORM = 1.0
BETAS = (0.8, 0.99)  # short memories, for short trainings
RISING = 10  # steps over which the learning rate rises
FALL = 0.4  # the share of the steps over which the learning rate falls
WINDOW = 10  # steps whose mean loss is compared with the first one
RISE = 4.0  # times what it was at the start: training does harm
SCALE_LIMIT = 8.0  # a learned scale stays within this factor of where it started

Skips = Callable[[int], Collection[str]]
"""By step, the names of the twin's pairs that let their input pass."""

Floors = Callable[[Mapping[str, torch.Tensor]], Mapping[str, torch.Tensor]]
"""Of the parameters, by name how small a scale may be, of its shape."""


def _no_floors(_: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    return {}


@dataclass
class State:
    """Where a course stands: step, the loss of each, seconds spent, the tensors and the optimizer's."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    optimizer: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Trained:
    """A network after training: the loss of every step, and the seconds that they took."""

    prepared: Prepared
    losses: tuple[float, ...]
    seconds: float


class Course:
    """A twin in training, `step` steps so far.

    units: by parameter, how far the learning rate 1 moves its numbers in a step where nothing is left of the outputs.
    The noise that steps make in the outputs grows with their square, so they are in proportion to the root of the error
    that there is to mend: one learning rate suits networks that lose little and such that lose all. scales: the
    parameters that are quantization scales; floors: of all parameters, how small some of them may be.
    """

    def __init__(
        self,
        twin: Twin,
        lessons: Lessons,
        settings: Training,
        units: Mapping[str, float],
        scales: Collection[str] = (),
        floors: Floors = _no_floors,
        skips: Skips | None = None,
        group: Group = ALONE,
    ) -> None:
        self._twin, self._lessons, self._settings, self._group = twin.to(group.device), lessons, settings, group
        self._skips, self._floors = skips or (lambda _step: ()), floors
        self._losses: list[float] = []
        self.step = 0
        parameters = twin.trainable_parameters()
        self._bounds = {name: parameters[name].detach().clone() for name in scales}
        rate = settings.learning_rate * self._error() ** 0.5
        self._optimizer = torch.optim.Adam(
            [{"params": [p], "peak": rate * units[name]} for name, p in parameters.items()],
            betas=BETAS,
            fused=True,
        )

    def run(self, total: int, until: int) -> Iterator[float]:
        """The losses of the steps to `until`, of a training of `total` steps. Raises MixqError where it diverges."""
        order = _order(len(self._lessons.batches), self._settings.seed)
        for step, index in enumerate(order):
            if step >= until:
                return
            if step >= self.step:
                yield self._take(index, _share(step, total))

    @property
    def state(self) -> State:
        """A copy of what a new course needs to go on from here."""
        tensors = {name: p.detach().clone() for name, p in self._twin.trainable_parameters().items()}
        return State(self.step, list(self._losses), 0.0, tensors, deepcopy(self._optimizer.state_dict()["state"]))

    def resume(self, state: State) -> None:
        """Go on from `state`, that of a course of the same settings but for the number of steps."""
        self.step, self._losses = state.step, list(state.losses)
        with torch.no_grad():
            for name, parameter in self._twin.trainable_parameters().items():
                parameter.copy_(state.tensors[name])
        known = self._optimizer.state_dict()
        self._optimizer.load_state_dict({**known, "state": deepcopy(state.optimizer)})

    def _error(self) -> float:
        """The distance of the outputs from FP32's before any step, at most 1."""
        with torch.no_grad():
            error = self._group.evaluate(self._twin, self._lessons, 0)
        return error if math.isfinite(error) and error < 1 else 1.0

    def _take(self, index: int, share: float) -> float:
        """One step on a batch."""
        for group in self._optimizer.param_groups:
            group["lr"] = group["peak"] * share
        value = self._group.backward(self._twin, self._lessons, index, self._skips(self.step))
        self.step += 1
        if not math.isfinite(value):
            raise MixqError(f"training diverged at step {self.step} (loss {value}); lower the learning rate")
        torch.nn.utils.clip_grad_norm_(self._twin.parameters(), CLIP_NORM)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._keep_in_bounds()
        self._losses.append(value)
        self._refuse_rise()
        return value

    def _keep_in_bounds(self) -> None:
        parameters = self._twin.trainable_parameters()
        with torch.no_grad():
            for name, start in self._bounds.items():
                parameters[name].clamp_(start / SCALE_LIMIT, start * SCALE_LIMIT)
            for name, least in self._floors(parameters).items():
                parameters[name].clamp_(min=least)

    def _refuse_rise(self) -> None:
        if self.step % WINDOW:
            return
        first, last = self._losses[0], np.mean(self._losses[-WINDOW:])
        if last > RISE * first:
            raise MixqError(
                f"training does harm: its loss rose from {first:.2e} to {last:.2e} in {self.step} steps; "
                "lower the learning rate"
            )


def steady_steps(total: int) -> int:
    """Steps at the peak learning rate, of `total`."""
    return total - max(1, round(FALL * total))


def _share(step: int, total: int) -> float:
    """The learning rate ÷ its peak."""
    steady, risen = steady_steps(total), min(1.0, (step + 1) / RISING)
    if step < steady:
        return risen
    return risen * 0.5 * (1 + math.cos(math.pi * (step - steady + 1) / (total - steady + 1)))


def _order(count: int, seed: int) -> Iterator[int]:
    """Indices of batches: seeded permutations, one after the other, without end."""
    rng = np.random.default_rng(seed)
    while True:
        yield from rng.permutation(count).tolist()
