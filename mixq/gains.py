"""What training gained, layer by layer: the network with one trained layer put back to what its recipe left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from mixq import machine, measures
from mixq.batches import run_batches
from mixq.config import MixedPrecisionConfig
from mixq.dataset import Split
from mixq.evaluator import Evaluator
from mixq.ptq import Prepared
from mixq.sensitivity import first_rows

ROWS = 200


@dataclass(frozen=True)
class TrainingGain:
    """Of one layer. error: of the whole configuration (KL in nats, else relative squared error); untrained: where this
    layer alone has the weight, bias and weight scale that its recipe left. drop and untrained_drop: likewise."""

    layer: str
    error: float
    untrained: float
    drop: float
    untrained_drop: float

    @property
    def gained(self) -> float:
        """How much of the error this layer's training took away; below 0 the layer is better left untrained."""
        return self.untrained - self.error


def training_gains(
    evaluator: Evaluator, config: MixedPrecisionConfig, progress: Callable[[str], None] | None = None
) -> list[TrainingGain]:
    """Of every QAT layer, on integer kernels and the first ROWS search rows, the largest gain first.

    The other layers stay as they were trained, together with this one: what they have taken over from it counts as its
    gain.
    """
    split = first_rows(evaluator.data, ROWS)
    trained = evaluator.trainer.trained(config).prepared
    untrained = evaluator.quantizer.prepared(config.recipe)
    error, drop = _judged(evaluator, config, trained, split)
    found = []
    for number, layer in enumerate(config.qat_layers, 1):
        if progress is not None:
            progress(f"what training gained {number}/{len(config.qat_layers)}: {layer}")
        without = _judged(evaluator, config, _put_back(trained, untrained, layer), split)
        found.append(TrainingGain(layer, error, without[0], drop, without[1]))
    return sorted(found, key=lambda gain: -gain.gained)


def _put_back(trained: Prepared, untrained: Prepared, layer: str) -> Prepared:
    own = {key: value for key, value in untrained.values.items() if key[0] == layer}
    others = {key: value for key, value in trained.values.items() if key[0] != layer}
    magnitudes = {**trained.magnitudes, layer: untrained.magnitudes[layer]}
    return replace(trained, magnitudes=magnitudes, values={**others, **own})


def _judged(
    evaluator: Evaluator, config: MixedPrecisionConfig, prepared: Prepared, split: Split
) -> tuple[float, float]:
    """Error and drop."""
    candidate = evaluator.lowered(config, prepared)
    executable = evaluator.runtime.compile(candidate.model, machine.cores(), candidate.options)
    outputs = run_batches(executable, split.batches, evaluator.data.batch_rows)
    reference = {name: value[: split.rows] for name, value in evaluator.reference_outputs("search").items()}
    scores = measures.class_measures(reference, outputs, split.targets)
    error = measures.relative_mse(reference, outputs) if scores is None else scores.kl
    before, after = (evaluator.primary_value(found, split) for found in (reference, outputs))
    return error, evaluator.primary.drop(before, after)
