"""What stands in MLflow after a study, read back through MLflow's own client and through its database."""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixq.config import LayerScheme, MixedPrecisionConfig, Precision, RecipeStep
from mixq.errors import InputError, MixqError
from mixq.evaluator import Evaluation
from mixq.latency import Interval
from mixq.runtimes import Kernel
from mixq.searcher.trial import Trial
from mixq.tracking import Tracker, allowed_name, default_uri
from mixq.trial_record import trial_metrics

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

CONFIG = MixedPrecisionConfig(
    model="0123456789abcdef",
    schemes={
        "a": LayerScheme(precision=Precision.INT8),
        "b": LayerScheme(precision=Precision.INT8),
        "c": LayerScheme(precision=Precision.BF16),
    },
    recipe=(RecipeStep(name="equalize"), RecipeStep(name="bias_correction")),
)
EVALUATION = Evaluation(
    config_id=CONFIG.id,
    runtime="openvino",
    threads=1,
    metric=0.7,
    drop=0.003,
    metrics={"top1": 0.7, "top-5 @ 20%": 0.9},
    latency_ms=Interval(1.5, 1.4, 1.6),
    reference_ms=3.0,
    speedup=Interval(2.0, 1.9, 2.1),
    size_bytes=1000,
    compression=3.5,
    output_mse=0.001,
    kl=None,
    agreement=math.nan,
    ece=math.inf,
    kernels=(Kernel("a", "int8", "brgconv_i8", 12.5), Kernel("b", "fp32", "jit_f32"), Kernel("c", "bf16", "brgconv")),
    silent=("b",),
    seconds={"metric": 0.4, "latency": 0.3},
)
COMPLETE = Trial(0, "complete", CONFIG, "ladder", 1.25, EVALUATION, (("drop", -0.002),), elapsed_s=9.5)
FAILED = Trial(1, "failed", CONFIG, "tpe", 0.5, reason="OpenVINO cannot compile the model: Grüße\nsecond line")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture(scope="module")
def tracker(folder: Path) -> Iterator[Tracker]:
    tracker = Tracker(default_uri(folder), "mixq tests")
    tracker.start_study("first", {"seed": 0, "trials": 5, "task": "t.py:T", "machine": {"cores": 2, "cpu [x]": "EPYC"}})
    tracker.log_trial(COMPLETE)
    tracker.log_trial(FAILED)
    yield tracker
    assert not list(Path.cwd().glob("mlruns*")), "MLflow wrote into the current folder"


@pytest.fixture(scope="module")
def client(tracker: Tracker) -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient(tracker.uri)


def runs(client: MlflowClient, study: str, kind: str) -> list[Run]:
    experiment = client.get_experiment_by_name("mixq tests")
    assert experiment is not None
    condition = f"tags.`mixq.kind` = '{kind}' and tags.`mixq.study` = '{study}'"
    return sorted(client.search_runs([experiment.experiment_id], condition), key=lambda run: run.info.start_time)


def children(client: MlflowClient, study: str) -> dict[str, Run]:
    return {run.data.params["number"]: run for run in runs(client, study, "trial")}


def artifact(client: MlflowClient, run: Run, name: str) -> str:
    return Path(client.download_artifacts(run.info.run_id, name)).read_text(encoding="utf-8")


def small_model(value: float) -> onnx.ModelProto:
    weight = onnx.numpy_helper.from_array(np.full((4, 4), value, np.float32), "weight")
    shape: list[str | int | None] = ["batch", 4]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "weight"], ["y"])],
        "small",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, shape)],
        [weight],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)


def test_children_hang_below_the_one_parent(client: MlflowClient) -> None:
    (parent,) = runs(client, "first", "study")
    assert parent.info.status == "RUNNING"
    found = children(client, "first")
    assert {run.data.tags["mlflow.parentRunId"] for run in found.values()} == {parent.info.run_id}
    assert {number: run.info.status for number, run in found.items()} == {"0": "FINISHED", "1": "FAILED"}


def test_params_of_study_and_trial(client: MlflowClient) -> None:
    (parent,) = runs(client, "first", "study")
    assert parent.data.params == {
        "seed": "0",
        "trials": "5",
        "task": "t.py:T",
        "machine/cores": "2",
        "machine/cpu _x_": "EPYC",
    }
    assert children(client, "first")["0"].data.params == {
        "number": "0",
        "state": "complete",
        "origin": "ladder",
        "config_id": CONFIG.id,
        "rest": "fp32",
        "recipe": "equalize, bias_correction",
        "runtime": "openvino",
        "threads": "1",
        "layers/bf16": "1",
        "layers/int8": "2",
    }


