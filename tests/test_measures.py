"""Measures: against scipy and slow loops over rows."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest
from scipy import special, stats

from mixq import measures
from mixq.task import Array, Outputs
from tests.scores import CLASSES, ROWS, labels, logits, nearly


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


def test_the_scores_of_tokens_are_those_of_as_many_rows() -> None:
    """rows × time × classes, with a right class for every token."""
    reference, outputs = logits(0), nearly(logits(0))
    shape = (ROWS // 5, 5)
    tokens = [{"y": scores.reshape(*shape, CLASSES)} for scores in (reference, outputs)]
    found = measures.class_measures(tokens[0], tokens[1], labels().reshape(shape))
    assert found == measures.class_measures({"y": reference}, {"y": outputs}, labels())
    assert found is not None
    assert found.kl > 0


def test_what_is_summed_in_pieces_is_what_is_summed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reference, outputs = {"y": logits(0)}, {"y": nearly(logits(0))}
    whole = measures.class_measures(reference, outputs, labels()), measures.relative_mse(reference, outputs)
    monkeypatch.setattr(measures, "PIECE", 4 * CLASSES + 1)
    parts = measures.class_measures(reference, outputs, labels()), measures.relative_mse(reference, outputs)
    assert astuple(parts[0]) == pytest.approx(astuple(whole[0]), rel=1e-12)  # type: ignore[arg-type]
    assert parts[1] == pytest.approx(whole[1], rel=1e-12)


@pytest.mark.parametrize(
    ("outputs", "targets"),
    [
        ({"y": logits(0), "z": logits(1)}, labels()),
        ({"y": logits(0)}, labels().astype(np.float32)),
        ({"y": logits(0)}, labels()[:, None]),
        ({"y": logits(0).reshape(80, 5, CLASSES)}, labels().reshape(5, 80)),
        ({"y": logits(0)}, labels() + CLASSES),
        ({"y": logits(0)}, labels() - CLASSES),
        ({"y": logits(0)[:, :1]}, np.zeros(ROWS, np.int64)),
        ({"y": logits(0)[:, :, None]}, labels()),
        ({"y": labels()[:, None] + np.arange(CLASSES)}, labels()),
        ({"y": logits(0)[:0]}, labels()[:0]),
    ],
    ids=[
        "two outputs",
        "float targets",
        "matrix",
        "other tokens",
        "too large",
        "negative",
        "one class",
        "rank 3",
        "integers",
        "empty",
    ],
)
def test_other_outputs_are_no_class_scores(outputs: Outputs, targets: Array) -> None:
    assert measures.class_scores(outputs, targets) is None
    assert measures.class_measures(outputs, outputs, targets) is None
