"""Elements that are picked by their value or by a condition."""

from __future__ import annotations

import torch

from mixq.twin.ops.signature import Attributes, Outputs


def top_k(attributes: Attributes, x: torch.Tensor, k: torch.Tensor | None = None) -> Outputs:
    """The k largest (largest=0: smallest) values along `axis`, in order, and their positions (int64).

    Of equal values those with the lower positions count, which torch.topk does not promise. Before opset 10, k was an
    attribute.
    """
    axis, largest = attributes.get("axis", -1), bool(attributes.get("largest", 1))
    count = attributes["k"] if k is None else int(k.item())
    values, positions = torch.sort(x, stable=True, dim=axis, descending=largest)
    return values.narrow(axis, 0, count), positions.narrow(axis, 0, count)


def non_zero(x: torch.Tensor) -> torch.Tensor:
    """The positions of the elements that are not zero (int64): a row for each axis, a column for each element."""
    return torch.nonzero(x).t()


def compress(attributes: Attributes, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
    """Slices of x along `axis`, or elements of the flattened x, for which the 1-d `condition` (maybe shorter) holds."""
    kept = torch.nonzero(condition).flatten()
    axis = attributes.get("axis")
    return x.flatten().index_select(0, kept) if axis is None else x.index_select(axis, kept)
