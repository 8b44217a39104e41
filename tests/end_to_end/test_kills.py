"""A search that is killed with SIGKILL, wherever it is, goes on when it is given again, and nothing is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

import mixq
from tests.end_to_end.blobs import SPACE, TASK, written
from tests.end_to_end.killing import arguments, check_complete, killed_at

TRIALS = 10


def search_again(out: Path, space: Path, trials: int = TRIALS, tracking: str = "none") -> mixq.SearchResult:
    return mixq.search(TASK, space, out, trials=trials, tracking=tracking, quiet=True)


@pytest.mark.slow
def test_killed_again_and_again(tmp_path: Path) -> None:
    """Each time where it has not been yet: keeping what may become the best, exporting it, writing the tables, …"""
    out, space = tmp_path / "out", written(tmp_path, SPACE)
    command = arguments(out, space, "--trials", str(TRIALS), "--tracking", "none")
    killed_at("mixq.evaluator:Evaluator._search_outputs", 1, "", command)
    killed_at("mixq.contenders:Contenders.keep", 1, "", command)
    killed_at("mixq.job:SearchJob.ensure_exported", 1, "", command)
    killed_at("os:replace", 1, "best.json", command)
    killed_at("os:replace", 1, "summary.json", command)
    killed_at("mixq.sensitivity:_row", 2, "", command)
    killed_at("mixq.job:SearchJob.finish", 1, "", command)
    search_again(out, space)
    check_complete(out, TRIALS)


@pytest.mark.slow
def test_killed_while_it_trains_and_while_it_logs(tmp_path: Path) -> None:
    """Every trial has one run in MLflow, and that is finished."""
    from mlflow import MlflowClient

    out, space = tmp_path / "out", written(tmp_path, SPACE.replace("[ptq, qat]", "[qat]"))
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    command = arguments(out, space, "--trials", "6", "--tracking", uri)
    killed_at("mlflow:MlflowClient.log_batch", 2, "", command)
    killed_at("mlflow:MlflowClient.set_terminated", 1, "", command)
    killed_at("mixq.qat.course:Course._take", 2, "", command)
    search_again(out, space, 6, uri)
    check_complete(out, 6)
    client = MlflowClient(uri)
    (experiment,) = [e for e in client.search_experiments() if e.name == "Blobs"]
    runs = client.search_runs([experiment.experiment_id], "tags.`mixq.kind` = 'trial'")
    assert len(runs) == len({run.data.tags["mixq.trial"] for run in runs}) == 6
    assert {run.info.status for run in runs} <= {"FINISHED", "KILLED"}


def test_torn_files_are_told_and_made_again(tmp_path: Path) -> None:
    """Of the model, of what may become the best, of what is prepared: each cut off in the middle."""
    out, space = tmp_path / "out", written(tmp_path, SPACE)
    search_again(out, space, 6)
    for path in [out / "best.onnx", *(out / "contenders").iterdir(), *(out / "prepared").iterdir()]:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert not mixq.verify(out).ok
    search_again(out, space, 6)
    check_complete(out, 6)
