"""Training: better than calibration on the integer kernels, confined to its layers, and one with what is exported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from onnx import numpy_helper

from mixq.config import LayerScheme, MixedPrecisionConfig, Precision, Training
from mixq.errors import InputError, MixqError
from mixq.evaluation import Candidate
from mixq.evaluator import Evaluator
from mixq.graph import Graph, serialize
from mixq.graph.lower import lower
from mixq.graph.plan import make_plan
from mixq.runtimes import NAMES, get_runtime
from mixq.task import Array, Inputs
from mixq.twin import Twin
from tests.helpers import Net, captured, images, quantized, reference_run
from tests.qat.networks import (
    Uneven,
    UnevenNetwork,
    all_qat,
    all_trained,
    configuration,
    trainer_of,
    uneven,
)

STEPS = Training(steps=30, learning_rate=0.2)


def constants(candidate: Candidate) -> dict[str, Array]:
    """The initializers of the exported model by name."""
    model = onnx.load_model_from_string(candidate.model)
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


@pytest.mark.slow
@pytest.mark.parametrize("runtime", NAMES)
def test_training_beats_calibration_on_the_integer_kernels(runtime: str) -> None:
    evaluator = uneven(runtime)
    calibrated = evaluator.evaluate(evaluator.prepare(configuration(evaluator, None)))
    candidate = evaluator.prepare(all_trained(evaluator, STEPS))
    trained = evaluator.evaluate(candidate)
    assert np.mean(candidate.losses[-5:]) < 0.6 * np.mean(candidate.losses[:5])
    assert trained.output_mse < 0.5 * calibrated.output_mse
    assert 0 < trained.drop < 0.5 * calibrated.drop
    assert trained.silent == calibrated.silent == ()
    assert trained.size_bytes == calibrated.size_bytes


@pytest.mark.slow
@pytest.mark.parametrize("trained", [("first",), ("second", "classifier")])
def test_only_the_trained_layers_change(trained: Sequence[str]) -> None:
    evaluator = uneven()
    before = constants(evaluator.prepare(configuration(evaluator, None)))
    after = constants(evaluator.prepare(configuration(evaluator, STEPS, **dict.fromkeys(trained, "int8-qat"))))
    assert before.keys() == after.keys()
    changed = {name for name in before if before[name].tobytes() != after[name].tobytes()}
    parts = {f"{layer}.{part}" for layer in evaluator.graph.layer_names for part in ("weight", "bias")}
    moved = {part for part in parts if changed & {f"{part}_quantized", f"{part}_scale"}}
    assert moved == {f"{layer}.{part}" for layer in trained for part in ("weight", "bias")}
    inputs = {f"{evaluator.graph.by_name[layer].input}_scale" for layer in trained}
    # The quantized tensor may stand further up, before a pooling.
    scales = {name for name in changed if name.endswith("_scale") and name.removesuffix("_scale") not in parts}
    assert len(scales) <= len(inputs)


@pytest.mark.slow
def test_layers_of_other_types_stand_as_they_are() -> None:
    """An FP16 layer beside a trained one keeps its weights: those of the network, rounded."""
    evaluator = uneven()
    config = configuration(evaluator, STEPS, first="int8-qat", second="fp16", classifier="fp32")
    found = constants(evaluator.prepare(config))
    network = UnevenNetwork()
    half = [value for value in found.values() if value.dtype == np.float16 and value.shape == (16, 16, 3, 3)]
    assert len(half) == 1
    np.testing.assert_array_equal(half[0], network.second.weight.detach().half().numpy())
    weights = [value for value in found.values() if value.dtype == np.float32 and value.shape == (5, 16)]
    np.testing.assert_array_equal(weights[0], network.classifier.weight.detach().numpy())


def test_the_seed_decides_everything() -> None:
    evaluator = uneven()
    first, again, other = (
        evaluator.prepare(all_trained(evaluator, Training(steps=10, learning_rate=0.2, seed=seed)))
        for seed in (0, 0, 1)
    )
    assert (first.model, first.losses) == (again.model, again.losses)
    assert first.losses != other.losses


def test_a_step_is_told_at_a_time() -> None:
    evaluator = uneven()
    told: list[str] = []
    candidate = evaluator.prepare(all_trained(evaluator, Training(steps=3, learning_rate=0.2)), told.append)
    assert told == [f"QAT step {i}/3, loss {loss:.2e}" for i, loss in enumerate(candidate.losses, 1)]


def test_divergence_names_the_remedy() -> None:
    evaluator = uneven()
    with pytest.raises(MixqError, match=r"training diverged at step \d+ \(loss .*\); lower the learning rate"):
        evaluator.prepare(all_trained(evaluator, Training(steps=5, learning_rate=1e30)))


class FromFile(Uneven):
    """`Uneven`, its model an .onnx file of torch's own exporter."""

    folder: Path

    def model(self) -> Any:
        path = self.folder / "model.onnx"
        program = torch.onnx.export(
            UnevenNetwork().eval(),
            (torch.zeros(2, 3, 12, 12),),
            input_names=["image"],
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            verbose=False,
        )
        assert program is not None
        program.save(str(path))
        return str(path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_model_from_a_file_is_trained_too(tmp_path: Path) -> None:
    task = FromFile()
    task.folder = tmp_path
    evaluator = Evaluator(task, get_runtime("onnxruntime"), latency_budget_s=0.0)
    calibrated = evaluator.evaluate(evaluator.prepare(configuration(evaluator, None)))
    trained = evaluator.evaluate(evaluator.prepare(all_trained(evaluator, STEPS)))
    assert trained.output_mse < 0.5 * calibrated.output_mse


def trained_losses(graph: Graph, inputs: Inputs, batches: Sequence[Inputs], steps: int = 2) -> tuple[float, ...]:
    config = all_qat(graph, Training(steps=steps, learning_rate=1e-3))
    return trainer_of(graph, inputs, batches).trained(config).losses


def test_an_op_that_cannot_be_trained_is_named() -> None:
    net = Net(3, 8, 8)
    net.op("Hardmax", net.gemm(net.pooled(net.conv("x", 4)), 4, 5), name="hardest", axis=1)
    graph = net.graph("hardest", example=images(3))
    with pytest.raises(InputError, match=r"cannot train this graph.*Hardmax \(node 'hardest'\)"):
        trained_losses(graph, images(8), [images(8)])


def test_weights_that_the_last_step_ruined_are_not_given_out() -> None:
    """The slope of a root is infinite at 0, so the loss of the first step is fine and its gradient is not."""
    net = Net(3, 8, 8)
    weight, bias = net.constant("w", np.zeros((5, 4), np.float32)), net.constant("b", np.zeros(5, np.float32))
    scores = net.op("Gemm", net.pooled(net.conv("x", 4)), weight, bias, transB=1)
    net.op("Sqrt", scores, name="root")
    graph = net.graph("root", example=images(3))
    with pytest.raises(MixqError, match="training diverged: its last step left NaN; lower the learning rate"):
        trained_losses(graph, images(8), [images(8)], steps=1)


def test_without_a_float_output_there_is_nothing_to_learn_from() -> None:
    net = Net(3, 8, 8)
    net.gemm(net.pooled(net.conv("x", 4)), 4, 5, name="scores")
    model = net.model("scores")
    best = onnx.helper.make_node("ArgMax", ["scores"], ["best"], name="best", axis=1)
    model.graph.node.append(best)
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("best", onnx.TensorProto.INT64, ["batch", 1]))
    with pytest.raises(MixqError, match="no float output"):
        trained_losses(captured(model, images(3)), images(8), [images(8)])


