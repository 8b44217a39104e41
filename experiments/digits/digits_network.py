"""A small residual network for handwritten digits of 32 × 32 pixels, and where its weights lie."""

from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F

CHECKPOINT = Path(__file__).with_name("digits.safetensors")


class DigitsNetwork(nn.Module):
    """Eight convolutions and a linear layer in three stages of 32, 64 and 96 channels; 0.22 M parameters."""

    def __init__(self, classes: int = 10) -> None:
        """`classes`: the number of logits."""
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 3, padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(32)
        self.stage1 = ResidualBlock(32, 32, stride=1)
        self.stage2 = ResidualBlock(32, 64, stride=2)
        self.stage3 = ResidualBlock(64, 96, stride=2)
        self.head = nn.Linear(96, classes)

    def forward(self, image: Tensor) -> Tensor:
        """`image`: N × 1 × 32 × 32, ink in 0 … 1; yields N × classes logits."""
        x = F.relu(self.stem_bn(self.stem(image)))
        x = self.stage3(self.stage2(self.stage1(x)))
        logits: Tensor = self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


class ResidualBlock(nn.Module):
    """Two 3 × 3 convolutions; the shortcut is a 1 × 1 convolution where the shape changes."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        """`stride`: of the first convolution and of the shortcut."""
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.shortcut = nn.Identity() if cin == cout else _projection(cin, cout, stride)

    def forward(self, x: Tensor) -> Tensor:
        """N × cin × H × W to N × cout × H/stride × W/stride."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


def _projection(cin: int, cout: int, stride: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(cin, cout, 1, stride=stride, bias=False), nn.BatchNorm2d(cout))
