"""The network as an ONNX graph: captured, tabulated, and lowered to mixed precision."""

from mixq.graph.capture import capture
from mixq.graph.model import Graph, Layer, Run, serialize

__all__ = ["Graph", "Layer", "Run", "capture", "serialize"]
