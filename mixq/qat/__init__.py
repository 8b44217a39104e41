"""Quantization-aware training of the layers with stage qat, as one stage of a configuration."""

from mixq.qat.train import train

__all__ = ["train"]
