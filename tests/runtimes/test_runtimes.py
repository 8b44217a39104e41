"""What every runtime promises, tested once over the table."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mixq.config import LayerScheme, Precision, all_schemes
from mixq.errors import InputError
from mixq.graph import serialize
from mixq.graph.capture import relative_error
from mixq.runtimes import NAMES, Runtime, get_runtime
from tests.helpers import Net, images, lowered, reference_run, residual, schemes

IMAGES = images(4, name="image")


@pytest.fixture(scope="module", params=NAMES)
def runtime(request: pytest.FixtureRequest) -> Runtime:
    return get_runtime(request.param)


def fp32() -> bytes:
    return serialize(residual().model)


def test_names_and_versions(runtime: Runtime) -> None:
    assert runtime.name in NAMES
    assert runtime.version[0].isdigit()


def test_runs_what_the_reference_evaluator_computes(runtime: Runtime) -> None:
    (want,), (have,) = reference_run(fp32())(IMAGES).values(), runtime.compile(fp32(), 1).run(IMAGES).values()
    assert relative_error(want, have) < 1e-5


def test_takes_any_batch_size(runtime: Runtime) -> None:
    executable = runtime.compile(fp32(), 1)
    (all_rows,) = executable.run(images(9, name="image")).values()
    for rows in (1, 2, 3, 5, 7, 9, 1):
        (found,) = executable.run({"image": images(9, name="image")["image"][:rows]}).values()
        np.testing.assert_allclose(found, all_rows[:rows], rtol=1e-4, atol=1e-5)


def test_outputs_are_the_callers_own(runtime: Runtime) -> None:
    executable = runtime.compile(fp32(), 1)
    (first,) = executable.run(IMAGES).values()
    kept = first.copy()
    executable.run(images(4, seed=5, name="image"))
    np.testing.assert_array_equal(first, kept)
    first[:] = 0
    (again,) = executable.run(IMAGES).values()
    np.testing.assert_array_equal(again, kept)


def test_a_view_holds_what_run_gives_also_when_the_executable_is_gone(runtime: Runtime) -> None:
    executable = runtime.compile(fp32(), 1)
    (want,), (seen,) = executable.run(IMAGES).values(), executable.view(IMAGES).values()
    del executable
    np.testing.assert_array_equal(seen, want)


def test_takes_arrays_that_are_not_contiguous(runtime: Runtime) -> None:
    executable = runtime.compile(fp32(), 1)
    turned = {"image": np.asfortranarray(IMAGES["image"])}
    for want, have in zip(executable.run(IMAGES).values(), executable.run(turned).values(), strict=True):
        np.testing.assert_array_equal(want, have)


def test_several_inputs_and_outputs_by_name(runtime: Runtime) -> None:
    net = Net(4, 8, 8, name="first")
    other = Net(4, 8, 8, name="second")
    net.inputs += other.inputs
    net.channels |= other.channels
    total = net.op("Add", net.conv("first", 4, "a"), "second", name="total")
    model = net.model(total, net.conv("second", 2, "b"), ranks=[4, 4]).SerializeToString()
    inputs = images(2, 4, name="first") | images(2, 4, seed=1, name="second")
    want, have = reference_run(model)(inputs), runtime.compile(model, 1).run(inputs)
    assert list(have) == ["total", "b"]
    assert all(relative_error(want[name], have[name]) < 1e-5 for name in want)


def test_a_bound_call_runs_and_leaves_its_inputs_alone(runtime: Runtime) -> None:
    executable = runtime.compile(fp32(), 1)
    inputs = {"image": IMAGES["image"].copy()}
    call = executable.bind(inputs)
    for _ in range(3):
        call()
    np.testing.assert_array_equal(inputs["image"], IMAGES["image"])
    executable.run(images(2, name="image"))
    call()


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_do_not_change_the_outputs_by_much(runtime: Runtime, threads: int) -> None:
    (have,) = runtime.compile(fp32(), threads).run(IMAGES).values()
    (want,) = reference_run(fp32())(IMAGES).values()
    assert relative_error(want, have) < 1e-5


def test_the_audit_names_every_layer_once_and_in_order(runtime: Runtime) -> None:
    kernels = runtime.compile(fp32(), 1).audit(residual().layers, IMAGES).kernels
    assert [kernel.layer for kernel in kernels] == residual().layer_names
    assert {kernel.executed for kernel in kernels} == {"fp32"}
    assert all(kernel.kernel for kernel in kernels)
    assert all(kernel.time_us is None or kernel.time_us >= 0 for kernel in kernels)


def test_the_audit_sees_int8_kernels_and_times(runtime: Runtime) -> None:
    model = lowered(residual(), schemes(residual(), "int8", left="fp32"), runtime, images(16, name="image"))
    kernels = model.executable.audit(residual().layers, IMAGES).kernels
    assert {kernel.layer: kernel.executed for kernel in kernels} == {
        "stem": "int8",
        "left": "fp32",
        "right": "int8",
        "head": "int8",
    }
    assert sum(kernel.time_us or 0 for kernel in kernels) > 0


def test_conversions_are_counted(runtime: Runtime) -> None:
    """INT8 throughout has those of the image and perhaps of the outputs; a float layer in the middle adds its own."""
    found = [
        lowered(residual(), config, runtime, images(16, name="image")).executable.audit((), IMAGES).conversions
        for config in (
            schemes(residual(), "fp32"),
            schemes(residual(), "int8"),
            schemes(residual(), "int8", left="fp32"),
        )
    ]
    assert found[0] == 0 < found[1] <= found[2]


def test_a_layer_that_is_not_there_is_unknown(runtime: Runtime) -> None:
    net = Net(3, 8, 8, name="image")
    graph = net.graph(net.conv("image", 4, "elsewhere"), example=images(3, name="image"), ranks=[4])
    (kernel,) = runtime.compile(fp32(), 1).audit(graph.layers, IMAGES).kernels
    assert kernel.executed == "unknown"


@pytest.mark.parametrize("model", [b"", b"garbage", b"\x08\n" * 50], ids=["empty", "text", "bytes"])
def test_garbage_is_refused(runtime: Runtime, model: bytes) -> None:
    with pytest.raises(InputError, match="model"):
        runtime.compile(model, 1).run(IMAGES)


def test_a_truncated_model_is_refused(runtime: Runtime) -> None:
    with pytest.raises(InputError, match="model"):
        runtime.compile(fp32()[:-200], 1).run(IMAGES)


def test_an_unknown_option_is_refused(runtime: Runtime) -> None:
    with pytest.raises(InputError, match="NO_SUCH_OPTION"):
        runtime.compile(fp32(), 1, {"NO_SUCH_OPTION": "1"}).run(IMAGES)


def test_inputs_that_do_not_fit_are_refused(runtime: Runtime) -> None:
    with pytest.raises(InputError, match="image"):
        runtime.compile(fp32(), 1).run(images(2, channels=5, name="image"))


def test_refusals_give_a_reason(runtime: Runtime) -> None:
    kinds = [replace(residual().layers[0], op=op) for op in ("Conv", "ConvTranspose", "Gemm", "MatMul", "Gather")]
    kinds.append(replace(kinds[3], weight=None, other="x"))
    for scheme in all_schemes():
        for layer in kinds:
            reason = runtime.refusal(scheme, layer)
            assert reason is None or len(reason) > 10
    for layer in kinds:
        assert runtime.refusal(LayerScheme(precision=Precision.FP32), layer) is None
    for layer in (kinds[0], *kinds[2:4]):
        assert runtime.refusal(LayerScheme(precision=Precision.INT8), layer) is None
        assert runtime.refusal(LayerScheme.parse("int8-weight_only"), layer) is None


def test_schemes_without_a_meaning_are_refused(runtime: Runtime) -> None:
    layer = residual().layers[0]
    embedding, product = replace(layer, op="Gather"), replace(layer, op="MatMul", weight=None, other="x")
    for scheme in ("int8", "int8-qat", "int8-dynamic"):
        assert "embedding" in str(runtime.refusal(LayerScheme.parse(scheme), embedding))
    for scheme in ("int8-qat", "int8-weight_only"):
        assert "product" in str(runtime.refusal(LayerScheme.parse(scheme), product))


def test_what_is_not_refused_executes_as_expected(runtime: Runtime) -> None:
    for precision in Precision:
        scheme, first = LayerScheme(precision=precision), residual().layers[0]
        if runtime.refusal(scheme, first):
            continue
        config = schemes(residual(), precision)
        model = lowered(residual(), config, runtime, images(16, name="image"))
        found = {kernel.executed for kernel in model.executable.audit(residual().layers, IMAGES).kernels}
        assert found == {runtime.expected(scheme, first, config)}


def test_unknown_runtimes_are_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="known: openvino, onnxruntime"):
        get_runtime("tensorrt")


@pytest.mark.parametrize("precision", list(Precision))
def test_a_linear_layer_on_sequences_is_found_whatever_took_its_bias_in(runtime: Runtime, precision: Precision) -> None:
    if precision is not Precision.INT8 and runtime.float_refusal(precision):
        pytest.skip("not run here")
    net = Net(6, 16)
    for index in range(2):
        product = net.op(
            "MatMul", f"relu{index - 1}" if index else "x", net.weight(f"w{index}", 16, 16), name=f"m{index}"
        )
        net.op("Relu", net.op("Add", product, net.weight(f"b{index}", 16), name=f"a{index}"), name=f"relu{index}")
    rows = {"x": np.random.default_rng(0).normal(size=(4, 6, 16)).astype(np.float32)}
    graph = net.graph("relu1", example=rows, ranks=[3])
    config = schemes(graph, precision)
    found = lowered(graph, config, runtime, rows).executable.audit(graph.layers, rows).kernels
    expected = runtime.expected(LayerScheme(precision=precision), graph.layers[0], config)
    assert {kernel.layer: kernel.executed for kernel in found} == dict.fromkeys(["m0", "m1"], expected)
