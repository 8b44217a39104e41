"""Writes what a transposed convolution cuts off its output, or adds to it, as `pads` and `output_padding`.

That is the one form that every runtime understands: OpenVINO 2026.4 takes no notice of auto_pad=SAME_* there, and of
output_shape cuts the wrong end.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from mixq.errors import InputError

SAME = ("SAME_UPPER", "SAME_LOWER")


def make_pads_explicit(model: ir.Model) -> None:
    """Of every ConvTranspose with auto_pad or output_shape. Changes `model`.

    Raises InputError, naming the node, where the pads depend on an input's size that is not known.
    """
    nodes = [node for node in model.graph if node.op_type == "ConvTranspose" and not _explicit(node)]
    if any("output_shape" in node.attributes for node in nodes):
        ShapeInferencePass(strict_mode=False, data_prop=True)(model)
    for node in nodes:
        mode, more = node.attributes.get_string("auto_pad", "NOTSET"), _ints(node, "output_padding", 0)
        over = _too_much(node, mode, more)
        cut = [max(n, 0) for n in over]
        starts = [n // 2 if mode == "SAME_UPPER" else n - n // 2 for n in cut]
        pads = [*starts, *(n - start for n, start in zip(cut, starts, strict=True))]
        for name in ("auto_pad", "output_shape"):
            node.attributes.pop(name, None)
        node.attributes["pads"] = ir.AttrInt64s("pads", pads)
        node.attributes["output_padding"] = ir.AttrInt64s(
            "output_padding", [m + max(-n, 0) for m, n in zip(more, over, strict=True)]
        )


def _explicit(node: ir.Node) -> bool:
    return node.attributes.get_string("auto_pad", "NOTSET") == "NOTSET" and "output_shape" not in node.attributes


def _too_much(node: ir.Node, mode: str, more: Sequence[int]) -> list[int]:
    """By axis, how much longer the whole output is than the one wanted (ONNX, ConvTranspose)."""
    strides, dilations = _ints(node, "strides", 1), _ints(node, "dilations", 1)
    reach = [d * (k - 1) + 1 for d, k in zip(dilations, _kernel(node), strict=True)]
    if "output_shape" in node.attributes:
        wanted = node.attributes["output_shape"].as_ints()[-len(reach) :]
        axes = zip(_sizes(node, len(reach)), strides, reach, more, wanted, strict=True)
        return [s * (n - 1) + r + m - w for n, s, r, m, w in axes]
    if mode in SAME:  # n inputs become n · stride outputs, whatever n is
        return [r + m - s for s, r, m in zip(strides, reach, more, strict=True)]
    return [0] * len(reach)


def _kernel(node: ir.Node) -> list[int]:
    weight = node.inputs[1]
    shape = [] if weight is None or weight.shape is None else [n for n in weight.shape if isinstance(n, int)]
    if len(shape) < 3:
        raise InputError(f"node {node.name!r}: the shape of its weight is unknown; export it with constant weights")
    return shape[2:]


def _sizes(node: ir.Node, rank: int) -> list[int]:
    data = node.inputs[0]
    sizes = [] if data is None or data.shape is None else [n for n in data.shape[-rank:] if isinstance(n, int)]
    if len(sizes) != rank:
        raise InputError(
            f"node {node.name!r}: output_shape with an input of unknown size; give it pads instead and export it again"
        )
    return sizes


def _ints(node: ir.Node, name: str, default: int) -> list[int]:
    return list(node.attributes.get_ints(name, [default] * len(_kernel(node))))
