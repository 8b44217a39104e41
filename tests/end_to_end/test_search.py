"""A whole search, PTQ and QAT in one space: its files, what they say, and that they agree."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import openvino
import pandas as pd
import pytest
import torch

import mixq
from mixq.certificate import Certificate
from mixq.config import MixedPrecisionConfig, Precision
from tests.end_to_end.blobs import FILES, IMPOSSIBLE, TASK, TRIALS, BlobsNetwork, Searched, command, labelled, written


def test_every_file_is_written(searched: Searched) -> None:
    for name in FILES:
        assert (searched.folder / name).stat().st_size > 0, name


def test_the_summary_has_the_fields_of_the_design(searched: Searched) -> None:
    summary = searched.json("summary.json")
    assert summary == searched.result.summary
    wanted = {
        "": "task study runtime machine threads seed baseline best trials wall_s time_to_best_s feasible",
        "baseline": "metric latency_ms size_bytes",
        "best": "metric drop latency_ms speedup size_bytes compression config_id precisions holdout",
        "trials": "complete pruned failed",
    }
    for part, names in wanted.items():
        assert set(names.split()) <= (summary[part] if part else summary).keys()
    assert {"metric", "drop", "drop_interval"} <= summary["best"]["holdout"].keys()
    assert (summary["task"], summary["study"], summary["runtime"]) == (TASK, "Blobs", "openvino")
    assert (summary["threads"], summary["seed"], summary["feasible"]) == (1, 0, True)
    assert summary["baseline"]["metric"] == 1
    assert sum(summary["trials"].values()) == TRIALS
    assert 0 < summary["time_to_best_s"] <= summary["wall_s"]


def test_the_seconds_name_what_the_time_went_into_and_nothing_twice(searched: Searched) -> None:
    seconds, wall = searched.json("summary.json")["seconds"], searched.json("summary.json")["wall_s"]
    named = {"setup", "capture", "FP32", "statistics", "analysis", "profiles", "recipe", "latency", "metric"}
    assert named <= seconds.keys()
    assert min(seconds.values()) >= 0
    assert 0.8 * wall < sum(seconds.values()) <= wall + 1e-3 * len(seconds)  # each is rounded


def test_summary_certificate_configuration_and_study_agree(searched: Searched) -> None:
    best, baseline = searched.json("summary.json")["best"], searched.json("summary.json")["baseline"]
    certificate = Certificate.load(searched.folder / "certificate.json")
    config = MixedPrecisionConfig.load(searched.folder / "best.json")
    trial = searched.result.best
    assert trial is not None
    assert trial.evaluation is not None
    assert best["config_id"] == certificate.config_id == config.id == trial.config.id
    assert best["metric"] == certificate.measured["metric"] == trial.evaluation.metric
    assert best["drop"] == trial.evaluation.drop == pytest.approx(baseline["metric"] - best["metric"])
    assert best["drop"] <= 0.05 + 1e-9
    assert all(record.time_us is not None for record in certificate.kernels)
    assert best["speedup"] == trial.evaluation.speedup.median
    assert best["size_bytes"] == (searched.folder / "best.onnx").stat().st_size == certificate.files["best.onnx"].size
    assert best["compression"] == pytest.approx(baseline["size_bytes"] / best["size_bytes"])
    assert best["precisions"] == {p.value: n for p in Precision if (n := len(config.layers_with(p)))}
    assert sum(best["precisions"].values()) == 3
    assert trial in searched.result.trials


def test_the_exported_file_has_the_metric_that_is_reported(searched: Searched) -> None:
    """Opened with plain OpenVINO, as the certificate says."""
    how = Certificate.load(searched.folder / "certificate.json").open
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(searched.folder / "best.onnx"), "CPU", dict(how.options))
    summary = searched.json("summary.json")
    for split, reported in (("search", summary["best"]), ("holdout", summary["best"]["holdout"])):
        inputs, targets = labelled(split)
        scores = compiled(inputs)[0]
        assert float(np.mean(scores.argmax(1) == targets)) == reported["metric"]


def test_calibration_and_training_are_tried_in_one_space(searched: Searched) -> None:
    stages = {name for trial in searched.result.trials for name in trial.config.counts()}
    assert {"fp32", "int8", "int8-qat"} <= stages
    assert {trial.state for trial in searched.result.trials} <= {"complete", "pruned"}
    trained = [trial for trial in searched.result.trials if trial.config.qat_layers]
    assert trained
    for trial in trained:  # what passes without is as fast: there is no reason to train
        assert trial.state == "pruned" or trial.phases["train"] > 0


def test_the_tables_have_a_row_each(searched: Searched) -> None:
    sensitivity = pd.read_csv(searched.folder / "sensitivity.csv")
    assert sorted(sensitivity["layer"]) == ["classifier", "first", "second"]
    pareto = pd.read_csv(searched.folder / "pareto.csv")
    assert 0 < len(pareto) <= TRIALS


def test_the_folder_is_whole(searched: Searched) -> None:
    found = mixq.verify(searched.folder)
    assert found.ok, [check for check in found.checks if not check.ok]


def test_where_nothing_is_feasible_fp32_is_the_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    options = ("--trials", "5", "--tracking", "none", "--quiet")
    assert command("search", TASK, "--space", written(tmp_path, IMPOSSIBLE), "--out", out, *options) == 3
    assert "nothing that met the constraints" in capsys.readouterr().out
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["feasible"], summary["best"], sum(summary["trials"].values())) == (False, None, 5)
    assert MixedPrecisionConfig.load(out / "best.json").counts() == {"fp32": 3}
    session = onnxruntime.InferenceSession(out / "best.onnx", providers=["CPUExecutionProvider"])
    inputs, _ = labelled("search")
    with torch.inference_mode():
        wanted = BlobsNetwork()(torch.from_numpy(inputs["image"])).numpy()
    np.testing.assert_allclose(session.run(None, inputs)[0], wanted, rtol=1e-4, atol=1e-5)
    assert command("verify", out) == 0
    assert command("show", out) == 0
