"""The judge: what it lets go of, and what not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mixq.evaluation import Glimpse
from mixq.latency import Interval
from mixq.searcher.judge import judge_for
from mixq.searcher.trial import Trial
from tests.searcher.toy import Toy, choices_of, space

TOY = Toy.random(3)
SEEN = Glimpse(Interval(5.0, 4.9, 5.1), Interval(2.0, 1.9, 2.1), 500_000, 2.0)


def rival(speedup: float, compression: float, beyond: float = -1.0) -> Trial:
    config = choices_of(TOY, space()).config({**dict.fromkeys(TOY.names, "int8"), "rest": "fp32", "recipe": "default"})
    found = replace(
        TOY.evaluation(config), speedup=Interval(speedup, speedup - 0.1, speedup + 0.1), compression=compression
    )
    return Trial(7, "complete", config, "guided", 1.0, found, (("drop", beyond),))


def said(seen: Glimpse, *rivals: Trial, objectives: tuple[str, ...] = ("latency", "size"), **limits: Any) -> str | None:
    wanted = space(objectives=list(objectives), constraints={"max_drop": 0.01, **limits})
    judge = judge_for("guided", wanted, rivals)
    assert judge is not None
    return judge(seen)


def test_a_rival_that_is_surely_faster_and_no_larger_beats() -> None:
    found = said(SEEN, rival(2.5, 2.0))
    assert found is not None
    assert "at most 2.10× as fast" in found
    assert "trial 7" in found
    assert "2.40× as fast at least" in found


@pytest.mark.parametrize(
    "other",
    [rival(2.25, 3.0), rival(2.5, 1.9), rival(9.0, 9.0, beyond=0.001)],
    ids=["as fast, by the intervals", "larger", "not feasible"],
)
def test_any_other_does_not(other: Trial) -> None:
    assert said(SEEN, other) is None


def test_only_the_objectives_count() -> None:
    assert said(SEEN, rival(2.5, 1.0), objectives=("latency",)) is not None
    assert said(SEEN, rival(1.0, 2.5), objectives=("size",)) is not None
    assert said(SEEN, rival(1.0, 2.0), objectives=("size",)) is None  # as small: accuracy decides


@pytest.mark.parametrize(
    ("limits", "wanted"),
    [
        ({"max_latency_ms": 4.8}, "at least 4.9 ms; allowed are 4.8"),
        ({"max_latency_ms": 5.0}, None),
        ({"max_size_mb": 0.4}, "0.5 MB; allowed are 0.4"),
        ({"max_size_mb": 0.5}, None),
    ],
)
def test_limits_that_are_surely_missed(limits: dict[str, Any], wanted: str | None) -> None:
    assert said(SEEN, **limits) == wanted


def test_a_drop_counts_where_its_lower_bound_is_beyond() -> None:
    seen = replace(SEEN, rows=250, of_rows=1000, drop=0.03, drop_low=0.009)
    assert said(seen) is None
    assert said(replace(seen, drop_low=0.011)) == (
        "drop 0.0300 on 250 of 1000 rows, so at least 0.0110 on all; allowed is 0.01"
    )
    assert said(replace(seen, drop_low=0.011), max_drop=None) is None


def test_uniform_configurations_have_no_judge() -> None:
    assert judge_for("uniform int8", space(), ()) is None
    assert judge_for("ladder 2 bf16", space(), ()) is not None


def said_of_training(seen: Glimpse, *rivals: Trial, **limits: Any) -> str | None:
    wanted = space(objectives=["latency"], constraints={"max_drop": 0.01, **limits})
    judge = judge_for("uniform int8-qat", wanted, rivals, trains=True)
    assert judge is not None  # also for what is uniform: it costs too much to be a mere yardstick
    return judge(seen)


def test_what_is_only_as_fast_as_what_passes_is_not_worth_training() -> None:
    assert said_of_training(SEEN, rival(2.05, 1.0)) is not None
    assert said(SEEN, rival(2.05, 2.0), objectives=("latency",)) is None
    assert said_of_training(SEEN, rival(2.05, 1.0, beyond=0.001)) is None  # it does not pass
    assert said_of_training(SEEN, rival(1.8, 1.0)) is None  # faster than what passes


def test_a_training_beyond_its_seconds_is_not_gone_on_with() -> None:
    long = replace(SEEN, train_s=31.0)
    found = said_of_training(long, max_train_seconds=30)
    assert found == "its training takes 31 s; allowed are 30"
    assert said_of_training(replace(SEEN, train_s=29.0), max_train_seconds=30) is None
    assert said_of_training(SEEN, max_train_seconds=30) is None
