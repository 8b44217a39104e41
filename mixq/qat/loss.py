"""What training makes small: the distance of the outputs from the FP32 model's, or the Task's own loss."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch

from mixq.errors import InputError, MixqError, raised
from mixq.graph.model import CompileRun
from mixq.task import Inputs, Outputs, Task

Tensors = Mapping[str, torch.Tensor]
Loss = Callable[[Tensors, "Answers"], torch.Tensor]


@dataclass(frozen=True)
class Answers:
    """What a batch is to give: the FP32 model's outputs, their spread (over the whole batch), the Task's targets.

    hints: the same of tensors inside the model, where these are to come close too.
    """

    outputs: Tensors
    spreads: Mapping[str, float]
    targets: Any = None
    hints: Answers | None = None

    @classmethod
    def of(cls, outputs: Outputs, targets: Any, device: torch.device | None = None) -> Answers:
        """Raises MixqError where no output is a float: there is nothing to come close to."""
        floats = {name: torch.from_numpy(value) for name, value in outputs.items() if value.dtype.kind == "f"}
        if not floats:
            raise MixqError(
                "the model has no float output that training could bring close to FP32's; leave out stage qat"
            )
        spreads = {name: _spread(value) for name, value in floats.items()}
        return cls({name: value.to(device) for name, value in floats.items()}, spreads, targets)

    def rows(self, part: slice) -> Answers:
        """Those of some rows of the batch."""
        targets = None if self.targets is None else self.targets[part]
        hints = None if self.hints is None else self.hints.rows(part)
        return Answers({name: value[part] for name, value in self.outputs.items()}, self.spreads, targets, hints)


@dataclass(frozen=True)
class Hints:
    """Tensors inside the network that are to come close to FP32's too (Romero et al. 2015, section 2.2).

    model: in FP32, serialized, that gives them beside its outputs; weight: of their mean distance, where the loss of
    the outputs counts 1.
    """

    tensors: tuple[str, ...]
    weight: float
    model: bytes


class Lessons:
    """What is learned from: batches, the FP32 model's answers to each, asked for once, and the loss."""

    def __init__(
        self,
        batches: Sequence[Inputs],
        compile_run: CompileRun,
        model: Callable[[], bytes],
        targets: Sequence[Any] | None = None,
        loss: Loss | None = None,
        identity: Callable[[], str] = str,
    ) -> None:
        """`model`: FP32's, serialized; loss: by default `distance`; identity: what tells these lessons from others,
        where results are kept."""
        self.batches, self.loss, self.identity = batches, loss or distance, cache(identity)
        self.compile_run, self._targets = compile_run, targets
        self._teacher = cache(lambda: compile_run(model()))
        self._known: dict[int, Answers] = {}

    @property
    def distills(self) -> bool:
        """Whether the loss is the distance from FP32's outputs, and not one that the Task brought."""
        return self.loss is distance

    def answers(self, index: int, device: torch.device | None = None) -> Answers:
        """To a batch."""
        if index not in self._known:
            targets = None if self._targets is None else self._targets[index]
            self._known[index] = Answers.of(self._teacher()(self.batches[index]), targets, device)
        return self._known[index]

    def hinted(self, hints: Hints | None) -> Lessons:
        """These lessons, with the distance of `hints` in the loss."""
        return self if hints is None else _Hinted(self, hints)


class _Hinted(Lessons):
    """Tensors are asked for at every step anew: of all batches they may be more than memory holds."""

    def __init__(self, plain: Lessons, hints: Hints) -> None:
        super().__init__(plain.batches, plain.compile_run, lambda: hints.model, identity=plain.identity)
        self.loss = partial(_with_hints, plain.loss, hints.weight)
        self._plain, self._hints = plain, hints

    def answers(self, index: int, device: torch.device | None = None) -> Answers:
        found = self._teacher()(self.batches[index])
        inside = Answers.of({name: found[name] for name in self._hints.tensors}, None, device)
        return replace(self._plain.answers(index, device), hints=inside)


def _with_hints(loss: Loss, weight: float, outputs: Tensors, answers: Answers) -> torch.Tensor:
    if answers.hints is None:
        raise ValueError("these answers have no hints")
    return loss(outputs, answers) + weight * distance(outputs, answers.hints)


def distance(outputs: Tensors, answers: Answers) -> torch.Tensor:
    """The squared error of the outputs ÷ their variance, so that tasks of any kind share one scale."""
    losses = [
        torch.mean((outputs[name] - wanted) ** 2) / answers.spreads[name] for name, wanted in answers.outputs.items()
    ]
    return torch.stack(losses).mean()


def loss_source(task: Task) -> str:
    """The lines of the Task's own loss, its name where they cannot be had; "" where it has none."""
    own = type(task).loss
    if own is Task.loss:
        return ""
    try:
        return inspect.getsource(own)
    except (OSError, TypeError):
        return own.__qualname__


def loss_of(task: Task) -> Loss:
    """The Task's own loss where it has one, else `distance`."""
    if type(task).loss is Task.loss:
        return distance
    method = f"{type(task).__name__}.loss"

    def own(outputs: Tensors, answers: Answers) -> torch.Tensor:
        try:
            found = task.loss(outputs, answers.outputs, answers.targets)
        except InputError:
            raise
        except Exception as error:
            raise raised(method, error) from error
        if not isinstance(found, torch.Tensor) or found.ndim or not found.requires_grad:
            raise InputError(f"{method} must return a scalar torch tensor that depends on the outputs, got {found!r}")
        return found

    return own


def _spread(values: torch.Tensor) -> float:
    """Their variance; the mean square where all are equal, as where a batch has one value only."""
    variance, square = float(values.var(correction=0)), float(values.square().mean())
    return max(variance if variance > 1e-12 * square else square, 1e-12)
