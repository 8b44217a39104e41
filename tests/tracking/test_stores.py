"""Where tracking writes: folders of any name, and stores that are refused in one line."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mixq.errors import InputError
from mixq.tracking import Tracker, default_uri
from tests.tracking.studies import COMPLETE

if TYPE_CHECKING:
    from mlflow import MlflowClient


@pytest.mark.usefixtures("tracker")
def test_artifacts_lie_beside_the_database(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} >= {"mlflow.db", "artifacts"}
    assert len(list(folder.glob("artifacts/*/artifacts/config.json"))) >= 2


@pytest.mark.usefixtures("tracker")
@pytest.mark.parametrize("name", ["a b", "ü", "50%20#?x"])
def test_folders_of_any_name(tmp_path: Path, name: str, folder: Path) -> None:
    (tmp_path / name).mkdir()
    shutil.copy(folder / "mlflow.db", tmp_path / name)  # quicker than a new database
    tracker = Tracker(default_uri(tmp_path / name), "another")
    tracker.start_study("odd", {})
    tracker.log_trial(COMPLETE)
    assert len(list((tmp_path / name).glob("artifacts/*/artifacts/config.json"))) == 1


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


def test_importing_the_module_imports_no_mlflow_and_turns_telemetry_off() -> None:
    code = (
        "import os, sys, mixq.tracking; print('mlflow' in sys.modules, os.environ['MLFLOW_DISABLE_TELEMETRY'], "
        "os.environ['DO_NOT_TRACK'])"
    )
    environment = {n: v for n, v in os.environ.items() if n not in ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "true", "true"]
