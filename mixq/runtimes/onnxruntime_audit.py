"""Which kernel ONNX Runtime executed for each layer: its optimized graph and its profile, matched to the layers.

Fusions rename nodes, so a layer is known by any of: its node's name ("conv1", "conv1_token_3", "fused conv1"), its
weight, or the tensor that its kernel gives out, be it behind an activation or addition that the kernel took in
("relu_nchwc" gives out "relu").
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from mixq.graph.model import Layer
from mixq.graph.quantize import codes_name
from mixq.runtimes.base import Kernel

INTEGER = frozenset(
    {
        "QLinearConv",
        "QGemm",
        "QLinearMatMul",
        "MatMulIntegerToFloat",
        "MatMulInteger",
        "ConvInteger",
        "DynamicQuantizeMatMul",
    }
)
FLOAT = frozenset({"Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"})
LOOK_UP = "Gather"
BLOCKED = "_nchwc"  # a kernel in the blocked layout is named for the tensor that it gives out


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the optimized graph; `time_us` is the median over the profiled runs, None where none was seen."""

    name: str
    op: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    time_us: float | None


def executed_nodes(optimized: Path, profile: Path) -> list[Node]:
    """The nodes that can be a layer's kernel."""
    times = _times(profile)
    return [
        Node(
            node.name,
            node.op_type,
            node.domain,
            tuple(node.input),
            tuple(node.output),
            statistics.median(times[node.name]) if node.name in times else None,
        )
        for node in onnx.load(str(optimized), load_external_data=False).graph.node
        if node.op_type in INTEGER | FLOAT | {LOOK_UP}
    ]


def conversion_count(optimized: Path) -> int:
    """Nodes that quantize or dequantize what is not constant."""
    graph = onnx.load(str(optimized), load_external_data=False).graph
    constant = {tensor.name for tensor in graph.initializer}
    return sum(
        node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.input[0] not in constant for node in graph.node
    )


def kernels(layers: Sequence[Layer], nodes: Sequence[Node], model: bytes) -> list[Kernel]:
    """The kernel of each layer. `model`: the bytes that were compiled."""
    graph = onnx.load_model_from_string(model).graph
    by_name = {node.name: node for node in graph.node}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for value in node.input:
            readers.setdefault(value, []).append(node)
    found = []
    for layer in layers:
        outputs = list(_outputs(by_name[layer.name], readers)) if layer.name in by_name else []
        found.append(_kernel(layer, _match(layer, nodes, outputs)))
    return found


def _kernel(layer: Layer, node: Node | None) -> Kernel:
    if node is None:
        return Kernel(layer.name, "unknown", "not in the executed graph")
    codes = node.op in INTEGER or (layer.looks_up and codes_name(layer.name) in node.inputs)
    executed = "int8" if codes else "fp32"
    return Kernel(layer.name, executed, f"{node.domain}:{node.op}" if node.domain else node.op, node.time_us)


def _match(layer: Layer, nodes: Sequence[Node], outputs: Sequence[str]) -> Node | None:
    nodes = [node for node in nodes if (node.op == LOOK_UP) == layer.looks_up]
    named = [node for node in nodes if _is_named_for(node.name, layer.name)]
    if named:
        return min(named, key=lambda node: len(node.name))
    own = [node for node in nodes if {codes_name(layer.name), layer.weight} & set(node.inputs)]
    if len(own) == 1:  # layers may share a weight
        return own[0]
    for output in outputs:  # the nearest first
        for node in nodes:
            if node.name.startswith(f"{output}{BLOCKED}") or output in node.outputs:
                return node
    return None


def _is_named_for(name: str, layer: str) -> bool:
    made = (f"{layer}_token_", f"{layer}/MatMulAddFusion", f"fused {layer}")
    return name == layer or name.startswith(made)


def _outputs(node: onnx.NodeProto, readers: dict[str, list[onnx.NodeProto]]) -> Iterator[str]:
    """The layer's own output and those of the ops behind it that a float kernel may take in: activation, addition."""
    for _ in range(3):
        (output, *_others) = node.output
        yield output
        following = readers.get(output, [])
        if len(following) != 1 or following[0].op_type in FLOAT:
            return
        node = following[0]


def _times(profile: Path) -> dict[str, list[float]]:
    """Microseconds of each run, by node; the first run, which allocates, left out."""
    suffix = "_kernel_time"
    times: dict[str, list[float]] = {}
    for event in json.loads(profile.read_text(encoding="utf-8")):
        if event.get("cat") == "Node" and event["name"].endswith(suffix):
            times.setdefault(event["name"].removesuffix(suffix), []).append(float(event["dur"]))
    return {name: runs[1:] or runs for name, runs in times.items()}
