"""Networks with random weights: what a quantizer makes of their graphs is timed, not what they recognize."""

from collections.abc import Callable, Iterator
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

import mixq
from mixq.measures import relative_mse
from mixq.task import Array, Inputs, Outputs

SIDE = 224
SEEDS = {"settling": 1, "calibration": 2, "search": 3, "holdout": 4}


class RandomWeights(mixq.Task):
    """A network with seeded random weights on smooth random images; its own FP32 outputs are the targets."""

    primary = "fidelity"

    def __init__(self, build: Callable[[], nn.Module], side: int = SIDE, damping: float = 1.0) -> None:
        """`build`: makes the network; called under a fixed seed. side: of its images. damping: of residual branches.

        Undamped, hundreds of them amplify the rounding of float32 beyond what tells two networks apart.
        """
        super().__init__()
        self._build, self._side, self._damping = build, side, damping

    @cached_property
    def _network(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return settled(self._build(), self._side, self._damping)

    def model(self) -> nn.Module:
        """The network in eval mode."""
        return self._network

    def calibration(self) -> Iterator[Inputs]:
        """16 images, 4 at a time."""
        return ({"image": images} for images in np.split(smooth_images(16, SEEDS["calibration"], self._side), 4))

    def batches(self, split: str) -> Iterator[tuple[Inputs, Array]]:
        """8 images and what the network gives on them."""
        images = smooth_images(8, SEEDS[split], self._side)
        with torch.no_grad():
            yield {"image": images}, self._network(torch.from_numpy(images)).numpy()

    def metrics(self, outputs: Outputs, targets: Array) -> dict[str, float]:
        """1 less the relative squared error of the outputs."""
        (found,) = outputs.values()
        return {"fidelity": 1 - relative_mse({"output": targets}, {"output": found})}


def smooth_images(count: int, seed: int, size: int = SIDE) -> NDArray[np.float32]:
    """N × 3 × size × size: noise at four scales, the coarser the stronger, as in photographs; about unit deviation."""
    rng = np.random.default_rng(seed)
    images = torch.zeros(count, 3, size, size)
    for side, strength in ((size // 32, 0.8), (size // 8, 0.5), (size // 2, 0.3), (size, 0.15)):
        noise = torch.from_numpy(rng.standard_normal((count, 3, side, side), dtype=np.float32))
        images += strength * F.interpolate(noise, size=(size, size), mode="bilinear", align_corners=False)
    return images.numpy()


def settled(network: nn.Module, size: int = SIDE, damping: float = 1.0) -> nn.Module:
    """`network` in eval mode, with varied batch-norm weights and the statistics that belong to its activations."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, 0.0, 0.2)
        norm.momentum = None  # the plain mean of all batches
    for module in network.modules():
        if isinstance(module, Residual):
            last = [part for part in module.body.modules() if isinstance(part, nn.BatchNorm2d)][-1]
            last.weight.data *= damping
    with torch.no_grad():
        for images in np.split(smooth_images(8, SEEDS["settling"], size), 2):
            network.train()(torch.from_numpy(images))
    return network.eval()


def conv_norm(
    cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1, activation: nn.Module | None = None
) -> nn.Sequential:
    """Convolution, batch norm and an activation, if any."""
    conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(cout), *([activation] if activation is not None else []))


class Residual(nn.Module):
    """`body` and a shortcut added, and an activation."""

    def __init__(self, body: nn.Module, shortcut: nn.Module, activation: nn.Module) -> None:
        """The three parts."""
        super().__init__()
        self.body, self.shortcut, self.activation = body, shortcut, activation

    def forward(self, x: Tensor) -> Tensor:
        """The sum of both ways, activated."""
        found: Tensor = self.activation(self.body(x) + self.shortcut(x))
        return found


def classifier(channels: int, classes: int = 1000) -> list[nn.Module]:
    """Global average pooling and a linear layer."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(channels, classes)]


class Sequence(nn.Module):
    """Modules in a row, the input being called `image`."""

    def __init__(self, *modules: nn.Module) -> None:
        """The modules, in order."""
        super().__init__()
        self.body = nn.Sequential(*modules)

    def forward(self, image: Tensor) -> Tensor:
        """`image`: N × 3 × H × W."""
        found: Tensor = self.body(image)
        return found


def resnet(depths: tuple[int, int, int, int], bottleneck: bool, base: int = 64) -> nn.Module:
    """He et al., "Deep Residual Learning for Image Recognition", table 1; the stride on the 3 × 3 convolution.

    base: channels of the first stage.
    """
    modules: list[nn.Module] = [conv_norm(3, base, 7, 2, activation=nn.ReLU()), nn.MaxPool2d(3, 2, 1)]
    cin = base
    for stage, depth in enumerate(depths):
        for block in range(depth):
            stride, width = (2 if stage and not block else 1), base << stage
            cout = 4 * width if bottleneck else width
            body = _bottleneck(cin, width, stride) if bottleneck else _basic(cin, width, stride)
            same = stride == 1 and cin == cout
            modules.append(Residual(body, nn.Identity() if same else conv_norm(cin, cout, 1, stride), nn.ReLU()))
            cin = cout
    return Sequence(*modules, *classifier(cin))


def _basic(cin: int, width: int, stride: int) -> nn.Module:
    return nn.Sequential(conv_norm(cin, width, 3, stride, activation=nn.ReLU()), conv_norm(width, width, 3))


def _bottleneck(cin: int, width: int, stride: int) -> nn.Module:
    return nn.Sequential(
        conv_norm(cin, width, 1, activation=nn.ReLU()),
        conv_norm(width, width, 3, stride, activation=nn.ReLU()),
        conv_norm(width, 4 * width, 1),
    )


def mobilenet_v2() -> nn.Module:
    """Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", table 2."""
    modules: list[nn.Module] = [conv_norm(3, 32, 3, 2, activation=nn.ReLU6())]
    cin = 32
    table = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expansion, cout, depth, first_stride in table:
        for block in range(depth):
            stride = 1 if block else first_stride
            body = _inverted(cin, cout, stride, expansion)
            same = stride == 1 and cin == cout
            modules.append(Residual(body, nn.Identity(), nn.Identity()) if same else body)
            cin = cout
    return Sequence(*modules, conv_norm(cin, 1280, 1, activation=nn.ReLU6()), *classifier(1280))


def _inverted(cin: int, cout: int, stride: int, expansion: int) -> nn.Module:
    width = expansion * cin
    first = [conv_norm(cin, width, 1, activation=nn.ReLU6())] if expansion > 1 else []
    depthwise = conv_norm(width, width, 3, stride, groups=width, activation=nn.ReLU6())
    return nn.Sequential(*first, depthwise, conv_norm(width, cout, 1))


class Fire(nn.Module):
    """A 1 × 1 convolution, and one of 1 × 1 and one of 3 × 3 on its output, side by side."""

    def __init__(self, cin: int, squeeze: int, expand: int) -> None:
        """Channels in, between, and out of each of the two."""
        super().__init__()
        self.squeeze = nn.Conv2d(cin, squeeze, 1)
        self.expand1, self.expand3 = nn.Conv2d(squeeze, expand, 1), nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """N × cin × H × W to N × 2 · expand × H × W."""
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.expand1(x)), F.relu(self.expand3(x))], 1)


