"""The graph as a trainable torch module, through one table ONNX op → torch function."""

from mixq.twin.module import Twin
from mixq.twin.step import unsupported_ops

__all__ = ["Twin", "unsupported_ops"]
