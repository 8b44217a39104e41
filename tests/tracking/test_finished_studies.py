"""A finished study has its files, its metrics and the very model, once."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from mixq.tracking import Tracker
from tests.tracking.studies import artifact, runs

if TYPE_CHECKING:
    from mlflow import MlflowClient


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
