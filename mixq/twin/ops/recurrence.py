"""How a recurrent layer runs over time: directions, layouts, first states, and sequences of unequal length."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from mixq.errors import InputError
from mixq.twin.ops.signature import Attributes, Outputs

State = tuple[torch.Tensor, ...]  # each (N, H); the hidden state first
# (the part of the gates that comes from one step of the input, the state before the step) → the state after it
Cell = Callable[[torch.Tensor, State], State]
# (attributes, input (T, N, I), weights of one direction) → that part of the gates, for all steps, and the cell
Prepare = Callable[..., tuple[torch.Tensor, Cell]]

_BACKWARD = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}


def over_time(
    attributes: Attributes,
    x: torch.Tensor,
    lengths: torch.Tensor | None,
    size: int,
    weights: Sequence[torch.Tensor | None],
    first: Sequence[torch.Tensor | None],
    prepare: Prepare,
) -> Outputs:
    """The hidden states of all steps and directions (T, D, N, H), then each state after the last step (D, N, H).

    x is (T, N, I) and `size` is H. The weights and the `first` states (zeros where None) have the direction as their
    first axis. layout=1 puts the batch first: in x, in the states and in the outputs.
    `lengths` (N,): the steps of a sequence beyond its length leave the state as it is and give zeros.
    """
    batch_first = attributes.get("layout", 0)
    steps = x.transpose(0, 1) if batch_first else x
    zeros = x.new_zeros(steps.shape[1], size)
    present = _present(lengths, len(steps))
    outputs, states = [], []
    for direction, backward in enumerate(_BACKWARD[attributes.get("direction", "forward")]):
        gates, cell = prepare(attributes, steps, *(None if weight is None else weight[direction] for weight in weights))
        start = tuple(zeros if state is None else state.select(batch_first, direction) for state in first)
        hidden, last = _run(gates, cell, start, present, backward)
        outputs.append(hidden)
        states.append(last)
    every = torch.stack(outputs, 1)
    ends = tuple(torch.stack(parts, batch_first) for parts in zip(*states, strict=True))
    return (every.permute(2, 0, 1, 3) if batch_first else every, *ends)


def check_activations(attributes: Attributes, op_type: str, default: Sequence[str]) -> None:
    """Raises InputError for activations other than the default ones, and for clip."""
    given = attributes.get("activations") or default
    if any(name.lower() != default[place % len(default)].lower() for place, name in enumerate(given)):
        raise InputError(f"{op_type}: activations={list(given)} is not supported; use {list(default)}, the default")
    if attributes.get("clip", 0):
        raise InputError(f"{op_type}: clip={attributes['clip']} is not supported; export the model without it")


def _present(lengths: torch.Tensor | None, steps: int) -> Sequence[torch.Tensor | None]:
    """For each step, which sequences (N, 1) are not over yet; None for all of them."""
    if lengths is None:
        return [None] * steps
    return [(step < lengths).unsqueeze(1) for step in range(steps)]


def _run(
    gates: torch.Tensor, cell: Cell, state: State, present: Sequence[torch.Tensor | None], backward: bool
) -> tuple[torch.Tensor, State]:
    """The hidden states (T, N, H), in the order of the input, and the last state."""
    steps = list(zip(gates.unbind(0), present, strict=True))
    outputs = []
    for inward, here in reversed(steps) if backward else steps:
        after = cell(inward, state)
        if here is None:
            state, hidden = after, after[0]
        else:
            state = tuple(torch.where(here, new, old) for new, old in zip(after, state, strict=True))
            hidden = torch.where(here, after[0], 0.0)
        outputs.append(hidden)
    return torch.stack(outputs[::-1] if backward else outputs), state
