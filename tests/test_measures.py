"""Measures: against scipy, slow loops over rows, and the normal approximation of a paired mean."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special, stats

from mixq import measures
from mixq.task import Array, Outputs

ROWS, CLASSES = 400, 7


def logits(seed: int, rows: int = ROWS) -> Array:
    return (3 * np.random.default_rng(seed).standard_normal((rows, CLASSES))).astype(np.float32)


def nearly(scores: Array, seed: int = 9) -> Array:
    """Scores with a little noise, as quantization leaves them."""
    noise = np.random.default_rng(seed).standard_normal(scores.shape)
    return np.asarray(scores + 0.7 * noise, np.float32)


def labels(rows: int = ROWS) -> Array:
    """The class of the largest logit of seed 0 for two rows of three, else any."""
    rng = np.random.default_rng(5)
    return np.where(rng.random(rows) < 2 / 3, logits(0, rows).argmax(1), rng.integers(0, CLASSES, rows))


def in_bf16(values: Array) -> Array:
    """float32 values cut off to what bfloat16 can hold."""
    return (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def test_kl_is_the_mean_relative_entropy() -> None:
    reference, scores = logits(0), nearly(logits(0))
    p, q = (special.softmax(x.astype(np.float64), axis=1) for x in (reference, scores))
    assert measures.kl_divergence(reference, scores) == pytest.approx(stats.entropy(p, q, axis=1).mean(), rel=1e-9)


def test_kl_of_equal_scores_is_zero() -> None:
    assert measures.kl_divergence(logits(0), logits(0)) == 0


def test_probabilities_get_no_softmax() -> None:
    given = special.softmax(logits(0), axis=1)
    other = special.softmax(nearly(logits(0)), axis=1)
    wanted = stats.entropy(given.astype(np.float64), other.astype(np.float64), axis=1).mean()
    assert measures.kl_divergence(given, other) == pytest.approx(wanted, rel=1e-5)


def test_probabilities_of_a_narrow_type_are_probabilities_still() -> None:
    """A BF16 softmax sums to 1 within 0.004 only; taken for logits, it would be another distribution."""
    given = special.softmax(logits(0), axis=1)
    rounded = in_bf16(given)
    assert not np.allclose(rounded.sum(1), 1, atol=1e-3)
    found = measures.class_measures({"y": given}, {"y": rounded}, labels())
    exact = measures.class_measures({"y": given}, {"y": given}, labels())
    assert found is not None
    assert exact is not None
    assert found.kl < 1e-5
    assert found.ece == pytest.approx(exact.ece, abs=0.01)


def slow_calibration_error(chances: Array, targets: Array) -> float:
    """Guo et al. 2017, equation 3, bin by bin and row by row; bins are (0, 1/15], …, (14/15, 1]."""
    total = 0.0
    for index in range(15):
        inside = [i for i, row in enumerate(chances) if index / 15 < max(row) <= (index + 1) / 15]
        if inside:
            correct = sum(int(np.argmax(chances[i]) == targets[i]) for i in inside)
            confidence = sum(float(max(chances[i])) for i in inside)
            total += abs(correct - confidence)
    return total / len(targets)


def test_calibration_error_is_that_of_its_definition() -> None:
    scores, targets = logits(0), labels()
    wanted = slow_calibration_error(special.softmax(scores.astype(np.float64), axis=1), targets)
    assert wanted > 0.05
    assert measures.expected_calibration_error(scores, targets) == pytest.approx(wanted, abs=1e-12)


def test_calibration_error_of_sure_and_right_scores_is_zero() -> None:
    targets = labels()
    assert measures.expected_calibration_error(np.eye(CLASSES)[targets] * 1000, targets) == pytest.approx(0)


def test_agreement_is_the_share_of_equal_top_classes() -> None:
    reference = np.array([[0.0, 1, 2], [2, 1, 0], [0, 3, 1], [1, 0, 0]])
    scores = np.array([[0.0, 2, 1], [2, 1, 0], [0, 3, 1], [0, 1, 0]])
    assert measures.agreement(reference, scores) == 0.5


def test_relative_mse_is_averaged_over_the_float_outputs() -> None:
    reference = {"a": np.array([3.0, 4.0], np.float32), "b": np.array([10.0], np.float32), "n": np.array([7])}
    outputs = {"a": np.array([3.0, 3.0], np.float32), "b": np.array([8.0], np.float32), "n": np.array([0])}
    assert measures.relative_mse(reference, outputs) == pytest.approx((1 / 25 + 4 / 100) / 2)


def test_relative_mse_of_codes_alone_is_zero() -> None:
    assert measures.relative_mse({"n": np.array([7])}, {"n": np.array([0])}) == 0


def test_class_scores_are_one_float_matrix_with_class_indices() -> None:
    scores = logits(0)
    assert measures.class_scores({"y": scores}, labels()) is scores


@pytest.mark.parametrize(
    ("outputs", "targets"),
    [
        ({"y": logits(0), "z": logits(1)}, labels()),
        ({"y": logits(0)}, labels().astype(np.float32)),
        ({"y": logits(0)}, labels()[:, None]),
        ({"y": logits(0)}, labels() + CLASSES),
        ({"y": logits(0)}, labels() - CLASSES),
        ({"y": logits(0)[:, :1]}, np.zeros(ROWS, np.int64)),
        ({"y": logits(0)[:, :, None]}, labels()),
        ({"y": labels()[:, None] + np.arange(CLASSES)}, labels()),
        ({"y": logits(0)[:0]}, labels()[:0]),
    ],
    ids=["two outputs", "float targets", "matrix", "too large", "negative", "one class", "rank 3", "integers", "empty"],
)
def test_other_outputs_are_no_class_scores(outputs: Outputs, targets: Array) -> None:
    assert measures.class_scores(outputs, targets) is None
    assert measures.class_measures(outputs, outputs, targets) is None


def accuracy(outputs: Outputs, targets: Array) -> float:
    return float((outputs["y"].argmax(1) == targets).mean())


def pair_score(outputs: Outputs, targets: Array) -> float:
    """The negative squared error of products of pairs of rows: a row alone has none."""
    first, second = outputs["y"][::2, 0], outputs["y"][1::2, 0]
    return -float(np.mean((first * second - targets[::2]) ** 2))


def correlation(outputs: Outputs, targets: Array) -> float:
    return float(np.corrcoef(outputs["y"][:, 0], targets)[0, 1])


def test_the_interval_of_a_mean_is_the_normal_approximations() -> None:
    reference, targets = {"y": logits(0, 4000)}, labels(4000)
    outputs = {"y": nearly(reference["y"])}
    right = [(found["y"].argmax(1) == targets).astype(np.float64) for found in (reference, outputs)]
    difference = right[0] - right[1]
    half = stats.norm.ppf(0.975) * difference.std(ddof=1) / math.sqrt(len(targets))
    low, high = measures.drop_interval(accuracy, reference, outputs, targets)
    assert low == pytest.approx(difference.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(difference.mean() + half, abs=0.1 * half)


@pytest.mark.parametrize("metric", [accuracy, correlation])
def test_the_interval_is_paired(metric: measures.MetricOf) -> None:
    outputs = {"y": logits(0)}
    assert measures.drop_interval(metric, outputs, outputs, labels()) == (0, 0)


def test_the_interval_is_the_same_every_time() -> None:
    reference, outputs = {"y": logits(0)}, {"y": nearly(logits(0))}
    found = [measures.drop_interval(accuracy, reference, outputs, labels()) for _ in range(2)]
    assert found[0] == found[1]
    assert found[0] != measures.drop_interval(accuracy, reference, outputs, labels(), seed=1)


def test_rows_of_one_sample_stay_together() -> None:
    """Pairs with one target each: 200 samples, whose values' normal approximation is the oracle."""
    reference, outputs = {"y": logits(0)}, {"y": nearly(logits(0))}
    targets = np.repeat(np.random.default_rng(3).standard_normal(ROWS // 2), 2)
    pairs = [found["y"][:, 0].astype(np.float64).reshape(-1, 2).prod(1) for found in (reference, outputs)]
    values = [-((pair - targets[::2]) ** 2) for pair in pairs]
    difference = values[0] - values[1]
    half = stats.norm.ppf(0.975) * difference.std(ddof=1) / math.sqrt(len(difference))
    low, high = measures.drop_interval(pair_score, reference, outputs, targets, rows_per_sample=2)
    assert (low, high) == pytest.approx((difference.mean() - half, difference.mean() + half), abs=0.2 * half)


def test_a_resampled_metric_sees_whole_samples_only() -> None:
    seen: list[Array] = []

    def metric(outputs: Outputs, targets: Array) -> float:
        seen.append(np.abs(outputs["y"][:, 0]).astype(int))
        return correlation(outputs, targets)

    rows = np.arange(60, dtype=np.float32)[:, None]
    measures.drop_interval(metric, {"y": rows}, {"y": -rows}, np.arange(60) % 11, rows_per_sample=3)
    for found in seen:
        samples = found.reshape(-1, 3)
        assert (samples % 3 == np.arange(3)).all()
        assert (samples // 3 == samples[:, :1] // 3).all()


def test_a_correlation_is_resampled_as_a_whole() -> None:
    """Fisher's z: 95 % of samples have a correlation within tanh(artanh r ± 1.96 / √(n − 3)).

    The outputs correlate with nothing, and independently of the reference, so the two variances add up.
    """
    rng = np.random.default_rng(0)
    targets = rng.standard_normal(ROWS)
    reference = {"y": (targets + rng.standard_normal(ROWS))[:, None]}
    outputs = {"y": rng.standard_normal((ROWS, 1))}
    before, after = (correlation(found, targets) for found in (reference, outputs))
    deviation = math.sqrt(((1 - before**2) ** 2 + 1) / (ROWS - 3))
    low, high = measures.drop_interval(correlation, reference, outputs, targets)
    assert low < before - after < high
    assert high - low == pytest.approx(2 * stats.norm.ppf(0.975) * deviation, rel=0.15)


def single_class_refused(outputs: Outputs, targets: Array) -> float:
    """Accuracy averaged over two classes, which a sample without both of them has not."""
    if len(set(targets.tolist())) < 2:
        raise ValueError("only one class")
    right = outputs["y"].argmax(1) == targets
    return float(np.mean([right[targets == label].mean() for label in (0, 1)]))


def test_samples_without_a_metric_are_left_out() -> None:
    targets = np.array([0, 1, 1, 1, 1, 1])
    reference = {"y": np.eye(2)[targets]}
    outputs = {"y": np.eye(2)[[0, 1, 1, 1, 0, 0]]}
    low, high = measures.drop_interval(single_class_refused, reference, outputs, targets)
    assert 0 <= low < 0.2 < high <= 0.5


def test_a_metric_that_no_sample_has_gives_no_interval() -> None:
    outputs, targets = {"y": logits(0, 6)}, np.zeros(6, np.int64)
    low, high = measures.drop_interval(single_class_refused, outputs, outputs, targets)
    assert math.isnan(low)
    assert math.isnan(high)
