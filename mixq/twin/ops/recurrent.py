"""Recurrent layers: RNN, GRU and LSTM, as ONNX defines them, in plain torch ops.

Weights of one direction: from the input W (G·H, I), from the hidden state R (G·H, H), and their biases one after the
other, (2·G·H,), for H hidden units and G gates.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from mixq.errors import InputError
from mixq.twin.ops.recurrence import Cell, State, check_activations, over_time
from mixq.twin.ops.signature import Attributes, Outputs


def rnn(
    attributes: Attributes,
    x: torch.Tensor,
    weight: torch.Tensor,
    recurrence: torch.Tensor,
    bias: torch.Tensor | None = None,
    lengths: torch.Tensor | None = None,
    hidden: torch.Tensor | None = None,
) -> Outputs:
    """Elman's: h' = tanh(W x + R h + b). Raises InputError for another activation."""
    check_activations(attributes, "RNN", ["Tanh"])
    return over_time(attributes, x, lengths, recurrence.shape[-1], (weight, recurrence, bias), (hidden,), _rnn_cell)


def gru(
    attributes: Attributes,
    x: torch.Tensor,
    weight: torch.Tensor,
    recurrence: torch.Tensor,
    bias: torch.Tensor | None = None,
    lengths: torch.Tensor | None = None,
    hidden: torch.Tensor | None = None,
) -> Outputs:
    """Cho et al. 2014; gates in the order update, reset, candidate. torch's form is linear_before_reset=1.

    Raises InputError for other activations.
    """
    check_activations(attributes, "GRU", ["Sigmoid", "Tanh"])
    return over_time(attributes, x, lengths, recurrence.shape[-1], (weight, recurrence, bias), (hidden,), _gru_cell)


def lstm(
    attributes: Attributes,
    x: torch.Tensor,
    weight: torch.Tensor,
    recurrence: torch.Tensor,
    bias: torch.Tensor | None = None,
    lengths: torch.Tensor | None = None,
    hidden: torch.Tensor | None = None,
    memory: torch.Tensor | None = None,
    peepholes: torch.Tensor | None = None,
) -> Outputs:
    """Hochreiter & Schmidhuber 1997; gates in the order input, output, forget, candidate; peepholes without the last.

    Raises InputError for other activations and for input_forget=1.
    """
    check_activations(attributes, "LSTM", ["Sigmoid", "Tanh", "Tanh"])
    if attributes.get("input_forget", 0):
        raise InputError("LSTM: input_forget=1 is not supported; export the model without coupled gates")
    return over_time(
        attributes,
        x,
        lengths,
        recurrence.shape[-1],
        (weight, recurrence, bias, peepholes),
        (hidden, memory),
        _lstm_cell,
    )


def _rnn_cell(
    _: Attributes, x: torch.Tensor, weight: torch.Tensor, recurrence: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, Cell]:
    def cell(inward: torch.Tensor, state: State) -> State:
        return (torch.tanh(inward + F.linear(state[0], recurrence)),)

    return F.linear(x, weight, _sum_of_halves(bias)), cell


def _gru_cell(
    attributes: Attributes, x: torch.Tensor, weight: torch.Tensor, recurrence: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, Cell]:
    size = recurrence.shape[-1]
    from_x, from_hidden = (None, None) if bias is None else bias.chunk(2)
    to_gates, to_candidate = torch.split(recurrence, [2 * size, size])
    gates_bias, candidate_bias = (None, None) if from_hidden is None else torch.split(from_hidden, [2 * size, size])
    linear_before_reset = attributes.get("linear_before_reset", 0)

    def cell(inward: torch.Tensor, state: State) -> State:
        (hidden,) = state
        gates, candidate = torch.split(inward, [2 * size, size], -1)
        update, reset = torch.sigmoid(gates + F.linear(hidden, to_gates, gates_bias)).chunk(2, -1)
        if linear_before_reset:
            candidate = candidate + reset * F.linear(hidden, to_candidate, candidate_bias)
        else:
            candidate = candidate + F.linear(reset * hidden, to_candidate, candidate_bias)
        return ((1 - update) * torch.tanh(candidate) + update * hidden,)

    return F.linear(x, weight, from_x), cell


def _lstm_cell(
    _: Attributes,
    x: torch.Tensor,
    weight: torch.Tensor,
    recurrence: torch.Tensor,
    bias: torch.Tensor | None,
    peepholes: torch.Tensor | None,
) -> tuple[torch.Tensor, Cell]:
    to_input, to_output, to_forget = (0.0, 0.0, 0.0) if peepholes is None else peepholes.chunk(3)

    def cell(inward: torch.Tensor, state: State) -> State:
        hidden, memory = state
        gates = (inward + F.linear(hidden, recurrence)).chunk(4, -1)
        write = torch.sigmoid(gates[0] + to_input * memory) * torch.tanh(gates[3])
        memory = torch.sigmoid(gates[2] + to_forget * memory) * memory + write
        return torch.sigmoid(gates[1] + to_output * memory) * torch.tanh(memory), memory

    return F.linear(x, weight, _sum_of_halves(bias)), cell


def _sum_of_halves(bias: torch.Tensor | None) -> torch.Tensor | None:
    return None if bias is None else bias.reshape(2, -1).sum(0)
