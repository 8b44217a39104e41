"""The same elements in another shape or order. Shapes and axes are int64 tensors, or attributes in old opsets."""

from __future__ import annotations

from math import prod

import torch

from mixq.twin.ops.signature import Attributes


def flatten(attributes: Attributes, x: torch.Tensor) -> torch.Tensor:
    """A matrix: the axes before `axis` are its rows, the others its columns."""
    axis = attributes.get("axis", 1)
    return x.reshape(prod(x.shape[:axis]), prod(x.shape[axis:]))


def reshape(attributes: Attributes, x: torch.Tensor, shape: torch.Tensor) -> torch.Tensor:
    """-1 takes what is left; 0 keeps the length of that axis, unless allowzero."""
    sizes = shape.tolist()
    if not attributes.get("allowzero", 0):
        sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return x.reshape(sizes)


def transpose(attributes: Attributes, x: torch.Tensor) -> torch.Tensor:
    return x.permute(attributes.get("perm", tuple(reversed(range(x.ndim)))))


def unsqueeze(attributes: Attributes, x: torch.Tensor, axes: torch.Tensor | None = None) -> torch.Tensor:
    """New axes of length 1 at the places `axes` of the output."""
    places = attributes["axes"] if axes is None else axes.tolist()
    rank = x.ndim + len(places)
    for place in sorted(place % rank for place in places):
        x = x.unsqueeze(place)
    return x


def squeeze(attributes: Attributes, x: torch.Tensor, axes: torch.Tensor | None = None) -> torch.Tensor:
    """Without the `axes` (of length 1), or without all axes of length 1."""
    places = attributes.get("axes") if axes is None else axes.tolist()
    return x.squeeze() if places is None else x.squeeze(tuple(places))


def expand(x: torch.Tensor, shape: torch.Tensor) -> torch.Tensor:
    """x repeated along axes of length 1; an axis that is 1 in `shape` keeps the length it has in x."""
    wanted = shape.tolist()
    rank = max(len(wanted), x.ndim)
    wanted = [1] * (rank - len(wanted)) + wanted
    present = [1] * (rank - x.ndim) + list(x.shape)
    return x.expand([own if size == 1 else size for own, size in zip(present, wanted, strict=True)])


def tile(x: torch.Tensor, repeats: torch.Tensor) -> torch.Tensor:
    return x.repeat(repeats.tolist())


def depth_to_space(attributes: Attributes, x: torch.Tensor) -> torch.Tensor:
    """(N, C·b², H, W) → (N, C, H·b, W·b); the place in a block is the outer (mode DCR) or inner (CRD) part of C·b²."""
    block = attributes["blocksize"]
    n, c, h, w = x.shape
    if attributes.get("mode", "DCR") == "DCR":
        blocks = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        blocks = x.reshape(n, c // block**2, block, block, h, w).permute(0, 1, 4, 2, 5, 3)
    return blocks.reshape(n, c // block**2, h * block, w * block)


def space_to_depth(attributes: Attributes, x: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) → (N, C·b², H/b, W/b): the inverse of `depth_to_space`."""
    block = attributes["blocksize"]
    n, c, h, w = x.shape
    blocks = x.reshape(n, c, h // block, block, w // block, block)
    order = (0, 3, 5, 1, 2, 4) if attributes.get("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    return blocks.permute(order).reshape(n, c * block**2, h // block, w // block)
