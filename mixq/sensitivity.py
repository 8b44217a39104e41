"""Sensitivity: how much each layer, put alone into each scheme, hurts; and which measure of that can be trusted.

Everything runs on the runtime's own kernels: the error at a layer's own output from shadow layers (`shadow.py`), that
at the network's output from one lowered model for each layer and scheme.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd

from mixq import machine, measures
from mixq.batches import run_batches
from mixq.config import LayerScheme, MixedPrecisionConfig, Precision, RecipeStep, Stage
from mixq.dataset import Split, TaskData, row_count
from mixq.deltas import Deltas, Interactions
from mixq.evaluator import Evaluator
from mixq.front import Front
from mixq.graph import serialize
from mixq.graph.lower import lower
from mixq.graph.model import Layer
from mixq.graph.plan import make_plan
from mixq.ptq import parameters
from mixq.shadow import noise_name, shadow_config, shadow_placement, shadowed, signal_name
from mixq.task import Outputs

FP32 = LayerScheme(precision=Precision.FP32)
SHADOW_ROWS = 64  # a layer's signal-to-noise ratio settles long before the metric does
NO_ERROR_DB = 200.0  # beyond float32's own resolution
NONE = Interactions()


@dataclass(frozen=True)
class SensitivityRow:
    """One layer in one scheme, all others in FP32. rank 1 hurts most among the rows of its scheme.

    sqnr_db: signal-to-noise ratio at the layer's own output (dB, higher is better); output_mse: error at the network's
    outputs ÷ their mean square; kl: in nats, None where the outputs are not class scores; drop: of the primary metric.
    """

    layer: str
    op: str
    scheme: str
    parameters: int
    macs: int
    sqnr_db: float
    output_mse: float
    kl: float | None
    drop: float
    rank: int = 0

    @property
    def error(self) -> float:
        """What layers are ranked by: KL where there is one, else the output's MSE."""
        return self.output_mse if self.kl is None else self.kl


@dataclass(frozen=True)
class Sensitivity:
    """The rows, ranked within each scheme, and how many search rows they were measured on.

    interactions: what the same runs say of layers put into their schemes together.
    """

    rows: tuple[SensitivityRow, ...]
    evaluated_rows: int
    interactions: Interactions = NONE

    def ranking(self, scheme: LayerScheme) -> list[str]:
        """Layer names, the most sensitive first."""
        found = [row for row in self.rows if row.scheme == str(scheme)]
        return [row.layer for row in sorted(found, key=lambda row: row.rank)]

    def errors(self, scheme: LayerScheme) -> dict[str, float]:
        return {row.layer: row.error for row in self.rows if row.scheme == str(scheme)}

    def interactions_or_sum(self) -> Interactions:
        """The interactions; where there are none, those of errors that just add up."""
        if self.interactions.keys:
            return self.interactions
        return Interactions.diagonal({(row.layer, row.scheme): row.error for row in self.rows})

    def frame(self) -> pd.DataFrame:
        """A row a layer and scheme, the most sensitive first."""
        rows = sorted(self.rows, key=lambda row: (row.scheme, row.rank))
        return pd.DataFrame([asdict(row) for row in rows])

    def kendall(self) -> dict[str, float]:
        """Kendall's τ-b between each measure and the real drop, over the layers of a scheme, averaged over schemes.

        NaN where the drops are all equal: then nothing can be said.
        """
        schemes = sorted({row.scheme for row in self.rows})
        measured: dict[str, Callable[[SensitivityRow], float | None]] = {
            "sqnr_db": lambda row: -row.sqnr_db,
            "output_mse": lambda row: row.output_mse,
            "kl": lambda row: row.kl,
        }
        return {
            name: _mean_tau([[(value(row), row.drop) for row in self.rows if row.scheme == s] for s in schemes])
            for name, value in measured.items()
        }


def analyze(
    evaluator: Evaluator,
    schemes: Sequence[LayerScheme],
    recipe: tuple[RecipeStep, ...] = (),
    rows: int | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    offered: Mapping[str, Container[LayerScheme]] | None = None,
) -> Sensitivity:
    """Sensitivity of every layer to every scheme that the runtime can run for it, on `rows` search rows (all: None).

    FP32 and schemes with stage qat are left out: the former hurts nothing, the latter is analyzed as ptq. offered: by
    layer, the only schemes that are of interest.
    """
    jobs = pairs(evaluator, schemes, offered)
    split = first_rows(evaluator.data, rows)
    asked: dict[LayerScheme, list[str]] = {}
    for layer, scheme in jobs:
        asked.setdefault(scheme, []).append(layer.name)
    ratios = {scheme: _signal_to_noise(evaluator, scheme, names, recipe) for scheme, names in asked.items()}
    reference = {name: value[: split.rows] for name, value in evaluator.reference_outputs("search").items()}
    front = Front(evaluator, split, recipe)
    before = evaluator.primary_value(reference, split)
    deltas = Deltas(reference, split.targets)
    found = []
    for done, (layer, scheme) in enumerate(jobs):
        if progress is not None:
            progress(done, len(jobs), f"{layer.name} {scheme}")
        front.advance_to(layer)
        outputs = front.outputs(single(evaluator, layer, scheme, recipe))
        deltas.add(layer.name, str(scheme), outputs)
        found.append(_row(evaluator, layer, scheme, ratios[scheme][layer.name], split, reference, outputs, before))
    return Sensitivity(_ranked(found), split.rows, deltas.interactions())


