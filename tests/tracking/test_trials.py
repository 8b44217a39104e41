"""What stands in MLflow after a trial, read back through MLflow's own client and through its database."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixq.config import MixedPrecisionConfig
from mixq.evaluation import Glimpse
from mixq.latency import Interval
from mixq.runtimes import Kernel
from mixq.searcher.trial import Trial
from mixq.tracking import Tracker, allowed_name
from mixq.trial_record import trial_metrics
from tests.tracking.studies import COMPLETE, CONFIG, EVALUATION, FAILED, artifact, children, runs

if TYPE_CHECKING:
    from mlflow import MlflowClient


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
        "train_s": 0.0,
        "silent_layers": 1.0,
        "noisy": 0.0,
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


def test_a_pruned_trial_is_one_that_was_killed_and_says_why(tracker: Tracker, client: MlflowClient) -> None:
    seen = Glimpse(Interval(1.0, 0.9, 1.1), Interval(2.0, 1.9, 2.1), 500, 4.0)
    pruned = Trial(5, "pruned", CONFIG, "guided", 0.3, reason="at most 2.10× as fast", glimpse=seen)
    tracker.start_study("pruning", {})
    tracker.log_trial(pruned)
    run = children(client, "pruning")["5"]
    assert (run.info.status, run.data.tags["mixq.reason"]) == ("KILLED", pruned.reason)
    assert (run.data.metrics["speedup_median"], run.data.metrics["size_bytes"]) == (2.0, 500)
    assert "drop" not in run.data.metrics


def test_silent_layers_are_named(client: MlflowClient) -> None:
    assert children(client, "first")["0"].data.tags["mixq.silent"] == "b"


def test_a_trial_lasts_as_long_as_it_did(client: MlflowClient) -> None:
    info = children(client, "first")["0"].info
    assert info.end_time - info.start_time >= 1e3 * COMPLETE.seconds


def objections(name: str) -> list[str]:
    """What MLflow has against a metric and a parameter of this name."""
    from mlflow.exceptions import MlflowException
    from mlflow.utils import validation

    checks: list[Callable[[str], None]] = [validation._validate_metric_name, validation._validate_param_name]
    found = []
    for check in checks:
        try:
            check(name)
        except MlflowException as error:
            found.append(str(error))
    return found


@given(st.text())
def test_names_are_ones_that_mlflow_takes(name: str) -> None:
    assert objections(allowed_name(name)) == []


def test_mlflow_does_not_take_every_name() -> None:
    assert len(objections("top-5 @ 20%")) == 2


@pytest.mark.parametrize("name", ["top1", "layers/int8-qat", "a.b c_d"])
def test_names_that_are_allowed_stay(name: str) -> None:
    assert allowed_name(name) == name


def test_numpy_numbers_are_numbers() -> None:
    half: Any = np.float32(0.5)
    evaluation = replace(EVALUATION, metrics={"f1": half}, kl=np.float64(0.25))
    found = trial_metrics(replace(COMPLETE, evaluation=evaluation))
    assert (found["metrics/f1"], found["kl"]) == (0.5, 0.25)


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
