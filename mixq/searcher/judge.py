"""Judge: lets go of a candidate that surely cannot pass, or cannot become the best or a point of the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence

from mixq.evaluation import Evaluation, Glimpse, Judge
from mixq.searcher.objective import EQUAL, TOLERANCE, cautious_value, hopeful_value, objective_value
from mixq.searcher.space import SearchSpace
from mixq.searcher.trial import Trial

YARDSTICK = "uniform "  # how the origins of configurations begin that are measured whole, whatever their chances


def judge_for(origin: str, space: SearchSpace, trials: Sequence[Trial], *, trains: bool = False) -> Judge | None:
    """The judge of a candidate from `origin`, with all earlier trials known; None where it is measured whole.

    trains: it has layers to train, which takes far longer than to measure it.
    """
    if origin.startswith(YARDSTICK) and not trains:
        return None
    rivals = [(trial.number, found) for trial in trials if trial.feasible and (found := trial.evaluation)]
    beaten = _not_worth_training if trains else _beaten

    def judge(seen: Glimpse) -> str | None:
        beyond = _beyond(seen, space)
        if beyond is not None:
            return beyond
        return next((_said(number, seen, rival) for number, rival in rivals if beaten(seen, rival, space)), None)

    return judge


def _beyond(seen: Glimpse, space: SearchSpace) -> str | None:
    limits = space.constraints
    if limits.max_size_mb is not None and seen.size_bytes / 1e6 > limits.max_size_mb:
        return f"{seen.size_bytes / 1e6:.3g} MB; allowed are {limits.max_size_mb:g}"
    if limits.max_latency_ms is not None and seen.latency_ms.low > limits.max_latency_ms:
        return f"at least {seen.latency_ms.low:.3g} ms; allowed are {limits.max_latency_ms:g}"
    if limits.max_train_seconds is not None and (seen.train_s or 0.0) > limits.max_train_seconds:
        return f"its training takes {seen.train_s:.3g} s; allowed are {limits.max_train_seconds:g}"
    if limits.max_drop is not None and seen.drop_low is not None and seen.drop_low > limits.max_drop + TOLERANCE:
        return (
            f"drop {seen.drop:.4f} on {seen.rows} of {seen.of_rows} rows, so at least {seen.drop_low:.4f} on all; "
            f"allowed is {limits.max_drop:g}"
        )
    return None


def _beaten(seen: Glimpse, rival: Evaluation, space: SearchSpace) -> bool:
    """Whether the rival is no worse in every objective, and surely better in one, by more than counts as equal."""
    pairs = [
        (hopeful_value(seen, objective), (1 + EQUAL[objective]) * cautious_value(rival, objective))
        for objective in space.objectives
    ]
    return all(mine >= theirs for mine, theirs in pairs) and any(mine > theirs for mine, theirs in pairs)


def _not_worth_training(seen: Glimpse, rival: Evaluation, space: SearchSpace) -> bool:
    """Whether the rival passes and is about as good in every objective: then training could buy accuracy alone."""
    return all(
        hopeful_value(seen, objective) >= objective_value(rival, objective) / (1 + EQUAL[objective])
        for objective in space.objectives
    )


def _said(number: int, seen: Glimpse, rival: Evaluation) -> str:
    return (
        f"at most {seen.speedup.high:.2f}× as fast and {seen.compression:.2f}× smaller; trial {number} passes and is "
        f"{rival.speedup.low:.2f}× as fast at least and {rival.compression:.2f}× smaller"
    )
