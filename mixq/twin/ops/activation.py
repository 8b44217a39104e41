"""Activation functions that have attributes, or a form of their own in ONNX."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from mixq.twin.ops.signature import Attributes

# Klambauer et al. 2017, as ONNX writes the defaults.
_SELU_ALPHA = 1.67326319217681884765625
_SELU_GAMMA = 1.05070102214813232421875


def leaky_relu(attributes: Attributes, x: torch.Tensor) -> torch.Tensor:
    return F.leaky_relu(x, attributes.get("alpha", 0.01))


def prelu(x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    """x where x ≥ 0, else slope · x; the slope broadcasts to x."""
    return torch.relu(x) - slope * torch.relu(-x)


def elu(attributes: Attributes, x: torch.Tensor) -> torch.Tensor:
    return F.elu(x, attributes.get("alpha", 1.0))


def celu(attributes: Attributes, x: torch.Tensor) -> torch.Tensor:
    return F.celu(x, attributes.get("alpha", 1.0))


def selu(attributes: Attributes, x: torch.Tensor) -> torch.Tensor:
    gamma: float = attributes.get("gamma", _SELU_GAMMA)
    return gamma * F.elu(x, attributes.get("alpha", _SELU_ALPHA))


def thresholded_relu(attributes: Attributes, x: torch.Tensor) -> torch.Tensor:
    return F.threshold(x, attributes.get("alpha", 1.0), 0.0)


def shrink(attributes: Attributes, x: torch.Tensor) -> torch.Tensor:
    """x moved by `bias` toward zero where |x| > lambd, else 0."""
    threshold, bias = attributes.get("lambd", 0.5), attributes.get("bias", 0.0)
    above = torch.where(x > threshold, x - bias, 0.0)
    return torch.where(x < -threshold, x + bias, above).to(x.dtype)


def gelu(attributes: Attributes, x: torch.Tensor) -> torch.Tensor:
    """Exact, or with the tanh approximation (approximate="tanh")."""
    return F.gelu(x, approximate=attributes.get("approximate", "none"))


def hard_sigmoid(attributes: Attributes, x: torch.Tensor) -> torch.Tensor:
    return F.hardtanh(attributes.get("alpha", 0.2) * x + attributes.get("beta", 0.5), 0, 1)


def softmax(attributes: Attributes, x: torch.Tensor) -> torch.Tensor:
    return torch.softmax(x, attributes.get("axis", -1))


def log_softmax(attributes: Attributes, x: torch.Tensor) -> torch.Tensor:
    return torch.log_softmax(x, attributes.get("axis", -1))
