"""How the errors of layers add up: the change that each layer alone makes at the network's outputs, and their products.

The outputs of a mix are nearly those of FP32 plus the deltas of its layers. The distance from FP32 that steers the
search is quadratic in them: the relative squared error by definition, the KL divergence to second order, with the
softmax's Fisher information as its form (Amari 1998, section 2). The products of all pairs of deltas therefore
predict any mix, and nothing else of the deltas is kept: as many numbers as pairs of layers, however large the outputs.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Annotated

import numpy as np
from pydantic import BeforeValidator, PlainSerializer

from mixq import measures
from mixq.task import Array, Outputs

SKETCH = 2**16  # numbers that a delta is kept as, projected where it has more: 256 kB, or 0.25 GB for 1,000 layers
BLOCKS = 8  # of rows, between which the products' spread is taken
SMALLEST = 1e-12

Key = tuple[str, str]  # layer, scheme
Rows = tuple[tuple[float, ...], ...]


def _written(products: Rows) -> str:
    """As base64 of their doubles: 500 layers have a quarter of a million, and whoever reads a study copies them."""
    return base64.b64encode(np.array(products, "<f8").tobytes()).decode("ascii")


def _read(value: object) -> object:
    if not isinstance(value, str):
        return value
    numbers = np.frombuffer(base64.b64decode(value, validate=True), "<f8")
    count = math.isqrt(numbers.size)
    return numbers.reshape(count, count).tolist()


@dataclass(frozen=True)
class Interactions:
    """products: by pairs of `keys`, the product of the two deltas; the diagonal is the error of a layer alone."""

    keys: tuple[Key, ...] = ()
    products: Annotated[Rows, PlainSerializer(_written, when_used="json"), BeforeValidator(_read)] = ()

    @classmethod
    def diagonal(cls, errors: Mapping[Key, float]) -> Interactions:
        """Of layers whose errors just add up."""
        return cls(tuple(errors), tuple(map(tuple, np.diag(list(errors.values())).tolist())))

    def error(self, schemes: Mapping[str, str]) -> float:
        """Predicted error (KL in nats, else relative squared error) of layers in these schemes, all others in FP32."""
        return self.weighted(np.array([schemes.get(layer) == scheme for layer, scheme in self.keys], np.float64))

    def weighted(self, shares: Array) -> float:
        """Predicted error where each delta, in the order of `keys`, counts with this share."""
        return float(shares @ self.matrix @ shares)

    @cached_property
    def matrix(self) -> Array:
        """`products` as an array."""
        return np.array(self.products, np.float64).reshape(len(self.keys), len(self.keys))


class Deltas:
    """Gathers the deltas of one layer after the other, on the rows of `reference`, FP32's outputs.

    Of a delta of more than SKETCH numbers a random projection is kept, the same one for every layer: a count sketch
    (Charikar et al. 2002), the sparse form of that of Johnson and Lindenstrauss. It keeps the product of two deltas
    x and y on average, with a variance of at most (|x|² |y|² + (x·y)²) ÷ m (Weinberger et al. 2009, lemma 2): m is
    SKETCH where the blocks of rows err alike, SKETCH ÷ BLOCKS where one of them has all of the error. A layer's own
    error is thus kept to a standard deviation of √(2 ÷ m): 0.6 %, at most 1.6 %. A projection has no KL divergence;
    its second order is predicted, for which each delta is weighted before it is projected.
    """

    def __init__(self, reference: Outputs, targets: Array, seed: int = 0) -> None:
        scores = measures.class_scores(reference, targets)
        self._lines, self._seed = 0 if scores is None else len(scores), seed
        self._given = scores is not None and measures.are_probabilities(scores)
        self._reference = measures.float_outputs(reference)
        self._scales = {
            name: np.sqrt(
                max(measures.mean_square(value), measures.SMALLEST_SQUARE) * value.size * len(self._reference)
            )
            for name, value in self._reference.items()
        }
        ends = np.cumsum([0, *(len(part) for part in np.array_split(np.arange(len(targets)), BLOCKS))]).tolist()
        self._blocks = [slice(*pair) for pair in pairwise(ends)]
        self._found: dict[Key, Array] = {}

    def add(self, layer: str, scheme: str, outputs: Outputs) -> None:
        """The outputs of the network with `layer` alone in `scheme`."""
        counts = [sum(value[block].size for value in self._reference.values()) for block in self._blocks]
        size, rng = min(SKETCH // BLOCKS, max(counts)), np.random.default_rng(self._seed)
        sketches = [
            _projected(self._weighted(outputs, block), size, rng) if count > size else self._whole(outputs, block, size)
            for block, count in zip(self._blocks, counts, strict=True)
        ]
        self._found[layer, scheme] = np.stack(sketches).astype(np.float32)

    def interactions(self) -> Interactions:
        """The products of all pairs; those of different deltas are drawn to 0 as far as their rows disagree on them."""
        if not self._found:
            return Interactions()
        stacked = np.stack(list(self._found.values()))  # keys × blocks × numbers
        parts = np.einsum("ibn,jbn->bij", stacked, stacked, optimize=True).astype(np.float64)
        products = _shrunk(parts)
        return Interactions(tuple(self._found), tuple(tuple(map(float, row)) for row in products))

    def _weighted(self, outputs: Outputs, block: slice) -> Iterator[Array]:
        """The delta of a block of rows, scaled so that its square sum is its error; a piece at a time."""
        if not self._lines:
            for name, value in self._reference.items():
                for want, have in measures.pieces(value[block], outputs[name][block]):
                    yield (have - want) / self._scales[name]
            return
        ((name, reference),) = self._reference.items()
        before, after = (x[block].reshape(-1, x.shape[-1]) for x in (reference, outputs[name]))
        for part in measures.row_pieces(*before.shape):
            yield self._fisher(before[part], after[part]).reshape(-1)

    def _fisher(self, before: Array, after: Array) -> Array:
        """The change of the scores, in the form whose square sum is the KL divergence to second order."""
        p = measures.probabilities(before, self._given)
        delta = self._logits(after) - self._logits(before)
        return np.asarray(np.sqrt(p / (2 * self._lines)) * (delta - (p * delta).sum(-1, keepdims=True)))

    def _whole(self, outputs: Outputs, block: slice, size: int) -> Array:
        values = np.concatenate([np.zeros(0), *self._weighted(outputs, block)])
        return np.pad(values, (0, size - values.size))

    def _logits(self, scores: Array) -> Array:
        wide = scores.astype(np.float64)
        return np.log(np.maximum(wide, SMALLEST)) if self._given else wide


def _projected(pieces: Iterable[Array], size: int, rng: np.random.Generator) -> Array:
    """Every number is added to one of `size`, at a random place and with a random sign."""
    total = np.zeros(size)
    for values in pieces:
        places, signs = rng.integers(0, size, values.size), rng.choice(np.array([-1.0, 1.0]), values.size)
        total += np.bincount(places, values * signs, size)
    return total


def _shrunk(parts: Array) -> Array:
    """The sum over blocks; off its diagonal, times the share of its square that is not noise (Ledoit & Wolf 2004)."""
    total = parts.sum(0)
    beside = ~np.eye(len(total), dtype=bool)
    noise = float((len(parts) * parts.var(0, ddof=1))[beside].sum())
    signal = float((total**2)[beside].sum())
    kept = max(0.0, 1 - noise / signal) if signal > 0 else 0.0
    return np.asarray(np.where(beside, kept * total, total))
