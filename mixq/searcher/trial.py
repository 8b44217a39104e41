"""Trial: one configuration that the search tried, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mixq.config import MixedPrecisionConfig
from mixq.evaluation import Evaluation, Glimpse


@dataclass(frozen=True)
class Trial:
    """`origin` says where the configuration came from (uniform, ladder, a sampler's name); `seconds` is wall time.

    glimpse: of a pruned trial, what was seen before it was let go. violations: by constraint, how far beyond it
    (≤ 0: met). reason: why a trial failed or was let go.
    elapsed_s: seconds of searching from the study's start to this trial's end, pauses between runs left out.
    model_sha256: of the bytes that were measured; "" where they were not kept for long.
    """

    number: int
    state: Literal["complete", "pruned", "failed"]
    config: MixedPrecisionConfig
    origin: str
    seconds: float
    evaluation: Evaluation | None = None
    violations: tuple[tuple[str, float], ...] = ()
    reason: str = ""
    elapsed_s: float = 0.0
    glimpse: Glimpse | None = None
    model_sha256: str = ""

    @property
    def feasible(self) -> bool:
        return self.evaluation is not None and all(value <= 0 for _, value in self.violations)

    @property
    def phases(self) -> dict[str, float]:
        """Seconds by phase; `prepare` is what the others leave."""
        found = self.evaluation or self.glimpse
        known = dict(found.seconds) if found else {}
        return {**known, "prepare": max(0.0, self.seconds - sum(known.values()))}
