"""EtinyNet-1.0 on ImageNet: `mixq search experiments/etinynet/task.py:EtinyNet`."""

import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the project's root: a task is loaded by its path alone

from experiments.data_folder import data_folder
from experiments.etinynet.etinynet_network import EtinyNetNetwork
from experiments.imagenet import ImageNetTask


class EtinyNet(ImageNetTask):
    """44 layers, 28 of them depthwise, 1 M parameters, hard to quantize; parts as in ImageNetTask."""

    def model(self) -> EtinyNetNetwork:
        """The network with its trained weights."""
        folder = data_folder("etinynet")
        network = EtinyNetNetwork(json.loads((folder / "architecture.json").read_text()))
        network.load_state_dict(load_file(folder / "etinynet.safetensors"))
        return network.eval()

    def preprocess(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """RGB less 128."""
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32) - np.float32(128)
