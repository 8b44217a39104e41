"""What the tests of the report share: trials of a search, its summary and its sensitivity table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from mixq.config import LayerScheme, MixedPrecisionConfig, RecipeStep
from mixq.evaluation import Evaluation, Glimpse
from mixq.latency import Interval
from mixq.runtimes import Kernel
from mixq.searcher.trial import Trial

LAYERS = ("stem.conv", "block.b", "block.a", "head")  # the graph's order, which is not the alphabet's
SCRIPT = "<script>alert('x')</script>"


def config(schemes: Sequence[str], layers: Sequence[str] = LAYERS, rest: str = "fp32") -> MixedPrecisionConfig:
    return MixedPrecisionConfig.model_validate(
        {
            "model": "0123456789abcdef",
            "schemes": dict(zip(layers, (LayerScheme.parse(scheme) for scheme in schemes), strict=True)),
            "rest": rest,
            "recipe": (RecipeStep(name="equalize"), RecipeStep(name="adaround", params={"steps": 50})),
        }
    )


def trial(
    index: int,
    drop: float,
    speedup: float,
    size: int = 1000,
    schemes: Sequence[str] = ("bf16", "int8", "int8", "fp32"),
    layers: Sequence[str] = LAYERS,
    max_drop: float = 0.005,
    **changes: Any,
) -> Trial:
    made = config(schemes, layers)
    kernels = [Kernel(name, scheme, f"kernel_{scheme}", 10.0) for name, scheme in zip(layers, schemes, strict=True)]
    evaluation = Evaluation(
        config_id=made.id,
        runtime="openvino",
        threads=1,
        metric=0.75 - drop,
        drop=drop,
        metrics={"top1": 0.75 - drop},
        latency_ms=Interval(3.0 / speedup, 2.9 / speedup, 3.1 / speedup),
        reference_ms=3.0,
        speedup=Interval(speedup, speedup - 0.05, speedup + 0.07),
        size_bytes=size,
        compression=4000 / size,
        output_mse=0.002,
        kl=0.0125,
        agreement=0.975,
        ece=0.03,
        kernels=tuple(kernels),
        seconds={"metric": 0.5, "latency": 0.25},
    )
    violations = (("drop", drop - max_drop),)
    return Trial(index, "complete", made, "ladder", 2.0, replace(evaluation, **changes), violations)


FAILED = Trial(9, "failed", config(["int8"] * 4), "guided", 0.5, reason=f"cannot compile: {SCRIPT}")
PRUNED = Trial(
    10,
    "pruned",
    config(["int8", "int8", "fp32", "fp32"]),
    "guided",
    0.4,
    violations=(("drop", 0.02),),
    reason="drop 0.0250 on 250 of 1000 rows, so at least 0.0120 on all; allowed is 0.005",
    glimpse=Glimpse(
        Interval(1.5, 1.4, 1.6), Interval(2.0, 1.9, 2.1), 1500, 2.67, 250, 1000, 0.025, 0.012, {"latency": 0.2}
    ),
)
TRIALS = (
    trial(0, 0.0, 1.0, 4000, ("fp32",) * 4),
    trial(1, 0.002, 2.0, 1500),
    trial(2, 0.004, 2.5, 1200, ("int8", "int8", "int8", "fp32"), silent=("block.b",)),
    trial(3, 0.004, 1.9, 1600),  # beaten by 1 and 2
    trial(4, 0.03, 3.0, 1000, ("int8",) * 4),  # loses too much
    FAILED,
    PRUNED,
)
BEST = TRIALS[2]
SUMMARY: dict[str, Any] = {
    "task": "tasks/task.py:Net",
    "study": "night",
    "runtime": "openvino",
    "machine": {"cpu": "EPYC 9", "instructions": ["avx2", "avx512_vnni"], "cores": 2},
    "threads": 1,
    "seed": 0,
    "primary": "top1",
    "constraints": {"max_drop": 0.005, "max_latency_ms": None},
    "baseline": {"metric": 0.75, "latency_ms": 3.0, "size_bytes": 4000},
    "best": {"holdout": {"metric": 0.74, "drop": 0.0061, "drop_interval": [-0.0012, 0.0134], "rows": 1300}},
    "trials": {"complete": 5, "pruned": 1, "failed": 1},
    "wall_s": 60.0,
    "time_to_best_s": 12.5,
    "seconds": {"metric": 20.0, "sensitivity": 30.0},
    "robustness": {"fp32": {"noise": 0.625}, "best": {"noise": 0.619}},
    "notes": ["fp16 was left out"],
    "feasible": True,
}


def sensitivity(layers: Sequence[str] = LAYERS, kl: float | None = 0.001) -> pd.DataFrame:
    """As job.py writes it: the most sensitive first."""
    rows = [
        {
            "layer": layer,
            "op": "Conv",
            "scheme": scheme,
            "parameters": 10,
            "macs": 100,
            "sqnr_db": 20.0 + index,
            "output_mse": 1e-4 * (index + 1),
            "kl": None if kl is None else kl * (index + 1) * (10 if scheme == "int8" else 1),
            "drop": 0.001,
            "rank": index,
        }
        for scheme in ("bf16", "int8")
        for index, layer in enumerate(layers)
    ]
    return pd.DataFrame(rows[::-1])
