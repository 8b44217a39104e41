"""Models above protobuf's limit, which is made small here: read, compiled, exported and verified as any other."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest

from mixq import verify
from mixq.certificate import CERTIFICATE, DATA, MODEL, Certificate
from mixq.errors import InputError
from mixq.evaluator import Evaluator
from mixq.exporter import export
from mixq.graph import Graph, capture, large, serialize
from mixq.graph.model import deserialize
from mixq.runtimes import NAMES, get_runtime
from tests.evaluator.configurations import INT8, all_in
from tests.export_helpers import exported
from tests.helpers import Net, images, lowered, ort_run, reference_run, residual, schemes
from tests.tiny import Tiny

EXAMPLE = images(3)
ROWS = images(8, name="image")


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large, "ONNX_LIMIT", 1000)
    monkeypatch.setattr(large, "INLINE", 64)


@pytest.mark.usefixtures("small_limit")
def test_a_packed_model_is_the_same_model() -> None:
    packed = serialize(residual().model)
    message, data = large.split(packed)
    assert data is not None
    assert len(data) > 8 * 8 * 9 * 4 > len(large.MAGIC)
    assert len(message) + len(data) < len(packed) < len(message) + len(data) + 100
    found = deserialize(packed)
    for name, value in residual().model.graph.initializers.items():
        assert value.const_value is not None
        have = found.graph.initializers[name].const_value
        assert have is not None
        assert have.dtype == value.const_value.dtype
        np.testing.assert_array_equal(have.numpy(), value.const_value.numpy())
    assert serialize(found) == packed


def test_a_model_below_the_limit_is_one_message() -> None:
    plain = serialize(residual().model)
    assert large.split(plain) == (plain, None)
    assert large.join(plain, None) == plain
    onnx.checker.check_model(onnx.load_model_from_string(plain))


@pytest.mark.usefixtures("small_limit")
def test_data_that_are_cut_off_are_refused() -> None:
    message, data = large.split(serialize(residual().model))
    assert data is not None
    with pytest.raises(InputError, match=r"the weight '.*' lies at best\.onnx\.data from byte .*, beyond"):
        deserialize(large.join(message, data[:-4]))


@pytest.mark.parametrize("scheme", ["fp32", "int8"])
@pytest.mark.parametrize("name", NAMES)
def test_it_runs_and_is_audited_as_below_the_limit(name: str, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime, config = get_runtime(name), schemes(residual(), scheme)
    plain = lowered(residual(), config, runtime, ROWS)
    monkeypatch.setattr(large, "ONNX_LIMIT", 1000)
    monkeypatch.setattr(large, "INLINE", 64)
    packed = lowered(residual(), config, runtime, ROWS)
    assert large.split(packed.model)[1]
    (want,), (have,) = (model.executable.run(ROWS).values() for model in (plain, packed))
    np.testing.assert_array_equal(want, have)
    want_audit, have_audit = (model.executable.audit(residual().layers, ROWS, timed=True) for model in (plain, packed))
    assert have_audit.conversions == want_audit.conversions
    assert [k.kernel for k in have_audit.kernels] == [k.kernel for k in want_audit.kernels]


def captured(path: Path) -> Graph:
    return capture(path, EXAMPLE, ort_run)


def model() -> onnx.ModelProto:
    net = Net(3, 8, 8)
    return net.model(net.gemm(net.pooled(net.op("Relu", net.conv("x", 16, "first"))), 16, 8, "last"))


@pytest.mark.usefixtures("small_limit")
def test_a_file_above_the_limit_is_captured(tmp_path: Path) -> None:
    onnx.save(model(), tmp_path / "model.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    packed = serialize(captured(tmp_path / "model.onnx").model)
    assert large.split(packed)[1]
    (want,), (have,) = (
        reference_run(model().SerializeToString())(EXAMPLE).values(),
        get_runtime("openvino").compile(packed, 1).run(EXAMPLE).values(),
    )
    np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", ["parent", "absolute", "link"])
@pytest.mark.parametrize("relative", [False, True])
def test_weights_outside_the_models_folder_are_refused(
    way: str, relative: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, outside = tmp_path / "model", tmp_path / "outside.bin"
    folder.mkdir()
    path = folder / "model.onnx"
    onnx.save(model(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    os.rename(folder / "weights.bin", outside)
    location = {"parent": "../outside.bin", "absolute": str(outside), "link": "weights.bin"}[way]
    if way == "link":
        (folder / "weights.bin").symlink_to(outside)
    proto = onnx.load(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            entry.value = location if entry.key == "location" else entry.value
    path.write_bytes(proto.SerializeToString())
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match="cannot be read as ONNX"):
        captured(Path("model.onnx") if relative else path)


@pytest.mark.usefixtures("small_limit")
@pytest.mark.parametrize("name", NAMES)
def test_an_export_has_its_weights_beside_it_and_is_verified(name: str, tmp_path: Path) -> None:
    evaluator = Evaluator(Tiny(), get_runtime(name), latency_budget_s=0.0)
    candidate = evaluator.prepare(all_in(evaluator, INT8))
    export(evaluator, candidate, evaluator.evaluate(candidate), tmp_path)
    assert set(Certificate.load(tmp_path / CERTIFICATE).files) == {MODEL, DATA, "best.json", "probe.npz"}
    onnx.checker.check_model(str(tmp_path / MODEL))  # by the standard's own reader, with the data beside it
    assert verify(tmp_path).ok, verify(tmp_path)
    data = bytearray((tmp_path / DATA).read_bytes())
    data[100] ^= 1
    (tmp_path / DATA).write_bytes(data)
    broken = [check.name for check in verify(tmp_path).checks if not check.ok]
    assert broken[0] == MODEL
    (tmp_path / DATA).unlink()
    missing = next(check for check in verify(tmp_path).checks if check.name == MODEL)
    assert f"{DATA} cannot be read" in missing.detail


def test_a_smaller_export_leaves_no_old_weights(tmp_path: Path) -> None:
    (tmp_path / DATA).write_bytes(b"of an earlier export")
    exported(tmp_path)
    assert not (tmp_path / DATA).exists()
    assert verify(tmp_path).ok
