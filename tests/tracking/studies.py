"""What the tests of tracking share: a complete and a failed trial, and how a study is read back from MLflow."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from mixq.config import LayerScheme, MixedPrecisionConfig, Precision, RecipeStep
from mixq.evaluation import Evaluation
from mixq.latency import Interval
from mixq.runtimes import Kernel
from mixq.searcher.trial import Trial

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

CONFIG = MixedPrecisionConfig(
    model="0123456789abcdef",
    schemes={
        "a": LayerScheme(precision=Precision.INT8),
        "b": LayerScheme(precision=Precision.INT8),
        "c": LayerScheme(precision=Precision.BF16),
    },
    recipe=(RecipeStep(name="equalize"), RecipeStep(name="bias_correction")),
)
EVALUATION = Evaluation(
    config_id=CONFIG.id,
    runtime="openvino",
    threads=1,
    metric=0.7,
    drop=0.003,
    metrics={"top1": 0.7, "top-5 @ 20%": 0.9},
    latency_ms=Interval(1.5, 1.4, 1.6),
    reference_ms=3.0,
    speedup=Interval(2.0, 1.9, 2.1),
    size_bytes=1000,
    compression=3.5,
    output_mse=0.001,
    kl=None,
    agreement=math.nan,
    ece=math.inf,
    kernels=(Kernel("a", "int8", "brgconv_i8", 12.5), Kernel("b", "fp32", "jit_f32"), Kernel("c", "bf16", "brgconv")),
    silent=("b",),
    seconds={"metric": 0.4, "latency": 0.3},
)
COMPLETE = Trial(0, "complete", CONFIG, "ladder", 1.25, EVALUATION, (("drop", -0.002),), elapsed_s=9.5)
FAILED = Trial(1, "failed", CONFIG, "tpe", 0.5, reason="OpenVINO cannot compile the model: Grüße\nsecond line")


def runs(client: MlflowClient, study: str, kind: str) -> list[Run]:
    experiment = client.get_experiment_by_name("mixq tests")
    assert experiment is not None
    condition = f"tags.`mixq.kind` = '{kind}' and tags.`mixq.study` = '{study}'"
    return sorted(client.search_runs([experiment.experiment_id], condition), key=lambda run: run.info.start_time)


def children(client: MlflowClient, study: str) -> dict[str, Run]:
    return {run.data.params["number"]: run for run in runs(client, study, "trial")}


def artifact(client: MlflowClient, run: Run, name: str) -> str:
    return Path(client.download_artifacts(run.info.run_id, name)).read_text(encoding="utf-8")
