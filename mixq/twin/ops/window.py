"""Where a sliding window stands on its input: ONNX's pads, auto_pad and ceil_mode as explicit numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mixq.twin.ops.signature import Attributes

Pads = Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Window:
    """Per spatial axis: the kernel's length, its stride and dilation, and the padding before and after."""

    kernel: Sequence[int]
    strides: Sequence[int]
    dilations: Sequence[int]
    pads: Pads

    @property
    def spans(self) -> list[int]:
        """The length that the dilated kernel covers, per axis."""
        return [span(kernel, dilation) for kernel, dilation in zip(self.kernel, self.dilations, strict=True)]

    @property
    def symmetric(self) -> bool:
        return all(begin == end for begin, end in self.pads)

    @property
    def before(self) -> list[int]:
        return [begin for begin, _ in self.pads]


def span(kernel: int, dilation: int) -> int:
    return (kernel - 1) * dilation + 1


def window(attributes: Attributes, sizes: Sequence[int], kernel: Sequence[int]) -> Window:
    """The window of a convolution or pooling node over an input of the spatial `sizes`."""
    ones = (1,) * len(kernel)
    strides = attributes.get("strides", ones)
    dilations = attributes.get("dilations", ones)
    mode = attributes.get("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        spans = [span(length, dilation) for length, dilation in zip(kernel, dilations, strict=True)]
        totals = [_same(*axis) for axis in zip(sizes, spans, strides, strict=True)]
        return Window(kernel, strides, dilations, [halves(total, mode == "SAME_UPPER") for total in totals])
    explicit = attributes.get("pads") if mode == "NOTSET" else None
    return Window(kernel, strides, dilations, pairs(explicit or (0, 0) * len(kernel)))


def pairs(pads: Sequence[int]) -> Pads:
    """ONNX's pads, all begins and then all ends, as one (begin, end) an axis."""
    rank = len(pads) // 2
    return list(zip(pads[:rank], pads[rank:], strict=True))


def flat(pads: Pads) -> list[int]:
    """The same in the order that torch.nn.functional.pad wants: the last axis first."""
    return [number for pair in reversed(pads) for number in pair]


def halves(total: int, extra_at_end: bool) -> tuple[int, int]:
    """`total` split in two; an odd one goes to the end or to the begin."""
    small, large = total // 2, total - total // 2
    return (small, large) if extra_at_end else (large, small)


def _same(size: int, length: int, stride: int) -> int:
    """The padding for which the output has ceil(size / stride) elements."""
    return max((-(-size // stride) - 1) * stride + length - size, 0)


def overhang(frame: Window, sizes: Sequence[int], ceil_mode: bool) -> Pads:
    """What must be added after the pads so that the windows, without ceil_mode, fit exactly (or cut, if negative).

    With ceil_mode the last window may stick out, but must not start in the padding at the end.
    """
    extra = []
    for size, (begin, end), length, stride in zip(sizes, frame.pads, frame.spans, frame.strides, strict=True):
        room = size + begin + end - length
        steps = -(-room // stride) if ceil_mode else room // stride
        if ceil_mode and steps * stride >= size + begin:
            steps -= 1
        extra.append((0, steps * stride - room))
    return extra
