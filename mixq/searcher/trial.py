"""Trial: one configuration that the search tried, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mixq.config import MixedPrecisionConfig
from mixq.evaluator import Evaluation


@dataclass(frozen=True)
class Trial:
    """`origin` says where the configuration came from (uniform, ladder, a sampler's name); `seconds` is wall time.

    violations: by constraint, how far beyond it (≤ 0: met). reason: why a trial failed.
    elapsed_s: seconds of searching from the study's start to this trial's end, pauses between runs left out.
    """

    number: int
    state: Literal["complete", "failed"]
    config: MixedPrecisionConfig
    origin: str
    seconds: float
    evaluation: Evaluation | None = None
    violations: tuple[tuple[str, float], ...] = ()
    reason: str = ""
    elapsed_s: float = 0.0

    @property
    def feasible(self) -> bool:
        return self.evaluation is not None and all(value <= 0 for _, value in self.violations)
