"""Which kernel OpenVINO executed for each layer: its runtime graph, matched to the layers by name.

A fused node lists the names of what went into it, or of some; the rest is found by what stands behind it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import onnx

from mixq.graph.model import Layer
from mixq.runtimes.base import Audit, Kernel

EXECUTED = {"f32": "fp32", "bf16": "bf16", "f16": "fp16", "i8": "int8", "u8": "int8"}
KERNELS = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")
# Subgraph is a fusion of elementwise ops, which holds a layer in attention, or where linear layers follow each other.
PRODUCTS = ("MatMul", "FullyConnected", "Subgraph", "ScaledDotProductAttention")
LOOK_UPS = ("Gather",)
MOST_FUSED = 5  # ops behind a layer by whose names its kernel may be known: scale, mask and softmax of attention


def read_audit(executed: Sequence[Any], layers: Sequence[Layer], model: bytes, group: int, *, timed: bool) -> Audit:
    """`executed`: the nodes of the runtime graph; `model`: the ONNX message that was compiled; `group`: how many values
    of an input share a scale that is found at run time, 0 for none; `timed`: whether counters ran."""
    nodes = [{**_info(node), "reads": _read(node), "matrix": _matrix(node)} for node in executed]
    names = _names_behind(model, layers)
    kernels = tuple(_kernel(layer, names[layer.name], nodes, group, timed) for layer in layers)
    return Audit(kernels, sum(_converts(node) for node in executed))


def _names_behind(model: bytes, layers: Sequence[Layer]) -> dict[str, list[set[str]]]:
    """By layer: the names under which its result goes, then those of each op behind it that a kernel may take in.

    A linear layer on sequences is a MatMul and an Add, of another type perhaps; the kernel that takes both in is named
    for the Add (2026.4).
    """
    nodes = onnx.load_model_from_string(model).graph.node
    by_name, known = {node.name: node for node in nodes}, {layer.name for layer in layers}
    readers: dict[str, list[Any]] = {}
    for node in nodes:
        for value in node.input:
            readers.setdefault(value, []).append(node)
    found = {}
    for layer in layers:
        names: list[set[str]] = [{layer.output}]
        node = by_name.get(layer.name)
        while node is not None and len(names) <= MOST_FUSED:
            names.append({node.name, *node.output})
            following = readers.get(node.output[0], [])
            node = following[0] if len(following) == 1 and following[0].name not in known else None
        found[layer.name] = [set().union(*names[:2]), *names[2:]]
    return found


def _kernel(
    layer: Layer, behind: Sequence[set[str]], nodes: Sequence[Mapping[str, str]], group: int, timed: bool
) -> Kernel:
    """The node that computed `layer`: one that has its name, or else that of the nearest op behind it."""
    # Some transformations keep the output's name only; of a node and a tensor of one name, one gets a number (2026.4).
    name, types = layer.name, _types(layer)
    exact = {name, *behind[0]}
    exact |= {f"{part}{end}" for part in (name, f"{name}/WithoutBiases") for end in ("", "/DequantizationMultiply")}
    numbered = re.compile(rf"{re.escape(name)}_\d+(/WithoutBiases)?")
    able = [node for node in nodes if node["layerType"] in types]
    named = [node for node in able if any(one in exact or numbered.fullmatch(one) for one in _names(node))]
    named.sort(key=lambda node: (types.index(node["layerType"]), not exact & _names(node)))
    # What stands behind a matrix may be in a Subgraph that the matrix is not in.
    near = [node for node in able if not layer.multiplies or node["layerType"] in KERNELS]
    named += [node for names in behind[1:] for node in near if names & _names(node)]
    # Of a matrix without a bias the scale behind it may be all that a kernel is named for, by a name of its own.
    named += [node for node in near if node["matrix"] == f"{name}/transpose_b"]
    if not named:
        return Kernel(name, "unknown", "not in the executed graph")
    node = named[0]
    time = node["execTimeMcs"].replace("not_executed", "0")  # so it says of less than a microsecond (2026.4)
    return Kernel(
        name,
        _executed(node, layer, group),
        f"{node['layerType']}:{node['primitiveType']}",
        float(time) if timed else None,
    )


def _types(layer: Layer) -> tuple[str, ...]:
    """The nodes that can compute a layer."""
    if layer.looks_up:
        return LOOK_UPS
    return (*KERNELS, "Subgraph") if layer.multiplies else PRODUCTS


def _executed(node: Mapping[str, str], layer: Layer, group: int) -> str:
    """The precision of the arithmetic.

    What is noted as the runtime precision may be that of the data before a conversion (Deconvolution, 2026.4), or of
    weights that are unpacked on the way (FullyConnected); the kernel's own name ends in what it computes in. But for
    one case: float data times codes, quantized at run time if there is a whole group of it, which nothing in the
    runtime graph tells. A test compares that with the numbers.
    """
    taken = node["primitiveType"].rpartition("_")[2].lower()
    precision = taken if node["layerType"] in KERNELS and taken in EXECUTED else node["runtimePrecision"]
    data, *others = [EXECUTED.get(one) for one in node["reads"].split(",")]
    stored_codes = layer.multiplies and data != "int8" and others[:1] == ["int8"]
    if group and stored_codes and layer.weight_shape[1 - layer.channel_axis] >= group:
        return "int8"
    return EXECUTED.get(precision, precision)


def _read(node: Any) -> str:
    """The types of what the node reads, as OpenVINO calls them."""
    sources = [port.get_source_output() for port in node.inputs()]
    types = [(_info(source.get_node())["outputPrecisions"].split(","), source.get_index()) for source in sources]
    return ",".join(found[min(index, len(found) - 1)] for found, index in types)


def _matrix(node: Any) -> str:
    """The name of what the node reads second."""
    ports = node.inputs()
    return "" if len(ports) < 2 else str(ports[1].get_source_output().get_node().get_friendly_name())


def _info(node: Any) -> dict[str, str]:
    info = node.get_rt_info()
    values = {key: str(getattr(info[key], "value", info[key])) for key in info}
    return {**values, "name": str(node.get_friendly_name())}


def _converts(node: Any) -> bool:
    """Whether the node's data is of one kind, what it writes of the other; constants do not count."""
    sources = [_info(port.get_source_output().get_node()) for port in node.inputs()]
    read = {_is_code(source) for source in sources if source["layerType"] != "Const"}
    info = _info(node)
    return info["layerType"] not in KERNELS and (not _is_code(info)) in read


def _is_code(info: Mapping[str, str]) -> bool:
    return EXECUTED.get(info["outputPrecisions"].partition(",")[0]) == "int8"


def _names(node: Mapping[str, str]) -> set[str]:
    return {node["name"], *node["originalLayersNames"].split(",")}
