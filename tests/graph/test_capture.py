"""Capture: what comes out computes what went in, and what cannot be captured is refused with the reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from mixq.errors import InputError
from mixq.graph import Graph, Run, capture, serialize
from mixq.graph.capture import relative_error
from mixq.task import Inputs, Outputs
from tests.helpers import Net, Residual, captured, images, ops, ort_run, reference_run, residual

EXAMPLE = images(3)
LINEAR = {"x": np.ones((2, 4), np.float32)}


def proto(graph: Graph) -> onnx.ModelProto:
    return onnx.load_model_from_string(serialize(graph.model))


def saved(folder: Path, model: onnx.ModelProto) -> Path:
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def small(seed: int = 0) -> onnx.ModelProto:
    net = Net(3, 8, 8, seed=seed)
    return net.model(net.gemm(net.pooled(net.op("Relu", net.conv("x", 4, "first"))), 4, 2, "last"))


class TwoInputs(torch.nn.Module):
    """A linear layer for each of two inputs; `shared` is called twice, `tied` has the weight of `left`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right, self.tied = torch.nn.Linear(4, 6), torch.nn.Linear(4, 6), torch.nn.Linear(4, 6)
        self.shared = torch.nn.Linear(6, 6)
        self.tied.weight = self.left.weight
        self.eval()

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        joined = self.shared(torch.relu(self.left(a) + self.right(b).mean(1)))
        return self.shared(torch.relu(joined)), self.tied(a)


@pytest.fixture(scope="module")
def two_inputs() -> Graph:
    return capture(TwoInputs(), two_inputs_of(3), ort_run)


def two_inputs_of(rows: int) -> Inputs:
    random = np.random.default_rng(rows)
    shapes = {"a": (rows, 4), "b": (rows, 5, 4)}
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def test_a_torch_module_is_captured_whole() -> None:
    inputs = images(5, seed=3, name="image")
    with torch.no_grad():
        exact = Residual().double()(torch.from_numpy(inputs["image"]).double()).numpy()
    (found,) = reference_run(serialize(residual().model))(inputs).values()
    np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-5)


def test_batch_norm_is_folded_and_means_become_pooling() -> None:
    found = ops(proto(residual()))
    assert found == ["Conv", "Relu", "MaxPool", "Conv", "Relu", "Conv", "Add", "Relu", *found[8:10], "Gemm"]
    assert found[8] == "GlobalAveragePool"


def test_layers_are_named_by_their_modules() -> None:
    assert residual().layer_names == ["stem", "left", "right", "head"]


def test_several_inputs_shared_weights_and_repeated_calls(two_inputs: Graph) -> None:
    assert two_inputs.layer_names == ["left", "right", "shared", "shared#2", "tied"]
    layers = two_inputs.by_name
    assert layers["shared"].weight == layers["shared#2"].weight
    inputs = two_inputs_of(7)
    with torch.no_grad():
        exact = TwoInputs()(**{name: torch.from_numpy(value) for name, value in inputs.items()})
    for want, have in zip(exact, ort_run(serialize(two_inputs.model))(inputs).values(), strict=True):
        np.testing.assert_allclose(have, want.numpy(), rtol=1e-4, atol=1e-5)


def test_inputs_have_to_be_named_like_forwards_parameters() -> None:
    with pytest.raises(InputError, match="must be named like"):
        capture(Residual(), {"picture": images(2)["x"]}, ort_run)


def test_training_mode_is_refused() -> None:
    with pytest.raises(InputError, match=r"model\.eval\(\)"):
        capture(Residual().train(), images(2, name="image"), ort_run)


def test_something_else_is_refused() -> None:
    with pytest.raises(InputError, match=r"must return a torch\.nn\.Module or the path"):
        capture(42, EXAMPLE, ort_run)


def test_an_onnx_file_is_captured(tmp_path: Path) -> None:
    graph = capture(str(saved(tmp_path, small())), EXAMPLE, ort_run)
    assert graph.layer_names == ["first", "last"]
    inputs = images(6, seed=1)
    (want,), (have,) = (
        reference_run(m)(inputs).values() for m in (small().SerializeToString(), serialize(graph.model))
    )
    np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-6)


