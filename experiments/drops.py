"""The drop of a model, with the interval that says how well it is known."""

from collections.abc import Callable

from mixq import measures
from mixq.evaluator import Evaluator
from mixq.task import Array, Outputs, Task


def primary_metric(task: Task) -> Callable[[Outputs, Array], float]:
    """The task's primary metric, of outputs and targets."""
    return lambda outputs, targets: float(task.metrics(outputs, targets)[task.primary])


def drop_and_interval(evaluator: Evaluator, split: str, outputs: Outputs) -> tuple[float, tuple[float, float]]:
    """The drop of outputs for all rows of a split, with its 95 % interval."""
    metric, rows = primary_metric(evaluator.task), evaluator.task.rows_per_sample
    reference, targets = evaluator.reference_outputs(split), evaluator.data.split(split).targets
    drop = metric(reference, targets) - metric(outputs, targets)
    return drop, measures.drop_interval(metric, reference, outputs, targets, rows)
