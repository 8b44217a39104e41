"""The Optuna study: created or resumed, refused where it was made for something else; trials as plain values."""

from __future__ import annotations

import re
import sqlite3
import warnings
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from pydantic import TypeAdapter
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError

from mixq.config import MixedPrecisionConfig
from mixq.errors import InputError, first_line
from mixq.evaluator import Evaluation
from mixq.searcher.trial import Trial
from mixq.sensitivity import Sensitivity

IDENTITY, SENSITIVITY, CONFIG, CONFIG_ID, EVALUATION, ORIGIN, REASON, SECONDS, ELAPSED = (
    f"mixq:{name}"
    for name in (
        "identity",
        "sensitivity",
        "config",
        "config_id",
        "evaluation",
        "origin",
        "reason",
        "seconds",
        "elapsed",
    )
)
HOLDOUT = "mixq:holdout"
LOCK_SECONDS = 60
PRIMARY_CODE = 0xFF  # of an SQLite error; the higher bits tell its kind
# Optuna knows what to do about a lock that is held or a query that is too long, but not about these.
UNUSABLE = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)

Study = optuna.Study

_SENSITIVITIES, _EVALUATIONS = TypeAdapter(Sensitivity), TypeAdapter(Evaluation)  # building one takes milliseconds


def open_study(storage: str, name: str, objectives: int, identity: Mapping[str, str]) -> Study:
    """The study `name`, new or resumed. Raises InputError, with what differs, where it is one of another identity."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(
            storage=_storage(storage),
            study_name=name,
            directions=["minimize"] * objectives,
            load_if_exists=True,
        )
    except (SQLAlchemyError, ImportError, LookupError, ValueError, RuntimeError) as error:
        raise InputError(
            f"the study storage {redacted(storage)} cannot be opened: {first_line(error)}; give a URL of Optuna's, "
            "e.g. sqlite:////folder/that/exists/study.db"
        ) from error
    known = study.user_attrs.get(IDENTITY)
    if known is None:
        study.set_user_attr(IDENTITY, dict(identity))
    elif known != dict(identity):
        differing = sorted(key for key in {*known, *identity} if known.get(key) != identity.get(key))
        details = "; ".join(f"{key}: {known.get(key)} then, {identity.get(key)} now" for key in differing)
        raise InputError(
            f"the study {name!r} was made for something else ({details}); give another --study or --out, "
            "or the same arguments as then"
        )
    return study


def redacted(url: str) -> str:
    """The URL without a password, be it in the credentials or in the query."""
    scheme, separator, rest = re.sub(r"(?i)(password=)[^&]*", r"\1***", url).partition("://")
    credentials, at, host = rest.rpartition("@")
    return f"{scheme}{separator}{credentials.partition(':')[0]}:***@{host}" if at else f"{scheme}{separator}{rest}"


def pruned_count(study: Study) -> int:
    """Proposals that were not evaluated, because their configuration had been."""
    return len(study.get_trials(deepcopy=False, states=(TrialState.PRUNED,)))


def fail_interrupted(study: Study) -> int:
    """Trials that a killed run left RUNNING become failed; their number."""
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    for trial in running:
        study.tell(trial.number, state=TrialState.FAIL)
    return len(running)


def load_sensitivity(study: Study) -> Sensitivity | None:
    stored = study.user_attrs.get(SENSITIVITY)
    return None if stored is None else _SENSITIVITIES.validate_python(stored)


def store_sensitivity(study: Study, sensitivity: Sensitivity) -> None:
    study.set_user_attr(SENSITIVITY, _SENSITIVITIES.dump_python(sensitivity, mode="json"))


def load_holdout(study: Study, config_id: str) -> dict[str, Any] | None:
    """What the holdout split said of a configuration; None where it was not asked yet."""
    found: dict[str, Any] | None = study.user_attrs.get(f"{HOLDOUT}:{config_id}")
    return found


def store_holdout(study: Study, config_id: str, found: Mapping[str, Any]) -> None:
    study.set_user_attr(f"{HOLDOUT}:{config_id}", dict(found))


def store_trial(trial: optuna.Trial, config: MixedPrecisionConfig, origin: str) -> None:
    trial.set_user_attr(CONFIG, config.to_json(indent=None))
    trial.set_user_attr(CONFIG_ID, config.id)
    trial.set_user_attr(ORIGIN, origin)


def store_evaluation(trial: optuna.Trial, evaluation: Evaluation) -> None:
    trial.set_user_attr(EVALUATION, _EVALUATIONS.dump_python(evaluation, mode="json"))


def trials_of(study: Study) -> list[Trial]:
    """Every evaluated or failed trial, in order."""
    states = (TrialState.COMPLETE, TrialState.FAIL)
    frozen = study.get_trials(deepcopy=False, states=states)
    return [trial_of(trial) for trial in frozen if CONFIG in trial.user_attrs]  # without: killed before it had one


def seen_configs(study: Study) -> set[str]:
    """Ids of all configurations that were evaluated or failed."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL))
    return {trial.user_attrs[CONFIG_ID] for trial in trials if CONFIG_ID in trial.user_attrs}


def trial_of(frozen: FrozenTrial) -> Trial:
    """A finished Optuna trial of ours as a plain value."""
    attributes: dict[str, Any] = frozen.user_attrs
    evaluation = attributes.get(EVALUATION)
    complete = frozen.state is TrialState.COMPLETE
    return Trial(
        number=frozen.number,
        state="complete" if complete else "failed",
        config=MixedPrecisionConfig.from_json(attributes[CONFIG], f"trial {frozen.number}"),
        origin=str(attributes.get(ORIGIN, "")),
        seconds=float(attributes.get(SECONDS, 0.0)),
        evaluation=_EVALUATIONS.validate_python(evaluation) if complete and evaluation else None,
        violations=tuple(sorted(frozen.constraints.items())),
        elapsed_s=float(attributes.get(ELAPSED, 0.0)),
        reason=str(attributes.get(REASON, "" if complete else "interrupted: the run was killed")),
    )


def _storage(url: str) -> optuna.storages.BaseStorage | str:
    if not url.startswith("sqlite"):
        return url
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        storage = optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": LOCK_SECONDS}})

    @event.listens_for(storage.engine, "connect")
    def set_pragmas(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    @event.listens_for(storage.engine, "handle_error")
    def explain(context: Any) -> None:
        if getattr(context.original_exception, "sqlite_errorcode", 0) & PRIMARY_CODE in UNUSABLE:
            raise InputError(
                f"the study storage {url} cannot be used: {first_line(context.original_exception)}; is its disk full? "
                "The same command, given again, goes on from the last trial"
            )

    storage.engine.dispose()  # the connection that made the tables has not got them
    return storage
