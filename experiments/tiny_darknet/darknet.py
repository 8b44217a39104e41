"""Tiny Darknet, built from the list of layers that comes with its weights."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

LayerSpec = dict[str, Any]


class TinyDarknetNetwork(nn.Module):
    """A plain sequence of convolutions; the last one and a global average pool yield the logits."""

    def __init__(self, specs: Sequence[LayerSpec]) -> None:
        """`specs`: the entries of layers.json, in order."""
        super().__init__()
        self.seq = nn.Sequential(*(_layer(spec) for spec in specs))

    def forward(self, image: Tensor) -> Tensor:
        """`image`: N × 3 × 224 × 224, RGB in 0 … 1; yields N × 1000 logits."""
        pooled: Tensor = self.seq(image)
        return pooled.flatten(1)


def _layer(spec: LayerSpec) -> nn.Module:
    match spec["op"]:
        case "conv":
            k = spec["k"]
            return nn.Conv2d(spec["cin"], spec["cout"], k, padding=k // 2, bias=spec["bias"])
        case "bn":
            return nn.BatchNorm2d(spec["c"], eps=spec["eps"])
        case "leaky_relu":
            return nn.LeakyReLU(spec["slope"])
        case "maxpool":
            return nn.MaxPool2d(spec["k"], spec["s"])
        case "avgpool_global":
            return nn.AdaptiveAvgPool2d(1)
        case op:
            raise ValueError(f"layers.json: unknown op {op!r}; known: conv, bn, leaky_relu, maxpool, avgpool_global")
