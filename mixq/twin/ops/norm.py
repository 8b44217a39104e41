"""Normalizations. Batch normalization is the one of inference: the statistics are inputs and stay as they are."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from mixq.errors import InputError
from mixq.twin.ops.signature import Attributes, Outputs


def batch_norm(
    attributes: Attributes,
    x: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    mean: torch.Tensor,
    variance: torch.Tensor,
) -> torch.Tensor:
    """x (N, C, …) normalized per channel by the given statistics. Raises InputError if training_mode is on."""
    if attributes.get("training_mode", 0):
        raise InputError("BatchNormalization: training_mode=1 is not supported; export the model in eval mode")
    return F.batch_norm(x, mean, variance, scale, bias, training=False, eps=attributes.get("epsilon", 1e-5))


def layer_norm(
    attributes: Attributes, x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None
) -> Outputs:
    """x normalized over `axis` and all after it; if asked for, then also the mean and 1 / standard deviation."""
    shape = x.shape[attributes.get("axis", -1) :]
    weight, shift = scale.expand(shape), None if bias is None else bias.expand(shape)
    epsilon = attributes.get("epsilon", 1e-5)
    if attributes["num_outputs"] == 1:
        return F.layer_norm(x, shape, weight, shift, epsilon)
    return torch.native_layer_norm(x, shape, weight, shift, epsilon)


def rms_norm(attributes: Attributes, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """x divided by its root mean square over `axis` and all after it (Zhang & Sennrich 2019)."""
    shape = x.shape[attributes.get("axis", -1) :]
    return F.rms_norm(x, shape, scale.expand(shape), attributes.get("epsilon", 1e-5))


def instance_norm(attributes: Attributes, x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return F.instance_norm(x, weight=scale, bias=bias, eps=attributes.get("epsilon", 1e-5))


def group_norm(attributes: Attributes, x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """x (N, C, …) normalized per group of channels; scale and bias per channel, or per group (before opset 21)."""
    groups = attributes["num_groups"]
    each = x.shape[1] // scale.numel()
    weight, shift = scale.repeat_interleave(each), bias.repeat_interleave(each)
    return F.group_norm(x, groups, weight, shift, attributes.get("epsilon", 1e-5))


def local_response_norm(attributes: Attributes, x: torch.Tensor) -> torch.Tensor:
    """Krizhevsky et al. 2012, section 3.3."""
    alpha, beta = attributes.get("alpha", 1e-4), attributes.get("beta", 0.75)
    return F.local_response_norm(x, attributes["size"], alpha, beta, attributes.get("bias", 1.0))


def lp_norm(attributes: Attributes, x: torch.Tensor) -> torch.Tensor:
    """x divided by its p-norm along `axis`; zeros stay zeros."""
    norm = torch.linalg.vector_norm(x, attributes.get("p", 2), attributes.get("axis", -1), keepdim=True)
    return x / torch.where(norm == 0, 1.0, norm)


def mean_variance_norm(attributes: Attributes, x: torch.Tensor) -> torch.Tensor:
    """(x − mean) / standard deviation over `axes`."""
    axes = tuple(attributes.get("axes", (0, 2, 3)))
    deviation = torch.std(x, axes, correction=0, keepdim=True)
    return (x - torch.mean(x, axes, keepdim=True)) / (deviation + 1e-9)  # ONNX's own epsilon


def dropout(
    attributes: Attributes,
    x: torch.Tensor,
    ratio: torch.Tensor | None = None,
    training_mode: torch.Tensor | None = None,
) -> Outputs:
    """x as it is, then a mask of ones if asked for. Raises InputError if training_mode would drop something."""
    drops = ratio is None or ratio.item() > 0
    if training_mode is not None and training_mode.item() and drops:
        raise InputError("Dropout: training_mode is not supported; export the model in eval mode")
    return x if attributes["num_outputs"] == 1 else (x, torch.ones_like(x, dtype=torch.bool))
