"""The rows of the support table: a small network for each shape of model, its inputs, and what it computes exactly."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import helper
from torch import Tensor, nn

from mixq.graph import Graph, capture
from mixq.task import Array, Inputs
from tests.helpers import Net, ort_run, reference_run

ROWS = 16
WORDS = 50


@dataclass(frozen=True)
class Case:
    """A row of the table, or one of several that share it. `source` makes a torch module or an ONNX model.

    shapes: of each input, without the batch; dynamic, sizes: axes that vary, and other shapes to run on after
    calibration; external: whether the file keeps its weights beside it.
    """

    name: str
    source: Callable[[], nn.Module | onnx.ModelProto]
    shapes: Mapping[str, tuple[int, ...]]
    dynamic: Mapping[str, Sequence[int]] = field(default_factory=dict)
    sizes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    external: bool = False

    @cached_property
    def model(self) -> nn.Module | onnx.ModelProto:
        torch.manual_seed(0)
        made = self.source()
        return made.eval() if isinstance(made, nn.Module) else made

    @cached_property
    def inputs(self) -> Inputs:
        return _drawn(self.shapes, seed=0)

    @cached_property
    def others(self) -> Inputs:
        """What calibration has not seen."""
        return _drawn({**self.shapes, **self.sizes}, seed=1)

    @cached_property
    def graph(self) -> Graph:
        example = {name: value[:3] for name, value in self.inputs.items()}
        if isinstance(self.model, nn.Module):
            return capture(self.model, example, ort_run, self.dynamic)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            onnx.save(deepcopy(self.model), path, save_as_external_data=self.external, size_threshold=0)
            return capture(path, example, ort_run, self.dynamic)

    @cached_property
    def exact(self) -> list[Array]:
        """Its outputs on `others`, by torch in float64 or the ONNX reference evaluator."""
        if not isinstance(self.model, nn.Module):
            return list(reference_run(self.model.SerializeToString())(self.others).values())
        with torch.no_grad():
            tensors = {name: torch.from_numpy(value) for name, value in self.others.items()}
            inputs = {name: one.double() if one.is_floating_point() else one for name, one in tensors.items()}
            found = self.model.double()(**inputs)
        self.model.float()
        return [one.numpy() for one in (found if isinstance(found, tuple) else (found,))]


def _drawn(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, Array]:
    """Standard normal; of an input "ids", whole numbers below WORDS."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.integers(0, WORDS, (ROWS, *shape))
        if name == "ids"
        else rng.standard_normal((ROWS, *shape), dtype=np.float32)
        for name, shape in shapes.items()
    }


def _row(name: str, layers: Callable[[], Sequence[nn.Module]], *shape: int) -> Case:
    """A chain of layers with ReLU in between."""
    return Case(
        name, lambda: nn.Sequential(*(part for layer in layers() for part in (layer, nn.ReLU()))), {"input": shape}
    )


class Recurrent(nn.Module):
    """Two layers of it, in both directions, between two linear layers."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.before = nn.Linear(8, 16)
        self.recurrent = kind(16, 12, num_layers=2, bidirectional=True, batch_first=True)
        self.after = nn.Linear(24, 8)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.after(self.recurrent(torch.relu(self.before(x)))[0].mean(1))
        return found


class Attention(nn.Module):
    """One block of it behind an embedding, four heads wide; sequences of any length."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(WORDS, 128), nn.LayerNorm(128)
        self.query, self.key, self.value, self.out = (nn.Linear(128, 128) for _ in range(4))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.norm(self.embedding(ids))
        q, k, v = (part(x).unflatten(-1, (4, 32)).transpose(1, 2) for part in (self.query, self.key, self.value))
        weights = torch.softmax(q @ k.transpose(2, 3) / 32**0.5, -1)
        found: Tensor = self.out((weights @ v).transpose(1, 2).flatten(2)).mean(1)
        return found


