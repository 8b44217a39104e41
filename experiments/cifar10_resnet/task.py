"""ResNet-20, ResNet-56 and MobileNet on CIFAR-10: `mixq search experiments/cifar10_resnet/task.py:ResNet20`."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the project's root: a task is loaded by its path alone

from experiments.cifar10_resnet.cifar_resnet import CifarResNet
from experiments.cifar10_resnet.mobilenet import CHECKPOINT, CifarMobileNet
from experiments.classification import ImageClassification, LabelledImages, mixed_order
from experiments.data_folder import data_folder
from mixq.task import Inputs

_PARTS = {
    "training": ("train_20k.npz", slice(4096)),
    "calibration": ("train_20k.npz", slice(256)),
    "search": ("test.npz", slice(2000)),
    "holdout": ("test.npz", slice(2000, None)),
}
_MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)[:, None, None]
_STD = np.array([0.229, 0.224, 0.225], dtype=np.float32)[:, None, None]


class Cifar10Task(ImageClassification):
    """Search: the first 2,000 test images; holdout: the other 8,000. Calibration: the first 256 training images.

    "First" in the mixed order, for the archives are sorted by class.
    """

    batch_size = 128

    def read(self, part: str) -> LabelledImages:
        """The images of a part, out of the archive that holds it."""
        archive, rows = _PARTS[part]
        with np.load(data_folder("cifar10") / archive, allow_pickle=False) as arrays:
            images, labels = arrays["images"], arrays["labels"].astype(np.int64)
        chosen = mixed_order(len(labels))[rows]
        return LabelledImages(images[chosen], labels[chosen])

    def preprocess(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """RGB in 0 … 1, standardized with ImageNet's mean and deviation."""
        return standardized(images)

    def training(self) -> Iterator[Inputs]:
        """The first 4,096 training images, in the mixed order."""
        return self.inputs("training")


def standardized(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """N × H × W × RGB to N × 3 × H × W: in 0 … 1, standardized with ImageNet's mean and deviation."""
    channels_first = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32)
    return (channels_first / np.float32(255) - _MEAN) / _STD


class ResNet20(Cifar10Task):
    """19 convolutions and a linear layer, 0.27 M parameters."""

    def model(self) -> CifarResNet:
        """The network with its trained weights."""
        return _resnet(3, "resnet20.safetensors")


class ResNet56(Cifar10Task):
    """55 convolutions and a linear layer, 0.86 M parameters."""

    def model(self) -> CifarResNet:
        """The network with its trained weights."""
        return _resnet(9, "resnet56.safetensors")


class MobileNet(Cifar10Task):
    """28 convolutions, nine of them depthwise, and a linear layer; 0.15 M parameters; trained by train_mobilenet.py."""

    def model(self) -> CifarMobileNet:
        """The network with its trained weights."""
        network = CifarMobileNet()
        network.load_state_dict(load_file(CHECKPOINT))
        return network.eval()


def _resnet(blocks_per_stage: int, weights: str) -> CifarResNet:
    network = CifarResNet(blocks_per_stage)
    network.load_state_dict(load_file(data_folder("cifar10_resnet") / weights))
    return network.eval()
