"""What many tests share: small networks, graphs written by hand, and the ONNX reference evaluator as an oracle."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.reference
import torch
from onnx import helper, numpy_helper

from mixq.config import LayerScheme, MixedPrecisionConfig, Precision, RecipeStep
from mixq.graph import Graph, Run, capture, serialize
from mixq.graph.lower import lower
from mixq.graph.plan import Plan, make_plan
from mixq.graph.quantize import Parameters
from mixq.ptq import Material, Prepared, Quantizer, parameters
from mixq.runtimes import Executable, Runtime, get_runtime
from mixq.task import Array, Inputs, Outputs


class Residual(torch.nn.Module):
    """A stem with batch norm and pooling, one residual block, a classifier: 8 × 8 images of 3 channels, 5 classes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = torch.nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = torch.nn.BatchNorm2d(8)
        self.pool = torch.nn.MaxPool2d(2)
        self.left = torch.nn.Conv2d(8, 8, 3, padding=1)
        self.right = torch.nn.Conv2d(8, 8, 3, padding=1)
        self.head = torch.nn.Linear(8, 5)
        self.norm.running_mean = torch.empty(8).uniform_(-0.5, 0.5)
        self.norm.running_var = torch.empty(8).uniform_(0.5, 2)
        self.eval()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.pool(torch.relu(self.norm(self.stem(image))))
        x = torch.relu(x + self.right(torch.relu(self.left(x))))
        scores: torch.Tensor = self.head(x.mean((2, 3)))
        return scores


