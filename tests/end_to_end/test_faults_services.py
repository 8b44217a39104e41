"""Servers that go away in the middle of a search, and come back: MLflow's and PostgreSQL's."""

from __future__ import annotations

import gc
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mixq.searcher.study import trials_of
from tests import mlflow_server, postgresql
from tests.end_to_end.killing import Faulty, of_the_whole_set, started, wait_until

TRIALS, MORE_TRIALS = 12, 24
QUICKLY = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}  # to learn that it is away


@pytest.fixture
def faulty(tmp_path: Path) -> Faulty:
    return Faulty.written(tmp_path)


@pytest.fixture
def mlflow(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[mlflow_server.Server]:
    """On the database that the test asks for; skipped, with the reason, where there can be no PostgreSQL."""
    folder = tmp_path / "mlflow"
    folder.mkdir()
    if request.param == "sqlite":
        with mlflow_server.running(f"sqlite:///{folder}/mlflow.db", folder) as server:
            yield server
    else:
        with postgresql.running() as database, mlflow_server.running(database.url, folder) as server:
            yield server


@pytest.mark.slow
@pytest.mark.parametrize("mlflow", ["postgresql", pytest.param("sqlite", marks=of_the_whole_set)], indirect=True)
def test_what_mlflow_misses_while_it_is_away_arrives(mlflow: mlflow_server.Server, faulty: Faulty) -> None:
    """Each trial once, whole, in the order in which they ended."""
    with started(faulty.command(TRIALS, "--tracking", mlflow.url), **QUICKLY) as process:
        wait_until(lambda: len(logged(mlflow, faulty)) >= 1, "a logged trial", process)
        mlflow.kill()
        missed = faulty.finished() + 2
        wait_until(lambda: faulty.finished() >= missed, "trials that are not logged", process)
        process.send_signal(signal.SIGSTOP)  # or a quick machine is done before the server is back
        mlflow.start()
        process.send_signal(signal.SIGCONT)
        _, said = process.communicate(timeout=200)
    assert process.returncode == 0, said
    assert "trials that wait to be logged" in said
    faulty.check_complete(TRIALS)
    assert logged(mlflow, faulty) == finished(faulty)


@of_the_whole_set
@pytest.mark.parametrize("mlflow", ["sqlite"], indirect=True)
def test_mlflow_stays_away(mlflow: mlflow_server.Server, faulty: Faulty) -> None:
    """That is told in the end; the same command, once it is back, logs what is missing."""
    command = faulty.command(TRIALS, "--tracking", mlflow.url)
    with started(command, **QUICKLY) as process:
        wait_until(lambda: faulty.finished() >= 1, "a trial", process)
        mlflow.kill()
        _, said = process.communicate(timeout=200)
    assert process.returncode == 1, said
    assert "no result is lost: run the same study again to log what is missing" in said
    mlflow.start()
    with started(command, **QUICKLY) as process:
        _, said = process.communicate(timeout=200)
    assert process.returncode == 0, said
    faulty.check_complete(TRIALS)
    assert logged(mlflow, faulty) == finished(faulty)


@of_the_whole_set
@pytest.mark.filterwarnings("ignore:.*was deleted while still open:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_database_is_restarted(faulty: Faulty) -> None:
    """Twice, under a search and its two workers, which go on where they were."""
    with postgresql.running() as database:
        stored = replace(faulty, database=database.url)
        with started(stored.command(MORE_TRIALS, "--workers", "2")) as process:
            for wanted in (6, 12):
                wait_until(lambda least=wanted: stored.finished() >= least, "trials", process)  # type: ignore[misc]
                database.stop()
                time.sleep(2)
                database.start()
            _, said = process.communicate(timeout=200)
        assert process.returncode == 0, said
        assert "died" not in said
        stored.check_complete(MORE_TRIALS)
        stored.search(MORE_TRIALS)
        stored.check_complete(MORE_TRIALS)
        gc.collect()


def logged(server: mlflow_server.Server, faulty: Faulty) -> list[int]:
    """The numbers of the trials in MLflow that are whole, in the order in which they were finished there."""
    client = MlflowClient(server.url)
    experiment = client.get_experiment_by_name(faulty.name)
    if experiment is None:
        return []
    runs = client.search_runs([experiment.experiment_id], "tags.`mixq.kind` = 'trial'", order_by=["end_time ASC"])
    whole = [run for run in runs if run.info.status in {"FINISHED", "KILLED"}]
    for run in whole:
        assert "config.json" in {file.path for file in client.list_artifacts(run.info.run_id)}
        assert run.data.metrics["seconds_trial"] > 0
    return [int(run.data.params["number"]) for run in whole]


def finished(faulty: Faulty) -> list[int]:
    """The numbers of a study's trials, in the order in which they were finished."""
    return [trial.number for trial in trials_of(faulty.study)]
