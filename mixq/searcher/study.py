"""The Optuna study: created or resumed, refused where it was made for something else; trials as plain values."""

from __future__ import annotations

import re
import sqlite3
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, TrialState
from pydantic import TypeAdapter
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError

from mixq.config import MixedPrecisionConfig
from mixq.errors import InputError, first_line
from mixq.evaluation import Evaluation, Glimpse
from mixq.searcher.trial import Trial
from mixq.sensitivity import Sensitivity

IDENTITY, SENSITIVITY, CONFIG, CONFIG_ID, EVALUATION, GLIMPSE, ORIGIN, REASON, SECONDS, ELAPSED, VALUES, PROFILES = (
    f"mixq:{name}"
    for name in (
        "identity",
        "sensitivity",
        "config",
        "config_id",
        "evaluation",
        "glimpse",
        "origin",
        "reason",
        "seconds",
        "elapsed",
        "values",
        "profiles",
    )
)
HOLDOUT = "mixq:holdout"
GAINS = "mixq:gains"
LOCK_SECONDS = 60
PRIMARY_CODE = 0xFF  # of an SQLite error; the higher bits tell its kind
# Optuna knows what to do about a lock that is held or a query that is too long, but not about these.
UNUSABLE = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)

Study = optuna.Study

# Building one takes milliseconds.
_SENSITIVITIES, _EVALUATIONS, _GLIMPSES = TypeAdapter(Sensitivity), TypeAdapter(Evaluation), TypeAdapter(Glimpse)
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
STATES: Mapping[TrialState, Literal["complete", "pruned", "failed"]] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


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


def load_profiles(study: Study) -> dict[str, dict[str, float]] | None:
    """The µs of each layer by precision; None where they were not taken yet."""
    found: dict[str, dict[str, float]] | None = study.user_attrs.get(PROFILES)
    return found


def store_profiles(study: Study, profiles: Mapping[str, Mapping[str, float]]) -> None:
    study.set_user_attr(PROFILES, {kind: dict(times) for kind, times in profiles.items()})


def load_holdout(study: Study, config_id: str) -> dict[str, Any] | None:
    """What the holdout split said of a configuration; None where it was not asked yet."""
    found: dict[str, Any] | None = study.user_attrs.get(f"{HOLDOUT}:{config_id}")
    return found


def store_holdout(study: Study, config_id: str, found: Mapping[str, Any]) -> None:
    study.set_user_attr(f"{HOLDOUT}:{config_id}", dict(found))


def load_gains(study: Study, config_id: str) -> list[dict[str, Any]] | None:
    """What training gained in each layer of a configuration; None where it was not measured yet."""
    found: list[dict[str, Any]] | None = study.user_attrs.get(f"{GAINS}:{config_id}")
    return found


def store_gains(study: Study, config_id: str, found: Sequence[Mapping[str, Any]]) -> None:
    study.set_user_attr(f"{GAINS}:{config_id}", [dict(gain) for gain in found])


def store_trial(trial: optuna.Trial, config: MixedPrecisionConfig, origin: str) -> None:
    trial.set_user_attr(CONFIG, config.to_json(indent=None))
    trial.set_user_attr(CONFIG_ID, config.id)
    trial.set_user_attr(ORIGIN, origin)


def store_found(trial: optuna.Trial, found: Evaluation | Glimpse) -> None:
    if isinstance(found, Evaluation):
        trial.set_user_attr(EVALUATION, _EVALUATIONS.dump_python(found, mode="json"))
    else:
        trial.set_user_attr(GLIMPSE, _GLIMPSES.dump_python(found, mode="json"))


def is_feasible(trial: FrozenTrial) -> bool:
    """Whether every constraint that is known of it is met."""
    return all(value <= 0 for value in trial.constraints.values())


def load_glimpse(frozen: FrozenTrial) -> Glimpse | None:
    """What was seen of a pruned trial; None of others."""
    stored = frozen.user_attrs.get(GLIMPSE)
    return None if stored is None else _GLIMPSES.validate_python(stored)


def trials_of(study: Study) -> list[Trial]:
    """Every evaluated, pruned or failed trial, in order."""
    frozen = study.get_trials(deepcopy=False, states=FINISHED)
    # Without a configuration: killed before it had one, or a proposal of one that was evaluated before.
    return [trial_of(trial) for trial in frozen if CONFIG in trial.user_attrs]


def seen_configs(study: Study) -> set[str]:
    """Ids of all configurations that were evaluated, pruned or failed."""
    trials = study.get_trials(deepcopy=False, states=FINISHED)
    return {trial.user_attrs[CONFIG_ID] for trial in trials if CONFIG_ID in trial.user_attrs}


def trial_of(frozen: FrozenTrial) -> Trial:
    """A finished Optuna trial of ours as a plain value."""
    attributes: dict[str, Any] = frozen.user_attrs
    evaluation = attributes.get(EVALUATION)
    state = STATES[frozen.state]
    return Trial(
        number=frozen.number,
        state=state,
        config=MixedPrecisionConfig.from_json(attributes[CONFIG], f"trial {frozen.number}"),
        origin=str(attributes.get(ORIGIN, "")),
        seconds=float(attributes.get(SECONDS, 0.0)),
        evaluation=_EVALUATIONS.validate_python(evaluation) if state == "complete" and evaluation else None,
        glimpse=load_glimpse(frozen) if state == "pruned" else None,
        violations=tuple(sorted(frozen.constraints.items())),
        elapsed_s=float(attributes.get(ELAPSED, 0.0)),
        reason=str(attributes.get(REASON, "interrupted: the run was killed" if state == "failed" else "")),
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
