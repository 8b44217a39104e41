"""Tasks of other kinds: several inputs of any type, a regression, probabilities as outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pytest
import torch

from mixq.config import MixedPrecisionConfig, Precision
from mixq.runtimes import NAMES
from mixq.task import Array, Inputs, Outputs, Task
from tests.evaluator.configurations import FP32, INT8, all_in, of, only
from tests.tiny import Tiny, TinyNetwork


class Words(Task):
    """Two inputs of other types and ranks (token ids, and a weight each), a regression; nothing in it is an image."""

    primary = "fit"

    def model(self) -> torch.nn.Module:
        return WordsNetwork().eval()

    def calibration(self) -> Iterator[Inputs]:
        yield word_rows(40, seed=0)

    def batches(self, split: str) -> Iterator[tuple[Inputs, Array]]:
        for seed, rows in enumerate((7, 60, 6), start=1 if split == "search" else 4):
            yield word_rows(rows, seed), np.ones((rows, 2), np.float32)

    def metrics(self, outputs: Outputs, targets: Array) -> Mapping[str, float]:
        return {"fit": -float(np.mean((only(outputs) - targets) ** 2))}

    def corruptions(self) -> Mapping[str, Callable[[Inputs], Inputs]]:
        return {"zeros": lambda inputs: {**inputs, "weights": np.zeros_like(inputs["weights"])}}


class WordsNetwork(torch.nn.Module):
    """A linear layer on each embedding, a weighted bag of them, a linear layer.

    The bag stands between the two because OpenVINO (2026.4) fuses linear layers in a row, a row at a time, to float.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(50, 16)
        self.hidden = torch.nn.Linear(16, 32)
        self.out = torch.nn.Linear(32, 2)

    def forward(self, tokens: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        bag = (torch.relu(self.hidden(self.embedding(tokens))) * weights[:, :, None]).sum(1)
        found: torch.Tensor = self.out(bag)
        return found


def word_rows(rows: int, seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 50, (rows, 6))
    return {"tokens": tokens, "weights": rng.random((rows, 6), np.float32)}


@pytest.mark.parametrize("runtime", NAMES)
def test_several_inputs_of_any_type(runtime: str) -> None:
    evaluator = of(Words(), runtime)
    rows = [word_rows(count, seed) for seed, count in enumerate((7, 60, 6), start=1)]
    inputs = {name: torch.from_numpy(np.concatenate([row[name] for row in rows])) for name in rows[0]}
    with torch.inference_mode():
        wanted = WordsNetwork()(**inputs).numpy()
    found = only(evaluator.outputs(evaluator.reference, evaluator.data.split("search")))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    evaluation = evaluator.evaluate(evaluator.prepare(all_in(evaluator, INT8)))
    assert (evaluation.silent, evaluation.kl, evaluation.agreement, evaluation.ece) == ((), None, None, None)
    assert 0 < evaluation.output_mse < 1e-3
    assert evaluation.drop == pytest.approx(-float(np.mean((wanted - 1) ** 2)) - evaluation.metric, abs=1e-6)


def test_a_task_brings_its_own_corruptions() -> None:
    evaluator = of(Words())
    tokens = np.concatenate([word_rows(count, seed)["tokens"] for seed, count in enumerate((7, 60, 6), start=1)])
    with torch.inference_mode():
        blank = WordsNetwork()(torch.from_numpy(tokens), torch.zeros(tokens.shape)).numpy()
    found = evaluator.robustness(evaluator.reference)
    assert found == {"zeros": pytest.approx(-float(np.mean((blank - 1) ** 2)), rel=1e-5)}


class Probabilities(Tiny):
    """`Tiny`, with a softmax at the end of its network."""

    def model(self) -> torch.nn.Module:
        return torch.nn.Sequential(Stretched(), torch.nn.Softmax(1)).eval()

    def calibration(self) -> Iterator[Inputs]:
        for inputs in super().calibration():
            yield {"input": inputs["image"]}

    def batches(self, split: str) -> Iterator[tuple[Inputs, Array]]:
        for inputs, targets in super().batches(split):
            yield {"input": inputs["image"]}, targets


class Stretched(TinyNetwork):
    """Logits far enough apart for a softmax that is nearly sure."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return 20 * super().forward(image)


def test_probabilities_in_bf16_are_compared_as_probabilities() -> None:
    """A BF16 softmax sums to 1 but for its rounding."""
    evaluator = of(Probabilities())
    names = evaluator.graph.layer_names
    reason = evaluator.runtime.float_refusal(Precision.BF16)
    if reason:
        pytest.skip(reason)
    schemes = {**dict.fromkeys(names, INT8), names[0]: FP32}
    config = MixedPrecisionConfig(model=evaluator.fingerprint, schemes=schemes, rest=Precision.BF16)
    evaluation, exact = evaluator.evaluate(evaluator.prepare(config)), evaluator.evaluate(evaluator.reference)
    assert evaluation.kl is not None
    assert evaluation.kl < 1e-3
    assert exact.ece is not None
    assert evaluation.ece == pytest.approx(exact.ece, abs=0.01)
