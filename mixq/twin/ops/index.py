"""Parts of a tensor, and tensors put together."""

from __future__ import annotations

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
    picked = x.index_select(axis, _counted_from_start(indices, x.shape[axis]).flatten())
    return picked.reshape(x.shape[:axis] + indices.shape + x.shape[axis + 1 :])


def gather_elements(attributes: Attributes, x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    axis = attributes.get("axis", 0)
    return torch.gather(x, axis, _counted_from_start(indices, x.shape[axis]))


def _counted_from_start(indices: torch.Tensor, length: int) -> torch.Tensor:
    wide = indices.to(torch.int64)
    return torch.where(wide < 0, wide + length, wide)
