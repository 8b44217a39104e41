"""Tiny Darknet on ImageNet: `mixq search experiments/tiny_darknet/task.py:TinyDarknet`."""

import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the project's root: a task is loaded by its path alone

from experiments.data_folder import data_folder
from experiments.imagenet import ImageNetTask
from experiments.tiny_darknet.darknet import TinyDarknetNetwork


class TinyDarknet(ImageNetTask):
    """16 convolutions in a row, 1 M parameters; parts as in ImageNetTask."""

    def model(self) -> TinyDarknetNetwork:
        """The network with its trained weights."""
        folder = data_folder("tiny_darknet")
        network = TinyDarknetNetwork(json.loads((folder / "layers.json").read_text()))
        network.load_state_dict(load_file(folder / "tiny_darknet.safetensors"))
        return network.eval()

    def preprocess(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """RGB in 0 … 1."""
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)
