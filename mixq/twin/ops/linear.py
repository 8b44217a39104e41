"""Products: Gemm and Einsum (MatMul is torch.matmul)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from mixq.twin.ops.signature import Attributes


def gemm(attributes: Attributes, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor | None = None) -> torch.Tensor:
    """alpha · A' B' + beta · C, with A' = Aᵀ if transA and B' = Bᵀ if transB; C broadcasts to the result."""
    alpha: float = attributes.get("alpha", 1.0)
    beta: float = attributes.get("beta", 1.0)
    rows = a.t() if attributes.get("transA", 0) else a
    weight = b if attributes.get("transB", 0) else b.t()
    if alpha == 1 and beta == 1 and (c is None or c.ndim == 1):
        return F.linear(rows, weight, c)
    product = alpha * F.linear(rows, weight)
    return product if c is None else product + beta * c


def einsum(attributes: Attributes, *tensors: torch.Tensor) -> torch.Tensor:
    return torch.einsum(attributes["equation"], *tensors)
