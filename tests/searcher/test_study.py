"""The study: resumed for the same search, refused for another; what is stored comes back as it was."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from mixq.config import MixedPrecisionConfig
from mixq.deltas import Interactions
from mixq.errors import InputError
from mixq.evaluation import Evaluation, Glimpse
from mixq.latency import Interval
from mixq.runtimes import Kernel
from mixq.searcher.run import QUEUED
from mixq.searcher.samplers import distributions
from mixq.searcher.study import (
    REASON,
    Study,
    load_holdout,
    load_sensitivity,
    open_study,
    seen_configs,
    store_found,
    store_holdout,
    store_sensitivity,
    store_trial,
    trials_of,
)
from mixq.sensitivity import Sensitivity
from mixq.urls import redacted
from tests.searcher.toy import MODEL, Search, Toy, choices_of, config_ids, space

TOY = Toy.random(3)
IDENTITY = {"model": MODEL, "metric": "top1", "space": "1234", "threads": "1"}


def url(folder: Path) -> str:
    return f"sqlite:///{folder / 'study.db'}"


def opened(folder: Path, identity: dict[str, str] | None = None, name: str = "toy") -> Study:
    return open_study(url(folder), name, 1, IDENTITY if identity is None else identity)


def uniform(scheme: str) -> MixedPrecisionConfig:
    choices = choices_of(TOY, space())
    return choices.config({**dict.fromkeys(TOY.names, scheme), "rest": "fp32", "recipe": "default"})


def test_a_study_is_resumed_under_its_name(tmp_path: Path) -> None:
    first = opened(tmp_path)
    Search(TOY, space(), study=first).run(4)
    again = opened(tmp_path)
    assert config_ids(trials_of(again)) == config_ids(trials_of(first))
    assert len(trials_of(again)) == 4
    assert trials_of(opened(tmp_path, name="other")) == []


def test_another_identity_is_refused_with_what_differs(tmp_path: Path) -> None:
    opened(tmp_path)
    with pytest.raises(InputError) as refused:
        opened(tmp_path, {**IDENTITY, "threads": "2", "space": "5678"})
    message = str(refused.value)
    assert "'toy' was made for something else (space: 1234 then, 5678 now; threads: 1 then, 2 now)" in message
    assert "metric" not in message
    assert "--study" in message


def test_what_an_identity_lacks_differs_too(tmp_path: Path) -> None:
    opened(tmp_path)
    with pytest.raises(InputError, match=r"\(cpu: None then, EPYC now\)"):
        opened(tmp_path, {**IDENTITY, "cpu": "EPYC"})


def full_evaluation() -> Evaluation:
    """No field at its default."""
    kernels = (Kernel("layer0", "int8", "Convolution:I8", 1.5), Kernel("layer1", "fp32", "gemm", None))
    return replace(
        TOY.evaluation(uniform("int8")),
        latency_ms=Interval(1.0, 0.9, 1.2),
        metrics={"top1": 0.8, "top5": 0.99},
        ece=0.02,
        kernels=kernels,
        silent=("layer1",),
        seconds={"train": 0.5, "metric": 0.25},
    )


def test_a_trial_comes_back_as_it_was(tmp_path: Path) -> None:
    study, evaluation = opened(tmp_path), full_evaluation()
    asked = study.ask(distributions(choices_of(TOY, space())))
    store_trial(asked, uniform("int8"), "ladder 2 bf16")
    store_found(asked, evaluation)
    asked.set_constraint("drop", -0.01)
    study.tell(asked, 0.25)
    (trial,) = trials_of(opened(tmp_path))
    assert trial.evaluation == evaluation
    assert (trial.config, trial.origin, trial.state) == (uniform("int8"), "ladder 2 bf16", "complete")
    assert trial.violations == (("drop", -0.01),)
    assert trial.feasible


def test_a_sensitivity_comes_back_as_it_was(tmp_path: Path) -> None:
    study = opened(tmp_path)
    assert load_sensitivity(study) is None
    without_kl = Sensitivity((replace(TOY.sensitivity.rows[0], kl=None), *TOY.sensitivity.rows[1:]), 64)
    store_sensitivity(study, without_kl)
    assert load_sensitivity(opened(tmp_path)) == without_kl


def test_interactions_come_back_to_the_last_digit_and_are_one_text(tmp_path: Path) -> None:
    """Whoever reads a study's attributes copies them all: of 500 layers, a quarter of a million numbers."""
    study, rng = opened(tmp_path), np.random.default_rng(0)
    keys = tuple((f"layer{number}", "int8") for number in range(7))
    products = tuple(tuple(map(float, row)) for row in rng.standard_normal((7, 7)))
    known = replace(TOY.sensitivity, interactions=Interactions(keys, products))
    store_sensitivity(study, known)
    found = load_sensitivity(opened(tmp_path))
    assert found == known
    (stored,) = (value for name, value in study.user_attrs.items() if name.endswith("sensitivity"))
    assert isinstance(stored["interactions"]["products"], str)


