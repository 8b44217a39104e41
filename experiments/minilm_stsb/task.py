"""Sentence similarity with all-MiniLM-L6-v2: `mixq search experiments/minilm_stsb/task.py:MiniLM`."""

import csv
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the project's root: a task is loaded by its path alone

import mixq
from experiments.data_folder import data_folder
from experiments.minilm_stsb.minilm import SentenceEncoder, encode
from mixq.task import Array, Inputs, Outputs

CALIBRATION_ROWS, SENTENCES_A_ROW = 256, 12  # of the training part; so many fill a row: padding says nothing
MASK = 103  # [MASK]


class MiniLM(mixq.Task):
    """Spearman correlation of the embeddings' cosine with the human score of each pair of sentences (STS-B)."""

    primary = "spearman"
    rows_per_sample = 2  # the two sentences of a pair
    dynamic_axes = MappingProxyType({"input_ids": (1,), "attention_mask": (1,)})  # sentences of any length
    length = 64  # tokens
    batch_size = 50

    def model(self) -> SentenceEncoder:
        """6 layers of attention, 12 heads, 384 wide."""
        return SentenceEncoder().eval()

    def calibration(self) -> Iterator[Inputs]:
        """Sentences of the training part, one behind another."""
        sentences = [sentence for *pair, _ in _pairs("sts-train.csv") for sentence in pair]
        starts = range(0, CALIBRATION_ROWS * SENTENCES_A_ROW, SENTENCES_A_ROW)
        rows = [" ".join(sentences[start : start + SENTENCES_A_ROW]) for start in starts]
        for start in range(0, CALIBRATION_ROWS, self.batch_size):
            yield encode(rows[start : start + self.batch_size], self.length)

    def batches(self, split: str) -> Iterator[tuple[Inputs, Array]]:
        """Every third pair of the development part: 500 to search on, 500 others to report on."""
        return self._batches(_pairs("sts-dev.csv")[0 if split == "search" else 1 :: 3])

    def metrics(self, outputs: Outputs, targets: Array) -> dict[str, float]:
        """Rank correlation of cosine and score."""
        from scipy.stats import spearmanr

        (embeddings,) = outputs.values()
        cosine = (embeddings[0::2] * embeddings[1::2]).sum(1)
        return {"spearman": float(spearmanr(cosine, targets[0::2]).statistic)}

    def corruptions(self) -> Mapping[str, Callable[[Inputs], Inputs]]:
        """A tenth of the words masked."""
        return {"masked words": _mask_words}

    def _batches(self, pairs: list[tuple[str, str, float]]) -> Iterator[tuple[Inputs, Array]]:
        for start in range(0, len(pairs), self.batch_size):
            part = pairs[start : start + self.batch_size]
            sentences = [sentence for first, second, _ in part for sentence in (first, second)]
            yield encode(sentences, self.length), np.repeat(np.array([score for *_, score in part]), 2)


@cache
def _pairs(file: str) -> list[tuple[str, str, float]]:
    """First sentence, second sentence, score of 0 to 5."""
    with (data_folder("stsb") / file).open(encoding="utf-8") as text:
        rows = list(csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [(row[5], row[6], float(row[4])) for row in rows]


def _mask_words(inputs: Inputs) -> Inputs:
    ids = inputs["input_ids"]
    inner = (ids > MASK) & (np.random.default_rng(0).random(ids.shape) < 0.1)
    return {**inputs, "input_ids": np.where(inner, MASK, ids)}
