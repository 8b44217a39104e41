"""Networks that torch exports: a Twin gives torch's outputs at other batch sizes, and torch's gradients."""

from __future__ import annotations

import warnings

import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixq.twin import Twin


class Residual(nn.Module):
    """Two convolutions and a shortcut (He et al. 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.conv2(F.relu6(self.norm1(self.conv1(x)))))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.block = Residual(8)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.up = nn.Upsample(scale_factor=2, mode="bilinear")
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        features = self.up(self.pool(self.block(self.stem(x))))
        return torch.as_tensor(self.fc(F.adaptive_avg_pool2d(features, 1).flatten(1)))


class Transformer(nn.Module):
    """Token embedding, one encoder layer with a padding mask, a classifier (Vaswani et al. 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, activation="gelu", batch_first=True)
        self.fc = nn.Linear(32, 5)

    def forward(self, tokens: Tensor, padding: Tensor) -> Tensor:
        encoded = self.layer(self.embedding(tokens), src_key_padding_mask=padding)
        return torch.as_tensor(self.fc(encoded[:, 0]))


def images(batch: int) -> tuple[Tensor, ...]:
    return (torch.randn(batch, 3, 16, 16),)


def sentences(batch: int) -> tuple[Tensor, ...]:
    return torch.randint(0, 50, (batch, 7)), torch.arange(7).expand(batch, 7) >= 5


def exported(network: nn.Module, example: tuple[Tensor, ...]) -> ir.Model:
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated", category=FutureWarning)
        warnings.filterwarnings("ignore", message="# The axis name: batch will not be used", category=UserWarning)
        program = torch.onnx.export(
            network.eval(), example, dynamo=True, dynamic_shapes=[{0: batch} for _ in example], verbose=False
        )
    assert program is not None
    return program.model


NETWORKS = {"resnet": (ResNet, images), "transformer": (Transformer, sentences)}


@pytest.mark.parametrize("name", NETWORKS)
def test_exported_network(name: str) -> None:
    torch.manual_seed(0)
    build, example = NETWORKS[name]
    network = build()
    for parameter in network.parameters():  # the exporter would merge those that are equal
        nn.init.normal_(parameter, std=0.2)
    model = exported(network, example(2))
    # The exporter folds batch norm into the convolution before it, and transposes some matrices under a new name.
    kept = [name for name, _ in network.named_parameters() if name in model.graph.initializers and "conv1" not in name]
    twin = Twin(model, trainable=kept)
    for batch in (1, 5):
        inputs = example(batch)
        named = {str(value.name): tensor for value, tensor in zip(model.graph.inputs, inputs, strict=True)}
        (actual,), expected = twin(named).values(), network(*inputs)
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
        weight = torch.randn_like(expected)
        parameters = twin.trainable_parameters()
        ours = torch.autograd.grad(actual, list(parameters.values()), weight)
        theirs = torch.autograd.grad(expected, [network.get_parameter(name) for name in kept], weight)
        assert len(kept) >= 5
        for gradient, wanted in zip(ours, theirs, strict=True):
            torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5)