def test_what_the_holdout_said_is_kept_by_configuration(tmp_path: Path) -> None:
    study = opened(tmp_path)
    store_holdout(study, "abc", {"drop": 0.1, "drop_interval": [0.0, 0.2]})
    assert load_holdout(opened(tmp_path), "abc") == {"drop": 0.1, "drop_interval": [0.0, 0.2]}
    assert load_holdout(study, "other") is None


def test_a_pruned_trial_comes_back_as_it_was(tmp_path: Path) -> None:
    study = opened(tmp_path)
    glimpse = Glimpse(Interval(1.0, 0.9, 1.2), Interval(2.0, 1.9, 2.1), 500, 4.0, 50, 100, 0.1, 0.05, {"latency": 0.2})
    asked = study.ask(distributions(choices_of(TOY, space())))
    store_trial(asked, uniform("int8"), "guided")
    store_found(asked, glimpse)
    asked.set_user_attr(REASON, "drop 0.1")
    study.tell(asked, state=TrialState.PRUNED)
    again = opened(tmp_path)
    (trial,) = trials_of(again)
    assert (trial.state, trial.glimpse, trial.evaluation, trial.feasible) == ("pruned", glimpse, None, False)
    assert (trial.config, trial.reason) == (uniform("int8"), "drop 0.1")
    assert seen_configs(again.trials) == {uniform("int8").id}


def test_proposals_of_what_was_tried_are_no_trials(tmp_path: Path) -> None:
    study = opened(tmp_path)
    study.tell(study.ask(), state=TrialState.PRUNED)
    assert trials_of(study) == []


def test_sqlite_writes_ahead_so_that_readers_do_not_block(tmp_path: Path) -> None:
    opened(tmp_path)
    with sqlite3.connect(tmp_path / "study.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_configurations_are_stored_as_readable_json(tmp_path: Path) -> None:
    study = opened(tmp_path)
    Search(TOY, space(), study=study).run(1)
    stored = study.trials[0].user_attrs["mixq:config"]
    assert json.loads(stored)["model"] == MODEL
    assert study.user_attrs.get(f"{QUEUED}:uniform") is None


@pytest.mark.parametrize(
    "storage",
    [
        "sqlite:////nowhere/at/all/study.db",
        "nonsense",
        "postgresql://user:secret@localhost:1/db",
        "oracle://u:secret@h/d",
    ],
)
def test_a_storage_that_cannot_be_opened_is_named_without_its_password(storage: str) -> None:
    with pytest.raises(InputError, match=r"the study storage .* cannot be opened: ") as refused:
        open_study(storage, "toy", 1, IDENTITY)
    assert redacted(storage) in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_text("this is no database, and long enough to be told from an empty file" * 20)
    with pytest.raises(InputError, match=r"study\.db"):
        opened(tmp_path)


def test_optuna_says_nothing_on_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    opened(tmp_path)
    Search(TOY, space(), study=opened(tmp_path)).run(2)
    assert capfd.readouterr() == ("", "")
    assert optuna.logging.get_verbosity() == optuna.logging.WARNING
