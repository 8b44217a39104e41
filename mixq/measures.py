"""What is computed from outputs: distances from FP32, calibration, agreement."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mixq.task import Array, Outputs

ECE_BINS = 15
PIECE = 2**18  # numbers at a time: 2 MB, where float64 copies of a language model's logits would take gigabytes
SMALLEST_SQUARE = 1e-30


def class_scores(outputs: Outputs, targets: Array) -> Array | None:
    """The outputs as class scores where they are that: one float array, its last axis the classes, targets indices.

    targets: a class for each row, or for each of its places (the token that follows each). The scores come as a matrix,
    a line for each target.
    """
    if len(outputs) != 1 or targets.dtype.kind not in "iu" or not targets.size:
        return None
    scores = next(iter(outputs.values()))
    if scores.shape[:-1] != targets.shape or scores.dtype.kind != "f" or scores.shape[-1] < 2:
        return None
    if targets.min() < 0 or targets.max() >= scores.shape[-1]:
        return None
    return scores if scores.ndim == 2 else scores.reshape(-1, scores.shape[-1])


def are_probabilities(scores: Array) -> bool:
    """Whether every row is ≥ 0 and sums to 1 already, so that no softmax is due."""
    return bool(scores.min() >= 0 and np.allclose(scores.sum(-1, dtype=np.float64), 1, rtol=0, atol=1e-3))


def probabilities(scores: Array, given: bool | None = None) -> Array:
    """Softmax over the last axis (float64); of probabilities (`given`, by default looked up) only the sum is mended.

    What FP32 gives as probabilities is `given` for a narrower model too, whose rows sum to 1 only nearly.
    """
    wide = scores.astype(np.float64)
    if are_probabilities(scores) if given is None else given:
        positive = np.maximum(wide, 0)
        return np.asarray(positive / np.maximum(positive.sum(-1, keepdims=True), 1e-12))
    exponent = np.exp(wide - wide.max(-1, keepdims=True))
    return np.asarray(exponent / exponent.sum(-1, keepdims=True))


def kl_divergence(reference: Array, scores: Array) -> float:
    """Mean over rows of KL(p ‖ q) in nats, p being the reference's probabilities and q those of the scores."""
    given, total = are_probabilities(reference), 0.0
    for part in row_pieces(len(reference), reference.shape[1]):
        p, q = (np.maximum(probabilities(x[part], given), 1e-12) for x in (reference, scores))
        total += float((p * np.log(p / q)).sum())
    return max(0.0, total / len(reference))


def relative_mse(reference: Outputs, outputs: Outputs) -> float:
    """Mean squared error ÷ mean square of the reference, averaged over the float outputs."""
    found = []
    for name, value in float_outputs(reference).items():
        error = sum(float(((have - want) ** 2).sum()) for want, have in pieces(value, outputs[name]))
        found.append(error / value.size / max(mean_square(value), SMALLEST_SQUARE))
    return float(np.mean(found)) if found else 0.0


def float_outputs(outputs: Outputs) -> Outputs:
    """Those that an error can be measured of."""
    return {name: value for name, value in outputs.items() if value.dtype.kind == "f"}


def mean_square(values: Array) -> float:
    """In float64."""
    return sum(float((part**2).sum()) for (part,) in pieces(values)) / values.size


def row_pieces(rows: int, columns: int) -> Iterator[slice]:
    """Rows of a matrix, some at a time: at most PIECE numbers, and one row at least."""
    step = max(1, PIECE // columns)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def pieces(*arrays: Array) -> Iterator[tuple[Array, ...]]:
    """The numbers of arrays of one shape, in order, as float64 vectors of at most PIECE numbers."""
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        raise ValueError(f"the arrays have the shapes {shapes}; they must have the same")
    flat = [array.reshape(-1) for array in arrays]
    for start in range(0, len(flat[0]), PIECE):
        yield tuple(array[start : start + PIECE].astype(np.float64) for array in flat)


@dataclass(frozen=True, slots=True)
class ClassMeasures:
    """kl and agreement against FP32, expected calibration error against the targets."""

    kl: float
    agreement: float
    ece: float


def class_measures(reference: Outputs, outputs: Outputs, targets: Array) -> ClassMeasures | None:
    """All of them, or None where the outputs are not class scores."""
    before, after = class_scores(reference, targets), class_scores(outputs, targets)
    if before is None or after is None:
        return None
    error = expected_calibration_error(after, targets.reshape(-1), are_probabilities(before))
    return ClassMeasures(kl_divergence(before, after), agreement(before, after), error)


def agreement(reference: Array, scores: Array) -> float:
    """Share of rows with the same top class."""
    return float((reference.argmax(-1) == scores.argmax(-1)).mean())


def expected_calibration_error(scores: Array, targets: Array, given: bool | None = None) -> float:
    """|accuracy − confidence|, averaged over 15 equal bins of confidence by their share (Guo et al. 2017, eq. 3).

    given: whether the scores are probabilities already; by default looked up.
    """
    given = are_probabilities(scores) if given is None else given
    parts = row_pieces(len(scores), scores.shape[1])
    confidence = np.concatenate([probabilities(scores[part], given).max(-1) for part in parts])
    correct = scores.argmax(-1) == targets
    bins = np.minimum((confidence * ECE_BINS).astype(int), ECE_BINS - 1)
    gaps = np.bincount(bins, weights=correct - confidence, minlength=ECE_BINS)
    return float(np.abs(gaps).sum() / len(targets))
