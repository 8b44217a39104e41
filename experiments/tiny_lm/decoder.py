"""A small decoder language model (pre-norm, GELU, learned positions, tied head), and where its weights lie."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHECKPOINT = Path(__file__).with_name("tiny_lm.safetensors")
VOCABULARY = 128  # ASCII
CONTEXT = 128


class Decoder(nn.Module):
    """Next-character logits; 0.16 M parameters by default. The head's weight is the embedding's (Press & Wolf 2017)."""

    def __init__(
        self, vocabulary: int = VOCABULARY, context: int = CONTEXT, width: int = 64, heads: int = 4, blocks: int = 3
    ) -> None:
        """`context`: the most tokens of a row; `width` is a multiple of `heads`."""
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(0.02 * torch.randn(context, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """(rows, time) token numbers → (rows, time, vocabulary) logits of the token that follows each."""
        x = self.embedding(tokens) + self.position[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        # As one matrix: so the exporter writes a Gemm that reads the embedding itself, and no transposed copy of it.
        logits = F.linear(self.norm(x).flatten(0, 1), self.embedding.weight)
        return logits.reshape(*tokens.shape, -1)


class Block(nn.Module):
    """Causal attention and a feed-forward network, each behind a normalization and beside a residual path."""

    def __init__(self, width: int, heads: int) -> None:
        """`width`: channels of the residual path, a multiple of `heads`."""
        super().__init__()
        self.heads = heads
        self.attention_norm, self.feed_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.project = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(rows, time, width), in and out."""
        y = self.attention_norm(x)
        query, key, value = (self._split(layer(y)) for layer in (self.query, self.key, self.value))
        found = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.project(found.transpose(1, 2).flatten(2))
        fed: Tensor = self.down(F.gelu(self.up(self.feed_norm(x))))
        return x + fed

    def _split(self, x: Tensor) -> Tensor:
        """(rows, heads, time, width of a head)."""
        rows, time, _ = x.shape
        return x.reshape(rows, time, self.heads, -1).transpose(1, 2)
