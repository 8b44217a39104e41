"""Trains the digits network and writes its checkpoint: `python -m experiments.digits.train`, from the project's root.

Deterministic: the same machine and thread count give the same checkpoint. About a minute on two cores.
"""

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from tqdm import trange

from experiments.digits.digits_data import read_digits
from experiments.digits.digits_network import CHECKPOINT, DigitsNetwork

SEED = 0
EPOCHS = 30
BATCH_SIZE = 64
LEARNING_RATE = 4e-3
WEIGHT_DECAY = 1e-2
MAX_SHIFT = 4


def main() -> None:
    """Trains, writes the checkpoint, prints the accuracy on the digits not trained on."""
    torch.manual_seed(SEED)
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    network = DigitsNetwork()
    train(network)
    save_file(network.state_dict(), CHECKPOINT)
    for part in ("search", "holdout"):
        images, labels = as_tensors(part)
        print(f"{part}: {accuracy(network, images, labels):.4f} of {len(labels)} digits")
    print(f"checkpoint: {CHECKPOINT}")


def train(network: DigitsNetwork) -> None:
    """AdamW with a one-cycle learning rate over the training part; leaves the network in eval mode."""
    images, labels = as_tensors("training")
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = len(labels) // BATCH_SIZE
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=EPOCHS * steps)
    network.train()
    for _ in trange(EPOCHS, desc="epochs"):
        for rows in torch.randperm(len(labels))[: steps * BATCH_SIZE].reshape(steps, BATCH_SIZE):
            loss = F.cross_entropy(network(shifted(images[rows])), labels[rows], label_smoothing=0.1)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    network.eval()


def as_tensors(part: str) -> tuple[Tensor, Tensor]:
    """Images and labels of a part."""
    digits = read_digits(part)
    return torch.from_numpy(digits.images), torch.from_numpy(digits.labels)


def shifted(images: Tensor) -> Tensor:
    """Each image moved by up to MAX_SHIFT pixels in both directions; what enters is blank."""
    side = images.shape[-1]
    padded = F.pad(images, (MAX_SHIFT,) * 4)
    corners = torch.randint(0, 2 * MAX_SHIFT + 1, (len(images), 2)).tolist()
    moved = [image[:, y : y + side, x : x + side] for image, (y, x) in zip(padded, corners, strict=True)]
    return torch.stack(moved)


def accuracy(network: DigitsNetwork, images: Tensor, labels: Tensor) -> float:
    """The fraction of digits recognized."""
    with torch.inference_mode():
        return float((network(images).argmax(dim=1) == labels).float().mean())


if __name__ == "__main__":
    main()
