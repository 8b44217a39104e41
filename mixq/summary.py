"""What of a summary.json is shown: its fields, checked where the file is read."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ValidationError

from mixq.documents import parse_json
from mixq.errors import InputError
from mixq.validation import explain, few


class _Holdout(BaseModel):
    metric: float
    drop: float
    drop_interval: tuple[float, float]


class _Best(BaseModel):
    metric: float
    drop: float
    drop_bound: float | None = None
    latency_ms: float
    speedup: float
    size_bytes: int
    compression: float
    schemes: dict[str, int]
    rest: str
    silent_layers: list[str]
    holdout: _Holdout | None


class _Limits(BaseModel):
    max_drop: float | None = None
    confidence: float | None = None
    max_latency_ms: float | None = None
    max_size_mb: float | None = None
    max_train_seconds: float | None = None


class _Trials(BaseModel):
    complete: int
    pruned: int
    failed: int


class _Summary(BaseModel):
    runtime: str
    threads: int
    primary: str
    higher_is_better: bool = True
    constraints: _Limits
    best: _Best | None
    trials: _Trials
    wall_s: float
    time_to_best_s: float | None


def parse_summary(text: str, source: str) -> dict[str, Any]:
    """Raises InputError, naming `source`, where the text is not the summary of a search."""
    try:
        found = _Summary.model_validate(parse_json(text, source))
    except ValidationError as error:
        reasons = "; ".join(few([sentence for _, sentence in explain(error, _Summary)]))
        raise InputError(f"{source} is not a search's summary: {reasons}; search again, or verify the folder") from None
    if found.best is not None and found.time_to_best_s is None:
        raise InputError(
            f"{source}: time_to_best_s: required where there is a best; search again, or verify the folder"
        )
    return found.model_dump()
