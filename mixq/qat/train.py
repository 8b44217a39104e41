"""Trains the layers with stage qat on the twin of the lowered graph, distilled from the FP32 model.

The graph that is trained is the one that is exported: its QuantizeLinear/DequantizeLinear pairs round with the very
qparams of the lowering, straight through in the gradient (Bengio et al. 2013; Jacob et al. 2018, section 3). Layers
of any other stage stand in it as the configuration has them, and stay as they are. No labels are needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from mixq import machine
from mixq.config import MixedPrecisionConfig, Training
from mixq.errors import MixqError
from mixq.graph.lower import lower
from mixq.graph.model import Graph, Run
from mixq.graph.plan import Plan
from mixq.graph.quantize import Parameters, own_name
from mixq.task import Inputs, Outputs
from mixq.twin import Twin

CLIP_NORM = 1.0


def train(
    graph: Graph,
    config: MixedPrecisionConfig,
    plan: Plan,
    parameters: Parameters,
    batches: Sequence[Inputs],
    teacher: Run,
    *,
    typed: bool = True,
    progress: Callable[[str], None] | None = None,
) -> tuple[Parameters, tuple[float, ...]]:
    """`parameters` with trained weights and biases of the QAT layers, and the loss of every step.

    `teacher` gives the FP32 model's outputs. The loss is the squared error of the outputs ÷ their variance, so that
    tasks of any kind share one learning rate. Deterministic given the seed. Raises MixqError where it diverges.
    """
    if config.training is None:
        raise ValueError("the configuration has no training settings")
    targets = _trained_values(graph, config)
    twin = Twin(lower(graph, config, plan, parameters, typed=typed, trainable=config.qat_layers), list(targets))
    torch.set_num_threads(machine.cores())
    losses = tuple(_steps(twin, config.training, batches, teacher, progress))
    values = twin.parameter_values()
    if not all(np.isfinite(value).all() for value in values.values()):
        raise MixqError(f"training diverged at its last step, {len(losses)}; lower the learning rate")
    trained = {key: values[name] for name, key in targets.items()}
    return replace(parameters, values={**parameters.values, **trained}), losses


def _trained_values(graph: Graph, config: MixedPrecisionConfig) -> dict[str, tuple[str, int]]:
    """Initializer name in the lowered graph → (layer, input index) of every weight and bias that is trained."""
    found: dict[str, tuple[str, int]] = {}
    for name in config.qat_layers:
        indices = (1,) if graph.by_name[name].bias is None else (1, 2)
        found |= {own_name(name, index): (name, index) for index in indices}
    return found


def _steps(
    twin: Twin,
    settings: Training,
    batches: Sequence[Inputs],
    teacher: Run,
    progress: Callable[[str], None] | None,
) -> Iterator[float]:
    optimizer = torch.optim.Adam(twin.parameters(), lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    answers: dict[int, Outputs] = {}
    for step, index in enumerate(_order(len(batches), settings)):
        if index not in answers:
            answers[index] = teacher(batches[index])
        loss = _loss(twin, batches[index], answers[index])
        value = loss.item()
        if not math.isfinite(value):
            raise MixqError(f"training diverged at step {step} (loss {value}); lower the learning rate")
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(twin.parameters(), CLIP_NORM)
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress(f"QAT step {step + 1}/{settings.steps}, loss {value:.2e}")
        yield value


def _order(count: int, settings: Training) -> Iterator[int]:
    """Indices of batches, `steps` of them: seeded permutations, one after the other."""
    rng, given = np.random.default_rng(settings.seed), 0
    while given < settings.steps:
        for index in rng.permutation(count)[: settings.steps - given]:
            given += 1
            yield int(index)


def _loss(twin: Twin, inputs: Inputs, answers: Outputs) -> torch.Tensor:
    found = twin({name: torch.from_numpy(np.array(value)) for name, value in inputs.items()})
    losses = []
    for name, answer in answers.items():
        if answer.dtype.kind == "f":
            wanted = torch.from_numpy(answer)
            losses.append(torch.mean((found[name] - wanted) ** 2) / _spread(wanted))
    if not losses:
        raise MixqError("the model has no float output that training could bring close to FP32's; leave out stage qat")
    return torch.stack(losses).mean()


def _spread(values: torch.Tensor) -> torch.Tensor:
    """Their variance; the mean square where all are equal, as where a batch has one value only."""
    variance, square = values.var(correction=0), values.square().mean()
    return torch.where(variance > 1e-12 * square, variance, square).clamp_min(1e-12)
