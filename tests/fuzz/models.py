"""ONNX models that are almost right, captured: `python -m tests.fuzz.models FIRST COUNT`, a process of its own.

A runtime that a malformed graph kills takes the process along: the number that was printed last is the case.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from mixq.errors import InputError
from mixq.graph import capture
from mixq.runtimes import get_runtime
from tests.helpers import Net, images

EXAMPLE = images(2, name="image")
EXTREME = (0, -1, 1, 7, 2**31 - 1, -(2**31), 2**62, -(2**63))
OPS = ("Conv", "Gemm", "MatMul", "Relu", "Add", "Concat", "Flatten", "Reshape", "MaxPool", "Softmax", "Magic", "If", "")


def whole() -> onnx.ModelProto:
    """Convolutions, pooling, a residual sum, a reshape, matrices: what the passes and the runtimes treat by name."""
    net = Net(3, 8, 8, name="image")
    x = net.op("Relu", net.conv("image", 4, name="first"))
    x = net.op("Add", net.conv(x, 4, name="second"), x, name="sum")
    x = net.op("MaxPool", x, name="pool", kernel_shape=[2, 2], strides=[2, 2])
    x = net.op("Reshape", x, net.constant("shape", np.array([0, 64])), name="flat")
    x = net.op("MatMul", x, net.weight("matrix", 64, 8), name="product")
    net.channels[x] = 8
    x = net.op("Clip", x, net.constant("low", np.float32(-3)), net.constant("high", np.float32(3)), name="clip")
    return net.model(net.gemm(x, 8, 5, name="head"))


def drop_node(model: onnx.ModelProto, rng: random.Random) -> None:
    del model.graph.node[rng.randrange(len(model.graph.node))]


def repeat_node(model: onnx.ModelProto, rng: random.Random) -> None:
    model.graph.node.append(rng.choice(model.graph.node))


def swap_nodes(model: onnx.ModelProto, rng: random.Random) -> None:
    a, b = rng.sample(range(len(model.graph.node)), 2)
    first, second = helper.make_node("x", [], []), helper.make_node("x", [], [])
    first.CopyFrom(model.graph.node[a])
    second.CopyFrom(model.graph.node[b])
    model.graph.node[a].CopyFrom(second)
    model.graph.node[b].CopyFrom(first)


def change_op(model: onnx.ModelProto, rng: random.Random) -> None:
    rng.choice(model.graph.node).op_type = rng.choice(OPS)


def change_edge(model: onnx.ModelProto, rng: random.Random) -> None:
    node = rng.choice(model.graph.node)
    names = [*(name for other in model.graph.node for name in [*other.input, *other.output]), "", "nowhere", "\0"]
    ends = rng.choice([node.input, node.output])
    if ends:
        ends[rng.randrange(len(ends))] = rng.choice(names)
    else:
        ends.append(rng.choice(names))


def change_attribute(model: onnx.ModelProto, rng: random.Random) -> None:
    node = rng.choice([node for node in model.graph.node if node.attribute] or model.graph.node)
    if not node.attribute or rng.random() < 0.2:
        node.attribute.append(helper.make_attribute(rng.choice(["group", "axis", "strides", "x"]), rng.choice(EXTREME)))
        return
    attribute = rng.choice(node.attribute)
    if attribute.ints:
        attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(EXTREME)
        if rng.random() < 0.2:
            attribute.ints.append(rng.choice(EXTREME))
    else:
        attribute.i = rng.choice(EXTREME)


def change_weight(model: onnx.ModelProto, rng: random.Random) -> None:
    tensor = rng.choice(model.graph.initializer)
    kind = rng.randrange(4)
    if kind == 0 and tensor.dims:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(EXTREME)
    elif kind == 1:
        tensor.data_type = rng.randrange(30)
    elif kind == 2:
        tensor.raw_data = tensor.raw_data[: rng.randrange(1 + len(tensor.raw_data))]
    else:
        tensor.name = rng.choice(["", "image", "head", "other"])


def change_interface(model: onnx.ModelProto, rng: random.Random) -> None:
    value = rng.choice([*model.graph.input, *model.graph.output])
    kind = rng.randrange(4)
    dims = value.type.tensor_type.shape.dim
    if kind == 0:
        value.name = rng.choice(["", "image", "head", "first", "nowhere"])
    elif kind == 1:
        value.type.tensor_type.elem_type = rng.randrange(30)
    elif kind == 2 and dims:
        rng.choice(dims).dim_value = rng.choice(EXTREME)
    else:
        value.ClearField("type")


def change_versions(model: onnx.ModelProto, rng: random.Random) -> None:
    if rng.random() < 0.5:
        model.ir_version = rng.choice((*EXTREME, 3, 99))
    elif model.opset_import:
        model.opset_import[0].version = rng.choice((*EXTREME, 5, 13, 99))
        model.opset_import[0].domain = rng.choice(["", "", "ai.onnx.ml", "my.own"])


CHANGES: tuple[Callable[[onnx.ModelProto, random.Random], None], ...] = (
    drop_node,
    repeat_node,
    swap_nodes,
    change_op,
    change_edge,
    change_attribute,
    change_attribute,
    change_weight,
    change_interface,
    change_versions,
)


def bent(case: int) -> bytes:
    """The bytes of the model that is wrong in its `case`th way."""
    rng = random.Random(case)  # noqa: S311
    model = whole()
    if rng.random() < 0.8:
        for _ in range(rng.randint(1, 2)):
            if model.graph.node and model.graph.initializer:
                rng.choice(CHANGES)(model, rng)
        return bytes(model.SerializeToString())
    data = bytearray(model.SerializeToString())
    if rng.random() < 0.3:
        return bytes(data[: rng.randrange(len(data))])
    for _ in range(rng.randint(1, 4)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def main(first: int, count: int) -> None:
    """Prints a line a case; whatever is raised but InputError ends it."""
    runtimes = [get_runtime("onnxruntime"), get_runtime("openvino")]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        for case in range(first, first + count):
            print(case, end=" ", flush=True)
            path.write_bytes(bent(case))
            runtime = runtimes[case % 2]
            try:
                graph = capture(path, EXAMPLE, lambda model: runtime.compile(model, 1).run)  # noqa: B023
                print(f"captured, {len(graph.layers)} layers", flush=True)
            except InputError as error:
                print(f"refused: {str(error)[:300]!r}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