def squeezenet() -> nn.Module:
    """SqueezeNet 1.1 (Iandola et al. 2016, and the authors' release of version 1.1)."""
    modules: list[nn.Module] = [nn.Conv2d(3, 64, 3, stride=2), nn.ReLU()]
    cin = 64
    for squeeze, expand, pooled in _FIRES:
        modules += [nn.MaxPool2d(3, 2, ceil_mode=True)] * pooled + [Fire(cin, squeeze, expand)]
        cin = 2 * expand
    modules += [nn.Conv2d(cin, 1000, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(1)]
    return Sequence(*modules)


_FIRES = (
    (16, 64, True),
    (16, 64, False),
    (32, 128, True),
    (32, 128, False),
    (48, 192, True),
    (48, 192, False),
    (64, 256, False),
    (64, 256, False),
)


class UNet(nn.Module):
    """Ronneberger et al. 2015 with padding and batch norm: pooling down, ConvTranspose up, skips by Concat."""

    def __init__(self, width: int = 16, depth: int = 4, classes: int = 8) -> None:
        """`width`: channels at full resolution; doubled at each of `depth` steps down."""
        super().__init__()
        widths = [width << level for level in range(depth + 1)]
        self.down = nn.ModuleList(_double(cin, cout) for cin, cout in zip([3, *widths], widths, strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, stride=2) for w in reversed(widths[:-1]))
        self.merge = nn.ModuleList(_double(2 * w, w) for w in reversed(widths[:-1]))
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """`image`: N × 3 × H × W, divisible by 2 ** depth; yields N × classes × H × W."""
        x, skips = image, []
        for level, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        for up, merge, skip in zip(self.up, self.merge, reversed(skips[:-1]), strict=True):
            x = merge(torch.cat([skip, up(x)], 1))
        scores: Tensor = self.head(x)
        return scores


def _double(cin: int, cout: int) -> nn.Module:
    return nn.Sequential(conv_norm(cin, cout, 3, activation=nn.ReLU()), conv_norm(cout, cout, 3, activation=nn.ReLU()))
