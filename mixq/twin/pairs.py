"""A QuantizeLinear and the DequantizeLinear behind it, as one step: half the time and memory of two."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from mixq.twin.ops.quant import fake_quantize
from mixq.twin.ops.signature import spread
from mixq.twin.step import Step

PAIR = "FakeQuantize"


def joined_pairs(steps: Sequence[Step], kept: Collection[str]) -> list[Step]:
    """The steps, with each pair whose codes nothing else reads as one, named as its DequantizeLinear.

    `kept`: values that are read from outside, whose steps have to stay.
    """
    reads = Counter(name for step in steps for name in step.inputs)
    makers = {step.outputs[0]: step for step in steps if step.op_type == "QuantizeLinear"}
    found: list[Step] = []
    joined = set()
    for step in steps:
        codes = step.inputs[0] if step.op_type == "DequantizeLinear" else ""
        maker = makers.get(codes)
        if maker is None or reads[codes] > 1 or codes in kept or not _alike(maker, step):
            found.append(step)
        else:
            joined.add(codes)
            found.append(replace(step, op_type=PAIR, function=_function(maker), inputs=maker.inputs))
    return [step for step in found if step.outputs[0] not in joined]


def _alike(first: Step, second: Step) -> bool:
    """Whether both have the same scale, zero point and axis."""
    return first.inputs[1:] == second.inputs[1:] and first.attributes.get("axis", 1) == second.attributes.get("axis", 1)


def _function(step: Step) -> Any:
    return partial(spread(fake_quantize), step.attributes)
