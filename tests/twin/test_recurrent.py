"""LSTM, GRU and RNN: values and gradients against torch's own layers, other forms against the reference evaluator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from mixq.errors import InputError
from mixq.twin import Twin

from .oracle import Array, assert_like_reference, node_model, normal, run_node

STEPS, BATCH, SIZE, HIDDEN = 5, 3, 4, 2
LEFT_OUT = np.zeros(0, np.float32)
LENGTHS = np.array([3, 5, 1], np.int32)
# Op → torch's layer and the order of ONNX's gates by torch's numbers.
LAYERS: dict[str, tuple[Callable[..., nn.RNNBase], tuple[int, ...]]] = {
    "LSTM": (nn.LSTM, (0, 3, 1, 2)),
    "GRU": (nn.GRU, (1, 0, 2)),
    "RNN": (nn.RNN, (0,)),
}
ATTRIBUTES: dict[str, dict[str, Any]] = {"LSTM": {}, "GRU": {"linear_before_reset": 1}, "RNN": {}}


def inputs_of(op_type: str, directions: int = 1, layout: int = 0) -> dict[str, Array]:
    """All inputs but the lengths and the peepholes."""
    gates = len(LAYERS[op_type][1]) * HIDDEN
    states = ("h", "c") if op_type == "LSTM" else ("h",)
    shape = (BATCH, directions, HIDDEN) if layout else (directions, BATCH, HIDDEN)
    return {
        "x": normal(*((BATCH, STEPS) if layout else (STEPS, BATCH)), SIZE),
        "w": normal(directions, gates, SIZE, seed=1),
        "r": normal(directions, gates, HIDDEN, seed=2),
        "b": normal(directions, 2 * gates, seed=3),
        "": LEFT_OUT,
        **{name: normal(*shape, seed=place + 4) for place, name in enumerate(states)},
    }


def bare(op_type: str, directions: int = 1) -> dict[str, Array]:
    """The inputs that no node can do without."""
    inputs = inputs_of(op_type, directions)
    return {name: inputs[name] for name in "xwr"}


def leaves(inputs: dict[str, Array]) -> dict[str, Tensor]:
    floats = (np.float32, np.float64)
    return {name: torch.tensor(array, requires_grad=array.dtype in floats) for name, array in inputs.items() if name}


def run(op_type: str, inputs: dict[str, Array], tensors: dict[str, Tensor], **attributes: Any) -> tuple[Tensor, ...]:
    """All outputs of a Twin of one node."""
    outputs = 3 if op_type == "LSTM" else 2
    model = node_model(op_type, 21, inputs, outputs, **{**ATTRIBUTES[op_type], **attributes})
    return tuple(Twin(ir.from_proto(model))(tensors).values())


def torchs(op_type: str, tensors: dict[str, Tensor], directions: int) -> tuple[Tensor, ...]:
    """What torch's layer gives for the same weights, in the form of ONNX."""
    kind, order = LAYERS[op_type]
    layer = kind(SIZE, HIDDEN, bidirectional=directions == 2)
    back = [order.index(gate) for gate in range(len(order))]
    weights = {}
    for place, suffix in enumerate(["", "_reverse"][:directions]):
        input_bias, hidden_bias = tensors["b"][place].chunk(2)
        given = {"weight_ih": tensors["w"][place], "weight_hh": tensors["r"][place]}
        given |= {"bias_ih": input_bias, "bias_hh": hidden_bias}
        for name, onnx_weight in given.items():
            parts = onnx_weight.chunk(len(order))
            weights[f"{name}_l0{suffix}"] = torch.cat([parts[gate] for gate in back])
    steps: Tensor | PackedSequence = tensors["x"]
    if "n" in tensors:
        steps = pack_padded_sequence(tensors["x"], tensors["n"].long(), enforce_sorted=False)
    state = (tensors["h"], tensors["c"]) if op_type == "LSTM" else tensors["h"]
    every, last = torch.func.functional_call(layer, weights, (steps, state))
    if "n" in tensors:
        every, _ = pad_packed_sequence(every)
    every = every.reshape(STEPS, BATCH, directions, HIDDEN).transpose(1, 2)
    return (every, *last) if op_type == "LSTM" else (every, last)


@pytest.mark.parametrize("op_type", LAYERS)
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "unequal"])
def test_values_and_gradients_are_those_of_torch(op_type: str, direction: str, lengths: Array | None) -> None:
    directions = 2 if direction == "bidirectional" else 1
    inputs = inputs_of(op_type, directions)
    if lengths is not None:
        inputs = {name or "n": array if name else lengths for name, array in inputs.items()}
    tensors = leaves(inputs)
    ours = run(op_type, inputs, tensors, direction=direction, hidden_size=HIDDEN)
    theirs = torchs(op_type, tensors, directions)
    wanted = [tensor for tensor in tensors.values() if tensor.requires_grad]
    weights = [torch.from_numpy(normal(*output.shape, seed=9)) for output in ours]
    torch.testing.assert_close(ours, theirs)
    expected = torch.autograd.grad(theirs, wanted, weights)
    torch.testing.assert_close(torch.autograd.grad(ours, wanted, weights), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("op_type", LAYERS)
@pytest.mark.parametrize("attributes", [{"direction": "reverse"}, {"direction": "bidirectional", "layout": 1}], ids=str)
def test_other_forms_are_those_of_the_reference_evaluator(op_type: str, attributes: dict[str, Any]) -> None:
    layout = attributes.get("layout", 0)
    inputs = inputs_of(op_type, directions=1 + layout, layout=layout)
    outputs = 3 if op_type == "LSTM" else 2
    present = {name: array for name, array in inputs.items() if name}
    assert_like_reference(node_model(op_type, 21, inputs, outputs, hidden_size=HIDDEN, **attributes), present)


@pytest.mark.slow
@pytest.mark.parametrize("op_type", LAYERS)
def test_gradient_is_the_slope(op_type: str) -> None:
    inputs = {name: array.astype(np.float64) for name, array in inputs_of(op_type, directions=2).items()}
    if op_type == "LSTM":
        inputs["p"] = normal(2, 3 * HIDDEN, seed=8).astype(np.float64)
    tensors = leaves(inputs)

    def outputs(*values: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(tensors, values, strict=True))
        return run(op_type, inputs, given, direction="bidirectional", linear_before_reset=0)

    assert torch.autograd.gradcheck(outputs, list(tensors.values()))


@pytest.mark.parametrize(
    ("op_type", "attributes", "words"),
    [
        ("RNN", {"activations": ["Relu"]}, r"RNN: activations=\['Relu'\] is not supported; use \['Tanh'\]"),
        ("GRU", {"activations": ["Sigmoid", "Tanh", "Sigmoid", "Relu"], "direction": "bidirectional"}, "GRU: activ"),
        ("LSTM", {"clip": 3.0}, r"LSTM: clip=3\.0 is not supported"),
        ("LSTM", {"input_forget": 1}, "LSTM: input_forget=1 is not supported"),
    ],
)
def test_refuses_by_name(op_type: str, attributes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        run_node(op_type, bare(op_type), **attributes)


def test_default_activations_may_be_named() -> None:
    inputs = bare("LSTM", directions=2)
    named = ["Sigmoid", "Tanh", "tanh"] * 2
    actual = run_node("LSTM", inputs, direction="bidirectional", activations=named)
    np.testing.assert_array_equal(actual, run_node("LSTM", inputs, direction="bidirectional"))
