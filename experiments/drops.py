"""The drop of a model, with the interval that says how well it is known."""

from mixq.drop import drop_interval
from mixq.evaluator import Evaluator
from mixq.task import Outputs


def drop_and_interval(evaluator: Evaluator, split: str, outputs: Outputs) -> tuple[float, tuple[float, float]]:
    """The drop of outputs for all rows of a split, with its 95 % interval."""
    metric, rows = evaluator.primary, evaluator.task.rows_per_sample
    reference, targets = evaluator.reference_outputs(split), evaluator.data.split(split).targets
    drop = metric.drop(metric.of(reference, targets), metric.of(outputs, targets))
    return drop, drop_interval(metric, reference, outputs, targets, rows)
