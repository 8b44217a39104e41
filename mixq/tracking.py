"""Trials → MLflow: one parent run a study, one child run a trial. The only file that knows mlflow.

Importing this module does not import mlflow (about two seconds); making a Tracker does.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
import sqlite3
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from mixq.errors import InputError, MixqError
from mixq.scratch import scratch_folder
from mixq.trial_record import trial_files, trial_metrics, trial_params
from mixq.urls import redacted, without_secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

    from mixq.searcher.trial import Trial

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported
os.environ.setdefault("DO_NOT_TRACK", "true")

STUDY = "mixq.study"  # tag of parents and children: the study's name
KIND = "mixq.kind"  # "study" or "trial"
TRIAL = "mixq.trial"  # number and config id: a new study of an old name numbers its trials from 0 again
PARENT = "mlflow.parentRunId"  # MLflow's own tag, which nests children in its pages
MODEL_ID, MODEL_HASH = "mixq.best_model_id", "mixq.best_sha256"
LONGEST_NAME, LONGEST_VALUE, RUNS_A_PAGE = 250, 5000, 1000
SQLITE = "sqlite:///"
STATUS = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}  # what MLflow calls the end of a run

logger = logging.getLogger(__name__)


def default_uri(folder: Path) -> str:
    """Everything in one SQLite file in `folder`, which is made where it is missing; no server."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.resolve().as_posix().replace("%", "%25").replace("?", "%3F")  # what has a meaning in a URI
    return f"{SQLITE}{path}/mlflow.db"


def allowed_name(name: str) -> str:
    """`name` with every character that MLflow refuses in names replaced by "_"; "/" groups, as its pages do."""
    parts = re.sub(r"[^A-Za-z0-9_\-. /]", "_", name).split("/")
    return "/".join(part for part in parts if part.strip(". "))[:LONGEST_NAME].rstrip("/") or "_"


