"""Parts of a tensor, and tensors put together."""

from __future__ import annotations

from math import prod

import torch

from mixq.twin.ops.signature import Attributes


def concat(attributes: Attributes, *tensors: torch.Tensor) -> torch.Tensor:
    return torch.cat(tensors, attributes["axis"])


def split(attributes: Attributes, x: torch.Tensor, sizes: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
    """Pieces of the given sizes (an input, or before opset 13 an attribute), or num_outputs of equal size."""
    axis = attributes.get("axis", 0)
    lengths = attributes.get("split") if sizes is None else sizes.tolist()
    if lengths is None:
        return torch.split(x, -(-x.shape[axis] // attributes["num_outputs"]), axis)
    return torch.split(x, list(lengths), axis)


def slice_(
    attributes: Attributes,
    x: torch.Tensor,
    starts: torch.Tensor | None = None,
    ends: torch.Tensor | None = None,
    axes: torch.Tensor | None = None,
    steps: torch.Tensor | None = None,
) -> torch.Tensor:
    """x[starts:ends:steps] along `axes` (all, if not given); before opset 10 these were attributes."""
    first = attributes["starts"] if starts is None else starts.tolist()
    last = attributes["ends"] if ends is None else ends.tolist()
    places = attributes.get("axes", range(len(first))) if axes is None else axes.tolist()
    strides = [1] * len(first) if steps is None else steps.tolist()
    for place, start, end, step in zip(places, first, last, strides, strict=True):
        x = _cut(x, place, slice(start, end, step))
    return x


def _cut(x: torch.Tensor, axis: int, part: slice) -> torch.Tensor:
    """x[part] along one axis. Clamping to the axis is Python's, which is ONNX's."""
    positions = range(*part.indices(x.shape[axis]))
    if positions.step > 0:
        index: list[slice] = [slice(None)] * x.ndim
        index[axis] = slice(positions.start, max(positions.stop, positions.start), positions.step)
        return x[tuple(index)]
    return x.index_select(axis, torch.tensor(positions, device=x.device))  # torch has no negative steps


def gather(attributes: Attributes, x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Slices of x along `axis`: the output's shape is x's, with that axis replaced by the shape of the indices."""
    axis = attributes.get("axis", 0) % x.ndim
    if indices.ndim == 0:
        return x.select(axis, int(indices))
    picked = x.index_select(axis, counted_from_start(indices, x.shape[axis]).flatten())
    return picked.reshape(x.shape[:axis] + indices.shape + x.shape[axis + 1 :])


def gather_elements(attributes: Attributes, x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    axis = attributes.get("axis", 0)
    return torch.gather(x, axis, counted_from_start(indices, x.shape[axis]))


def gather_nd(attributes: Attributes, x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """The slices of x at the rows of the last axis of `indices`; the first batch_dims axes are common to both."""
    batch, depth = attributes.get("batch_dims", 0), indices.shape[-1]
    rows = prod(x.shape[:batch])
    table = x.reshape(rows, *x.shape[batch:])
    places = indices.reshape(rows, prod(indices.shape[batch:-1]), depth)
    own = torch.arange(rows, device=x.device).unsqueeze(1)
    return table[(own, *places.unbind(-1))].reshape(indices.shape[:-1] + x.shape[batch + depth :])


def reverse_sequence(attributes: Attributes, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """x with the first lengths[n] steps of sequence n in reverse; of its first two axes, time_axis is the steps'."""
    time_first = attributes.get("time_axis", 0) == 0
    batch = x.transpose(0, 1) if time_first else x
    steps = torch.arange(batch.shape[1], device=x.device)
    ends = lengths.unsqueeze(1)
    sources = torch.where(steps < ends, ends - 1 - steps, steps)
    turned = batch[torch.arange(len(batch), device=x.device).unsqueeze(1), sources]
    return turned.transpose(0, 1) if time_first else turned


def counted_from_start(indices: torch.Tensor, length: int) -> torch.Tensor:
    """Indices (int64) of an axis of that length, the negative ones made positive."""
    wide = indices.to(torch.int64)
    return torch.where(wide < 0, wide + length, wide)