class Net:
    """An ONNX graph written op by op; every tensor is named for its node. Weights are random but fixed."""

    def __init__(self, *shape: int | str, name: str = "x", seed: int = 0) -> None:
        """One input `name` of `shape`, batch left out."""
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", *shape])]
        self.channels = {name: int(shape[0])}

    def op(self, op: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Any node with one output, which keeps the number of channels, or adds them up (Concat)."""
        name = name or f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        read = inputs if op == "Concat" else inputs[:1]
        self.channels[name] = sum(self.channels.get(x, 0) for x in read)
        return name

    def constant(self, name: str, value: npt.ArrayLike) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def weight(self, name: str, *shape: int) -> str:
        fan_in = max(1, int(np.prod(shape[1:])))
        return self.constant(name, (self.random.normal(size=shape) / np.sqrt(fan_in)).astype(np.float32))

    def conv(self, x: str, channels: int, name: str = "", kernel: int = 3, groups: int = 1, **attributes: Any) -> str:
        """A convolution with bias that keeps height and width (stride 1)."""
        name = name or f"conv{len(self.nodes)}"
        weight = self.weight(f"{name}.weight", channels, self.channels[x] // groups, kernel, kernel)
        bias = self.weight(f"{name}.bias", channels)
        self.op("Conv", x, weight, bias, name=name, pads=[kernel // 2] * 4, group=groups, **attributes)
        self.channels[name] = channels
        return name

    def gemm(self, x: str, features: int, channels: int, name: str = "") -> str:
        """A linear layer over the `features` columns of x."""
        name = name or f"gemm{len(self.nodes)}"
        weight, bias = self.weight(f"{name}.weight", channels, features), self.weight(f"{name}.bias", channels)
        self.op("Gemm", x, weight, bias, name=name, transB=1)
        self.channels[name] = channels
        return name

    def pooled(self, x: str) -> str:
        """Global average pooling and flattening: batch × channels."""
        return self.op("Flatten", self.op("GlobalAveragePool", x))

    def model(self, *outputs: str, ranks: Sequence[int] = ()) -> onnx.ModelProto:
        """The model that gives `outputs`, of rank 2 unless `ranks` says otherwise."""
        found = [
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", *[None] * (rank - 1)])
            for name, rank in zip(outputs, ranks or [2] * len(outputs), strict=True)
        ]
        graph = helper.make_graph(self.nodes, "net", self.inputs, found, self.initializers)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)

    def graph(self, *outputs: str, example: Inputs, ranks: Sequence[int] = ()) -> Graph:
        return captured(self.model(*outputs, ranks=ranks), example)


def captured(model: onnx.ModelProto, example: Inputs) -> Graph:
    """`model` as mixq captures the file that it is written to."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path)
        return capture(path, example, ort_run)


def ort_run(model: bytes) -> Run:
    """compile_run on ONNX Runtime, one thread."""
    return get_runtime("onnxruntime").compile(model, 1).run


def reference_run(model: bytes) -> Run:
    """compile_run on the ONNX reference evaluator: slow numpy, by the standard's own words."""
    session = onnx.reference.ReferenceEvaluator(onnx.load_model_from_string(model))
    names = list(session.output_names)

    def run(inputs: Inputs) -> Outputs:
        return dict(zip(names, session.run(None, dict(inputs)), strict=True))

    return run


def images(rows: int, channels: int = 3, size: int = 8, seed: int = 0, name: str = "x") -> dict[str, Array]:
    """Normally distributed inputs."""
    return {name: np.random.default_rng(seed).normal(size=(rows, channels, size, size)).astype(np.float32)}


@cache
def residual() -> Graph:
    """`Residual`, captured."""
    return capture(Residual(), images(3, name="image"), ort_run)


def schemes(graph: Graph, default: str, **layers: str) -> MixedPrecisionConfig:
    """Every layer of `graph` with the scheme `default`, but for `layers`."""
    chosen = {name: LayerScheme.parse(layers.get(name, default)) for name in graph.layer_names}
    return MixedPrecisionConfig(model=graph.fingerprint, schemes=chosen)


@dataclass(frozen=True)
class Lowered:
    """A configuration lowered for a runtime, and compiled on it."""

    model: bytes
    executable: Executable
    graph: Graph

    @property
    def proto(self) -> onnx.ModelProto:
        return onnx.load_model_from_string(self.model)

    def executed(self, inputs: Inputs) -> Mapping[str, str]:
        """Precision by layer, from the audit; without layers that OpenVINO fused into one Subgraph of one precision."""
        found = self.executable.audit(self.graph.layers, inputs).kernels
        return {kernel.layer: kernel.executed for kernel in found if not kernel.kernel.startswith("Subgraph")}


CALIBRATE = (RecipeStep(name="calibrate"),)


def calibrated(graph: Graph, runtime: Runtime, inputs: Inputs, recipe: tuple[RecipeStep, ...] = CALIBRATE) -> Prepared:
    """`graph` after a recipe, on one batch."""
    return Quantizer(graph, Material([inputs], ort_run, runtime.placement)).prepared(recipe)


def quantized(graph: Graph, config: MixedPrecisionConfig, plan: Plan, runtime: Runtime, inputs: Inputs) -> Parameters:
    """The parameters of the INT8 layers of `config`, calibrated on `inputs` and nothing else done to them."""
    prepared = calibrated(graph, runtime, inputs)
    return parameters(prepared, plan, config.layers_with(Precision.INT8))


def lowered(graph: Graph, config: MixedPrecisionConfig, runtime: Runtime, inputs: Inputs) -> Lowered:
    """`config` calibrated on `inputs`, written for `runtime` and compiled on one thread."""
    prepared = calibrated(graph, runtime, inputs, config.recipe or CALIBRATE)
    plan = make_plan(prepared.graph, config.static_layers, runtime.placement)
    chosen = parameters(prepared, plan, config.layers_with(Precision.INT8))
    model = serialize(lower(prepared.graph, config, plan, chosen, typed=runtime.typed(config)))
    return Lowered(model, runtime.compile(model, 1, runtime.options(config)), graph)


def ops(model: onnx.ModelProto, without: Collection[str] = ()) -> list[str]:
    """Op types in order."""
    return [node.op_type for node in model.graph.node if node.op_type not in without]