class Several(nn.Module):
    """Two inputs of other ranks, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.linear, self.out, self.score = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(16, 3)

    def forward(self, image: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        joined = torch.relu(self.conv(image)).mean((2, 3)) + torch.relu(self.linear(row))
        return self.out(joined), self.score(joined)


class Tied(nn.Module):
    """Two layers with one weight, another between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.between, self.second = (nn.Conv2d(16, 16, 3, padding=1) for _ in range(3))
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.second(torch.relu(self.between(torch.relu(self.first(x)))))
        return found


class Twice(nn.Module):
    """One module, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.conv(torch.relu(self.conv(x)))
        return found


class Dense(nn.Module):
    """Scores by class from an image of every size that two divides."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.across = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, image: Tensor) -> Tensor:
        found: Tensor = self.head(torch.relu(self.across(torch.relu(self.down(image)))).mean((2, 3)))
        return found


def _written() -> Net:
    net = Net(16, 8, 8)
    net.gemm(net.pooled(net.op("Relu", net.conv("x", 16, "first"))), 16, 8, "last")
    return net


def _of_opset(version: int) -> onnx.ModelProto:
    model = _written().model("last")
    model.opset_import[0].version = version
    return model


def _constants() -> onnx.ModelProto:
    """Every weight in a Constant node."""
    net = _written()
    nodes = [helper.make_node("Constant", [], [one.name], value=one) for one in net.initializers]
    net.nodes, net.initializers = [*nodes, *net.nodes], []
    return net.model("last")


MAP = (16, 8, 8)
CASES = (
    _row("Linear", lambda: [nn.Linear(128, 128), nn.Linear(128, 8)], 128),
    _row("Linear on sequences", lambda: [nn.Linear(128, 128), nn.Linear(128, 8)], 6, 128),
    Case("embedding and attention, dynamic length", Attention, {"ids": (12,)}, {"ids": (1,)}, {"ids": (20,)}),
    _row("Conv1d", lambda: [nn.Conv1d(16, 16, 3), nn.Conv1d(16, 16, 3, stride=2)], 16, 20),
    _row("Conv2d", lambda: [nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3, stride=2)], *MAP),
    _row("Conv3d", lambda: [nn.Conv3d(16, 16, 3), nn.Conv3d(16, 16, 2, stride=2)], 16, 6, 6, 6),
    _row("Conv2d, grouped", lambda: [nn.Conv2d(16, 16, 3, groups=2), nn.Conv2d(16, 32, 3, groups=4)], *MAP),
    _row("Conv2d, depthwise", lambda: [nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 16, 1)], *MAP),
    _row("Conv2d, dilated", lambda: [nn.Conv2d(16, 16, 3, dilation=2, padding=2) for _ in range(2)], *MAP),
    _row("ConvTranspose1d", lambda: [nn.ConvTranspose1d(16, 16, 4, stride=2, padding=1)], 16, 10),
    _row("ConvTranspose2d", lambda: [nn.ConvTranspose2d(16, 16, 4, stride=2, padding=1)], *MAP),
    _row("ConvTranspose2d, grouped", lambda: [nn.ConvTranspose2d(16, 16, 4, stride=2, groups=2)], *MAP),
    _row("ConvTranspose3d", lambda: [nn.ConvTranspose3d(16, 16, 2, stride=2)], 16, 4, 4, 4),
    Case("LSTM", lambda: Recurrent(nn.LSTM), {"x": (6, 8)}),
    Case("GRU", lambda: Recurrent(nn.GRU), {"x": (6, 8)}),
    Case("several inputs and outputs", Several, {"image": (3, 8, 8), "row": (8,)}),
    Case("dynamic spatial size", Dense, {"image": (3, 8, 8)}, {"image": (2, 3)}, {"image": (3, 14, 10)}),
    Case("tied weights", Tied, {"x": MAP}),
    Case("a module called twice", Twice, {"x": MAP}),
    Case(".onnx, weights in Constant nodes", _constants, {"x": MAP}),
    *(Case(".onnx, opsets 13 to 21", partial(_of_opset, version), {"x": MAP}) for version in range(13, 22)),
    Case(".onnx, external data", lambda: _written().model("last"), {"x": MAP}, external=True),
)
