"""A search that is killed with SIGKILL, wherever it is, goes on when it is given again, and nothing is lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import mixq
from tests.end_to_end.blobs import SPACE, TASK, written
from tests.end_to_end.killing import Faulty, killed_at, of_the_whole_set

pytestmark = pytest.mark.slow

TRIALS = 7  # past the uniform ones and the analysis


@pytest.fixture
def faulty(tmp_path: Path) -> Faulty:
    return Faulty.written(tmp_path)


@pytest.mark.parametrize(
    ("place", "number", "argument"),
    [
        pytest.param("mixq.evaluator:Evaluator._search_outputs", 3, "", id="evaluation", marks=of_the_whole_set),
        pytest.param("os:replace", 2, "best.json", id="in the export"),
        pytest.param("mixq.evaluator:capture", 1, "", id="capturing", marks=of_the_whole_set),
        pytest.param("mixq.analysis:store_sensitivity", 1, "", id="analysis", marks=of_the_whole_set),
        pytest.param("mixq.searcher.run:store_trial", 6, "", id="proposing", marks=of_the_whole_set),
        pytest.param("mixq.contenders:Contenders.keep", 2, "", id="keeping", marks=of_the_whole_set),
        pytest.param("os:replace", 3, "summary.json", id="writing the tables", marks=of_the_whole_set),
        pytest.param("mixq.job:SearchJob.finish", 1, "", id="at the end", marks=of_the_whole_set),
    ],
)
def test_killed_and_given_again(place: str, number: int, argument: str, faulty: Faulty) -> None:
    killed_at(place, number, argument, faulty.command(TRIALS))
    faulty.search(TRIALS)
    faulty.check_complete(TRIALS)


@of_the_whole_set
def test_killed_while_it_trains(faulty: Faulty, tmp_path: Path) -> None:
    trained = SPACE.replace("[ptq, qat]", "[qat]")  # or nothing may be worth training
    training = replace(faulty, task=TASK, space=written(tmp_path, trained))
    killed_at("mixq.qat.course:Course._take", 2, "", training.command(TRIALS))
    training.search(TRIALS)
    training.check_complete(TRIALS)


@of_the_whole_set
def test_killed_while_it_logs(faulty: Faulty, tmp_path: Path) -> None:
    """Every trial has one run in MLflow, and that is finished."""
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    killed_at("mlflow:MlflowClient.log_batch", 3, "", faulty.command(3, "--tracking", uri))
    faulty.search(3, tracking=uri)
    faulty.check_complete(3)
    client = MlflowClient(uri)
    (experiment,) = [e for e in client.search_experiments() if e.name == faulty.name]
    runs = client.search_runs([experiment.experiment_id], "tags.`mixq.kind` = 'trial'")
    assert len(runs) == len({run.data.tags["mixq.trial"] for run in runs}) == 3
    assert {run.info.status for run in runs} <= {"FINISHED", "KILLED"}


def test_torn_files_are_told_and_made_again(faulty: Faulty) -> None:
    """Of the model, and of what may become the best: each cut off in the middle."""
    faulty.search(4)
    for path in [faulty.out / "best.onnx", *(faulty.out / "contenders").iterdir()]:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert not mixq.verify(faulty.out).ok
    faulty.search(4)
    faulty.check_complete(4)
