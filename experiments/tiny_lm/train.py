"""Trains the decoder and writes its checkpoint: `python -m experiments.tiny_lm.train`, from the project's root.

Deterministic: the same machine and thread count give the same checkpoint. 14 minutes on two cores that others used too.
"""

import math

import torch
from safetensors.torch import save_model
from torch import Tensor
from torch.nn import functional as F
from tqdm import trange

from experiments.tiny_lm.decoder import CHECKPOINT, CONTEXT, Decoder
from experiments.tiny_lm.text import read_text

SEED = 0
STEPS = 800
BATCH_SIZE = 16
LEARNING_RATE = 4e-3
WEIGHT_DECAY = 0.1


def main() -> None:
    """Trains, writes the checkpoint, prints the perplexity of a character on text not trained on."""
    torch.manual_seed(SEED)
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    network = Decoder()
    train(network)
    save_model(network, str(CHECKPOINT))
    for part in ("training", "search", "holdout"):
        inputs, targets = map(torch.from_numpy, read_text(part))
        print(f"{part}: perplexity {perplexity(network, inputs, targets):.4f} of {targets.numel()} characters")
    print(f"checkpoint: {CHECKPOINT}")


def train(network: Decoder) -> None:
    """AdamW with a one-cycle learning rate, on windows from anywhere in the training text."""
    inputs, targets = (torch.from_numpy(part).reshape(-1) for part in read_text("training"))
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS)
    network.train()
    for _ in trange(STEPS, desc="steps"):
        starts = torch.randint(0, len(inputs) - CONTEXT, (BATCH_SIZE, 1))
        window = starts + torch.arange(CONTEXT)
        loss = cross_entropy(network, inputs[window], targets[window])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    network.eval()


def cross_entropy(network: Decoder, inputs: Tensor, targets: Tensor) -> Tensor:
    """Mean over characters, in nats."""
    return F.cross_entropy(network(inputs).flatten(0, 1), targets.flatten())


def perplexity(network: Decoder, inputs: Tensor, targets: Tensor) -> float:
    """exp of the mean cross-entropy."""
    with torch.inference_mode():
        parts = [
            float(cross_entropy(network, inputs[rows], targets[rows])) * len(rows)
            for rows in torch.split(torch.arange(len(inputs)), 64)
        ]
    return math.exp(sum(parts) / len(inputs))


if __name__ == "__main__":
    main()
