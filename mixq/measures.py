"""What is computed from outputs: distances from FP32, calibration, agreement."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mixq.task import Array, Outputs

ECE_BINS = 15


def class_scores(outputs: Outputs, targets: Array) -> Array | None:
    """The outputs as class scores (rows × classes) where they are that: one float matrix, targets class indices."""
    if len(outputs) != 1 or targets.ndim != 1 or targets.dtype.kind not in "iu" or not len(targets):
        return None
    scores = next(iter(outputs.values()))
    if scores.ndim != 2 or scores.dtype.kind != "f" or scores.shape[1] < 2:
        return None
    return scores if targets.min() >= 0 and targets.max() < scores.shape[1] else None


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
    given = are_probabilities(reference)
    p, q = (np.maximum(probabilities(x, given), 1e-12) for x in (reference, scores))
    return max(0.0, float((p * np.log(p / q)).sum(-1).mean()))


def relative_mse(reference: Outputs, outputs: Outputs) -> float:
    """Mean squared error ÷ mean square of the reference, averaged over the float outputs."""
    found = []
    for name, value in reference.items():
        if value.dtype.kind == "f":
            wanted = value.astype(np.float64)
            found.append(((outputs[name] - wanted) ** 2).mean() / max((wanted**2).mean(), 1e-30))
    return float(np.mean(found)) if found else 0.0


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
    chances = probabilities(after, are_probabilities(before))
    return ClassMeasures(
        kl_divergence(before, after), agreement(before, after), expected_calibration_error(chances, targets)
    )


def agreement(reference: Array, scores: Array) -> float:
    """Share of rows with the same top class."""
    return float((reference.argmax(-1) == scores.argmax(-1)).mean())


def expected_calibration_error(scores: Array, targets: Array) -> float:
    """|accuracy − confidence|, averaged over 15 equal bins of confidence by their share (Guo et al. 2017, eq. 3)."""
    chance = probabilities(scores)
    confidence, correct = chance.max(-1), chance.argmax(-1) == targets
    bins = np.minimum((confidence * ECE_BINS).astype(int), ECE_BINS - 1)
    gaps = np.bincount(bins, weights=correct - confidence, minlength=ECE_BINS)
    return float(np.abs(gaps).sum() / len(targets))
