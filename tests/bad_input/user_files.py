"""What the user brings: a task file whose classes are wrong in one way each, models and search spaces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tests.bad_input.data_files import write_external
from tests.helpers import Net

TASK = """
import sys
from pathlib import Path

import numpy as np
import torch

import mixq

HERE = Path(__file__).parent


def images(seed, rows=32):
    return np.random.default_rng(seed).normal(size=(rows, 3, 8, 8)).astype(np.float32)


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)
        self.head = torch.nn.Linear(4, 5)

    def forward(self, image):
        return self.head(torch.relu(self.conv(image)).mean((2, 3)))


class Tiny(mixq.Task):
    primary = "top1"

    def model(self):
        return HERE / "net.onnx"

    def calibration(self):
        yield {"image": images(0)}

    def batches(self, split):
        yield {"image": images(len(split))}, np.arange(32) % 5

    def metrics(self, outputs, targets):
        (scores,) = outputs.values()
        return {"top1": float((scores.argmax(1) == targets).mean())}


class NoTask:
    pass


class Incomplete(mixq.Task):
    primary = "top1"
"""

# Name of the class, what it has differently from Tiny, what the message must say.
TASKS: dict[str, tuple[str, list[str]]] = {
    "InTrainingMode": ("def model(self): return Network()", ["training mode", "return model.eval()"]),
    "NotAModel": ("def model(self): return 3", ["model() must return a torch.nn.Module or the path", "'int'"]),
    "NoFile": ("def model(self): return 'missing.onnx'", ["there is no model file missing.onnx"]),
    "Truncated": ("def model(self): return HERE / 'half.onnx'", ["half.onnx cannot be read as ONNX", "is it whole"]),
    "OldOpset": ("def model(self): return HERE / 'old.onnx'", ["opset is 11", "takes 13 and newer", "export it again"]),
    "Quantized": ("def model(self): return HERE / 'int8.onnx'", ["QuantizeLinear", "quantized already", "in FP32"]),
    "NaNWeight": ("def model(self): return HERE / 'nan.onnx'", ["weight 'second.weight' holds NaN", "the checkpoint"]),
    "NoBatchAxis": ("def model(self): return HERE / 'scalar.onnx'", ["the model's output 'mean' has no batch axis"]),
    "RaisingModel": (
        "def model(self): raise OSError('no checkpoint')",
        ["RaisingModel.model raised OSError: no checkpoint (task.py line "],
    ),
    "RaisingCorruption": (
        "def corruptions(self): return {'fog': lambda inputs: 1 / 0}",
        ["RaisingCorruption.corruptions: 'fog' raised ZeroDivisionError: division by zero (task.py line "],
    ),
    "NoLayers": ("def model(self): return HERE / 'pool.onnx'", ["no layer to quantize", "Conv, ConvTranspose, Gemm"]),
    "FixedBatch": ("def model(self): return HERE / 'fixed.onnx'", ["cannot run", "batch axis must be dynamic"]),
    "OtherShape": (
        "def calibration(self): yield {'image': images(0)[:, :2]}",
        ["OtherShape.batches('search')", "(3, 8, 8)", "(2, 8, 8)"],
    ),
    "OtherInput": (
        "def calibration(self): yield {'x': images(0)}\ndef batches(self, split): yield {'x': images(1)}, np.ones(32)",
        ["the model's inputs are ['image'], but calibration yields ['x']"],
    ),
    "NoCalibration": ("def calibration(self): return []", ["NoCalibration.calibration yields nothing", "at least one"]),
    "NoYield": ("def calibration(self): pass", ["NoYield.calibration must yield batches", "use `yield`"]),
    "Tensors": (
        "def calibration(self): yield {'image': torch.zeros(2, 3, 8, 8)}",
        ["a Tensor, not a numpy", "convert"],
    ),
    "NaNInput": ("def calibration(self): yield {'image': images(0) * np.nan}", ["'image' holds NaN", "clean the data"]),
    "Float64": ("def calibration(self): yield {'image': np.zeros((2, 3, 8, 8))}", ["float64", ".astype(np.float32)"]),
    "Unreadable": ("def calibration(self): raise OSError('no disk')", ["calibration raised OSError: no disk (task.py"]),
    "FewTargets": (
        "def batches(self, split): yield {'image': images(1)}, np.arange(30)",
        ["FewTargets.batches('search')", "32 rows came with targets of shape (30,)", "one target a row"],
    ),
    "RaggedTargets": (
        "def batches(self, split): yield {'image': images(1, 2)}, [[1], [2, 3]]",
        ["RaggedTargets.batches('search')", "the targets are no array", "yield one array a batch"],
    ),
    "OtherSplit": (
        "def batches(self, split): yield {'x': images(1, 2)}, [1, 2]",
        ["OtherSplit.batches('search')", "x (float32), before they were image (float32)", "must be those of calib"],
    ),
    "NoHoldout": (
        "def batches(self, split): return super().batches(split) if split == 'search' else []",
        ["NoHoldout.batches('holdout') yields nothing"],
    ),
    "OddRows": ("rows_per_sample = 5", ["gave 32 rows, which rows_per_sample = 5 does not divide", "leave out"]),
    "NaNMetric": ("def metrics(self, o, t): return {'top1': np.nan}", ["NaNMetric.metrics", "is nan", "finite number"]),
    "OtherMetric": ("def metrics(self, o, t): return {'top5': 1}", ["returned top5", "primary metric 'top1'", "set"]),
    "NoNumber": ("def metrics(self, o, t): return {'top1': torch.ones(1)}", ["is a Tensor", "return float(...)"]),
    "RaisingMetric": (
        "def metrics(self, o, t): raise ValueError('one\\ntwo\\nthree\\nfour')",
        ["RaisingMetric.metrics raised ValueError: one (task.py line "],
    ),
    "NoPrimary": ("primary = None", ["NoPrimary.primary must name the metric", 'primary = "top1"']),
    "Direction": (
        "higher_is_better = 'no'",
        ["Direction.higher_is_better must be True or False, got 'no'", "False where"],
    ),
    "Raising": ("def __init__(self): raise OSError('no weights')", ["Raising()", "OSError: no weights (task.py line "]),
    "OtherRows": ("rows_per_sample = True", ["OtherRows.rows_per_sample must be a whole number of at least 1", "True"]),
    "NoWholeRows": ("rows_per_sample = 0", ["rows_per_sample must be a whole number of at least 1", "got 0"]),
    "BatchAxis": ("dynamic_axes = {'image': (0,)}", ["dynamic_axes['image'] holds 0", "from 1 to 3", "always dynamic"]),
    "UnknownAxis": ("dynamic_axes = {'picture': (2,)}", ["names the input 'picture'", "calibration yields image"]),
    "AxesOfNone": ("dynamic_axes = (2, 3)", ["must be a dict input → axes", '{"image": (2, 3)}', "got (2, 3)"]),
    "AxesAsText": ("dynamic_axes = {'image': '23'}", ["dynamic_axes['image'] must list axes", "got '23'"]),
    "FixedAxis": (
        "dynamic_axes = {'image': (2,)}\ndef model(self): return HERE / 'flat.onnx'",
        ["the model's output 'gemm2' has no batch axis", "(2, 5) for 1 rows"],
    ),
    "VariedSize": (
        "def calibration(self): yield from ({'image': images(0)[:, :, :n]} for n in (8, 6))",
        ["VariedSize.calibration", "(3, 6, 8)", "only axes that the Task's dynamic_axes names"],
    ),
    "NoRows": ("def calibration(self): yield {'image': images(0, 0)}", ["of one batch have [0] rows", "at least 1"]),
    "NoAxis": ("def calibration(self): yield {'image': np.zeros(())}", ["'image' has no batch axis", "first axis"]),
    "NumberedInput": ("def calibration(self): yield {3: images(0)}", ["an input is named 3", "names are strings"]),
    "TextInput": ("def calibration(self): yield {'image': np.array(['a'])}", ["of type <U1", "takes numbers"]),
    "NoPairs": ("def batches(self, split): yield images(0)", ["must yield pairs (inputs, targets)", "ndarray"]),
    "ObjectTargets": (
        "def batches(self, split): yield {'image': images(0)}, np.array([{}] * 32, dtype=object)",
        ["the targets are Python objects", "an array of numbers"],
    ),
    "ListedMetrics": ("def metrics(self, o, t): return [1]", ["must return a dict name → float", "got list"]),
    "ListedCorruptions": ("def corruptions(self): return [1]", ["must return a dict name → function", "got list"]),
    "CuttingCorruption": (
        "def corruptions(self): return {'cut': lambda inputs: {'image': inputs['image'][..., :0, :, :][:0]}}",
        ["CuttingCorruption.corruptions: 'cut'", "[0] rows"],
    ),
    "NoFileName": ("def model(self): return 'a' * 300", ["there is no model file aaa", "path of an .onnx file"]),
    "AFolder": ("def model(self): return HERE", ["there is no model file", "path of an .onnx file"]),
    "NoModelFile": ("def model(self): return HERE / 'task.py'", ["task.py cannot be read as ONNX", "export it again"]),
    "EmptyModel": ("def model(self): return HERE / 'empty.onnx'", ["empty.onnx cannot be read as ONNX", "ir_version"]),
    "Above2GiB": (
        "def model(self): return HERE / 'large.onnx'",
        ["large.onnx has 3221225472 bytes", "2 GiB", "save_as_external_data=True"],
    ),
    "Cyclic": ("def model(self): return HERE / 'cyclic.onnx'", ["must be topologically sorted", "export it again"]),
    "Twice": ("def model(self): return HERE / 'twice.onnx'", ["single static assignment", "export it again"]),
    "UnknownOp": ("def model(self): return HERE / 'unknown.onnx'", ["OpenVINO cannot read the model: "]),
    "DataMissing": (
        "def model(self): return HERE / 'data_missing.onnx'",
        ["none.bin", "with its data files beside it"],
    ),
    "DataShort": ("def model(self): return HERE / 'data_short.onnx'", ["data_short.onnx cannot be read", "its data"]),
    "DataOutside": ("def model(self): return HERE / 'data_outside.onnx'", ["'../", "outside the directory"]),
    "DataAbsolute": ("def model(self): return HERE / 'data_absolute.onnx'", ["should be a relative path", "absolute"]),
    "DataLinked": ("def model(self): return HERE / 'data_linked.onnx'", ["link.bin", "symbolic link"]),
    "DataBefore": ("def model(self): return HERE / 'data_before.onnx'", ["cannot be read as ONNX", "its data files"]),
    "Branching": (
        "def model(self):\n    class Branch(torch.nn.Module):\n        def forward(self, image): "
        "return image if image.sum() > 0 else -image\n    return Branch().eval()",
        ["torch.onnx.export cannot capture the model", "named like the parameters of forward"],
    ),
    "Exiting": ("def __init__(self): sys.exit(0)", ["Exiting()", "raised SystemExit"]),
}


def network(net: Net) -> str:
    """Two convolutions and a classifier; the name of the output."""
    x = net.op("Relu", net.conv("image", 4, name="first"))
    x = net.op("Relu", net.conv(x, 8, name="second"))
    return net.gemm(net.pooled(x), 8, 5, name="head")


def small_net(seed: int = 0) -> Net:
    return Net(3, 8, 8, name="image", seed=seed)


def write_models(folder: Path) -> None:
    """A whole model, and several that are wrong in one way each."""
    net = small_net()
    model = net.model(network(net))
    onnx.save(model, folder / "net.onnx")
    (folder / "half.onnx").write_bytes(model.SerializeToString()[:2000])
    onnx.save(helper.make_model(model.graph, opset_imports=[helper.make_opsetid("", 11)]), folder / "old.onnx")
    for tensor in model.graph.initializer:
        if tensor.name == "second.weight":
            value = numpy_helper.to_array(tensor) * np.float32(np.nan)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    onnx.save(model, folder / "nan.onnx")
    net = small_net(seed=1)
    onnx.save(net.model(network(net)), folder / "other.onnx")
    net = small_net()
    onnx.save(net.model(net.pooled("image")), folder / "pool.onnx")
    net = small_net()
    mean = net.op("ReduceMean", network(net), name="mean", keepdims=0)
    onnx.save(net.model(mean, ranks=[0]), folder / "scalar.onnx")
    net = small_net()
    shape = net.constant("shape", np.array([1, 5]))
    onnx.save(net.model(net.op("Reshape", network(net), shape)), folder / "fixed.onnx")
    (folder / "empty.onnx").write_bytes(b"")
    with (folder / "large.onnx").open("wb") as file:
        file.truncate(3 * 2**30)  # takes no space
    write_external(folder, small_net, network)
    net = small_net()
    flat = net.op("Reshape", net.conv("image", 4), net.constant("shape", np.array([0, 256])))
    onnx.save(net.model(net.gemm(flat, 256, 5)), folder / "flat.onnx")
    for name, change in {"cyclic": _make_cyclic, "twice": _repeat, "unknown": _end_unknown}.items():
        net = small_net()
        model = net.model(network(net))
        change(model.graph)
        model.opset_import.append(helper.make_opsetid("my.own", 1))
        onnx.save(model, folder / f"{name}.onnx")
    net = small_net()
    scale, zero = net.constant("scale", np.float32(0.1)), net.constant("zero", np.uint8(0))
    codes = net.op("QuantizeLinear", "image", scale, zero)
    x = net.conv(net.op("DequantizeLinear", codes, scale, zero), 4)
    onnx.save(net.model(net.gemm(net.pooled(x), 4, 5)), folder / "int8.onnx")


def _make_cyclic(graph: onnx.GraphProto) -> None:
    graph.node[0].input[0] = "head"


def _repeat(graph: onnx.GraphProto) -> None:
    graph.node.append(graph.node[0])


def _end_unknown(graph: onnx.GraphProto) -> None:
    graph.node.append(helper.make_node("Magic", ["head"], ["y"], domain="my.own"))
    graph.output[0].name = "y"


# Classes that are fine, but not those that a study was made with.
OTHERS: dict[str, tuple[str, list[str]]] = {
    "OtherModel": ("def model(self): return HERE / 'other.onnx'", ["(model: "]),
    "OtherCalibration": ("def calibration(self): yield {'image': images(5)}", ["(model: "]),
    "OtherData": ("def batches(self, split): yield {'image': images(7)}, np.arange(32) % 5", ["(search data: "]),
    "OtherTargets": ("def batches(self, split): yield {'image': images(len(split))}, np.ones(32)", ["(search data: "]),
    "OtherPrimary": (
        "primary = 'top5'\ndef metrics(self, o, t): return {'top5': super().metrics(o, t)['top1']}",
        ["(metric: top1 then, top5 now; model: "],
    ),
}