def test_one_row_with_one_output_can_be_learned_from() -> None:
    """A batch of one value has no variance to relate its error to."""
    net = Net(3, 8, 8)
    net.gemm(net.pooled(net.conv("x", 4)), 4, 1, name="found")
    graph = net.graph("found", example=images(3))
    losses = trained_losses(graph, images(8), [images(1)])
    assert 0 < losses[0] < 0.1


def test_inputs_that_cannot_be_written_to_are_fine() -> None:
    net = Net(3, 8, 8)
    net.gemm(net.pooled(net.conv("x", 4)), 4, 5, name="found")
    batch = images(8)
    batch["x"].flags.writeable = False
    assert trained_losses(net.graph("found", example=images(3)), images(8), [batch])


def test_the_loss_is_the_error_over_the_variance() -> None:
    """The first step's loss, before anything is learned: that of the calibrated model in the reference evaluator."""
    net = Net(3, 8, 8)
    net.gemm(net.pooled(net.conv("x", 4)), 4, 5, name="found")
    graph, batch = net.graph("found", example=images(3)), images(16)
    (loss,) = trained_losses(graph, batch, [batch], steps=1)
    runtime = get_runtime("onnxruntime")
    config = MixedPrecisionConfig(
        model=graph.fingerprint, schemes=dict.fromkeys(graph.layer_names, LayerScheme(precision=Precision.INT8))
    )
    plan = make_plan(graph, graph.layer_names, runtime.placement)
    model = lower(graph, config, plan, quantized(graph, config, plan, runtime, batch))
    (want,), (have,) = (reference_run(serialize(m))(batch).values() for m in (graph.model, model))
    assert loss == pytest.approx(float(((have - want) ** 2).mean() / want.var()), rel=0.05)


