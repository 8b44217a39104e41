"""EtinyNet (Xu et al., "EtinyNet: Extremely Tiny Network for TinyML", AAAI 2022), built from its architecture.json."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

BlockSpec = dict[str, Any]


class EtinyNetNetwork(nn.Module):
    """Linear depthwise blocks: ReLU stands *before* batch norm, so activations of either sign leave each block."""

    def __init__(self, architecture: dict[str, Any], classes: int = 1000) -> None:
        """`architecture`: the content of architecture.json."""
        super().__init__()
        stem = [nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False), nn.ReLU(), nn.BatchNorm2d(32), nn.MaxPool2d(2)]
        self.features1 = nn.Sequential(*stem, *_blocks(architecture["features1_from_index_4"]))
        self.features2 = nn.Sequential(*_blocks(architecture["features2"]))
        self.features3 = nn.Sequential(*_blocks(architecture["features3"]))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.output = nn.Sequential(nn.Conv2d(architecture["features3"][-1]["cout"], classes, 1))

    def forward(self, image: Tensor) -> Tensor:
        """`image`: N × 3 × 224 × 224, RGB in -128 … 127; yields N × 1000 logits."""
        features: Tensor = self.features3(self.features2(self.features1(image)))
        logits: Tensor = self.output(self.pool(features))
        return logits.flatten(1)


class Block(nn.Module):
    """Depthwise, pointwise, depthwise; a residual around the first two, the last, both or none."""

    def __init__(self, cin: int, cout: int, stride: int, add_input: bool, add_middle: bool) -> None:
        """`add_input`: a residual around the first two convolutions; `add_middle`: around the last one."""
        super().__init__()
        self.add_input, self.add_middle = add_input, add_middle
        self.out1 = nn.Sequential(
            nn.Conv2d(cin, cin, 3, stride=stride, padding=1, groups=cin, bias=False),
            nn.BatchNorm2d(cin),
            nn.Conv2d(cin, cout, 1, bias=False),
            nn.ReLU(),
            nn.BatchNorm2d(cout),
        )
        self.out2 = nn.Sequential(
            nn.Conv2d(cout, cout, 3, padding=1, groups=cout, bias=False),
            nn.ReLU(),
            nn.BatchNorm2d(cout),
        )

    def forward(self, x: Tensor) -> Tensor:
        """N × cin × H × W to N × cout × H/stride × W/stride."""
        middle: Tensor = self.out1(x)
        if self.add_input:
            middle = middle + x
        out: Tensor = self.out2(middle)
        return out + middle if self.add_middle else out


def _blocks(specs: Sequence[BlockSpec]) -> list[Block]:
    return [Block(**spec) for spec in specs]
