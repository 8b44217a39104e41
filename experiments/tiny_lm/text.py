"""English sentences of the STS benchmark as rows of ASCII codes: which are trained on, searched and held out."""

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from experiments.data_folder import data_folder
from experiments.tiny_lm.decoder import CONTEXT

_SENTENCES = slice(5, 7)  # columns of the tab-separated files
_SEED = 0

Tokens = NDArray[np.int64]


def read_text(part: str) -> tuple[Tokens, Tokens]:
    """Inputs and targets, both rows × CONTEXT: the targets are the inputs one character on.

    part: "training" (the benchmark's train file), "search" or "holdout" (each half of the sentences of its dev file
    that the train file has not). No sentence is in two parts.
    """
    stream = _stream(_sentences()[part])
    rows = (len(stream) - 1) // CONTEXT
    inputs, targets = (stream[shift : shift + rows * CONTEXT].reshape(rows, CONTEXT) for shift in (0, 1))
    return inputs, targets


@cache
def _sentences() -> dict[str, list[str]]:
    folder = data_folder("stsb")
    training = _read(folder / "sts-train.csv")
    known = set(training)
    others = [sentence for sentence in _read(folder / "sts-dev.csv") if sentence not in known]
    half = len(others) // 2
    return {"training": training, "search": others[:half], "holdout": others[half:]}


def _read(path: Path) -> list[str]:
    """Each sentence once, in an order that parts those of a pair."""
    lines = path.read_text(encoding="utf-8").splitlines()
    found = list(dict.fromkeys(text.strip() for line in lines for text in line.split("\t")[_SENTENCES]))
    return [found[index] for index in np.random.default_rng(_SEED).permutation(len(found))]


def _stream(sentences: list[str]) -> Tokens:
    """One after the other, a line each; what ASCII has not is a question mark."""
    text = "".join(f"{sentence}\n" for sentence in sentences)
    return np.frombuffer(text.encode("ascii", "replace"), np.uint8).astype(np.int64)