class Tracker:
    """Logs one study. Nothing here decides anything: a store that fails in mid-study costs the log, not the study.

    Worker processes each make their own, after the first one has called start_study. Raises InputError where the
    store cannot be reached. `artifact_root`: by default beside a SQLite file, else what the server says.
    """

    def __init__(self, uri: str, experiment: str, artifact_root: Path | None = None) -> None:
        self.uri = uri
        try:
            with _quiet():
                self._client = _client(uri)
                self._experiment = _experiment_id(self._client, experiment, _artifact_location(uri, artifact_root))
        except InputError:
            raise
        except Exception as error:  # MLflow's own, SQLAlchemy's, requests', a missing driver: each store has others
            raise InputError(
                f"cannot use {redacted(uri)!r} as MLflow's tracking store: {without_secrets(_first_line(error), uri)}; "
                "start that server, or give a SQLite file, e.g. sqlite:///runs/mlflow.db"
            ) from (None if "@" in uri else error)  # a traceback may show the password
        self._parent = self._study = ""
        self._logged: set[str] = set()
        self._unfinished: dict[str, str] = {}  # run ids
        self._waiting: list[Trial] = []

    def start_study(self, name: str, params: Mapping[str, object]) -> None:
        """Open the study's run, the one there is or a new one; read which trials it holds already."""
        run = self._find_study(name)
        if run is None:
            tags = {KIND: "study", STUDY: name}
            run = self._client.create_run(self._experiment, tags=tags, run_name=name[:LONGEST_NAME])
        else:
            self._client.update_run(run.info.run_id, status="RUNNING")
        self._study, self._parent = name, run.info.run_id
        self._waiting = []
        self._log_study_params(run.data.params, _flat(params))
        self._read_children()

    def log_trial(self, trial: Trial) -> None:
        """One child run. A trial that is logged already is left alone; one that the store refuses is tried again."""
        self._waiting.append(trial)
        error = self._log_waiting()
        if error is not None:
            logger.warning(
                "MLflow at %s failed (trials that wait to be logged: %d): %s",
                redacted(self.uri),
                len(self._waiting),
                without_secrets(_first_line(error), self.uri),
            )

    def finish_study(
        self, files: Sequence[Path], best_model: Path | None, metrics: Mapping[str, float], feasible: bool = True
    ) -> None:
        """Log the results and end the run; on repeat they replace the old ones. Raises MixqError where that fails."""
        error = self._log_waiting()
        try:
            if error is not None:
                raise error
            for path in (*files, *([best_model] if best_model else [])):
                self._client.log_artifact(self._parent, str(path))
            model_id = self._log_model(best_model) if best_model else None
            self._client.log_batch(self._parent, metrics=_metrics(metrics, model_id))
            self._client.set_tag(self._parent, "mixq.feasible", str(feasible).lower())
            self._client.set_terminated(self._parent, "FINISHED")
        except _store_errors() as failure:
            raise MixqError(
                f"MLflow at {redacted(self.uri)} failed: {without_secrets(_first_line(failure), self.uri)}; "
                "no result is lost: run the same study again to log what is missing"
            ) from (None if "@" in self.uri else failure)

    def _find_study(self, name: str) -> Run | None:
        # Compared here and not in the filter, whose language has no way to quote a name with both quotation marks.
        return next((run for run in self._runs(f"tags.`{KIND}` = 'study'") if run.data.tags.get(STUDY) == name), None)

    def _read_children(self) -> None:
        self._logged, self._unfinished = set(), {}
        for run in self._runs(f"tags.`{PARENT}` = '{self._parent}'"):
            key = run.data.tags.get(TRIAL, "")
            if run.info.status == "RUNNING":  # its writer died half-way: written once more, into the same run
                self._unfinished[key] = run.info.run_id
            else:
                self._logged.add(key)

    def _runs(self, condition: str) -> Iterator[Run]:
        token: str | None = None
        while token != "":
            page = self._client.search_runs(
                [self._experiment], condition, max_results=RUNS_A_PAGE, page_token=token or None
            )
            yield from page
            token = page.token or ""

    def _log_study_params(self, old: Mapping[str, str], new: Mapping[str, str]) -> None:
        """A param can be written once only: what a resumed study changes (trials, timeout) becomes a tag."""
        from mlflow.entities import Param, RunTag

        self._client.log_batch(
            self._parent,
            params=[Param(name, value) for name, value in new.items() if name not in old],
            tags=[RunTag(f"resumed.{n}", value) for n, value in new.items() if n in old and old[n] != value],
        )

    def _log_waiting(self) -> Exception | None:
        if not self._parent:
            raise RuntimeError("call start_study first")
        while self._waiting:
            try:
                self._log(self._waiting[0])
            except _store_errors() as error:
                return error
            self._waiting.pop(0)
        return None

    def _log(self, trial: Trial) -> None:
        from mlflow.entities import Param

        key = _key(trial)
        if key in self._logged:
            return
        if key not in self._unfinished:
            self._unfinished[key] = self._create_child(trial)
        run_id = self._unfinished[key]
        with scratch_folder() as folder:
            for name, text in trial_files(trial).items():
                (folder / name).write_text(text, encoding="utf-8")
            self._client.log_artifacts(run_id, str(folder))
        params = [Param(allowed_name(name), value[:LONGEST_VALUE]) for name, value in trial_params(trial).items()]
        self._client.log_batch(run_id, metrics=_metrics(trial_metrics(trial)), params=params)
        self._client.set_terminated(run_id, STATUS[trial.state])
        _forget_folder(run_id)
        self._logged.add(key)
        del self._unfinished[key]

    def _create_child(self, trial: Trial) -> str:
        tags = {PARENT: self._parent, KIND: "trial", STUDY: self._study, TRIAL: _key(trial)}
        tags["mixq.feasible"] = str(trial.feasible).lower()
        if trial.reason:
            tags["mixq.reason"] = trial.reason[:LONGEST_VALUE]
        if trial.evaluation is not None and trial.evaluation.silent:
            tags["mixq.silent"] = ", ".join(trial.evaluation.silent)[:LONGEST_VALUE]
        start = int(1e3 * (time.time() - trial.seconds))
        run = self._client.create_run(self._experiment, start, tags, run_name=f"{trial.number:04d} {trial.origin}")
        return str(run.info.run_id)

    def _log_model(self, path: Path) -> str:
        """The model by its id in MLflow: the one there is where its bytes are these, else a new one instead of it."""
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        tags = self._client.get_run(self._parent).data.tags
        if tags.get(MODEL_HASH) == digest:
            return str(tags[MODEL_ID])
        model_id = _save_model(self._client, self._experiment, self._parent, path)
        if MODEL_ID in tags:
            self._client.delete_logged_model(tags[MODEL_ID])
        self._client.set_tag(self._parent, MODEL_ID, model_id)
        self._client.set_tag(self._parent, MODEL_HASH, digest)
        return model_id