def test_metrics_leave_out_none_nan_and_inf(client: MlflowClient) -> None:
    assert children(client, "first")["0"].data.metrics == {
        "seconds_trial": 1.25,
        "seconds_metric": 0.4,
        "seconds_latency": 0.3,
        "elapsed_s": 9.5,
        "feasible": 1.0,
        "metric": 0.7,
        "drop": 0.003,
        "metrics/top1": 0.7,
        "metrics/top-5 _ 20_": 0.9,
        "latency_ms_median": 1.5,
        "latency_ms_low": 1.4,
        "latency_ms_high": 1.6,
        "reference_ms": 3.0,
        "speedup_median": 2.0,
        "speedup_low": 1.9,
        "speedup_high": 2.1,
        "size_bytes": 1000.0,
        "compression": 3.5,
        "output_mse": 0.001,
        "silent_layers": 1.0,
        "violation/drop": -0.002,
    }


def test_artifacts_hold_configuration_and_kernels(client: MlflowClient) -> None:
    run = children(client, "first")["0"]
    assert MixedPrecisionConfig.from_json(artifact(client, run, "config.json")) == CONFIG
    kernels = json.loads(artifact(client, run, "kernels.json"))
    assert kernels[0] == {"layer": "a", "executed": "int8", "kernel": "brgconv_i8", "time_us": 12.5}
    assert [kernel["layer"] for kernel in kernels] == ["a", "b", "c"]


def test_a_failed_trial_says_why(client: MlflowClient) -> None:
    run = children(client, "first")["1"]
    assert run.data.tags["mixq.reason"] == FAILED.reason
    assert run.data.tags["mixq.feasible"] == "false"
    assert set(run.data.metrics) == {"seconds_trial", "elapsed_s", "feasible"}
    assert MixedPrecisionConfig.from_json(artifact(client, run, "config.json")) == CONFIG


def test_silent_layers_are_named(client: MlflowClient) -> None:
    assert children(client, "first")["0"].data.tags["mixq.silent"] == "b"


def test_a_trial_lasts_as_long_as_it_did(client: MlflowClient) -> None:
    info = children(client, "first")["0"].info
    assert info.end_time - info.start_time >= 1e3 * COMPLETE.seconds


def test_artifacts_lie_beside_the_database(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} >= {"mlflow.db", "artifacts"}
    assert len(list(folder.glob("artifacts/*/artifacts/config.json"))) >= 2


@pytest.mark.parametrize("name", ["a b", "ü", "50%20#?x"])
def test_folders_of_any_name(tmp_path: Path, name: str, folder: Path) -> None:
    (tmp_path / name).mkdir()
    shutil.copy(folder / "mlflow.db", tmp_path / name)  # quicker than a new database
    tracker = Tracker(default_uri(tmp_path / name), "another")
    tracker.start_study("odd", {})
    tracker.log_trial(COMPLETE)
    assert len(list((tmp_path / name).glob("artifacts/*/artifacts/config.json"))) == 1


def test_resume_logs_nothing_twice(tracker: Tracker, client: MlflowClient) -> None:
    name = 'it\'s a "study"'
    tracker.start_study(name, {"trials": 1, "seed": 0})
    tracker.log_trial(COMPLETE)
    again = Tracker(tracker.uri, "mixq tests")
    again.start_study(name, {"trials": 2, "seed": 0})
    again.log_trial(COMPLETE)
    again.log_trial(FAILED)
    again.log_trial(replace(FAILED, number=2))
    experiment = client.get_experiment_by_name("mixq tests")
    assert experiment is not None
    found = [r for r in client.search_runs([experiment.experiment_id]) if r.data.tags["mixq.study"] == name]
    assert sorted(run.data.params.get("number", "parent") for run in found) == ["0", "1", "2", "parent"]
    parent = next(run for run in found if run.data.tags["mixq.kind"] == "study")
    assert parent.data.params == {"trials": "1", "seed": "0"}
    assert {n: v for n, v in parent.data.tags.items() if n.startswith("resumed")} == {"resumed.trials": "2"}