LAYERS = ("conv", "depthwise", "gemm")


def single_layer(kind: str) -> Graph:
    """One layer, whose output is the graph's."""
    net = Net(8, 8, 8)
    if kind == "gemm":
        net.gemm(net.pooled("x"), 8, 12, name="y")
        return net.graph("y", example=images(3, channels=8))
    net.conv("x", 8, name="y", groups=8 if kind == "depthwise" else 1)
    return net.graph("y", example=images(3, channels=8), ranks=[4])


@pytest.mark.parametrize("trainable", [False, True], ids=["stored", "trainable"])
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("runtime_name", NAMES)
def test_the_twin_computes_what_the_integer_kernels_do(runtime_name: str, kind: str, trainable: bool) -> None:
    """Within one quantization step of the output, a 255th of its range, and on average within a 20th of that."""
    graph, runtime, inputs = single_layer(kind), get_runtime(runtime_name), images(16, channels=8)
    config = MixedPrecisionConfig(model="net", schemes={"y": LayerScheme(precision=Precision.INT8)})
    plan = make_plan(graph, ["y"], runtime.placement)
    parameters = quantized(graph, config, plan, runtime, inputs)
    twin = Twin(lower(graph, config, plan, parameters, trainable=["y"] if trainable else []))
    with torch.inference_mode():
        (simulated,) = twin({name: torch.from_numpy(value) for name, value in inputs.items()}).values()
    exported = runtime.compile(serialize(lower(graph, config, plan, parameters)), 1, runtime.options(config))
    assert {kernel.executed for kernel in exported.audit(graph.layers, inputs).kernels} == {"int8"}
    (real,) = exported.run(inputs).values()
    error = np.abs(real - simulated.numpy()) / (np.ptp(real) / 255)
    assert error.max() <= 1.01
    assert error.mean() <= 0.05


@pytest.mark.parametrize("runtime_name", NAMES)
def test_the_trained_network_is_the_exported_one(runtime_name: str) -> None:
    """Three layers: what the last step's weights give in the twin is what the file gives, within a step a layer."""
    evaluator = uneven(runtime_name)
    candidate = evaluator.prepare(all_trained(evaluator, STEPS))
    twin = Twin(onnx_ir.from_proto(onnx.load_model_from_string(candidate.model)))
    batch = images(64, size=12, seed=7, name="image")
    with torch.inference_mode():
        (simulated,) = twin({"image": torch.from_numpy(batch["image"])}).values()
    (real,) = evaluator.runtime.compile(candidate.model, 1, candidate.options).run(batch).values()
    error = np.abs(real - simulated.numpy()) / (np.ptp(real) / 255)
    assert error.max() <= 3
    assert error.mean() <= 0.5
