"""A character-level language model: `mixq search experiments/tiny_lm/task.py:TinyLM`. Needs MIXQ_DATA/stsb."""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from safetensors.torch import load_model

import mixq
from mixq.task import Array, Inputs, Outputs

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the project's root: a task is loaded by its path alone

from experiments.tiny_lm.decoder import CHECKPOINT, Decoder
from experiments.tiny_lm.text import Tokens, read_text

_BATCH_SIZE = 32
_CALIBRATION_ROWS = 256


class TinyLM(mixq.Task):
    """The decoder of train.py on text that it was not trained on; the parts are those of text.py."""

    primary = "perplexity"
    higher_is_better = False

    def model(self) -> Decoder:
        """The network with the weights that train.py wrote."""
        network = Decoder()
        load_model(network, str(CHECKPOINT))
        return network.eval()

    def calibration(self) -> Iterator[Inputs]:
        """The first rows of the training text."""
        tokens, _ = read_text("training")
        return _batches(tokens[:_CALIBRATION_ROWS])

    def training(self) -> Iterator[Inputs]:
        """The training text, once."""
        return _batches(read_text("training")[0])

    def batches(self, split: str) -> Iterator[tuple[Inputs, Array]]:
        """The part "search" or "holdout"; a row's targets are its characters, one on."""
        inputs, targets = read_text(split)
        for i, batch in enumerate(_batches(inputs)):
            yield batch, targets[i * _BATCH_SIZE : (i + 1) * _BATCH_SIZE]

    def metrics(self, outputs: Outputs, targets: Array) -> Mapping[str, float]:
        """perplexity: of a character; bits_per_character: its binary logarithm."""
        (logits,) = outputs.values()
        nats = float(np.mean([cross_entropy(row, target) for row, target in zip(logits, targets, strict=True)]))
        return {"perplexity": float(np.exp(nats)), "bits_per_character": nats / float(np.log(2))}


def cross_entropy(logits: Array, targets: Array) -> float:
    """Of a row of logits (time × vocabulary), the mean over its targets, in nats."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    return float(np.mean(np.log(np.exp(wide).sum(axis=1)) - wide[np.arange(len(wide)), targets]))


def _batches(tokens: Tokens) -> Iterator[Inputs]:
    for start in range(0, len(tokens), _BATCH_SIZE):
        yield {"tokens": tokens[start : start + _BATCH_SIZE]}
