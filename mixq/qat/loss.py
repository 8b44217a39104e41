"""What training makes small: the distance of the outputs from the FP32 model's, or the Task's own loss."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from mixq.errors import InputError, MixqError, raised
from mixq.graph.model import Run
from mixq.task import Inputs, Outputs, Task

Tensors = Mapping[str, torch.Tensor]
Loss = Callable[[Tensors, "Answers"], torch.Tensor]


@dataclass(frozen=True)
class Answers:
    """What a batch is to give: the FP32 model's outputs, their spread (over the whole batch), the Task's targets."""

    outputs: Tensors
    spreads: Mapping[str, float]
    targets: Any = None

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
        return Answers({name: value[part] for name, value in self.outputs.items()}, self.spreads, targets)


class Lessons:
    """What is learned from: batches, the FP32 model's answers to each, asked for once, and the loss."""

    def __init__(
        self,
        batches: Sequence[Inputs],
        teacher: Run,
        targets: Sequence[Any] | None = None,
        loss: Loss | None = None,
        identity: Callable[[], str] = str,
    ) -> None:
        """`loss`: by default `distance`; identity: what tells these lessons from others, where results are kept."""
        self.batches, self.loss, self.identity = batches, loss or distance, cache(identity)
        self._teacher, self._targets = teacher, targets
        self._known: dict[int, Answers] = {}

    def answers(self, index: int, device: torch.device | None = None) -> Answers:
        """To a batch."""
        if index not in self._known:
            targets = None if self._targets is None else self._targets[index]
            self._known[index] = Answers.of(self._teacher(self.batches[index]), targets, device)
        return self._known[index]


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
