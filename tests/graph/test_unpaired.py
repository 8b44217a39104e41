"""INT8 layers without calibrated pairs: what they compute, by the ONNX standard and by closed forms."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixq import affine
from mixq.config import LayerScheme, MixedPrecisionConfig
from mixq.graph import Graph, capture
from mixq.runtimes import NAMES, get_runtime
from mixq.task import Array
from tests.helpers import Net, calibrated, lowered, ops, ort_run, reference_run, schemes
from tests.support.cases import WORDS, Attention

OPENVINO, ORT = get_runtime("openvino"), get_runtime("onnxruntime")
ROWS = {"x": np.random.default_rng(0).standard_normal((5, 7, 128)).astype(np.float32)}


@cache
def projections() -> Graph:
    """Three matrices of one tensor, and one behind them."""
    net = Net(7, 128)
    parts = [net.op("MatMul", "x", net.weight(f"w{n}", 128, 128), name=n) for n in ("query", "key", "value")]
    total = net.op("Add", net.op("Add", parts[0], parts[1]), parts[2])
    return net.graph(net.op("MatMul", total, net.weight("w", 128, 16), name="out"), example=ROWS, ranks=[3])


@cache
def attention() -> Graph:
    torch.manual_seed(0)
    return capture(Attention().eval(), ids(3), ort_run, {"ids": (1,)})


def ids(rows: int, words: int = 12) -> dict[str, Array]:
    return {"ids": np.random.default_rng(1).integers(0, WORDS, (rows, words))}


def by_reference(graph: Graph, config: MixedPrecisionConfig, runtime: str, inputs: dict[str, Array]) -> Array:
    """What the ONNX standard says that the lowered model gives."""
    (found,) = reference_run(lowered(graph, config, get_runtime(runtime), inputs).model)(inputs).values()
    return np.asarray(found)


def rounded_weight(graph: Graph, layer: str, runtime: str) -> Array:
    return calibrated(graph, get_runtime(runtime), ROWS).rounded(layer).astype(np.float64)


@pytest.mark.parametrize("runtime", NAMES)
def test_weight_only_is_the_product_with_rounded_weights(runtime: str) -> None:
    graph, x = projections(), ROWS["x"].astype(np.float64)
    total = sum(x @ rounded_weight(graph, name, runtime) for name in ("query", "key", "value"))
    want = total @ rounded_weight(graph, "out", runtime)
    config = schemes(graph, "int8-weight_only")
    found = lowered(graph, config, get_runtime(runtime), ROWS)
    (have,) = found.executable.run(ROWS).values()
    for values in (have, by_reference(graph, config, runtime, ROWS)):
        np.testing.assert_allclose(values, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())


def dynamically_rounded(x: Array) -> Array:
    """DynamicQuantizeLinear as the ONNX standard defines it, and back."""
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = np.float32((high - low) / 255)
    zero = np.clip(np.rint(-low / scale), 0, 255)
    return np.asarray((np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * np.float64(scale))


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 100), st.floats(-3, 3))
@settings(max_examples=10, deadline=None)
def test_dynamic_on_onnxruntime_is_the_product_of_both_rounded(seed: int, size: float, shift: float) -> None:
    graph = projections()
    config = schemes(graph, "fp32", query="int8-dynamic", key="int8-dynamic", value="int8-dynamic")
    x = (size * (np.random.default_rng(seed).standard_normal((2, 7, 128)) + shift)).astype(np.float32)
    total = sum(dynamically_rounded(x) @ rounded_weight(graph, n, "onnxruntime") for n in ("query", "key", "value"))
    want = total @ graph.weight("w").astype(np.float64)
    model = lowered(graph, config, ORT, ROWS).model
    for run in (reference_run(model), ort_run(model)):
        (have,) = run({"x": x}).values()
        np.testing.assert_allclose(have, want, rtol=1e-3, atol=1e-4 * np.abs(want).max())


def test_readers_of_one_tensor_share_the_codes_that_are_made_at_run_time() -> None:
    found = lowered(projections(), schemes(projections(), "int8-dynamic"), ORT, ROWS).proto
    assert ops(found).count("DynamicQuantizeLinear") == 2
    assert ops(found).count("MatMulInteger") == 4


def test_a_gemm_keeps_its_bias_and_orientation() -> None:
    net, rows = Net(128), {"x": ROWS["x"][:, 0]}
    graph = net.graph(net.gemm("x", 128, 10, "head"), example=rows)
    weight = calibrated(graph, ORT, rows).rounded("head").astype(np.float64)
    want = dynamically_rounded(rows["x"]) @ weight.T + graph.weight("head.bias")
    found = lowered(graph, schemes(graph, "int8-dynamic"), ORT, rows)
    (have,) = found.executable.run(rows).values()
    np.testing.assert_allclose(have, want, rtol=1e-3, atol=1e-4)
    assert found.executed(rows) == {"head": "int8"}


@pytest.mark.slow
@pytest.mark.parametrize("runtime", NAMES)
def test_embeddings_are_looked_up_as_codes(runtime: str) -> None:
    graph = attention()
    (embedding,) = [layer for layer in graph.layers if layer.looks_up]
    found = lowered(graph, schemes(graph, "fp32", **{embedding.name: "int8-weight_only"}), get_runtime(runtime), ids(4))
    stored = {one.name: one for one in found.proto.graph.initializer}
    assert stored[f"{embedding.name}.weight_quantized"].data_type == 3  # INT8
    assert embedding.weight not in stored
    want = calibrated(graph, get_runtime(runtime), ids(4)).rounded(embedding.name)
    table = calibrated(graph, get_runtime(runtime), ids(4)).own_weight(embedding.name)
    assert 0 < np.abs(want - table).max() <= np.abs(table).max() / affine.S8[1]
    audit = found.executable.audit(graph.layers, ids(4))
    assert [kernel.executed for kernel in audit.kernels if kernel.layer == embedding.name] == ["int8"]


def test_weight_only_stays_float_beside_dynamic_layers_on_openvino() -> None:
    """There, an option of the whole model says that inputs of stored codes are quantized at run time."""
    graph = projections()
    reason = OPENVINO.refusal(LayerScheme.parse("int8-dynamic"), graph.by_name["query"])
    if reason is not None:
        pytest.skip(reason)
    alone = schemes(graph, "fp32", out="int8-weight_only")
    beside = schemes(graph, "fp32", out="int8-weight_only", query="int8-dynamic")
    first, second = (lowered(graph, config, OPENVINO, ROWS) for config in (alone, beside))
    assert "DequantizeLinear" in ops(first.proto)
    assert ops(second.proto).count("DequantizeLinear") == 1
    assert second.executed(ROWS) == {"query": "int8", "key": "fp32", "value": "fp32", "out": "fp32"}
    assert first.executed(ROWS) == dict.fromkeys(graph.layer_names, "fp32")


def test_products_of_activations_run_on_codes_on_onnxruntime() -> None:
    graph = attention()
    products = {layer.name: "int8" for layer in graph.layers if layer.weight is None}
    assert len(products) == 2
    found = lowered(graph, schemes(graph, "fp32", **products), ORT, ids(4))
    executed = found.executed(ids(4))
    assert {name: executed[name] for name in products} == products
    (exact,) = ort_run(lowered(graph, schemes(graph, "fp32"), ORT, ids(4)).model)(ids(4)).values()
    (have,) = found.executable.run(ids(4)).values()
    assert 0 < np.abs(have - exact).max() < 0.02 * np.abs(exact).max()


@pytest.mark.parametrize("runtime", NAMES)
@pytest.mark.parametrize("scheme", ["int8", "int8-dynamic", "int8-weight_only"])
def test_sequences_of_another_length_need_no_other_model(runtime: str, scheme: str) -> None:
    graph, found = attention(), get_runtime(runtime)
    wanted = LayerScheme.parse(scheme)
    able = {layer.name: scheme for layer in graph.layers if found.refusal(wanted, layer) is None}
    model = lowered(graph, schemes(graph, "fp32", **able), found, ids(16))
    fp32 = lowered(graph, schemes(graph, "fp32"), found, ids(16))
    for words in (5, 12, 31):
        (have,), (want,) = (list(one.executable.run(ids(8, words)).values()) for one in (model, fp32))
        assert have.shape == want.shape
        assert np.square(have - want).mean() < 0.01 * np.square(want).mean()
