"""Trains CifarMobileNet and writes its checkpoint: `python -m experiments.cifar10_resnet.train_mobilenet`.

Deterministic: the same machine and thread count give the same checkpoint. About a quarter of an hour on two cores.
"""

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from tqdm import trange

from experiments.cifar10_resnet.mobilenet import CHECKPOINT, CifarMobileNet
from experiments.cifar10_resnet.task import standardized
from experiments.data_folder import data_folder

SEED = 0
EPOCHS = 24
BATCH_SIZE = 100
LEARNING_RATE = 6e-3
WEIGHT_DECAY = 1e-2
MAX_SHIFT = 4


def main() -> None:
    """Trains, writes the checkpoint, prints the accuracy on the test images."""
    torch.manual_seed(SEED)
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    network = CifarMobileNet()
    for parameter in network.parameters():  # channels last: twice as fast
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    train(network, *as_tensors("train_20k.npz"))
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, CHECKPOINT)
    print(f"test images: {accuracy(network, *as_tensors('test.npz')):.4f}; checkpoint: {CHECKPOINT}")


def train(network: CifarMobileNet, images: Tensor, labels: Tensor) -> None:
    """AdamW with a one-cycle learning rate; leaves the network in eval mode."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = len(labels) // BATCH_SIZE
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=EPOCHS * steps)
    network.train()
    for _ in trange(EPOCHS, desc="epochs"):
        for rows in torch.randperm(len(labels))[: steps * BATCH_SIZE].reshape(steps, BATCH_SIZE):
            loss = F.cross_entropy(
                network(moved(images[rows]).contiguous(memory_format=torch.channels_last)),
                labels[rows],
                label_smoothing=0.1,
            )
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    network.eval()


def as_tensors(archive: str) -> tuple[Tensor, Tensor]:
    """Standardized images and labels of an archive."""
    with np.load(data_folder("cifar10") / archive, allow_pickle=False) as arrays:
        return torch.from_numpy(standardized(arrays["images"])), torch.from_numpy(arrays["labels"].astype(np.int64))


def moved(images: Tensor) -> Tensor:
    """Each image shifted by up to MAX_SHIFT pixels in both directions, every other one mirrored."""
    side = images.shape[-1]
    padded = F.pad(images, (MAX_SHIFT,) * 4)
    corners = torch.randint(0, 2 * MAX_SHIFT + 1, (len(images), 2)).tolist()
    found = torch.stack([image[:, y : y + side, x : x + side] for image, (y, x) in zip(padded, corners, strict=True)])
    return torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, found.flip(-1), found)


def accuracy(network: CifarMobileNet, images: Tensor, labels: Tensor) -> float:
    """The fraction of images recognized."""
    with torch.inference_mode():
        found = torch.cat([network(part).argmax(dim=1) for part in torch.split(images, 500)])
    return float((found == labels).float().mean())


if __name__ == "__main__":
    main()