def _client(uri: str) -> MlflowClient:
    _, separator, path = uri.partition("sqlite:///")
    if separator:
        _check_sqlite(uri, Path(unquote(path.partition("?")[0])).absolute())
    # A server that is away is told within seconds; by default MLflow tries for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # two lines for each trial
    from mlflow import MlflowClient

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # "Creating initial MLflow database tables"
    return MlflowClient(uri)


def _check_sqlite(uri: str, path: Path) -> None:
    """Raises InputError or SQLite's own error where the file cannot be opened: MLflow would try for minutes."""
    if not path.parent.is_dir():
        raise InputError(
            f"there is no folder for the MLflow store {redacted(uri)}; make it, or give another --tracking"
        )
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA schema_version")


def _experiment_id(client: MlflowClient, name: str, location: str | None) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException:  # another worker was quicker
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise InputError(f"MLflow's experiment {name!r} is deleted; restore it, or take another name")
    return str(found.experiment_id)


def _forget_folder(run_id: str) -> None:
    """MLflow keeps a thread pool and a queue for the artifacts of each of the last 1,024 runs."""
    from mlflow.tracking._tracking_service import utils

    utils._artifact_repos_cache.pop(run_id, None)


def _artifact_location(uri: str, root: Path | None) -> str | None:
    if root is None and uri.startswith(SQLITE):
        database = unquote(uri.removeprefix(SQLITE).partition("?")[0])
        root = Path(database).parent / "artifacts"  # MLflow's own default is the current folder
    return None if root is None else root.resolve().as_uri()


def _save_model(client: MlflowClient, experiment: str, run_id: str, path: Path) -> str:
    """What mlflow.onnx.log_model does, without its global run and tracking URI, and with the bytes as they are."""
    import mlflow.onnx
    import onnx
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    entry = client.create_logged_model(experiment, name="best", source_run_id=run_id)
    described = Model(entry.artifact_location, run_id, model_uuid=entry.model_id, model_id=entry.model_id)
    with scratch_folder() as folder, _quiet():
        mlflow.onnx.save_model(
            onnx.load(str(path)),
            f"{folder}/model",
            mlflow_model=described,
            pip_requirements=[f"{name}=={version(name)}" for name in ("onnx", "onnxruntime")],
            onnx_execution_providers=["CPUExecutionProvider"],
            save_as_external_data=False,
        )
        client.log_model_artifacts(entry.model_id, f"{folder}/model")
    client.finalize_logged_model(entry.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(entry.model_id, step=0)])
    return str(entry.model_id)


@contextmanager
def _silent(found: logging.Logger) -> Iterator[None]:
    """By a filter, for importing MLflow sets the levels."""
    found.addFilter(_nothing)
    try:
        yield
    finally:
        found.removeFilter(_nothing)


def _nothing(_record: logging.LogRecord) -> bool:
    return False


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings that MLflow 3.17 raises over its own code, and what it logs of a store that it retries."""
    with warnings.catch_warnings(), _silent(logging.getLogger("mlflow.store.db.utils")):
        warnings.filterwarnings("ignore", "The ``noload`` loader strategy is deprecated", DeprecationWarning)
        warnings.filterwarnings("ignore", ".*Any type hint is inferred as AnyType", UserWarning)
        yield


def _metrics(values: Mapping[str, float], model_id: str | None = None) -> list[Metric]:
    """MLflow writes inf as the largest double and refuses NaN in some stores: only finite numbers are logged."""
    from mlflow.entities import Metric

    now = int(1e3 * time.time())
    return [
        Metric(allowed_name(name), float(value), now, 0, model_id=model_id)
        for name, value in values.items()
        if math.isfinite(value)
    ]


def _flat(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in params.items():
        key = f"{prefix}{name}"
        flat |= _flat(value, f"{key}/") if isinstance(value, Mapping) else {allowed_name(key): str(value)}
    return {name: value[:LONGEST_VALUE] for name, value in flat.items()}


def _key(trial: Trial) -> str:
    return f"{trial.number} {trial.config.id}"


def _store_errors() -> tuple[type[Exception], ...]:
    from mlflow.exceptions import MlflowException

    return (MlflowException, OSError)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