def test_a_trial_cut_off_half_way_is_written_into_the_same_run(
    tracker: Tracker, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker.start_study("cut", {})
    monkeypatch.setattr(tracker._client, "log_batch", _killed)
    with pytest.raises(KeyboardInterrupt):
        tracker.log_trial(COMPLETE)
    again = Tracker(tracker.uri, "mixq tests")
    again.start_study("cut", {})
    again.log_trial(COMPLETE)
    (run,) = runs(client, "cut", "trial")
    assert (run.info.status, run.data.metrics["drop"]) == ("FINISHED", 0.003)


def test_a_store_that_fails_in_mid_study_costs_no_trial(
    tracker: Tracker, client: MlflowClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tracker.start_study("failing", {})
    with monkeypatch.context() as patch:
        patch.setattr(tracker._client, "create_run", _out_of_order)
        tracker.log_trial(COMPLETE)
        with pytest.raises(MixqError, match=r"server on fire.*run the same study again"):
            tracker.finish_study([], None, {})
    assert "(trials that wait to be logged: 1): server on fire" in caplog.text
    tracker.log_trial(FAILED)
    assert set(children(client, "failing")) == {"0", "1"}


def test_finish_study_logs_files_metrics_and_the_very_model(
    tracker: Tracker, client: MlflowClient, tmp_path: Path
) -> None:
    tracker.start_study("finished", {"trials": 1})
    report, best = tmp_path / "report.html", tmp_path / "best.onnx"
    report.write_text("<p>one", encoding="utf-8")
    best.write_bytes(small_model(1.5).SerializeToString())
    tracker.finish_study([report], best, {"best/speedup": 2.0, "best/drop": math.nan})
    (parent,) = runs(client, "finished", "study")
    assert (parent.info.status, parent.data.tags["mixq.feasible"]) == ("FINISHED", "true")
    assert parent.data.metrics == {"best/speedup": 2.0}
    assert {entry.path for entry in client.list_artifacts(parent.info.run_id)} >= {"report.html", "best.onnx"}
    assert Path(client.download_artifacts(parent.info.run_id, "best.onnx")).read_bytes() == best.read_bytes()
    (logged,) = models(client)
    assert logged.source_run_id == parent.info.run_id
    assert load(tracker, logged.model_id).SerializeToString() == best.read_bytes()


def test_finish_study_again_replaces(tracker: Tracker, client: MlflowClient, tmp_path: Path) -> None:
    best, csv = tmp_path / "best.onnx", tmp_path / "pareto.csv"
    tracker.start_study("twice", {})
    before = {model.model_id for model in models(client)}
    ids = []
    for text, value in (("one", 1.0), ("two", 1.0), ("three", 2.0)):
        csv.write_text(text, encoding="utf-8")
        best.write_bytes(small_model(value).SerializeToString())
        tracker.finish_study([csv], best, {"best/speedup": value}, feasible=value > 1)
        (model_id,) = {model.model_id for model in models(client)} - before
        ids.append(model_id)
    assert ids[0] == ids[1] != ids[2], "unchanged bytes stay one model, changed ones replace it"
    assert load(tracker, ids[2]).SerializeToString() == best.read_bytes()
    (parent,) = runs(client, "twice", "study")
    assert artifact(client, parent, "pareto.csv") == "three"
    assert (parent.data.metrics["best/speedup"], parent.data.tags["mixq.feasible"]) == (2.0, "true")


def test_the_logged_model_runs(tracker: Tracker, client: MlflowClient, tmp_path: Path) -> None:
    import onnxruntime

    best = tmp_path / "best.onnx"
    best.write_bytes(small_model(0.5).SerializeToString())
    tracker.start_study("runs", {})
    tracker.finish_study([], best, {})
    (parent,) = runs(client, "runs", "study")
    model = load(tracker, parent.data.tags["mixq.best_model_id"])
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": np.ones((2, 4), np.float32)})
    np.testing.assert_array_equal(found, np.full((2, 4), 2.0, np.float32))


def models(client: MlflowClient) -> list[Any]:
    experiment = client.get_experiment_by_name("mixq tests")
    assert experiment is not None
    return list(client.search_logged_models([experiment.experiment_id]))


def load(tracker: Tracker, model_id: str) -> onnx.ModelProto:
    import mlflow.onnx

    mlflow.set_tracking_uri(tracker.uri)
    model = mlflow.onnx.load_model(f"models:/{model_id}")
    assert isinstance(model, onnx.ModelProto)
    return model


def _killed(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def _out_of_order(*_: object, **__: object) -> None:
    raise OSError("server on fire")


def test_an_unreachable_server_is_told_quickly() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = time.perf_counter()
    with pytest.raises(InputError, match=r"cannot use 'http://127.*start that server, or give a SQLite file"):
        Tracker(f"http://127.0.0.1:{port}", "x")
    print(f"unreachable server: {time.perf_counter() - start:.2f} s")


@pytest.mark.parametrize("uri", ["carrier-pigeon://x", "file:///nowhere/mlruns", "mlruns", "http://127.0.0.1:port"])
def test_a_uri_that_is_no_store(uri: str) -> None:
    with pytest.raises(InputError, match="cannot use"):
        Tracker(uri, "x")


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("not a database, and longer than a header" * 10, encoding="utf-8")
    with pytest.raises(InputError, match="file is not a database"):
        Tracker(default_uri(tmp_path), "x")


def test_a_deleted_experiment_is_refused(tracker: Tracker, client: MlflowClient) -> None:
    client.delete_experiment(client.create_experiment("gone"))
    with pytest.raises(InputError, match="experiment 'gone' is deleted; restore it"):
        Tracker(tracker.uri, "gone")


def test_log_trial_before_start_study(tracker: Tracker) -> None:
    with pytest.raises(RuntimeError, match="start_study"):
        Tracker(tracker.uri, "mixq tests").log_trial(COMPLETE)


@given(st.text())
def test_names_are_ones_that_mlflow_takes(name: str) -> None:
    from mlflow.utils import validation

    checks: list[Callable[[str], None]] = [validation._validate_metric_name, validation._validate_param_name]
    for check in checks:
        check(allowed_name(name))


@pytest.mark.parametrize("name", ["top1", "layers/int8-qat", "a.b c_d"])
def test_names_that_are_allowed_stay(name: str) -> None:
    assert allowed_name(name) == name


def test_numpy_numbers_are_numbers() -> None:
    half: Any = np.float32(0.5)
    evaluation = replace(EVALUATION, metrics={"f1": half}, kl=np.float64(0.25))
    found = trial_metrics(replace(COMPLETE, evaluation=evaluation))
    assert (found["metrics/f1"], found["kl"]) == (0.5, 0.25)


def test_importing_the_module_imports_no_mlflow_and_turns_telemetry_off() -> None:
    code = (
        "import os, sys, mixq.tracking; print('mlflow' in sys.modules, os.environ['MLFLOW_DISABLE_TELEMETRY'], "
        "os.environ['DO_NOT_TRACK'])"
    )
    environment = {n: v for n, v in os.environ.items() if n not in ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "true", "true"]


def test_two_writers_at_once_lose_nothing(tracker: Tracker, client: MlflowClient) -> None:
    tracker.start_study("workers", {})
    code = (
        "import sys, test_tracking as t; from dataclasses import replace; w = int(sys.argv[2]);"
        "k = t.Tracker(sys.argv[1], 'mixq tests'); k.start_study('workers', {});"
        "[k.log_trial(replace(t.COMPLETE, number=10 * w + i)) for i in range(3)]; sys.exit(len(k._waiting))"
    )
    commands = [[sys.executable, "-c", code, tracker.uri, str(worker)] for worker in range(2)]
    workers = [subprocess.Popen(command, cwd=Path(__file__).parent) for command in commands]
    assert [worker.wait(60) for worker in workers] == [0, 0]
    assert set(children(client, "workers")) == {"0", "1", "2", "10", "11", "12"}


def test_the_cost_of_a_trial(tracker: Tracker, folder: Path) -> None:
    tracker.start_study("cost", {})
    kernels = tuple(Kernel(f"features.{i}.conv", "int8", "brgconv_avx512", 10.0) for i in range(60))
    trial = replace(COMPLETE, evaluation=replace(EVALUATION, kernels=kernels))
    times = []
    for number in range(20):
        start = time.perf_counter()
        tracker.log_trial(replace(trial, number=number))
        times.append(1e3 * (time.perf_counter() - start))
    print(f"log_trial: median {np.median(times):.1f} ms, slowest {max(times):.1f} ms")
    with sqlite3.connect(folder / "mlflow.db") as database:
        (count,) = database.execute("select count(*) from metrics where key = 'drop'").fetchone()
    database.close()
    assert count >= 20