def test_layers_keep_the_names_that_they_have_in_the_file(tmp_path: Path) -> None:
    """Where their node is made anew, too: a bias of zeros is dropped, a batch norm folded."""
    net = Net(4, 8, 8, name="image")
    net.op("Conv", "image", net.weight("w", 6, 4, 3, 3), net.constant("zeros", np.zeros(6, np.float32)), name="first")
    net.op("Conv", "first", net.weight("v", 5, 6, 3, 3), name="second")
    statistics = [net.constant(name, np.linspace(1, 2, 5, dtype=np.float32)) for name in ("s", "b", "m", "var")]
    net.op("BatchNormalization", "second", *statistics, name="normal")
    net.channels["normal"] = 5
    model = net.model(net.gemm(net.pooled("normal"), 5, 3, "head"))
    for node in model.graph.node:
        node.name = f"the {node.name}"
    found = capture(saved(tmp_path, model), images(3, 4, name="image"), ort_run)
    assert found.layer_names == ["the first", "the second", "the head"]
    onnx.save(proto(found), tmp_path / "again.onnx")
    assert capture(tmp_path / "again.onnx", images(3, 4, name="image"), ort_run).layer_names == found.layer_names


class NormalizedLate(torch.nn.Module):
    """ReLU between a convolution without bias and its batch norm, twice with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(3, 3, 3, padding=1, bias=False), torch.nn.BatchNorm2d(3)
        self.norm.running_mean = torch.tensor([-0.5, 0.0, 0.5])
        self.eval()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.norm(torch.relu(self.conv(image)))
        found: torch.Tensor = self.norm(torch.relu(self.conv(x)))
        return found


class Headed(torch.nn.Module):
    """Convolution, a way to one row a sample, and a classifier."""

    def __init__(self, way: Callable[[torch.Tensor], torch.Tensor], width: int = 6) -> None:
        super().__init__()
        self.conv, self.head, self.way = torch.nn.Conv2d(3, 6, 3), torch.nn.Linear(width, 4), way
        self.eval()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.way(torch.relu(self.conv(image))))
        return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        NormalizedLate,
        Residual,
        lambda: Headed(lambda x: x.mean((2, 3))),
        lambda: Headed(lambda x: x.mean((2, 3), keepdim=True).flatten(1)),
        lambda: Headed(lambda x: torch.nn.functional.adaptive_avg_pool2d(x, 1).reshape(len(x), -1)),
        lambda: Headed(lambda x: x.amax((2, 3))),
        lambda: Headed(lambda x: x.flatten(2).transpose(1, 2).mean(1)),
        lambda: Headed(lambda x: torch.nn.functional.layer_norm(x.flatten(2).mean(-1), (6,))),
    ],
)
def test_what_is_written_is_read_as_the_same(make: Callable[[], torch.nn.Module], tmp_path: Path) -> None:
    """A configuration for a torch network is one for the file that is made of it."""
    torch.manual_seed(0)
    found = capture(make().eval(), images(3, name="image"), ort_run)
    path = saved(tmp_path, proto(found))
    again = capture(path, images(3, name="image"), ort_run)
    assert again.fingerprint == found.fingerprint
    assert serialize(again.model) == serialize(found.model)


def test_the_fingerprint_is_that_of_the_weights(tmp_path: Path) -> None:
    first, again, other = (captured(small(seed), EXAMPLE) for seed in (0, 0, 1))
    assert first.fingerprint == again.fingerprint
    assert first.fingerprint != other.fingerprint


def test_external_data_is_read(tmp_path: Path) -> None:
    save_external(tmp_path)
    graph = capture(tmp_path / "model.onnx", EXAMPLE, ort_run)
    assert graph.fingerprint == captured(small(), EXAMPLE).fingerprint


def test_missing_external_data_is_refused(tmp_path: Path) -> None:
    save_external(tmp_path)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(InputError, match=r"weights\.bin.*with its data files beside it"):
        capture(tmp_path / "model.onnx", EXAMPLE, ort_run)


def save_external(folder: Path) -> None:
    path = folder / "model.onnx"
    onnx.save(small(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (folder / "weights.bin").is_file()


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no model file"):
        capture(tmp_path / "model.onnx", EXAMPLE, ort_run)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, small())
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match="cannot be read as ONNX"):
        capture(path, EXAMPLE, ort_run)


def test_a_fixed_batch_axis_is_freed_where_the_graph_bears_it(tmp_path: Path) -> None:
    model = small()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    graph = capture(saved(tmp_path, model), EXAMPLE, ort_run)
    assert next(iter(ort_run(serialize(graph.model))(images(5)).values())).shape == (5, 2)


def test_a_fixed_batch_axis_inside_the_graph_is_refused(tmp_path: Path) -> None:
    net = Net(3, 8, 8)
    shape = net.constant("shape", np.array([1, 4], np.int64))
    last = net.gemm(net.op("Reshape", net.op("GlobalAveragePool", net.conv("x", 4)), shape), 4, 2)
    with pytest.raises(InputError, match=r"cannot run 3 rows: .* batch axis must be dynamic"):
        capture(saved(tmp_path, net.model(last)), EXAMPLE, ort_run)


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path) -> None:
    net = Net(3, 8, 8)
    last = net.conv("x", 4, "broken")
    weight = numpy_helper.to_array(net.initializers[0]).copy()
    weight[0, 0, 0, 0] = np.nan
    net.initializers[0] = numpy_helper.from_array(weight, "broken.weight")
    with pytest.raises(InputError, match=r"'broken\.weight' holds NaN"):
        capture(saved(tmp_path, net.model(last, ranks=[4])), EXAMPLE, ort_run)


def test_a_subgraph_is_refused(tmp_path: Path) -> None:
    net = Net(4)
    last = net.gemm("x", 4, 4)
    bodies = [
        helper.make_graph(
            [helper.make_node("Identity", [last], [name])],
            name,
            [],
            [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)],
        )
        for name in ("yes", "no")
    ]
    condition = net.op("ReduceMax", net.op("Cast", "x", to=onnx.TensorProto.INT32), keepdims=0)
    flag = net.op("Cast", condition, to=onnx.TensorProto.BOOL)
    last = net.op("If", flag, name="choice", then_branch=bodies[0], else_branch=bodies[1])
    with pytest.raises(InputError, match="'choice': If holds a subgraph"):
        capture(saved(tmp_path, net.model(last)), LINEAR, ort_run)


def test_a_quantized_model_is_refused(tmp_path: Path) -> None:
    net = Net(4)
    scale = net.constant("scale", np.float32(0.1))
    last = net.gemm(net.op("DequantizeLinear", net.op("QuantizeLinear", "x", scale), scale), 4, 2)
    with pytest.raises(InputError, match="quantized already"):
        capture(saved(tmp_path, net.model(last)), LINEAR, ort_run)


def test_an_old_opset_is_refused(tmp_path: Path) -> None:
    model = small()
    model.opset_import[0].version = 9
    with pytest.raises(InputError, match="opset is 9"):
        capture(saved(tmp_path, model), EXAMPLE, ort_run)


@pytest.mark.parametrize("version", [13, 17])
def test_older_opsets_are_converted(version: int, tmp_path: Path) -> None:
    model = small()
    model.opset_import[0].version = version
    found = proto(capture(saved(tmp_path, model), EXAMPLE, ort_run))
    assert [(entry.domain, entry.version) for entry in found.opset_import] == [("", 21)]


def test_other_inputs_than_the_calibrations_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"inputs are \['x'\], but calibration yields \['y'\]"):
        capture(saved(tmp_path, small()), images(3, name="y"), ort_run)


def test_a_model_without_layers_is_refused(tmp_path: Path) -> None:
    net = Net(4)
    with pytest.raises(InputError, match="no layer to quantize"):
        capture(saved(tmp_path, net.model(net.op("Relu", "x"))), LINEAR, ort_run)


def test_outputs_that_differ_are_refused_with_the_difference(tmp_path: Path) -> None:
    calls: list[bytes] = []

    def perturbing(model: bytes) -> Run:
        run, shift = ort_run(model), 0.01 * len(calls)  # the first model to be compiled is the original
        calls.append(model)

        def perturbed(inputs: Inputs) -> Outputs:
            return {name: value + shift * np.abs(value).max() for name, value in run(inputs).items()}

        return perturbed

    with pytest.raises(InputError, match=r"differs from the original's by 1\.00e-02"):
        capture(saved(tmp_path, small()), EXAMPLE, perturbing)


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize(("axes", "pooled"), [((2, 3), True), ((-1, -2), True), ((2,), False), ((1, 2, 3), False)])
def test_only_means_over_all_positions_become_pooling(axes: tuple[int, ...], pooled: bool, keepdims: int) -> None:
    net = Net(3, 8, 8)
    axis = net.constant("axes", np.array(axes, np.int64))
    last = net.op("ReduceMean", net.conv("x", 4), axis, keepdims=keepdims)
    graph = net.graph(last, example=EXAMPLE, ranks=[4 if keepdims else 4 - len(axes)])
    assert ("GlobalAveragePool" in ops(proto(graph))) == pooled
    assert list(reference_run(serialize(graph.model))(EXAMPLE)) == [last]


def test_every_tensor_has_a_type_though_the_file_states_none() -> None:
    graph = captured(small(), EXAMPLE)
    assert all(output.dtype is not None for node in graph.model.graph for output in node.outputs)


def test_relative_error() -> None:
    one = np.array([1.0, -2.0], np.float32)
    assert relative_error(one, one) == 0
    assert relative_error(one, one + np.float32(0.5)) == 0.25
    assert np.isnan(relative_error(one, one * np.nan))
    assert relative_error(one, one[:1]) == np.inf
    assert relative_error(np.zeros(2), np.zeros(2)) == 0
