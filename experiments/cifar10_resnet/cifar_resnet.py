"""The residual networks for CIFAR-10 of He et al., "Deep Residual Learning for Image Recognition", section 4.2."""

from torch import Tensor, nn
from torch.nn import functional as F


class CifarResNet(nn.Module):
    """6n + 2 layers: three stages of n basic blocks with 16, 32 and 64 channels. Shortcuts have no parameters."""

    def __init__(self, blocks_per_stage: int, classes: int = 10) -> None:
        """`blocks_per_stage`: n; 3 for ResNet-20, 9 for ResNet-56."""
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, 1, blocks_per_stage)
        self.layer2 = _stage(16, 32, 2, blocks_per_stage)
        self.layer3 = _stage(32, 64, 2, blocks_per_stage)
        self.linear = nn.Linear(64, classes)

    def forward(self, image: Tensor) -> Tensor:
        """`image`: N × 3 × 32 × 32, RGB, standardized; yields N × classes logits."""
        x = F.relu(self.bn1(self.conv1(image)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


class BasicBlock(nn.Module):
    """Two 3 × 3 convolutions and a shortcut of option A: every stride-th pixel, new channels zero."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        """`stride`: of the first convolution and of the shortcut."""
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.stride, self.new_channels = stride, cout - cin

    def forward(self, x: Tensor) -> Tensor:
        """N × cin × H × W to N × cout × H/stride × W/stride."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        if not self.new_channels:
            return x
        half = self.new_channels // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, half))


def _stage(cin: int, cout: int, stride: int, blocks: int) -> nn.Sequential:
    first = BasicBlock(cin, cout, stride)
    return nn.Sequential(first, *(BasicBlock(cout, cout, 1) for _ in range(blocks - 1)))
