"""A study that goes on, fails half way or has two writers: nothing is lost, and nothing is there twice."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mixq.errors import MixqError
from mixq.tracking import Tracker
from tests.tracking.studies import COMPLETE, FAILED, children, runs

if TYPE_CHECKING:
    from mlflow import MlflowClient


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


def _killed(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def _out_of_order(*_: object, **__: object) -> None:
    raise OSError("server on fire")


def test_log_trial_before_start_study(tracker: Tracker) -> None:
    with pytest.raises(RuntimeError, match="start_study"):
        Tracker(tracker.uri, "mixq tests").log_trial(COMPLETE)


@pytest.mark.slow
def test_two_writers_at_once_lose_nothing(tracker: Tracker, client: MlflowClient) -> None:
    tracker.start_study("workers", {})
    code = (
        "import sys; from dataclasses import replace; from mixq.tracking import Tracker;"
        "from tests.tracking.studies import COMPLETE; w = int(sys.argv[2]);"
        "k = Tracker(sys.argv[1], 'mixq tests'); k.start_study('workers', {});"
        "[k.log_trial(replace(COMPLETE, number=10 * w + i)) for i in range(3)]; sys.exit(len(k._waiting))"
    )
    commands = [[sys.executable, "-c", code, tracker.uri, str(worker)] for worker in range(2)]
    workers = [subprocess.Popen(command, cwd=Path(__file__).parents[2]) for command in commands]
    assert [worker.wait(60) for worker in workers] == [0, 0]
    assert set(children(client, "workers")) == {"0", "1", "2", "10", "11", "12"}
