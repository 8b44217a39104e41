"""A layer as a matrix product: its weight as matrices, and the columns of its input that one output value is made of.

A convolution is, at every position, groups of matrices (rows: output channels) times the patch of the input there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import onnx_ir as ir

from mixq.graph.model import Layer
from mixq.task import Array


@dataclass(frozen=True)
class LayerMatrix:
    """Weight ↔ matrices of shape (groups, output channels of a group, inputs of one output value)."""

    layer: Layer
    node: ir.Node

    @property
    def groups(self) -> int:
        if self.layer.op == "MatMul":
            return math.prod(self.layer.weight_shape[:-2])
        return self.node.attributes.get_int("group", 1)

    @property
    def gain(self) -> float:
        """What the product counts for in the output, relative to the bias: a Gemm's alpha ÷ beta."""
        alpha, beta = (self.node.attributes.get_float(name, 1.0) for name in ("alpha", "beta"))
        return alpha / beta if beta else 0.0

    def rows(self, weight: Array) -> Array:
        """The weight as (groups, rows, columns)."""
        if self.layer.op == "Conv":
            return weight.reshape(self.groups, len(weight) // self.groups, -1)
        if self.layer.op == "ConvTranspose":  # a convolution over the input with zeros put in, of the kernel reversed
            inputs, outputs = len(weight) // self.groups, weight.shape[1]
            parts = np.flip(weight, tuple(range(2, weight.ndim))).reshape(self.groups, inputs, outputs, -1)
            return np.ascontiguousarray(parts.transpose(0, 2, 1, 3)).reshape(self.groups, outputs, -1)
        return (weight if self.layer.channel_axis == 0 else weight.T)[None]

    def weight(self, rows: Array) -> Array:
        """The inverse of `rows`."""
        shape = self.layer.weight_shape
        if self.layer.op == "Conv":
            return rows.reshape(shape)
        if self.layer.op == "ConvTranspose":
            inputs, outputs = shape[0] // self.groups, shape[1]
            parts = rows.reshape(self.groups, outputs, inputs, -1).transpose(0, 2, 1, 3)
            return np.ascontiguousarray(np.flip(parts.reshape(shape), tuple(range(2, len(shape)))))
        return rows[0] if self.layer.channel_axis == 0 else np.ascontiguousarray(rows[0].T)

    def by_row(self, channels: Array) -> Array:
        """One value a weight channel (of its qparams) as (groups, rows, 1); only groups of a Conv have their own.

        One of the whole tensor (0-d): as it broadcasts.
        """
        if not channels.ndim:
            return channels.reshape(1, 1, 1)
        if self.layer.op != "Conv":
            return np.tile(channels, self.groups).reshape(self.groups, -1, 1)
        return channels.reshape(self.groups, -1, 1)

    def columns(self, data: Array, most: int, rng: np.random.Generator) -> Array:
        """(samples, groups, columns): what at most `most` output values a channel are made of, drawn from `data`."""
        if self.layer.op == "Conv":
            pads, dilations, strides = self._pads(), self._ints("dilations"), self._ints("strides")
            return self._patches(data, pads, strides, dilations, most, rng)
        if self.layer.op == "ConvTranspose":
            return self._patches(self._spread(data), self._reversed_pads(), None, self._ints("dilations"), most, rng)
        if self.node.attributes.get_int("transA", 0):
            data = data.T
        flat = data.reshape(-1, data.shape[-1])
        return flat[_drawn(len(flat), most, rng)][:, None]

    def summed(self, data: Array) -> Array:
        """`data` with its rows added up to one, whose columns are the sums of theirs."""
        return np.asarray(data.sum(1 if self.node.attributes.get_int("transA", 0) else 0, keepdims=True))

    @property
    def _kernel(self) -> tuple[int, ...]:
        return self.layer.weight_shape[2:]

    def _ints(self, name: str, default: int = 1, count: int | None = None) -> Sequence[int]:
        found = self.node.attributes.get_ints(name)
        return list(found) if found is not None else [default] * (len(self._kernel) if count is None else count)

    def _pads(self) -> list[tuple[int, int]]:
        pads = self._ints("pads", 0, 2 * len(self._kernel))
        return list(zip(pads[: len(self._kernel)], pads[len(self._kernel) :], strict=True))

    def _reversed_pads(self) -> list[tuple[int, int]]:
        """Of the convolution that a transposed one is (ONNX, ConvTranspose)."""
        more = self._ints("output_padding", 0)
        reach = [d * (k - 1) for d, k in zip(self._ints("dilations"), self._kernel, strict=True)]
        return [(r - low, r - high + m) for r, (low, high), m in zip(reach, self._pads(), more, strict=True)]

    def _spread(self, data: Array) -> Array:
        """`data` with strides − 1 zeros between its positions."""
        strides = self._ints("strides")
        sizes = [(n - 1) * s + 1 for n, s in zip(data.shape[2:], strides, strict=True)]
        spread = np.zeros((*data.shape[:2], *sizes), data.dtype)
        spread[(slice(None), slice(None), *(slice(None, None, s) for s in strides))] = data
        return spread

    def _patches(
        self,
        data: Array,
        pads: Sequence[tuple[int, int]],
        strides: Sequence[int] | None,
        dilations: Sequence[int],
        most: int,
        rng: np.random.Generator,
    ) -> Array:
        padded = np.pad(data, [(0, 0), (0, 0), *((max(a, 0), max(b, 0)) for a, b in pads)])
        cut = [slice(max(-a, 0), n - max(-b, 0)) for (a, b), n in zip(pads, padded.shape[2:], strict=True)]
        padded = padded[(slice(None), slice(None), *cut)]
        reach = tuple(d * (k - 1) + 1 for d, k in zip(dilations, self._kernel, strict=True))
        windows = np.lib.stride_tricks.sliding_window_view(padded, reach, tuple(range(2, data.ndim)))
        steps = [slice(None, None, s) for s in strides or [1] * len(reach)]
        windows = windows[(slice(None), slice(None), *steps, *(slice(None, None, d) for d in dilations))]
        places = (len(data), *windows.shape[2 : 2 + len(reach)])
        row, *at = np.unravel_index(_drawn(int(np.prod(places)), most, rng), places)
        drawn: Array = windows[cast(Any, (row, slice(None), *at))]
        return drawn.reshape(len(row), self.groups, -1)


def _drawn(count: int, most: int, rng: np.random.Generator) -> Array:
    """At most `most` of `count` indices, in order."""
    return np.arange(count) if count <= most else np.sort(rng.choice(count, most, replace=False))
