"""A small network of inverted residuals (Sandler et al. 2018, MobileNetV2, section 3.3) for 32 × 32 pixels."""

from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F

CHECKPOINT = Path(__file__).with_name("mobilenet.safetensors")

_STAGES = (  # expansion, channels, blocks, stride of the first
    (1, 16, 1, 1),
    (3, 24, 2, 2),
    (4, 40, 3, 2),
    (4, 64, 3, 2),
)


class CifarMobileNet(nn.Module):
    """29 layers, nine of them depthwise; 0.15 M parameters."""

    def __init__(self, classes: int = 10) -> None:
        """`classes`: the number of logits."""
        super().__init__()
        self.stem = _unit(3, 16, 3)
        blocks: list[nn.Module] = []
        cin = 16
        for expansion, channels, count, stride in _STAGES:
            for index in range(count):
                blocks.append(InvertedResidual(cin, channels, expansion, stride if index == 0 else 1))
                cin = channels
        self.blocks = nn.Sequential(*blocks)
        self.last = _unit(cin, 192, 1)
        self.linear = nn.Linear(192, classes)

    def forward(self, image: Tensor) -> Tensor:
        """`image`: N × 3 × 32 × 32, RGB, standardized; yields N × classes logits."""
        x = self.last(self.blocks(self.stem(image)))
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


class InvertedResidual(nn.Module):
    """Widen by a 1 × 1 convolution, filter each channel by 3 × 3, project; a shortcut where the shape stays."""

    def __init__(self, cin: int, cout: int, expansion: int, stride: int) -> None:
        """`expansion`: how many times wider the middle is; `stride`: of the depthwise convolution."""
        super().__init__()
        wide = cin * expansion
        self.expand = _unit(cin, wide, 1) if expansion > 1 else nn.Identity()
        self.depthwise = _unit(wide, wide, 3, stride, groups=wide)
        self.project = nn.Sequential(nn.Conv2d(wide, cout, 1, bias=False), nn.BatchNorm2d(cout))
        self.shortcut = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        """N × cin × H × W to N × cout × H/stride × W/stride."""
        out: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + out if self.shortcut else out


def _unit(cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(cout), nn.ReLU6())
