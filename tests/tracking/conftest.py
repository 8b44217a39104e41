"""One MLflow database for all tests, for a new one takes seconds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mixq.tracking import Tracker, default_uri
from tests.tracking.studies import COMPLETE, FAILED

if TYPE_CHECKING:
    from mlflow import MlflowClient


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture(scope="session")
def tracker(folder: Path) -> Iterator[Tracker]:
    tracker = Tracker(default_uri(folder), "mixq tests")
    tracker.start_study("first", {"seed": 0, "trials": 5, "task": "t.py:T", "machine": {"cores": 2, "cpu [x]": "EPYC"}})
    tracker.log_trial(COMPLETE)
    tracker.log_trial(FAILED)
    yield tracker
    assert not list(Path.cwd().glob("mlruns*")), "MLflow wrote into the current folder"


@pytest.fixture(scope="session")
def client(tracker: Tracker) -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient(tracker.uri)
