"""Quantization-aware training of the layers with stage qat, as one stage of a configuration."""

from mixq.qat.course import Trained
from mixq.qat.loss import Lessons, loss_of, loss_source
from mixq.qat.trainer import Look, Standing, Trainer

__all__ = ["Lessons", "Look", "Standing", "Trained", "Trainer", "loss_of", "loss_source"]