def pairs(
    evaluator: Evaluator, schemes: Sequence[LayerScheme], offered: Mapping[str, Container[LayerScheme]] | None = None
) -> list[tuple[Layer, LayerScheme]]:
    """What `analyze` looks at, in the graph's order."""
    wanted = [s for s in schemes if s != FP32 and s.stage is Stage.PTQ]
    return [
        (layer, scheme)
        for layer in evaluator.graph.layers
        for scheme in wanted
        if evaluator.runtime.refusal(scheme, layer) is None and (offered is None or scheme in offered[layer.name])
    ]


def single(
    evaluator: Evaluator, layer: Layer, scheme: LayerScheme, recipe: tuple[RecipeStep, ...] = ()
) -> MixedPrecisionConfig:
    """`layer` in `scheme`, everything else in FP32."""
    schemes = {**dict.fromkeys(evaluator.graph.layer_names, FP32), layer.name: scheme}
    return MixedPrecisionConfig(model=evaluator.fingerprint, schemes=schemes, recipe=recipe)


def first_rows(data: TaskData, rows: int | None) -> Split:
    """The search split, or its first `rows` rows rounded up to whole batches."""
    split = data.split("search")
    if rows is None or rows >= split.rows:
        return split
    batches, taken = [], 0
    for batch in split.batches:
        if taken >= rows:
            break
        batches.append(batch)
        taken += row_count(batch)
    return replace(split, batches=tuple(batches), targets=split.targets[:taken])


def _signal_to_noise(
    evaluator: Evaluator, scheme: LayerScheme, names: Sequence[str], recipe: tuple[RecipeStep, ...]
) -> dict[str, float]:
    """dB by layer of `names`, from the shadows, on the first SHADOW_ROWS search rows."""
    graph, runtime = evaluator.graph, evaluator.runtime
    prepared = shadowed(evaluator.quantizer.prepared(recipe))
    shadows = prepared.graph
    config = shadow_config(graph, names, scheme, recipe, evaluator.fingerprint)
    plan = make_plan(shadows, config.static_layers, shadow_placement(runtime.placement))
    model = lower(shadows, config, plan, parameters(prepared, plan, config.layers_with(Precision.INT8)))
    executable = runtime.compile(serialize(model), machine.cores(), runtime.options(config))
    batches = first_rows(evaluator.data, SHADOW_ROWS).batches
    sums = run_batches(executable, batches, evaluator.data.batch_rows)
    return {name: _decibel(sums[signal_name(name)], sums[noise_name(name)]) for name in names}


def _decibel(signal: np.ndarray, noise: np.ndarray) -> float:
    total, error = float(signal.sum(dtype=np.float64)), float(noise.sum(dtype=np.float64))
    if error <= 0 or total <= 0:
        return NO_ERROR_DB if error <= 0 else -NO_ERROR_DB
    return min(NO_ERROR_DB, 10 * math.log10(total / error))


def _row(
    evaluator: Evaluator,
    layer: Layer,
    scheme: LayerScheme,
    sqnr_db: float,
    split: Split,
    reference: Outputs,
    outputs: Outputs,
    before: float,
) -> SensitivityRow:
    """`before`: FP32's primary metric on `split`."""
    scores = measures.class_measures(reference, outputs, split.targets)
    return SensitivityRow(
        layer=layer.name,
        op=layer.op,
        scheme=str(scheme),
        parameters=layer.parameters,
        macs=layer.macs,
        sqnr_db=sqnr_db,
        output_mse=measures.relative_mse(reference, outputs),
        kl=scores.kl if scores else None,
        drop=evaluator.primary.drop(before, evaluator.primary_value(outputs, split)),
    )


def _ranked(rows: Sequence[SensitivityRow]) -> tuple[SensitivityRow, ...]:
    found = []
    for scheme in dict.fromkeys(row.scheme for row in rows):
        ordered = sorted((row for row in rows if row.scheme == scheme), key=lambda row: -row.error)
        found += [replace(row, rank=rank) for rank, row in enumerate(ordered, 1)]
    return tuple(found)


def _mean_tau(groups: Sequence[Sequence[tuple[float | None, float]]]) -> float:
    from scipy.stats import kendalltau  # half a second to import, and wanted at a search's end

    found = []
    for group in groups:
        pairs = [(measure, drop) for measure, drop in group if measure is not None]
        if len(pairs) > 1 and len({drop for _, drop in pairs}) > 1 and len({m for m, _ in pairs}) > 1:
            found.append(float(kendalltau(*zip(*pairs, strict=True)).statistic))
    return float(np.mean(found)) if found else math.nan
