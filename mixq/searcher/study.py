"""The Optuna study: created or resumed, refused where it was made for something else; trials as plain values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState
from pydantic import TypeAdapter
from sqlalchemy.exc import SQLAlchemyError

from mixq.config import MixedPrecisionConfig
from mixq.errors import InputError
from mixq.evaluation import Evaluation, Glimpse
from mixq.process import ProcessId
from mixq.searcher.storage import open_storage, refused, sqlite_file
from mixq.searcher.trial import Trial
from mixq.sensitivity import Sensitivity
from mixq.urls import redacted

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
ANEW = "mixq:measured_anew"
WORKER, BEAT, ATTEMPT, MODEL_SHA256 = "mixq:worker", "mixq:beat", "mixq:attempt", "mixq:model_sha256"
MOST_ATTEMPTS = 3  # of a configuration whose process is killed each time: it may be what kills

Study = optuna.Study
Frozen = Sequence[FrozenTrial]
"""Trials as Optuna keeps them."""

# Building one takes milliseconds.
_SENSITIVITIES, _EVALUATIONS, _GLIMPSES = TypeAdapter(Sensitivity), TypeAdapter(Evaluation), TypeAdapter(Glimpse)
_INTERRUPTED = f"interrupted: its process was killed, {MOST_ATTEMPTS} times"
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
STATES: Mapping[TrialState, Literal["complete", "pruned", "failed"]] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


def open_study(storage: str, name: str, objectives: int, identity: Mapping[str, str]) -> Study:
    """The study `name`, new or resumed. Raises InputError, with what differs, where it is one of another identity."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    opened = open_storage(storage)
    try:
        study = optuna.create_study(
            storage=opened, study_name=name, directions=["minimize"] * objectives, load_if_exists=True
        )
    except (SQLAlchemyError, ValueError, RuntimeError) as error:
        raise refused(storage, error) from None
    if IDENTITY not in study.user_attrs:
        study.set_user_attr(IDENTITY, dict(identity))
    check_identity(study, identity)
    return study


class NoStudyError(InputError):
    """There is no such study, which a search may still open."""


def join_study(storage: str, name: str) -> Study:
    """The study `name` that a search has opened. Raises NoStudyError where there is none, InputError for a bad URL."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    file = sqlite_file(storage)
    if file is not None and not file.exists():  # it would be made
        raise NoStudyError(
            f"there is no study storage {redacted(storage)}; give that of a mixq search that was started"
        )
    opened = open_storage(storage)
    try:
        return optuna.load_study(study_name=name, storage=opened)
    except KeyError:
        known = ", ".join(sorted(optuna.get_all_study_names(opened))) or "none"
        raise NoStudyError(
            f"there is no study {name!r} in {redacted(storage)} (there: {known}); give the --study and --storage of a "
            "mixq search that was started"
        ) from None
    except (SQLAlchemyError, ValueError, RuntimeError) as error:
        raise refused(storage, error) from None


def check_identity(study: Study, identity: Mapping[str, str]) -> None:
    """Raises InputError, with what differs, where the study is one of another identity."""
    known: Mapping[str, str] = study.user_attrs.get(IDENTITY, {})
    if known != dict(identity):
        differing = sorted(key for key in {*known, *identity} if known.get(key) != identity.get(key))
        details = "; ".join(f"{key}: {known.get(key)} then, {identity.get(key)} now" for key in differing)
        raise InputError(
            f"the study {study.study_name!r} was made for something else ({details}); give another --study or --out, "
            "or the same arguments as then"
        )


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


def load_measured_anew(study: Study) -> dict[str, tuple[Evaluation, str]]:
    """By configuration: what bytes that are not those of its trial measured, and the SHA-256 of these."""
    prefix = f"{ANEW}:"
    found = {key.removeprefix(prefix): value for key, value in study.user_attrs.items() if key.startswith(prefix)}
    return {name: (_EVALUATIONS.validate_python(value["evaluation"]), value["sha256"]) for name, value in found.items()}


def store_measured_anew(study: Study, found: Evaluation, digest: str) -> None:
    value = {"evaluation": _EVALUATIONS.dump_python(found, mode="json"), "sha256": digest}
    study.set_user_attr(f"{ANEW}:{found.config_id}", value)


def store_trial(trial: optuna.Trial, config: MixedPrecisionConfig, origin: str) -> None:
    for name, value in _of_a_trial(config, origin).items():
        trial.set_user_attr(name, value)


def begin_trial(
    study: Study,
    params: Mapping[str, Any],
    distributions: Mapping[str, BaseDistribution],
    config: MixedPrecisionConfig,
    origin: str,
) -> optuna.Trial:
    """A trial that runs: what `study.ask` and `store_trial` leave, in one transaction instead of one a parameter."""
    made = optuna.trial.create_trial(
        state=TrialState.RUNNING,
        params=dict(params),
        distributions=dict(distributions),
        user_attrs=_of_a_trial(config, origin),
    )
    return optuna.Trial(study, study._storage.create_new_trial(study._study_id, made))  # add_trial does not say which


def _of_a_trial(config: MixedPrecisionConfig, origin: str) -> dict[str, str]:
    return {
        WORKER: ProcessId.own().to_json(),
        CONFIG: config.to_json(indent=None),
        CONFIG_ID: config.id,
        ORIGIN: origin,
    }


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


def read_trials(study: Study) -> Frozen:
    """All that there are, in order, whatever their state."""
    return study.get_trials(deepcopy=False)


def trials_of(study: Study) -> list[Trial]:
    """Every evaluated, pruned or failed trial, in order."""
    return [trial_of(trial) for trial in counted(study.get_trials(deepcopy=False, states=FINISHED))]


def counted(frozen: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Those that are trials of ours.

    Not those without a configuration: killed before they had one, or a proposal of one that was evaluated before. Nor
    those whose process was killed, which are tried again.
    """
    return [trial for trial in frozen if CONFIG in trial.user_attrs and not to_retry(trial)]


def to_retry(trial: FrozenTrial) -> bool:
    """Whether its process was killed, and it is to be tried again."""
    return (
        trial.state is TrialState.FAIL
        and REASON not in trial.user_attrs
        and trial.user_attrs.get(ATTEMPT, 1) < MOST_ATTEMPTS
    )


def seen_configs(trials: Frozen) -> set[str]:
    """Ids of all configurations among `trials` that were evaluated, pruned or failed, or are being evaluated."""
    begun = counted(trial for trial in trials if trial.state is not TrialState.WAITING)
    return {trial.user_attrs[CONFIG_ID] for trial in begun if CONFIG_ID in trial.user_attrs}


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
        reason=str(attributes.get(REASON, _INTERRUPTED if state == "failed" else "")),
        model_sha256=str(attributes.get(MODEL_SHA256, "")),
    )
