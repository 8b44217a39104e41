"""Placement: what a runtime's integer kernels want to see around them, as data.

Each runtime owns one value of this; `plan.py` turns it into the places of the QuantizeLinear/DequantizeLinear pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

# Ops that hand on the very values that they read: codes stay valid on the other side, and smaller data travels.
VALUE_PRESERVING = frozenset(
    {"MaxPool", "Concat", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split", "Identity"}
)


@dataclass(frozen=True, slots=True)
class Forms:
    """How weight-only and dynamic layers are written: names of the table in `unpaired.py`.

    weight_only_beside_dynamic: of weight-only layers where the network has dynamic ones too.
    """

    weight_only: str = "folded"
    weight_only_beside_dynamic: str = "folded"
    dynamic: str = "integer_product"


@dataclass(frozen=True, slots=True)
class Placement:
    """How INT8 regions are written for one runtime.

    transparent: ops through which a pair moves up, so that the producer already writes codes.
    integer: ops that are not layers and run on codes where their quantized inputs and their output are quantized. An
    output of an INT8 layer is quantized for them where the other operands are too: then its kernel writes bytes.
    up_to_codes: whether a pair moves up only where an integer kernel writes codes anyway; elsewhere the runtime's float
    kernels of the transparent ops are the faster ones.
    all_inputs: whether `integer` ops need a pair on every input, and on the output one that every reader stands behind;
    such pairs are added where codes flow in. Else one quantized input is enough, the rest fuses.
    shrinking: of `integer`, ops that make little out of much: behind the last layer they run on codes
    wherever codes come in.
    output_pairs: layers whose INT8 kernel is picked only with a pair on the output too (behind its activation).
    float_fusions: (layer op, activation) that the runtime fuses in float before it looks for integer kernels; the layer
    gets an output pair where that activation alone follows.
    fused_activations: activations that an integer kernel takes in, so that the pair stands behind them.
    products_transpose: whether a float product of activations writes its output in the layout that the transparent ops
    behind it make; no pair moves up between them.
    products_swap: whether a product reads its second operand with the last two axes swapped at no cost (`products.py`).
    pair_after_transparent: whether a pair is repeated behind each transparent op.
    no_zero_point: layers whose integer kernel takes no zero point: what they read is s8 where it has negative values.
    forms: of INT8 layers that have no pair on their input.
    sums_saturate: whether this CPU's integer kernels add the products of two neighbouring inputs in 16 bits, which the
    largest codes do not fit (`mixq/ptq/neighbours.py`).
    scales_fuse: whether a multiplication by a constant for each channel costs nothing before a pair, which takes it in.
    rewritten: ops of `transparent` and `integer` that the runtime finds no integer kernel for by itself; they are
    written in a form that it has one for (`rewrite.py`).
    """

    transparent: frozenset[str] = VALUE_PRESERVING
    integer: frozenset[str] = frozenset()
    shrinking: frozenset[str] = frozenset()
    up_to_codes: bool = False
    all_inputs: bool = False
    output_pairs: frozenset[str] = frozenset()
    float_fusions: frozenset[tuple[str, str]] = frozenset()
    fused_activations: frozenset[str] = frozenset({"Relu", "Clip"})
    products_transpose: bool = False
    products_swap: bool = False
    pair_after_transparent: bool = False
    no_zero_point: frozenset[str] = frozenset()
    scales_fuse: bool = False
    rewritten: frozenset[str] = frozenset()
    forms: Forms = Forms()  # frozen
    sums_saturate: bool = False
