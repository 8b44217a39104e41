"""A search that is killed with SIGKILL, wherever it is, goes on when it is given again, and nothing is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

import mixq
from tests.end_to_end.blobs import SPACE, TASK, written
from tests.end_to_end.killing import arguments, check_complete, killed_at

TRIALS = 8


def search_again(out: Path, space: Path, trials: int = TRIALS, tracking: str = "none") -> mixq.SearchResult:
    return mixq.search(TASK, space, out, trials=trials, tracking=tracking, quiet=True)


@pytest.mark.parametrize(
    ("place", "number", "argument"),
    [
        pytest.param("mixq.evaluator:Evaluator._search_outputs", 3, "", id="evaluation"),
        pytest.param("mixq.qat.course:Course._take", 2, "", id="training", marks=pytest.mark.slow),
        pytest.param("mixq.contenders:Contenders.keep", 2, "", id="keeping", marks=pytest.mark.slow),
        pytest.param("os:replace", 2, "best.json", id="in the export"),
        pytest.param("os:replace", 3, "summary.json", id="writing the tables", marks=pytest.mark.slow),
        pytest.param("mixq.job:SearchJob.finish", 1, "", id="at the end", marks=pytest.mark.slow),
    ],
)
def test_killed_and_given_again(place: str, number: int, argument: str, tmp_path: Path) -> None:
    trained = SPACE.replace("[ptq, qat]", "[qat]")  # or nothing may be worth training
    out, space = tmp_path / "out", written(tmp_path, trained if "qat" in place else SPACE)
    killed_at(place, number, argument, arguments(out, space, "--trials", str(TRIALS), "--tracking", "none"))
    search_again(out, space)
    check_complete(out, TRIALS)


@pytest.mark.slow
def test_killed_while_it_logs(tmp_path: Path) -> None:
    """Every trial has one run in MLflow, and that is finished."""
    from mlflow import MlflowClient

    out, space = tmp_path / "out", written(tmp_path, SPACE)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    killed_at("mlflow:MlflowClient.log_batch", 3, "", arguments(out, space, "--trials", "3", "--tracking", uri))
    search_again(out, space, 3, uri)
    check_complete(out, 3)
    client = MlflowClient(uri)
    (experiment,) = [e for e in client.search_experiments() if e.name == "Blobs"]
    runs = client.search_runs([experiment.experiment_id], "tags.`mixq.kind` = 'trial'")
    assert len(runs) == len({run.data.tags["mixq.trial"] for run in runs}) == 3
    assert {run.info.status for run in runs} <= {"FINISHED", "KILLED"}


@pytest.mark.slow
def test_torn_files_are_told_and_made_again(tmp_path: Path) -> None:
    """Of the model, of what may become the best, of what is prepared: each cut off in the middle."""
    out, space = tmp_path / "out", written(tmp_path, SPACE)
    search_again(out, space, 6)
    for path in [out / "best.onnx", *(out / "contenders").iterdir(), *(out / "prepared").iterdir()]:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert not mixq.verify(out).ok
    search_again(out, space, 6)
    check_complete(out, 6)
